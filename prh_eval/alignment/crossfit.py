"""The best layer pair, chosen on one half of the items and scored on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.layers import best_of
from prh_eval.alignment.metrics import check_pair, overlap_in_halves
from prh_eval.alignment.uncertainty import standard_error

# Fewer items have halves without neighbours of their own.
_LEAST = 10
# Share of the noise of a half, which has a quarter of the edges, that all items have.
_NOISE = 0.5
# Against 0 / 0.
_NOTHING = 1e-9


@dataclass(frozen=True)
class CrossFitted:
    """A score that the choice of the layers cannot flatter. Layers are counted from 0.

    Attributes:
        score: Mean over halves, each scored by the other half's choice; in [0, 1], and on average
            k / (n - 1) for unrelated models, however many layers they have; below it where few
            items have strong hubs, as a half prefers pairs whose hubs are in it (0.91 of it at
            n = 30, 0.97 at n = 100, none at n = 300, simulated).
        stderr: Its standard error.
        layers: The layer pairs that the halves chose, of the first split, then the second, ...
        flattery: How much the best pair's score of all items is on average above the expectation of
            the pair that is the best, by what the halves' own choices flatter; 0 or more.
    """

    score: float
    stderr: float
    layers: list[tuple[int, int]]
    flattery: float


def cross_fitted(
    x: NeighborGraph, y: NeighborGraph, k: int, *, splits: int = 5, seed: int
) -> CrossFitted | None:
    """Mutual k-nearest-neighbour alignment of a layer pair that other items chose.

    The items are split at random into two halves. Each half chooses the layer pair that agrees best
    about its items, and that pair is scored on the other half. Neighbours are the k nearest among
    all n items, so that score and chance are comparable with those of all items; of these, a half
    goes by the ones that are in it. The score of half H is

        sum a_ij b_ij / sqrt(sum a_ij  sum b_ij),  sums over i and j in H,

    with the weights of :meth:`NeighborGraph.weights`: 1 for equal layers, as of all items, and for
    others what it is of all items but for the split. Scores of halves are averaged by their
    denominators.

    Neighbours in the other half have to be left out, or the halves know of each other: items that
    are each other's neighbours across the halves agree or not in both, and a hub is a neighbour in
    both. With 36 unrelated layer pairs (n = 400, k = 10, simulated) the best is 26 to 28 % above
    chance, or 61 % where the layers have hubs. Choosing by all neighbours of one half's items and
    scoring all of the other's is still 8 to 11 % above chance, or 50 % with hubs; choosing by those
    inside and scoring all still 37 % with hubs; this is at chance.

    A half has a quarter of all neighbours to choose and to score by. So several splits are
    averaged, which takes away most of what one adds to the error. The standard error is that of
    the pair chosen most often (:func:`prh_eval.alignment.uncertainty.standard_error`), and that of
    the average over splits; in simulations of 400 aligned items it was 1.2 times the true spread.

    The score of the pair that a half chose is higher in that half than in the other, on average by
    what the choice flatters it by, and by 0 where both choose the same. A half has a quarter of the
    edges, so that its layers have twice the noise of their own; nearly equal layers are flattered
    in proportion to that, and others by less. So half of that mean difference is taken for how much
    the best of all items is flattered. In simulations of 6 or 12 nearly equal, independent
    layers (isotropic, hubby, uneven and clustered worlds, n = 256 or 300, k = 10, 200 draws) the
    true flattery was 0.47 to 0.57 of the mean difference, and 0.27 where noise differs by 60 %.

    Args:
        x: Graph of the model, n items.
        y: Graph of the reference, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for.
        splits: How many splits, at least 2.
        seed: Any integer that torch takes, of the CPU generator whose ``torch.randperm`` splits.

    Returns:
        The score; None for fewer than 10 items, whose halves are too small.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If splits is below 2.
    """
    check_pair(x, y, k)
    if splits < 2:
        raise ValueError(f"splits = {splits}, where an error needs at least 2")
    if x.n < _LEAST:
        return None
    generator = torch.Generator().manual_seed(seed)
    near_x, near_y = x.trimmed(k), y.trimmed(k)
    first = torch.zeros(splits, x.n, dtype=torch.bool)
    for half in first:
        half[torch.randperm(x.n, generator=generator).tensor_split(2)[0]] = True
    sums = overlap_in_halves(near_x, near_y, k, first).cpu()
    inside_x, inside_y = (_inside(graph, k, first) for graph in (near_x, near_y))
    # Where a half has no neighbours inside, nothing is shared either.
    possible = (inside_x[..., :, None] * inside_y[..., None, :]).sqrt().clamp(min=_NOTHING)
    layers = []
    shared, edges = torch.zeros(2, splits, dtype=torch.float64)
    higher = 0.0
    for split in range(splits):
        halves = [*zip(sums[split], possible[split], strict=True)]
        for choosing, scored in (halves, halves[::-1]):
            pair = divmod(best_of(choosing[0] / choosing[1]), y.layers)
            layers.append(pair)
            shared[split] += scored[0][pair]
            edges[split] += scored[1][pair]
            own, other = (half[0][pair] / half[1][pair] for half in (choosing, scored))
            higher += float(own - other)
    score = float(shared.sum() / edges.sum())
    usual_x, usual_y = max(layers, key=layers.count)
    error = standard_error(x.layer(usual_x), y.layer(usual_y), k)
    # Of a ratio of means.
    among_splits = (shared - score * edges).var() / edges.mean() ** 2 / splits
    # Below 0 by rounding alone.
    flattery = max(0.0, _NOISE * higher / (2 * splits))
    return CrossFitted(score, math.sqrt(error**2 + float(among_splits)), layers, flattery)


def _inside(graph: NeighborGraph, k: int, first: Tensor) -> Tensor:
    """The sum of the weights within each half, of neighbours that are in it as their items are.

    Args:
        graph: Layers of n items.
        k: Neighbourhood size.
        first: bool, shape (splits, n): which items are in the first half.

    Returns:
        float64, shape (splits, 2, layers), on the CPU.
    """
    first = first.to(graph.indices.device)
    result = torch.zeros(len(first), 2, graph.layers, dtype=torch.float64)
    for layer, (indices, tied) in enumerate(zip(graph.indices, graph.tied, strict=True)):
        # Where neighbours tie for the last of the k places, weights are fractions.
        some = tied[:, k : k + 1].any(dim=1)
        rows = NeighborGraph(indices[None, some], tied[None, some], graph.k)
        weights, near = rows.weights(k)[0], indices[:, :k].flatten()
        for split, half in enumerate(first):
            inside = half.index_select(0, near).view(-1, k) == half[:, None]
            count = inside.sum(dim=1, dtype=torch.float64)
            count[some] = (weights * (half[rows.indices[0].long()] == half[some, None])).sum(dim=1)
            result[split, 0, layer] = count[half].sum()
            result[split, 1, layer] = count[~half].sum()
    return result
