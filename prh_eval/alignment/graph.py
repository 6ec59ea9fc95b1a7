"""The neighbour graph: all that the headline metric needs from a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Rises with every change that moves a graph, so that a kept one is never mixed with a new one.
GRAPH_VERSION = 1
# Kept graphs answer for neighbourhoods up to this size, so that curves over k need no second run.
GRAPH_K = 100


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """The nearest neighbours of n items in each layer of a model.

    Attributes:
        indices: int32, shape (layers, n, width). ``indices[l, i]`` are item i's neighbours in
            layer l in order of falling similarity, the item itself excluded. A row is at least
            ``k`` long; it is longer where items tied with the k-th neighbour would be cut off, and
            padded with -1 to the common width. Among tied neighbours the order is by index and
            means nothing.
        tied: bool, shape (layers, n, width). True where a neighbour is as similar as the one
            before it, but for rounding. Always False in the first column and in the padding.
        k: The largest neighbourhood size this graph answers for; 1 <= k <= n - 1 and width >= k.
    """

    indices: Tensor
    tied: Tensor
    k: int

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.indices.shape[0]

    @property
    def n(self) -> int:
        """Number of items."""
        return self.indices.shape[1]

    @property
    def width(self) -> int:
        """Length of the longest row."""
        return self.indices.shape[2]

    def layer(self, index: int) -> NeighborGraph:
        """A graph of one layer only; negative indices count from the end."""
        position = range(self.layers)[index]
        return NeighborGraph(
            self.indices[position : position + 1], self.tied[position : position + 1], self.k
        )

    def cpu(self) -> NeighborGraph:
        """The same graph on the CPU."""
        return NeighborGraph(self.indices.cpu(), self.tied.cpu(), self.k)

    def trimmed(self, k: int) -> NeighborGraph:
        """The same graph for neighbourhoods up to k only, without what is further away.

        Args:
            k: Neighbourhood size, 1 <= k <= ``self.k``.

        Raises:
            ValueError: If k is outside 1..``self.k``.
        """
        self._check(k)
        width = k
        # As long as some row's neighbours still tie with its k-th.
        tied = torch.ones_like(self.tied[..., 0])
        for column in self.tied[..., k:].unbind(dim=-1):
            tied = tied & column
            if not tied.any():
                break
            width += 1
        return NeighborGraph(self.indices[..., :width], self.tied[..., :width], k)

    def weights(self, k: int) -> Tensor:
        """How much each neighbour belongs to the k nearest.

        A neighbour within the k nearest has weight 1 and one beyond them 0. Where t tied
        neighbours compete for the last r places, each has weight r / t, so that every row sums to
        k and the result does not depend on the order of the items.

        Args:
            k: Neighbourhood size, 1 <= k <= ``self.k``.

        Returns:
            float64, shape (layers, n, width).

        Raises:
            ValueError: If k is outside 1..``self.k``.
        """
        self._check(k)
        nearest = torch.arange(self.width, device=self.indices.device) < k
        weights = nearest.to(torch.float64).repeat(self.layers, self.n, 1)
        # Only where the next neighbour ties with the k-th is a weight neither 0 nor 1.
        shared = self.tied[..., k : k + 1].any(dim=-1)
        if shared.any():
            weights[shared] = _tied_weights(self.indices[shared], self.tied[shared], k)
        return weights

    def _check(self, k: int) -> None:
        if not 1 <= k <= self.k:
            raise ValueError(f"k = {k} is outside 1..{self.k}, the sizes this graph answers for")


def _tied_weights(indices: Tensor, tied: Tensor, k: int) -> Tensor:
    """The weights of rows (rows, width) whose ties may go beyond the k-th place."""
    width = indices.shape[1]
    position = torch.arange(width, device=indices.device)
    present = indices >= 0
    starts = present & ~tied
    first = torch.where(starts, position, 0).cummax(dim=1).values
    # One past the last member of each tie group: the nearest start to the right.
    later = torch.where(starts, position, width)
    beyond = torch.cat([later[:, 1:], torch.full_like(later[:, :1], width)], dim=1)
    following = beyond.flip(1).cummin(dim=1).values.flip(1)
    end = torch.minimum(following, present.sum(dim=1, keepdim=True))
    places = (end.clamp(max=k) - first).clamp(min=0).to(torch.float64)
    size = (end - first).clamp(min=1)
    return torch.where(present, places / size, 0.0)
