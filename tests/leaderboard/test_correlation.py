"""Correlations against SciPy, statsmodels and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from prh_eval.leaderboard.correlation import (
    correlations,
    leave_one_family_out,
    partial_spearman,
    residual_ranks,
    within_family_correlation,
)


def drawn_columns(count, fewest=4, most=14):
    """Columns of small integers: ties everywhere."""
    scores = st.integers(0, 6).map(float)
    return st.integers(fewest, most).flatmap(
        lambda n: st.tuples(*[st.lists(scores, min_size=n, max_size=n) for _ in range(count)])
    )


def mid_ranks(x):
    return np.array([sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x])


def plain_pearson(x, y):
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    covariance = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def plain_kendall(x, y):
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    both = sum(a * b for a, b in signs)
    return both / math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))


@given(drawn_columns(2))
def test_three_coefficients_by_their_definitions(drawn):
    x, y = drawn
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    got = correlations(x, y)
    assert got.n == len(x)
    assert got.note is None
    assert got.spearman == pytest.approx(plain_pearson(mid_ranks(x), mid_ranks(y)), abs=1e-12)
    assert got.kendall_b == pytest.approx(plain_kendall(x, y), abs=1e-12)
    assert got.pearson == pytest.approx(plain_pearson(x, y), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], "same score"),
        ([1, 2, 3, 4], [0, 0, 0, 0], "same score"),
        ([1, 2], [3, 4], "2 models"),
        ([], [], "0 models"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_no_correlation_has_a_reason_everywhere(x, y, why):
    got = correlations(x, y)
    assert all(math.isnan(v) for v in (got.spearman, got.kendall_b, got.pearson))
    assert why in got.note
    partial = partial_spearman(x, y, np.arange(len(x)))
    assert math.isnan(partial.value)
    assert why in partial.note
    left_out = leave_one_family_out(x, y, [str(i) for i in range(len(x))])
    assert math.isnan(left_out.low)
    assert left_out.most_influential is None
    assert why in left_out.note


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ([1, 2, math.nan], [1, 2, 3], "NaN"),
        ([1, 2, 3], [1, math.inf, 3], "infinite"),
        ([1, 2, 3], [1, 2], "length"),
        ([[1, 2, 3]], [[1, 2, 3]], "length"),
    ],
)
def test_bad_columns_are_refused(x, y, why):
    with pytest.raises(ValueError, match=why):
        correlations(x, y)


@given(drawn_columns(3, fewest=6))
def test_partial_with_one_covariate_is_the_textbook_formula(drawn):
    x, y, z = drawn
    assume(min(len(set(c)) for c in drawn) > 1)
    ranks = [mid_ranks(c) for c in drawn]
    xy, xz, yz = (plain_pearson(ranks[a], ranks[b]) for a, b in [(0, 1), (0, 2), (1, 2)])
    got = partial_spearman(x, y, z)
    if max(abs(xz), abs(yz)) > 1 - 1e-9:
        assert math.isnan(got.value)
        assert "determine" in got.note
    else:
        expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
        assert got.value == pytest.approx(expected, abs=1e-7)


def test_partial_with_two_covariates_is_in_the_inverse_of_the_correlation_matrix():
    rng = np.random.default_rng(3)
    z = rng.standard_normal((40, 2))
    x, y = z @ [1, 2] + rng.standard_normal(40), z @ [2, 1] + rng.standard_normal(40)
    inverse = np.linalg.inv(stats.spearmanr(np.column_stack([x, y, z])).statistic)
    expected = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
    assert partial_spearman(x, y, z).value == pytest.approx(expected, abs=1e-12)
    assert abs(expected - stats.spearmanr(x, y).statistic) > 0.1


def test_partial_is_that_of_statsmodels_residuals():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(4)
    z = rng.integers(0, 9, (50, 2)).astype(float)
    x, y = z[:, 0] + rng.integers(0, 9, 50), z[:, 1] + z[:, 0] + rng.integers(0, 9, 50)
    design = api.add_constant(np.column_stack([stats.rankdata(c) for c in z.T]))
    residuals = [api.OLS(stats.rankdata(c), design).fit().resid for c in (x, y)]
    expected = stats.pearsonr(*residuals).statistic
    assert partial_spearman(x, y, z).value == pytest.approx(expected, abs=1e-12)


def test_residual_ranks_are_those_of_numpy_fits():
    rng = np.random.default_rng(5)
    z = rng.integers(0, 9, 30).astype(float)
    x, y = z + rng.integers(0, 9, 30), rng.integers(0, 9, 30).astype(float)
    got = residual_ranks(x, y, z)
    ranks = stats.rankdata(z)
    for column, residuals in ((x, got.x), (y, got.y)):
        line = np.polynomial.Polynomial.fit(ranks, stats.rankdata(column), 1)
        np.testing.assert_allclose(residuals, stats.rankdata(column) - line(ranks), atol=1e-9)
    assert got.note is None


def test_residual_ranks_that_there_are_not():
    got = residual_ranks([1, 2, 4, 3], [1, 3, 2, 4], [1, 2, 4, 3])
    assert np.isnan([*got.x, *got.y]).all()
    assert got.x.shape == got.y.shape == (4,)
    assert "determine the ranks" in got.note


def test_partial_given_a_constant_is_plain():
    x, y = [1, 5, 2, 4, 4, 9], [2, 3, 1, 9, 4, 4]
    got = partial_spearman(x, y, np.ones(6))
    assert got.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_partial_of_the_fewest_models():
    # Ranks: r_xy = 0.8, r_xz = 0.6, r_yz = 0.
    got = partial_spearman([1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 4, 3])
    assert got.value == pytest.approx(0.8 / 0.8)


def test_partial_needs_enough_models_and_covariates_of_all_of_them():
    got = partial_spearman([1, 2, 4, 3], [1, 3, 2, 4], [[1, 2], [3, 4], [2, 2], [5, 1]])
    assert math.isnan(got.value)
    assert "4 models are too few" in got.note
    with pytest.raises(ValueError, match="3 models"):
        partial_spearman([1, 2, 3], [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="covariate is NaN"):
        partial_spearman([1, 2, 3], [1, 2, 3], [1, 2, math.nan])


def test_within_families_by_hand():
    # Over all models x and y rise together; within each family they go opposite ways.
    x = [1, 2, 11, 12, 21, 22, 99]
    y = [2, 1, 12, 11, 22, 21, -99]
    families = ["a", "a", "b", "b", "c", "c", "alone"]
    got = within_family_correlation(x, y, families)
    assert got.value == pytest.approx(-1)
    assert got.n == 6
    assert correlations(x[:6], y[:6]).spearman == pytest.approx(1 - 6 * 6 / (6 * 35))


@given(drawn_columns(2, fewest=6), st.data())
def test_within_families_is_partial_on_family_indicators(drawn, data):
    x, y = drawn
    families = data.draw(st.lists(st.sampled_from("abc"), min_size=len(x), max_size=len(x)))
    kept = [i for i, f in enumerate(families) if families.count(f) > 1]
    got = within_family_correlation(x, y, families)
    assert got.n == len(kept)
    assume(len(kept) > 2)
    names = sorted({families[i] for i in kept})
    design = np.array([[families[i] == name for name in names] for i in kept], dtype=float)
    residuals = []
    for column in (x, y):
        ranks = mid_ranks([column[i] for i in kept])
        residuals.append(ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0])
    a, b = residuals
    if min(np.linalg.norm(a), np.linalg.norm(b)) < 1e-9:
        assert math.isnan(got.value)
        assert "within every family" in got.note
    else:
        expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert got.value == pytest.approx(expected, abs=1e-9)


def test_within_families_of_equal_scores_there_is_nothing():
    got = within_family_correlation([0.1] * 3 + [0.7] * 4, range(7), list("aaabbbb"))
    assert math.isnan(got.value)
    assert "within every family" in got.note


def test_within_families_needs_families_of_several():
    got = within_family_correlation([1, 2, 3, 4], [1, 2, 4, 3], ["a", "b", "c", "d"])
    assert math.isnan(got.value)
    assert got.n == 0
    assert "another of their family" in got.note


def test_leaving_one_family_out_by_hand():
    x = [1, 2, 3, 4, 5, 6]
    y = [1, 2, 3, 4, 6, 0]
    families = ["a", "a", "b", "b", "c", "d"]
    expected = {
        name: stats.spearmanr(
            [v for v, f in zip(x, families, strict=True) if f != name],
            [v for v, f in zip(y, families, strict=True) if f != name],
        ).statistic
        for name in "abcd"
    }
    got = leave_one_family_out(x, y, families)
    assert got.low == pytest.approx(min(expected.values()))
    assert got.high == pytest.approx(1)
    assert got.most_influential == "d"
    assert got.note is None


def test_a_family_without_which_the_correlation_falls_is_influential_too():
    x, y = [1, 2, 3, 4, 5, 50, 51, 52], [3, 4, 1, 5, 2, 50, 51, 52]
    got = leave_one_family_out(x, y, ["a", "b", "c", "d", "e", "far", "far", "far"])
    assert got.most_influential == "far"
    assert got.low == pytest.approx(stats.spearmanr(x[:5], y[:5]).statistic)
    assert got.high > correlations(x, y).spearman


def test_equal_influence_goes_to_the_first_by_name():
    got = leave_one_family_out([1, 2, 3, 4], [1, 2, 3, 4], ["z", "b", "m", "c"])
    assert (got.low, got.high, got.most_influential) == (1.0, 1.0, "b")


def test_families_without_which_nothing_is_left():
    got = leave_one_family_out([1, 1, 1, 2], [1, 2, 3, 4], ["a", "a", "b", "c"])
    assert got.note == "no correlation without a, c"
    assert got.most_influential == "b"
    alone = leave_one_family_out([1, 2, 3], [1, 3, 2], ["a", "a", "a"])
    assert math.isnan(alone.low)
    assert "one family" in alone.note
    none_left = leave_one_family_out([1, 2, 3, 4], [1, 3, 2, 4], ["a", "a", "b", "b"])
    assert math.isnan(none_left.high)
    assert none_left.note == "no correlation without a, b"


def test_every_model_has_a_family():
    with pytest.raises(ValueError, match="2 families for 3 models"):
        within_family_correlation([1, 2, 3], [1, 2, 3], ["a", "b"])
