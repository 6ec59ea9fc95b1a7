"""Every layer pair of two models at once, and the best of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import metric as named_metric
from prh_eval.alignment.uncertainty import standard_error

# Scores closer than this differ by rounding only: they are sums of n k weights of at most 1.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well two models agree. Layers are counted from 0; tensors are float64 on the CPU.

    Attributes:
        score: The largest score of all layer pairs, in [0, 1].
        stderr: Its standard error, with the layer pair taken as given.
        x_layer: Layer of x in the best pair; of equally good pairs the first in row-major order.
        y_layer: Layer of y in the best pair.
        item_overlaps: Shape (n,), each item's score in the best pair; the mean is ``score``.
        last_layer_score: The score of the last layer of x with the layer of y best for it.
        last_layer_stderr: Its standard error.
        last_layer_y: That layer of y; of equally good ones the first.
        last_layer_item_overlaps: Shape (n,), each item's score in that pair.
        grid: Shape (layers_x, layers_y), the score of every layer pair.
        n: Number of items.
        k: Neighbourhood size.
        chance: The expected score of one pair of unrelated layers; the best of many pairs lies
            above it by chance.
    """

    score: float
    stderr: float
    x_layer: int
    y_layer: int
    item_overlaps: Tensor
    last_layer_score: float
    last_layer_stderr: float
    last_layer_y: int
    last_layer_item_overlaps: Tensor
    grid: Tensor
    n: int
    k: int
    chance: float


def align(x: NeighborGraph, y: NeighborGraph, k: int, metric: str = "mutual_knn") -> Alignment:
    """Score every layer pair of two models and choose the best.

    Huh et al. (2024, arXiv 2405.07987) report the best pair.

    Args:
        x: Graph of the model, n items.
        y: Graph of the reference, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for.
        metric: Name of a metric.

    Raises:
        PrhEvalError: If the metric is unknown, the graphs are of different numbers of items, or k
            is too large for one.
    """
    measure = named_metric(metric)
    # Kept graphs reach further than most k, and every step would carry the rest along.
    # A k that a graph does not answer for is the metric's to refuse.
    x, y = (graph.trimmed(k) if 1 <= k <= graph.k else graph for graph in (x, y))
    grid = measure.grid(x, y, k).cpu()
    last = x.layers - 1
    best = _first_largest(grid.flatten())
    x_layer, y_layer = divmod(best, y.layers)
    last_y = _first_largest(grid[last])
    return Alignment(
        score=float(grid[x_layer, y_layer]),
        stderr=standard_error(x.layer(x_layer), y.layer(y_layer), k),
        x_layer=x_layer,
        y_layer=y_layer,
        item_overlaps=measure.items(x.layer(x_layer), y.layer(y_layer), k).cpu(),
        last_layer_score=float(grid[last, last_y]),
        last_layer_stderr=standard_error(x.layer(last), y.layer(last_y), k),
        last_layer_y=last_y,
        last_layer_item_overlaps=measure.items(x.layer(last), y.layer(last_y), k).cpu(),
        grid=grid,
        n=x.n,
        k=k,
        chance=chance_level(x.n, k),
    )


def _first_largest(scores: Tensor) -> int:
    """Position of the first score that no other exceeds by more than rounding."""
    return int((scores >= scores.max() - _ROUNDING).nonzero()[0])
