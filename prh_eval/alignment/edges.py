"""A layer's neighbours as one list of weighted edges, and where edges lie in another list."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph


@dataclass(frozen=True, eq=False)
class Edges:
    """Who is whose neighbour in one layer, ordered by item and then by neighbour.

    Attributes:
        n: Number of items.
        item: int64, shape (edges,): whose neighbour it is.
        neighbor: int64, shape (edges,): which item is the neighbour.
        weight: float64, shape (edges,), in (0, 1]: how much it belongs to the k nearest.
    """

    n: int
    item: Tensor
    neighbor: Tensor
    weight: Tensor

    @property
    def keys(self) -> Tensor:
        """int64, shape (edges,), rising: a number for each edge that tells it from all others."""
        return self.item * self.n + self.neighbor

    @property
    def reversed_keys(self) -> Tensor:
        """int64, shape (edges,): the number of the edge from the neighbour back to the item."""
        return self.neighbor * self.n + self.item


def edges(graph: NeighborGraph, layer: int, k: int, device: torch.device) -> Edges:
    """The edges of one layer to its k nearest neighbours, by :meth:`NeighborGraph.weights`.

    Args:
        graph: Graph of n items.
        layer: Which layer, from 0.
        k: Neighbourhood size that the graph answers for.
        device: Where the edges are wanted.
    """
    one = graph.layer(layer).trimmed(k)
    indices, order = one.indices[0].to(device, torch.int64).sort(dim=1)
    weights = one.weights(k)[0].to(device).gather(1, order)
    item, place = (weights > 0).nonzero(as_tuple=True)
    return Edges(graph.n, item, indices[item, place], weights[item, place])


def find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where some numbers are among rising ones.

    Args:
        keys: int64, shape (m,), rising, m >= 1.
        wanted: int64, any shape.

    Returns:
        The position in ``keys``, int64, and whether it is there, bool, both in the shape of
        ``wanted``; where it is not, the position is of another one.
    """
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return place, keys[place] == wanted
