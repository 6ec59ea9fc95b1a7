"""Everything that is reported of one model and one reference, from their neighbour graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prh_eval.alignment.chance import chance_corrected
from prh_eval.alignment.crossfit import CrossFitted, cross_fitted
from prh_eval.alignment.curves import AtK, AtN, k_curve, n_curve
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.hubs import Hubs, hub_warning, hubs
from prh_eval.alignment.layers import Alignment, align, best_of
from prh_eval.alignment.permutation import (
    Calibrated,
    calibrate,
    permutation_moments,
    permutation_null,
    z_scores,
)
from prh_eval.alignment.uncertainty import confidence_interval, standard_error

# Of the generators of permutations and subsets: the same graphs give the same numbers everywhere.
SEED = 0
ALPHA = 0.05
# Permutations where nothing is said, up to so many items: of more, each takes too long.
DRAWS = 1000
DRAWS_ITEMS = 20_000


@dataclass(frozen=True, eq=False)
class Null:
    """The best layer pair's score under random re-pairings, and what it makes of the score.

    Attributes:
        values: float64, shape (draws,), rising.
        seed: Of the permutations.
        alpha: Level of the test.
        calibrated: Threshold, calibrated score and p.
    """

    values: Tensor
    seed: int
    alpha: float
    calibrated: Calibrated


@dataclass(frozen=True)
class Chosen:
    """The score of one layer of the model with the layer of the reference that is best for it.

    Attributes:
        score: In [0, 1].
        stderr: Its standard error.
        x_layer: Layer of the model.
        y_layer: Layer of the reference; of equally good ones the first.
    """

    score: float
    stderr: float
    x_layer: int
    y_layer: int


@dataclass(frozen=True, eq=False)
class Report:
    """A score with its error, its chance and what else the graphs tell. Layers count from 0.

    Attributes:
        alignment: The score of every layer pair, and the best.
        interval: 95 % confidence interval of the chosen pair's expected score: around the score
            less what the choice flatters it by.
        corrected: (s - c) / (1 - c) of the score s and its chance level c.
        z_grid: float64, shape (layers_x, layers_y): how many standard deviations of its own null
            each pair's score is above its mean.
        z: The same of the best pair; that it is the best of many is not accounted for in it.
        null: What that is accounted for in; None where no permutations were asked for.
        cross_fitted: The layer pair chosen on one half of the items and scored on the other; None
            where there are too few items for that.
        embedding: The model's first layer alone.
        last: The model's last layer alone.
        k_curve: The chosen pair's score against the neighbourhood size.
        n_curve: The chosen pair's score against the number of items.
        hubs: How unevenly items are others' neighbours in the chosen pair.
        hub_warning: A sentence where a few of them carry the score.
    """

    alignment: Alignment
    interval: tuple[float, float]
    corrected: float
    z_grid: Tensor
    z: float
    null: Null | None
    cross_fitted: CrossFitted | None
    embedding: Chosen
    last: Chosen
    k_curve: list[AtK]
    n_curve: list[AtN]
    hubs: Hubs
    hub_warning: str | None


def report(
    x: NeighborGraph,
    y: NeighborGraph,
    k: int,
    *,
    draws: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Score every layer pair of two models, with error, chance, cross-fitting, curves and hubs.

    The same graphs give the same numbers on every machine.

    Args:
        x: Graph of the model, n items.
        y: Graph of the reference, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for; curves go as far as the graphs do.
        draws: Number of permutations for the null of the best pair; 0 for none, None for
            :data:`DRAWS`, or none where there are more than :data:`DRAWS_ITEMS` items.
        progress: Called with the name of each stage that takes long, before it.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    tell = progress or (lambda _: None)
    tell("scores of all layer pairs")
    alignment = align(x, y, k)
    best = x.layer(alignment.x_layer), y.layer(alignment.y_layer)
    trimmed = x.trimmed(k), y.trimmed(k)
    tell("variances under re-pairing")
    z_grid = z_scores(alignment.grid, permutation_moments(*trimmed, k)).cpu()
    null = None
    if draws is None:
        draws = DRAWS if x.n <= DRAWS_ITEMS else 0
    if draws:
        tell(f"{draws:,} random re-pairings")
        values = permutation_null(*trimmed, k, draws=draws, seed=SEED).cpu().sort().values
        null = Null(values, SEED, ALPHA, calibrate(alignment.score, values, ALPHA))
    last = Chosen(
        alignment.last_layer_score,
        alignment.last_layer_stderr,
        x.layers - 1,
        alignment.last_layer_y,
    )
    tell("pairs chosen on halves of the items")
    crossed = cross_fitted(x, y, k, seed=SEED)
    flattery = crossed.flattery if crossed else 0.0
    tell("curves and hubs")
    found = hubs(*best, k)
    return Report(
        alignment=alignment,
        interval=confidence_interval(alignment.score - flattery, alignment.stderr),
        corrected=chance_corrected(alignment.score, alignment.chance),
        z_grid=z_grid,
        z=float(z_grid[alignment.x_layer, alignment.y_layer]),
        null=null,
        cross_fitted=crossed,
        embedding=_embedding(x, y, k, alignment),
        last=last,
        k_curve=k_curve(*best),
        n_curve=n_curve(*best, k, seed=SEED),
        hubs=found,
        hub_warning=hub_warning(found, alignment.score, x.n, k),
    )


def _embedding(x: NeighborGraph, y: NeighborGraph, k: int, alignment: Alignment) -> Chosen:
    """The first layer alone; where it is in the best pair, its error is known already."""
    y_layer = best_of(alignment.grid[0])
    if (alignment.x_layer, alignment.y_layer) == (0, y_layer):
        error = alignment.stderr
    else:
        error = standard_error(x.layer(0), y.layer(y_layer), k)
    return Chosen(float(alignment.grid[0, y_layer]), error, 0, y_layer)
