"""Ranks of models as tiers that the scores' standard errors can tell apart."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from prh_eval.leaderboard.inference import known_errors


def tiers(values: ArrayLike, errors: ArrayLike, alpha: float = 0.05) -> list[int]:
    """The tier of each model, 1 for the best.

    Models are sorted from the highest score down, among equal scores the smaller error first. A
    model begins a new tier where it is significantly below the first of the current tier: where
    their difference is above z(1 - alpha / 2) sqrt(e_1^2 + e_2^2). Two models whose errors are 0
    differ where their scores do.

    Models of one tier are not shown to be equal, and neighbours across a border may not be shown to
    differ: each was compared with its tier's first only. The errors are taken as independent; on
    the same items they are not, and the true error of a difference is mostly smaller, so that the
    tiers are rather too wide than too narrow.

    Args:
        values: Scores, shape (n,), finite, higher is better.
        errors: Their standard errors, shape (n,), at least 0; NaN or None (not known) counts as 0.
        alpha: Level of each comparison, in (0, 1).

    Raises:
        ValueError: If lengths disagree, a score is NaN or infinite, or an error is negative or
            infinite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError("scores must be a vector of finite values")
    known = known_errors(errors, len(scores))
    z = NormalDist().inv_cdf(1 - alpha / 2)
    result = [0] * len(scores)
    tier, first = 0, -1
    for model in np.lexsort((known, -scores)).tolist():
        if first < 0 or scores[first] - scores[model] > z * math.hypot(known[first], known[model]):
            tier, first = tier + 1, model
        result[model] = tier
    return result
