"""Standard errors and confidence intervals of mutual k-nearest-neighbour scores and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.halves import (
    half_scores,
    half_words,
    halves_reach,
    layers,
    scores_without,
)
from prh_eval.alignment.metrics import check_pair, item_overlap, shared_weights

# Splits into halves are the bits of so many words of 64; the first few are enough for a ratio.
_WORDS = 2
_SPLITS_WITHOUT = 8
# Halves of fewer than this many times k items say nothing about all of them.
_ITEMS = 4
# Standard errors themselves err by about a tenth, as from so many degrees of freedom.
_FREEDOM = 40
# How much of the jackknife's change from halves to the whole is taken over: by simulation.
_TRUST = 0.8

# Differences and errors up to this are rounding: scores are means of weights.
_ROUNDING = 1e-12

Pairs = Sequence[tuple[NeighborGraph, NeighborGraph]]


@dataclass(frozen=True)
class Difference:
    """The difference of two scores on the same items.

    Attributes:
        difference: The first score less the second, in [-1, 1].
        stderr: Its standard error.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        p: Two-sided p-value of no difference, by Student's t; where the error is 0, 1
            for no difference and 0 for any.
    """

    difference: float
    stderr: float
    low: float
    high: float
    p: float


def standard_error(x: NeighborGraph, y: NeighborGraph, k: int) -> float:
    """The standard error of the score of one layer pair, over fresh draws of the items.

    An item's neighbours are other items, so that overlaps depend on each other. Treating items as
    independent gives too small an error in most worlds; resampling with repetition is wrong,
    because copies of an item are each other's neighbours; leaving out one item at a time, the
    jackknife, counts what several items do together several times (Efron and Stein 1981, Annals of
    Statistics 9: on average it is never below the variance), and is up to 1.8 times too large here.

    Two halves of the items share none, so they are independent draws of n / 2 items each, and half
    the mean squared difference of their scores, over random splits, estimates the variance of a
    score of n / 2 items without bias. Half of that would be the variance of n items, if neighbours
    among twice as many items were as alike as before; how far they are not is told by the
    jackknife, which counts too much in halves as in the whole:

        Var = mean (s_A - s_B)^2 / 4 * (2 J(n) / mean J(n / 2))^0.8,

    where s_A, s_B are the scores of halves (128 splits) and J the jackknife's variance, of all
    items and of those of a half (8 splits). Its change is not taken over in full. The power was
    chosen among 1, 0.8, 0.75 and 0.67 by simulation (250 draws, 64 splits; n = 256, k = 5, and
    n = 512, k = 10) in worlds like those below, so that their figures are no test on new worlds:
    where items come in clusters of about 2.5 k, the power 1 gave 0.85 to 1.08 times the true spread
    and 0.8 gave 0.89 to 1.18 times, which covered 93 to 98 % in place of 90 to 97 %. The neighbours
    within a half are the first of the kept neighbours that are in it
    (:mod:`prh_eval.alignment.halves`), which takes graphs that reach to
    :func:`prh_eval.alignment.halves.halves_reach`, 45 neighbours for k = 10, and n >= 8 k items.

    Where graphs reach less far, or there are fewer items, dependence is taken along the graph, as
    Conley (1999, Journal of Econometrics 92) does in space:

        Var = sum_ij e_i e_j W_ij / n^2,  W_ii = 1,  W_ij = a_ij b_ij for i != j,

    where e_i is item i's overlap less the mean, and a_ij, b_ij are the weights with which j is one
    of i's k nearest neighbours on the two sides; its terms for i != j are taken as no less than 0
    together. That errs on the large side, by up to 2.1 times, where the overlap depends on where in
    the space an item lies.

    The result is deterministic, never NaN, and 0 where all items have the same overlap, for
    instance none; with few items and small k that is no certainty (of unrelated layers, n = 30 and
    k = 1, it was so in 41 % of 300 draws). It depends on the order of the items as far as that
    decides which are in which half: by about a twentieth.

    In simulations (``tests/alignment/simulated_coverage.py``: five worlds, strong and weak
    alignment, graphs that keep 100 neighbours) its mean over fresh draws was 0.97 to 1.11 times the
    spread of the score at n = 256, and 0.91 to 1.12 times at n = 1,024, with k = 10; 1.21 times in
    one world, whose clusters are of 13 items, half of them aligned and half not.

    Args:
        x: Graph of one layer, n items; as far as it is kept, not trimmed to k.
        y: Graph of one layer, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        The standard error, in the units of the score.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    return math.sqrt(_variance([(x, y)], k))


