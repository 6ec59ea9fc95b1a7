"""The chance level against every re-pairing of a few items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from alignment.oracles import nearness, weights
from sklearn.metrics import cohen_kappa_score

from prh_eval.alignment.chance import chance_corrected, chance_level


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("decimals", [0, 6], ids=["ties", "no ties"])
def test_is_the_mean_over_all_permutations(k, decimals):
    g = np.random.default_rng(k)
    n = 6
    x, y = (
        weights(nearness(g.standard_normal((n, 2)).round(decimals), "euclidean"), k)
        for _ in range(2)
    )
    scores = [
        (x * y[np.ix_(order, order)]).sum() / (n * k) for order in itertools.permutations(range(n))
    ]
    assert np.mean(scores) == pytest.approx(chance_level(n, k), rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(10, 0), (10, 10), (1, 1)])
def test_impossible_sizes(n, k):
    with pytest.raises(ValueError, match=f"k = {k} is outside"):
        chance_level(n, k)


@pytest.mark.parametrize(
    ("score", "chance", "expected"),
    [
        (0.55, 0.1, 0.5),
        (0.1, 0.1, 0.0),
        (1.0, 0.1, 1.0),
        (0.0, 0.2, -0.25),
        (0.3, 0.0, 0.3),
        # Where every pairing scores 1.
        (1.0, 1.0, 0.0),
        (1 - 1e-12, 1.0, 0.0),
        # A mean that is above 1 by rounding.
        (1 + 1e-15, 0.1, 1.0),
    ],
)
def test_corrected_by_hand(score, chance, expected):
    assert chance_corrected(score, chance) == pytest.approx(expected, abs=1e-12)
    assert chance_corrected(score, chance) <= 1


def test_corrected_is_cohens_kappa():
    g = np.random.default_rng(0)
    x, y = (g.permutation([True] * 300 + [False] * 700) for _ in range(2))
    agreement = np.mean(x == y)
    by_chance = 0.3 * 0.3 + 0.7 * 0.7
    assert chance_corrected(agreement, by_chance) == pytest.approx(cohen_kappa_score(x, y))


@pytest.mark.parametrize(
    ("score", "chance", "said"),
    [
        (0.5, 1.1, "chance = 1.1"),
        (0.5, -0.1, "chance = -0.1"),
        (0.5, math.nan, "chance = nan"),
        (1.1, 0.1, "score = 1.1"),
        (math.nan, 0.1, "score = nan"),
        (-math.inf, 0.1, "score = -inf"),
    ],
)
def test_what_cannot_be_corrected(score, chance, said):
    with pytest.raises(ValueError, match=said):
        chance_corrected(score, chance)
