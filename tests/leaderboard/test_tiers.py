"""Tiers by hand and by their rule."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prh_eval.leaderboard.tiers import tiers


def test_by_hand():
    # 1.96 sqrt(2) 0.01 = 0.0277: 0.475 is within it of 0.50, 0.47 is not and begins a tier.
    assert tiers([0.47, 0.50, 0.475, 0.45, 0.44], [0.01] * 5) == [2, 1, 1, 2, 3]


def test_a_looser_level_makes_wider_tiers():
    assert tiers([0.50, 0.47], [0.01, 0.01], alpha=0.05) == [1, 2]
    assert tiers([0.50, 0.47], [0.01, 0.01], alpha=0.01) == [1, 1]


def test_unknown_errors_count_as_none():
    assert tiers([0.3, 0.2, 0.3], [math.nan, None, 0.0]) == [1, 2, 1]
    assert tiers([0.3, 0.2], [0.1, math.nan]) == [1, 1]
    assert tiers([], []) == []


drawn = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=12)


@given(drawn, st.randoms())
def test_the_rule_and_that_order_does_not_matter(models, random):
    values, errors = zip(*models, strict=True)
    got = tiers(values, errors)
    assert sorted(set(got)) == list(range(1, max(got) + 1))
    ranked = sorted(range(len(models)), key=lambda i: (-values[i], errors[i]))
    first = ranked[0]
    for above, model in itertools.pairwise(ranked):
        spread = math.hypot(errors[first], errors[model])
        gap = values[first] - values[model]
        p = 2 * stats.norm.sf(gap / spread) if spread else float(gap == 0)
        assert got[model] == got[above] + (p < 0.05)
        first = model if p < 0.05 else first
    order = list(range(len(models)))
    random.shuffle(order)
    shuffled = tiers([values[i] for i in order], [errors[i] for i in order])
    assert shuffled == [got[i] for i in order]


@pytest.mark.parametrize(
    ("values", "errors", "why"),
    [
        ([1, math.nan], [0, 0], "finite"),
        ([1, 2], [0], "2 models"),
        ([1, 2], [0, -1], "negative"),
        (np.ones((2, 2)), [0, 0], "vector"),
    ],
)
def test_bad_input_is_refused(values, errors, why):
    with pytest.raises(ValueError, match=why):
        tiers(values, errors)
