"""The standard error of a mutual k-nearest-neighbour score."""

from __future__ import annotations

import math

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import shared_weights


def standard_error(x: NeighborGraph, y: NeighborGraph, k: int) -> float:
    """The standard error of the score of one layer pair, over fresh draws of the items.

    Overlaps of items that are neighbours are correlated, because one more item near both changes
    both. Treating items as independent therefore gives too small an error, and resampling with
    repetition is wrong, because copies of an item are each other's neighbours. This is a
    covariance estimator that is robust to such dependence along a graph:

        Var = sum_ij e_i e_j W_ij / n^2,  W_ii = 1,  W_ij = a_ij b_ij for i != j,

    where e_i is item i's overlap less the mean, and a_ij, b_ij are the weights with which j is
    one of i's k nearest neighbours on the two sides (:meth:`NeighborGraph.weights`); j counts for
    i and i for j, each with its own weight, so that two items which are each other's neighbours on
    both sides count fully, and ties count by their shares. It is the form that Conley (1999,
    Journal of Econometrics 92) uses for dependence in space, with the shared neighbours in place
    of those within a distance.

    The second part of the sum can be negative by chance. Neighbours' overlaps are positively
    correlated, so the variance of independent items, sum_i e_i^2 / n^2, is taken as the least: the
    result is never NaN, and 0 only where all items have the same overlap.

    In simulations its mean is 0.9 to 1.5 times the true spread, where that of independent items is
    0.65 to 0.9 times; it errs on the large side where the overlap depends on where in the space an
    item lies.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        The standard error, in the units of the score.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    shared = shared_weights(x, y, k)
    overlaps = shared.sum(dim=1) / k
    errors = overlaps - overlaps.mean()
    # Padding names no item; its weight is 0.
    neighbors = x.indices[0].clamp(min=0).long()
    independent = float(errors.square().sum())
    dependent = float((errors[:, None] * errors[neighbors] * shared).sum())
    return math.sqrt(independent + max(dependent, 0.0)) / x.n
