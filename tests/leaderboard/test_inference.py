"""Intervals and tests over families: brute force, SciPy, statsmodels, and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prh_eval.leaderboard.inference import (
    _spearman_of_copies,
    family_bootstrap,
    family_sign_flip_test,
    holm,
    model_bootstrap,
    noise_interval,
)


def ladder(families, models, seed=0, link=0.0, correlation=0.6):
    """Scores of models in families of one intra-class correlation, and a link of x with y."""
    rng = np.random.default_rng(seed)
    names = [f"family {f}" for f in range(families) for _ in range(models)]
    of_model = np.repeat(np.arange(families), models)

    def column():
        shared = rng.standard_normal(families)[of_model]
        own = rng.standard_normal(families * models)
        return math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own

    x = column()
    return x, link * x + column(), names


@settings(max_examples=60)
@given(st.integers(3, 9), st.data())
def test_copies_are_as_if_the_models_were_written_out(n, data):
    scores = st.lists(st.integers(0, 4).map(float), min_size=n, max_size=n)
    x, y = np.array(data.draw(scores)), np.array(data.draw(scores))
    copies = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    a, b = np.repeat(x, copies), np.repeat(y, copies)
    (got,) = _spearman_of_copies(x, y, copies[None].astype(float))
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_family_bootstrap_is_that_of_a_plain_loop():
    x, y, families = ladder(12, 4, seed=1, link=1.0)
    members = [[i for i, f in enumerate(families) if f == name] for name in dict.fromkeys(families)]
    rng = np.random.default_rng(99)
    values = []
    for _ in range(4000):
        chosen = [i for f in rng.integers(0, 12, 12) for i in members[f]]
        values.append(stats.spearmanr(x[chosen], y[chosen]).statistic)
    got = family_bootstrap(x, y, families, draws=4000, seed=5)
    assert [got.low, got.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)
    assert (got.draws, got.degenerate, got.note) == (4000, 0, None)
    narrower = family_bootstrap(x, y, families, draws=4000, seed=5, level=0.5)
    expected = np.quantile(values, [0.25, 0.75])
    assert [narrower.low, narrower.high] == pytest.approx(expected, abs=0.02)


def test_model_bootstrap_is_that_of_scipy():
    x, y, _ = ladder(8, 4, seed=2, link=1.0)
    expected = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    got = model_bootstrap(x, y, draws=4000, seed=5)
    assert [got.low, got.high] == pytest.approx([expected.low, expected.high], abs=0.03)


def test_families_make_the_interval_wider_and_single_models_do_not():
    x, y, families = ladder(12, 8, seed=3, correlation=0.9)
    of_families = family_bootstrap(x, y, families, seed=0)
    of_models = model_bootstrap(x, y, seed=0)
    assert of_families.high - of_families.low > 1.5 * (of_models.high - of_models.low)


def test_a_seed_decides_everything_and_the_order_of_models_nothing_else():
    x, y, families = ladder(8, 3)
    one = family_bootstrap(x, y, families, seed=7)
    assert one == family_bootstrap(x, y, families, seed=np.random.default_rng(7))
    assert one != family_bootstrap(x, y, families, seed=8)
    order = np.random.default_rng(0).permutation(len(x))
    shuffled = [families[i] for i in order]
    assert one == family_bootstrap(x[order], y[order], shuffled, seed=7)


def test_degenerate_draws_are_counted():
    # x differs in the one model of family c only, which 2/3 ** 3 of all draws leave out;
    # 1/27 of them are of c alone.
    got = family_bootstrap([0, 0, 0, 0, 1], [1, 2, 3, 4, 5], list("aabbc"), draws=20_000, seed=0)
    assert got.degenerate / got.draws == pytest.approx((2 / 3) ** 3 + 1 / 27, abs=0.01)
    assert got.high <= 1
    assert got.note == "only 3 families: far too narrow"


@pytest.mark.parametrize(
    ("x", "families", "why"),
    [
        ([1, 2, 3, 4], list("aaaa"), "one family"),
        ([1, 1, 1, 1], list("abcd"), "same score"),
        ([0, 0, 1, 1], list("aabb"), None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_no_interval_has_a_reason(x, families, why):
    y = [1, 3, 2, 4]
    zeros = [0.0] * 4
    for got in (
        family_bootstrap(x, y, families, seed=0),
        noise_interval(x, zeros, y, zeros, families, seed=0),
    ):
        if why is None:
            assert got.low <= got.high
            assert got.degenerate > 0
        else:
            assert math.isnan(got.low)
            assert math.isnan(got.high)
            assert why in got.note


def test_an_interval_that_no_draw_gives():
    x, y = [0, 1, 1], [1, 2, 3]
    seed = next(
        s for s in range(1000) if math.isnan(family_bootstrap(x, y, "abb", draws=1, seed=s).low)
    )
    got = family_bootstrap(x, y, "abb", draws=1, seed=seed)
    assert got.degenerate == got.draws == 1
    assert "every draw" in got.note


@pytest.mark.parametrize(("of_x", "of_y"), [(0.5, 0.3), (2.0, 0.0), (0.0, 2.0)])
def test_noise_is_that_of_a_plain_loop(of_x, of_y):
    x, y, _ = ladder(10, 3, seed=4, link=1.0)
    x_errors, y_errors = np.full(30, of_x), of_y * np.linspace(0.1, 2, 30)
    rng = np.random.default_rng(50)
    values = [
        stats.spearmanr(
            x + x_errors * rng.standard_normal(30), y + y_errors * rng.standard_normal(30)
        ).statistic
        for _ in range(2000)
    ]
    got = noise_interval(x, x_errors, y, y_errors, draws=2000, seed=1)
    assert [got.low, got.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.06)


def test_without_errors_there_is_no_spread_and_families_add_theirs():
    x, y, families = ladder(12, 3, seed=5, link=1.0)
    zeros, unknown = np.zeros(36), [math.nan] * 36
    exact = stats.spearmanr(x, y).statistic
    got = noise_interval(x, zeros, y, unknown, seed=0)
    assert [got.low, got.high] == pytest.approx([exact, exact], abs=1e-12)
    of_families = family_bootstrap(x, y, families, seed=0)
    both = noise_interval(x, zeros, y, zeros, families, seed=0)
    assert [both.low, both.high] == pytest.approx([of_families.low, of_families.high], abs=1e-12)
    noisier = noise_interval(x, zeros + 1, y, zeros + 1, families, seed=0)
    assert noisier.low < both.low
    few = noise_interval(x[:9], zeros[:9], y[:9], zeros[:9], families[:9], seed=0)
    assert few.note == "only 3 families: far too narrow"
    assert both.note is got.note is None


@pytest.mark.parametrize("bad", [[-0.1, 0, 0], [math.inf, 0, 0], [0, 0]])
def test_bad_errors_are_refused(bad):
    with pytest.raises(ValueError, match="standard error"):
        noise_interval([1, 2, 3], bad, [1, 3, 2], [0, 0, 0], seed=0)


def enumerated_p(x, y, families):
    """All sign flips, with no symmetry used and ranks doubled into integers."""

    def ranks(column):
        doubled = [sum(b < a for b in column) * 2 + sum(b == a for b in column) for a in column]
        return [r - len(column) for r in doubled]

    sums = {}
    for a, b, f in zip(ranks(x), ranks(y), families, strict=True):
        sums[f] = sums.get(f, 0) + a * b
    observed = abs(sum(sums.values()))
    flips = list(itertools.product([1, -1], repeat=len(sums)))
    as_far = sum(
        abs(sum(s * v for s, v in zip(flip, sums.values(), strict=True))) >= observed
        for flip in flips
    )
    return as_far / len(flips)


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 9), st.data())
def test_the_sign_flip_test_by_brute_force(count, data):
    of_model = [*range(count), *data.draw(st.lists(st.integers(0, count - 1), max_size=10))]
    scores = st.lists(st.integers(0, 5), min_size=len(of_model), max_size=len(of_model))
    x, y = data.draw(scores), data.draw(scores)
    got = family_sign_flip_test(x, y, [str(f) for f in of_model])
    assert got.families == count
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert got.p is None
        assert "same score" in got.note
    else:
        assert got.exact
        assert got.p == enumerated_p(x, y, of_model)
        assert got.note == f"only {count} families: rough"


def test_the_sign_flip_test_is_that_of_scipy():
    x, y, families = ladder(10, 3, seed=6, link=0.5)
    rx, ry = (stats.rankdata(c) - 15.5 for c in (x, y))
    sums = (rx * ry).reshape(10, 3).sum(axis=1)
    expected = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    got = family_sign_flip_test(x, y, families)
    assert got.p == pytest.approx(expected, abs=1e-12)
    assert got.note is None


def test_perfect_agreement_of_six_families_has_the_least_p():
    got = family_sign_flip_test(range(12), range(12), [c for c in "abcdef" for _ in range(2)])
    assert got.p == 2 / 2**6


def test_below_six_families_nothing_is_testable():
    got = family_sign_flip_test(range(10), range(10), list("aabbccddee"))
    assert (got.p, got.families, got.exact) == (None, 5, False)
    assert got.note == "not testable: 5 of the at least 6 families needed"
    alone = family_sign_flip_test([1, 2, 3], [1, 2, 3], list("aaa"))
    assert (alone.p, alone.families) == (None, 1)


def test_many_families_are_drawn_and_agree_with_the_enumeration():
    x, y, families = ladder(20, 1, seed=9, link=0.4)
    enumerated = family_sign_flip_test(x, y, families)
    assert enumerated.exact
    # A 21st family in the middle of both columns scores 0: no sum changes.
    more = family_sign_flip_test([*x, np.median(x)], [*y, np.median(y)], [*families, "middle"])
    assert not more.exact
    assert 0.01 < enumerated.p < 0.5
    assert more.p == pytest.approx(enumerated.p, abs=0.02)
    again = family_sign_flip_test([*x, np.median(x)], [*y, np.median(y)], [*families, "middle"])
    assert again == more


def test_a_drawn_p_is_never_zero():
    got = family_sign_flip_test(range(60), range(60), [str(i) for i in range(60)], draws=999)
    assert got.p == 1 / 1000


@pytest.mark.parametrize(("families", "models"), [(8, 5), (10, 5)])
def test_level_with_families_alike_and_no_link(families, models):
    """Intra-class correlation 0.6 on both sides, no link: how often each test is wrong at 5 %."""
    replicates = 2000
    wrong = naive = 0
    for seed in range(replicates):
        x, y, names = ladder(families, models, seed=seed)
        wrong += family_sign_flip_test(x, y, names).p <= 0.05
        n = len(x)
        r = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
        t = r * math.sqrt((n - 2) / (1 - r * r))
        naive += 2 * stats.t.sf(abs(t), n - 2) <= 0.05
    assert 0.03 <= wrong / replicates <= 0.07
    assert 0.15 <= naive / replicates <= 0.25


def test_power_where_there_is_a_link():
    found = sum(
        family_sign_flip_test(*ladder(12, 4, seed=seed, link=1.0)).p <= 0.05 for seed in range(100)
    )
    assert found >= 80


def plain_holm(p_values):
    """Reject in steps: the adjusted p is the least level at which a hypothesis falls."""
    tested = [p for p in p_values if p is not None]
    ordered = sorted(tested)
    steps = [min(1, (len(ordered) - i) * p) for i, p in enumerate(ordered)]
    return [None if p is None else max(steps[: ordered.index(p) + 1]) for p in p_values]


def test_holm_by_hand():
    got = holm([0.01, None, 0.04, 0.03, 0.005])
    assert got == [pytest.approx(0.03), None, 0.06, 0.06, pytest.approx(0.02)]
    assert holm([]) == []
    assert holm([None]) == [None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_as_stepwise_rejection(p_values):
    got = holm(p_values)
    for p, adjusted, step in zip(p_values, got, plain_holm(p_values), strict=True):
        if p is None:
            assert adjusted is None
        else:
            assert p <= adjusted <= 1
            assert adjusted == pytest.approx(step, abs=1e-12)


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        p = np.round(rng.random(n) ** 3, 2).tolist()
        expected = multitest.multipletests(p, method="holm")[1]
        assert holm(p) == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(bad):
    with pytest.raises(ValueError, match="p-value"):
        holm([0.5, bad])
