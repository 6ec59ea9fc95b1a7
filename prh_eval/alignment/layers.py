"""Every layer pair of two models at once, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.registry import HEADLINE, Metric
from prh_eval.alignment.registry import metric as named_metric
from prh_eval.alignment.uncertainty import standard_error

# Scores closer than this differ by rounding only: they are sums of n k weights of at most 1.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class LayerScores:
    """How well two models agree by any metric. Layers are counted from 0; the grid is on the CPU.

    Attributes:
        score: The best score of all layer pairs.
        x_layer: Layer of x in the best pair; of equally good pairs the first in row-major order.
        y_layer: Layer of y in the best pair.
        last_layer_score: The score of the last layer of x with the layer of y best for it.
        last_layer_y: That layer of y; of equally good ones the first.
        grid: float64, shape (layers_x, layers_y), the score of every layer pair.
        n: Number of items.
        k: Neighbourhood size.
        chance: The expected score of one pair of unrelated layers, where the metric has a known
            one, else None; the best of many pairs lies above it by chance.
    """

    score: float
    x_layer: int
    y_layer: int
    last_layer_score: float
    last_layer_y: int
    grid: Tensor
    n: int
    k: int
    chance: float | None


@dataclass(frozen=True, eq=False)
class ItemScores(LayerScores):
    """How well the neighbour graphs of two models agree; tensors are float64 on the CPU.

    Attributes:
        item_overlaps: Shape (n,), each item's score in the best pair; the mean is ``score``.
        last_layer_item_overlaps: Shape (n,), each item's score in the last layer's pair.
    """

    item_overlaps: Tensor
    last_layer_item_overlaps: Tensor


@dataclass(frozen=True, eq=False)
class Alignment(ItemScores):
    """How well two models agree by the metric that is reported in full, mutual kNN.

    Attributes:
        chance: The expected score of one pair of unrelated layers.
        stderr: The standard error of ``score``, with the layer pair taken as given.
        last_layer_stderr: The standard error of ``last_layer_score``.
    """

    chance: float
    stderr: float
    last_layer_stderr: float


@overload
def align(x: NeighborGraph, y: NeighborGraph, k: int) -> Alignment: ...
@overload
def align(x: NeighborGraph, y: NeighborGraph, k: int, metric: str) -> ItemScores: ...
def align(x: NeighborGraph, y: NeighborGraph, k: int, metric: str = HEADLINE) -> ItemScores:
    """Score every layer pair of two models by their neighbour graphs and choose the best.

    Huh et al. (2024, arXiv 2405.07987) report the best pair.

    Args:
        x: Graph of the model, n items.
        y: Graph of the reference, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for; the standard errors look further, as far
            as the graphs do.
        metric: Name of a metric of neighbour graphs.

    Returns:
        An :class:`Alignment` for the metric that is reported in full, the default; the standard
        errors of others are not known.

    Raises:
        PrhEvalError: If the metric is unknown or compares features, the graphs are of different
            numbers of items, or k is too large for one.
    """
    measure = named_metric(metric, "graphs")
    assert measure.items is not None  # as every metric of graphs has
    # Kept graphs reach further than most k, and every step would carry the rest along.
    # A k that a graph does not answer for is the metric's to refuse.
    near_x, near_y = (graph.trimmed(k) if 1 <= k <= graph.k else graph for graph in (x, y))
    found = _scores(measure, measure.grid(near_x, near_y, k), x.n, k)
    best, last = (found.x_layer, found.y_layer), (x.layers - 1, found.last_layer_y)
    scores = ItemScores(
        **vars(found),
        item_overlaps=measure.items(near_x.layer(best[0]), near_y.layer(best[1]), k).cpu(),
        last_layer_item_overlaps=measure.items(
            near_x.layer(last[0]), near_y.layer(last[1]), k
        ).cpu(),
    )
    if metric != HEADLINE:
        return scores
    stderr = standard_error(x.layer(best[0]), y.layer(best[1]), k)
    if best == last:
        return Alignment(**vars(scores), stderr=stderr, last_layer_stderr=stderr)
    last_layer_stderr = standard_error(x.layer(last[0]), y.layer(last[1]), k)
    return Alignment(**vars(scores), stderr=stderr, last_layer_stderr=last_layer_stderr)


def align_features(x: Sequence[Tensor], y: Sequence[Tensor], k: int, metric: str) -> LayerScores:
    """Score every layer pair of two models by their features and choose the best.

    Args:
        x: Features of the model, one float tensor (n, dim_l) a layer, clipped and normalised.
        y: Features of the reference, of the same n items in the same order.
        k: Neighbourhood size or number of directions, for the metrics that have one.
        metric: Name of a metric of features.

    Raises:
        PrhEvalError: If the metric is unknown or compares neighbour graphs, or cannot compare these
            features.
    """
    measure = named_metric(metric, "features")
    return _scores(measure, measure.grid(x, y, k), len(x[0]), k)


def best_of(scores: Tensor, *, higher_is_better: bool = True) -> int:
    """Position of the first score that no other is better than by more than rounding.

    Args:
        scores: float64, any shape; positions are in row-major order.
        higher_is_better: Whether the largest is the best, or the smallest.
    """
    scores = scores.flatten() if higher_is_better else -scores.flatten()
    return int((scores >= scores.max() - _ROUNDING).nonzero()[0])


def _scores(measure: Metric, grid: Tensor, n: int, k: int) -> LayerScores:
    """The best layer pair of a grid."""
    grid = grid.cpu()
    better = measure.higher_is_better
    x_layer, y_layer = divmod(best_of(grid, higher_is_better=better), grid.shape[1])
    last_y = best_of(grid[-1], higher_is_better=better)
    return LayerScores(
        score=float(grid[x_layer, y_layer]),
        x_layer=x_layer,
        y_layer=y_layer,
        last_layer_score=float(grid[-1, last_y]),
        last_layer_y=last_y,
        grid=grid,
        n=n,
        k=k,
        chance=measure.chance(n, k) if measure.chance else None,
    )