def confidence_interval(score: float, stderr: float, level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a score: for its expectation over fresh draws of n items.

    By Student's t with 40 degrees of freedom, as the standard error is itself known to a tenth. In
    simulations (``tests/alignment/simulated_coverage.py``, k = 10) intervals at 95 % held the
    expectation in 94.3 to 97.0 % of 300 draws of 256 items, for isotropic, clustered and hubby
    worlds and one of uneven noise, with strong and weak alignment, and in 98 % where half of the
    clusters, of 13 items each, are aligned; of 150 draws of 1,024 items in 93.3 to 97.3 %. In
    worlds that had no part in the choice of the estimator (``--fresh``: other maps, centres and
    noise, 6, 10 and 50 clusters) they held it in 94.2 to 97.0 % of 600 draws of 512 items. In ten
    clusters that are aligned more strongly than any of those (noise 0.25 in place of 0.4), 89.5 %
    of 200 draws of 400 items.

    Where the layer pair was chosen as the best of many, the expectation meant is that of the pair
    that was chosen, and its score is on average above that, by about the ``flattery`` that
    :func:`prh_eval.alignment.crossfit.cross_fitted` finds: the interval is that of the score less
    this. Of the best of 6 or 12 layers that are nearly equally good and whose noise is independent,
    the worst there is, such intervals at 95 % held it in 95 to 99 % of 200 draws of 256 or 300
    items in each of seven worlds (those of the score itself in 73 to 94 %), and in 94 % where the
    layers differ: noise up to 1.6 times that of the first.

    Args:
        score: In [0, 1], or less what the choice of the layer pair flatters it by.
        stderr: What :func:`standard_error` says of it.
        level: How often the interval should hold the expectation, in (0, 1).

    Returns:
        Lower and upper end, within [0, 1].
    """
    reach = _quantile(level) * stderr
    return max(0.0, score - reach), min(1.0, score + reach)


def paired_difference(
    a: NeighborGraph,
    a_reference: NeighborGraph,
    b: NeighborGraph,
    b_reference: NeighborGraph,
    k: int,
) -> Difference:
    """The difference of two models' scores on the same items, with its own error.

    What the choice of items does to both scores cancels, so that the error is smaller than those
    of the two scores. It is estimated as that of a score (:func:`standard_error`), with the
    difference of the two in place of the score in all parts of it, and by k / 2 neighbours, rounded
    up, where it is of halves. So neighbourhoods are as wide in halves as in all items. What is left
    of a difference is which neighbours are shared; by k, where half a cluster has hardly more items
    than that, all models share nearly all of them, and halves say nothing of how they differ.

    In simulations of two equal models (the worlds of ``tests/alignment/simulated_coverage.py``,
    k = 10, n = 300, 300 draws, and clusters with n = 512, 200 draws) p < 0.05 came in 2.7 to 7.3 %;
    by k neighbours in halves it was 2 to 8 %, and 14 % in strongly aligned clusters of 26 items. In
    worlds that had no part in the choice (other maps; 10 and 50 clusters, isotropic, hubby, uneven;
    four models at a time) it came in 3.3 to 6.7 % with 400 items (100 draws), and with 1,024 in
    6.1 % (145 draws) of 50 clusters and 7.5 % (60 draws) of hubby items.

    Args:
        a: Graph of one layer of the first model, n items.
        a_reference: Graph of the reference's layer it is scored against.
        b: Graph of one layer of the second model, the same n items in the same order.
        b_reference: Graph of the reference's layer this is scored against; often the same.
        k: Neighbourhood size that all answer for.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    from scipy.special import stdtr

    pairs = [(a, a_reference), (b, b_reference)]
    check_pair(a, b, k)
    difference = float(_less([item_overlap(x, y, k).cpu() for x, y in pairs]).mean())
    if abs(difference) <= _ROUNDING:
        difference = 0.0
    stderr = math.sqrt(_variance(pairs, k))
    reach = _quantile(0.95) * stderr
    p = 2 * float(stdtr(_FREEDOM, -abs(difference) / stderr)) if stderr else float(difference == 0)
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    return Difference(difference, stderr, low, high, p)


def _quantile(level: float) -> float:
    from scipy.special import stdtrit  # takes a tenth of a second to import

    return float(stdtrit(_FREEDOM, (1 + level) / 2))


def _variance(pairs: Pairs, k: int) -> float:
    """Of the score of one layer pair, or of the difference of those of two."""
    for x, y in pairs:
        check_pair(x, y, k)
        if x.layers != 1 or y.layers != 1:
            raise ValueError(f"one layer a side is needed, not {x.layers} and {y.layers}")
    n = pairs[0][0].n
    # Neighbourhoods of halves are as wide as those of all where they have half as many items.
    half_k = k if len(pairs) == 1 else (k + 1) // 2
    reach = min(halves_reach(half_k), n - 1)
    if n >= 2 * _ITEMS * k and all(graph.k >= reach for pair in pairs for graph in pair):
        found = _by_halves(pairs, k, half_k)
    else:
        found = _along_graph(pairs, k)
    return found if found > _ROUNDING**2 else 0.0


def _by_halves(pairs: Pairs, k: int, half_k: int) -> float:
    whole = _jackknife(_less([scores_without(layers(x, y, k + 1), k) for x, y in pairs]))
    near = [layers(x, y, halves_reach(half_k)) for x, y in pairs]
    words = half_words(pairs[0][0].n, _WORDS)
    first, second = zip(*(half_scores(pair, half_k, words) for pair in near), strict=True)
    of_half = float((_less(first) - _less(second)).square().mean()) / 2
    counted = []
    for split in range(_SPLITS_WITHOUT):
        half = (words[0] >> split & 1).bool()
        scores = _less([scores_without(pair, half_k, half) for pair in near])
        counted += [_jackknife(scores[half]), _jackknife(scores[~half])]
    expected = sum(counted) / len(counted)
    # Beyond the half that twice as many items make.
    change = 2 * whole / expected if whole and expected else 1.0
    return float(of_half / 2 * change**_TRUST)


def _jackknife(scores: Tensor) -> float:
    """The variance of a score by what it is without each item."""
    m = len(scores)
    return float((scores - scores.mean()).square().sum()) * (m - 1) / m


def _along_graph(pairs: Pairs, k: int) -> float:
    errors = _less([item_overlap(x, y, k).cpu() for x, y in pairs])
    errors = errors - errors.mean()
    items, neighbors, weights = _shared_edges(pairs, k)
    independent = float(errors.square().sum())
    dependent = float((weights * errors[items] * errors[neighbors]).sum())
    return (independent + max(dependent, 0.0)) / len(errors) ** 2


def _shared_edges(pairs: Pairs, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items, neighbours they have on both sides of a pair, and with what weight; each edge once."""
    n = pairs[0][0].n
    numbers, weights = [], []
    for x, y in pairs:
        shared = shared_weights(x, y, k).cpu()
        items, places = shared.nonzero(as_tuple=True)
        numbers.append(items * n + x.indices[0].cpu()[items, places].long())
        weights.append(shared[items, places])
    edges, which = torch.unique(torch.cat(numbers), return_inverse=True)
    found = torch.zeros(len(edges), dtype=torch.float64)
    found = found.scatter_reduce(0, which, torch.cat(weights), "amax")
    return edges // n, edges % n, found


def _less(values: Sequence[Tensor]) -> Tensor:
    """The one there is, or the first less the second."""
    return values[0] if len(values) == 1 else values[0] - values[1]
