"""What an alignment score would be by chance, and how far it goes beyond that."""

from __future__ import annotations

import math


def chance_level(n: int, k: int) -> float:
    """The expected mutual k-nearest-neighbour score of two unrelated models, k / (n - 1).

    It is the exact mean over all re-pairings of the items, for any two neighbour graphs: each of
    an item's k neighbours is one of the n - 1 others with equal probability.

    Args:
        n: Number of items, at least 2.
        k: Neighbourhood size, 1 <= k <= n - 1.

    Returns:
        A value in (0, 1].

    Raises:
        ValueError: If k is outside 1..n - 1.
    """
    if not 1 <= k <= n - 1:
        raise ValueError(f"k = {k} is outside 1..{n - 1}, the neighbourhood sizes of {n} items")
    return k / (n - 1)


def chance_corrected(score: float, chance: float) -> float:
    """How much of what chance leaves to be reached a score reaches, (s - c) / (1 - c).

    As kappa corrects agreement for chance (Cohen 1960, Educational and Psychological Measurement
    20, equation 1): 0 for a score at chance, 1 for full alignment, negative below chance. It sets
    right the mean of one layer pair's score, not the best of many pairs, whose level by chance is
    higher: see :func:`prh_eval.alignment.permutation.calibrate`.

    Args:
        score: The observed score s, at most 1.
        chance: Its mean by chance c, in [0, 1]; from :func:`chance_level`.

    Returns:
        A value of at most 1; 0 where chance is 1, since then every pairing of the items scores 1
        and a score says nothing.

    Raises:
        ValueError: If chance is outside [0, 1], or the score is above 1 or no number.
    """
    if not 0 <= chance <= 1:
        raise ValueError(f"chance = {chance} is outside [0, 1]")
    # A mean of weights may be above 1 by rounding.
    if not (math.isfinite(score) and score <= 1 + 1e-9):
        raise ValueError(f"score = {score} is not a number of at most 1")
    return (min(score, 1.0) - chance) / (1 - chance) if chance < 1 else 0.0
