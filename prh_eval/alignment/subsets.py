"""Neighbour graphs of some of the items, taken from the graph of all."""

from __future__ import annotations

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.errors import PrhEvalError


def subset(graph: NeighborGraph, items: Tensor, k: int = 1) -> NeighborGraph:
    """The graph of some of the items among themselves, without a new search.

    An item's nearest neighbours among some items are the first of its neighbours that are among
    them. So the result is that of a search among these items alone, up to the neighbourhood size
    that every row still answers for: a row has all neighbours up to the k-th and those that tie
    with it, so that whatever it lacks is further away. (A tie may be a run of differences each
    within the tolerance. A new search could tell its ends apart once what is between is left out;
    here they stay tied.)

    Args:
        graph: Graph of n items, in any number of layers.
        items: Integers, shape (m,), in any order: which of the n items, each once.
        k: Neighbourhood size that the result has to answer for, at least 1.

    Returns:
        The graph of the m items, numbered from 0 in the order they have in ``graph``, on its
        device. Its k is the largest that all rows in all layers answer for, at most m - 1.

    Raises:
        PrhEvalError: If fewer than k of the kept neighbours of some item are among the others.
        ValueError: If ``items`` names an item twice, or one that there is not.
    """
    device, m = graph.indices.device, len(items)
    chosen = items.to(device).long().sort().values
    if m and not 0 <= int(chosen[0]) <= int(chosen[-1]) < graph.n:
        raise ValueError(f"items should be among 0 to {graph.n - 1}")
    if (chosen[1:] == chosen[:-1]).any():
        raise ValueError("items should be named once each")
    # The last place is for the padding, -1.
    numbers = torch.full((graph.n + 1,), -1, dtype=torch.int32, device=device)
    numbers[chosen] = torch.arange(m, dtype=torch.int32, device=device)
    near, tied = graph.indices.index_select(1, chosen), graph.tied.index_select(1, chosen)
    near = numbers.index_select(0, near.flatten() % (graph.n + 1)).view(near.shape)
    kept = near >= 0
    if graph.width > graph.k:
        # Behind the k-th and its ties a row may have some of a group of ties and not all.
        kept[..., graph.k :] &= tied[..., graph.k :].cummin(dim=2).values
    place = kept.cumsum(dim=2)
    counts = place[..., -1]
    reach = int(counts.min()) if m else 0
    if reach < k:
        raise PrhEvalError(
            f"the graph of {graph.n} items keeps their {graph.k} nearest neighbours, of which some "
            f"item of the {m} has only {reach} among these, where {k} are needed; take more items, "
            "or a graph that keeps more"
        )
    width = int(counts.max())
    # Whatever is not kept goes to a last column, which is cut off.
    place = torch.where(kept, place - 1, width)
    indices = near.new_full((*place.shape[:2], width + 1), -1).scatter_(2, place, near)
    still_tied = torch.zeros_like(indices, dtype=torch.bool)
    if tied.any():
        groups = torch.zeros_like(indices)
        groups.scatter_(2, place, (~tied).cumsum(dim=2, dtype=torch.int32))
        still_tied[..., 1:] = (groups[..., 1:] == groups[..., :-1]) & (indices[..., 1:] >= 0)
    return NeighborGraph(indices[..., :width], still_tied[..., :width], reach).trimmed(reach)
