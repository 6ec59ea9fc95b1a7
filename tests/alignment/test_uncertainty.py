"""Standard errors against their formulas, and intervals against fresh draws of the items."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from alignment.simulated_coverage import WORLDS, difference_coverage, score_coverage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.halves import half_words, halves_reach
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.alignment.uncertainty import confidence_interval, paired_difference, standard_error
from prh_eval.errors import PrhEvalError


def graph(x: np.ndarray, k: int) -> NeighborGraph:
    return neighbor_graph(preprocess([torch.from_numpy(x)], protocol("unclipped")), k)


def score(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """By a search among just these items."""
    shared = dense(graph(x, k), k)[0] * dense(graph(y, k), k)[0]
    return float(shared.sum() / (len(x) * k))


def drawn(seed: int, n: int, sides: int = 2) -> list[np.ndarray]:
    g = np.random.default_rng(seed)
    shared = g.standard_normal((n, 3))
    return [shared + (0.4 + 0.3 * side) * g.standard_normal((n, 3)) for side in range(sides)]


def jackknife(scores: list[float]) -> float:
    return (len(scores) - 1) * float(np.var(scores))


def by_searches(pairs: list[tuple[np.ndarray, np.ndarray]], k: int) -> float:
    """The standard error by its formula, with a search for every score in it."""
    n = len(pairs[0][0])
    # Of differences the neighbourhoods of halves are as wide as those of all items.
    of_half = k if len(pairs) == 1 else math.ceil(k / 2)

    def value(items: np.ndarray, k: int) -> float:
        first, *second = (score(x[items], y[items], k) for x, y in pairs)
        return first - sum(second)

    def without_each(items: np.ndarray, k: int) -> float:
        return jackknife([value(items[items != item], k) for item in items])

    splits = [(word >> bit & 1).bool().numpy() for word in half_words(n, 2) for bit in range(64)]
    every = np.arange(n)
    differences = [value(every[half], of_half) - value(every[~half], of_half) for half in splits]
    counted = [without_each(every[part], of_half) for half in splits[:8] for part in (half, ~half)]
    change = 2 * without_each(every, k) / np.mean(counted)
    return math.sqrt(np.mean(np.square(differences)) / 4 * change**0.8)


def test_equals_its_formula() -> None:
    n, k, seed = 17, 2, 1
    y, a, b = drawn(seed, n, 3)
    graphs = gy, ga, gb = [graph(x, n - 1) for x in (y, a, b)]
    assert all(each.k >= min(halves_reach(k), n - 1) for each in graphs)
    expected = by_searches([(a, y)], k)
    assert standard_error(ga, gy, k) == pytest.approx(expected, rel=1e-9)
    assert standard_error(gy, ga, k) == pytest.approx(expected, rel=1e-9)
    difference = paired_difference(ga, gy, gb, gy, k)
    assert difference.stderr == pytest.approx(by_searches([(a, y), (b, y)], k), rel=1e-9)
    assert difference.difference == pytest.approx(score(a, y, k) - score(b, y, k), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(4, 20), st.integers(0, 2**32 - 1), st.sampled_from([0, 8]), st.data())
def test_equals_the_formula_of_graphs_that_reach_k_only(n, seed, decimals, data):
    k = data.draw(st.integers(1, n - 2))
    g = np.random.default_rng(seed)
    x, y, z = (graph(g.standard_normal((n, 3)).round(decimals), k) for _ in range(3))
    products = [dense(a, k)[0] * dense(b, k)[0] for a, b in ((x, y), (z, y))]
    items = [product.sum(axis=1) / k for product in products]

    def expected(errors: np.ndarray, weights: np.ndarray) -> float:
        errors = errors - errors.mean()
        dependent = sum(
            errors[i] * errors[j] * weights[i, j] for i in range(n) for j in range(n) if i != j
        )
        return math.sqrt((errors**2).sum() + max(dependent, 0)) / n

    got = standard_error(x, y, k)
    assert got == pytest.approx(expected(items[0], products[0]), rel=1e-9, abs=1e-12)
    assert standard_error(y, x, k) == pytest.approx(got, rel=1e-9, abs=1e-12)
    difference = paired_difference(x, y, z, y, k)
    weights = np.maximum(*products)
    assert difference.stderr == pytest.approx(
        expected(items[0] - items[1], weights), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("kept", [5, 49])
def test_is_zero_where_all_items_agree_whichever_there_are(kept: int) -> None:
    x = np.random.default_rng(0).standard_normal((50, 4))
    whole, constant = graph(x, kept), graph(np.ones((50, 4)), kept)
    for other in (whole, constant):
        assert standard_error(whole, other, 5) == pytest.approx(0, abs=1e-9)
    same = paired_difference(whole, constant, whole, constant, 5)
    assert (same.difference, same.stderr, same.low, same.high, same.p) == (0, 0, 0, 0, 1)


@settings(max_examples=40)
@given(st.integers(3, 40), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 8]), st.data())
def test_is_a_number_whatever_is_drawn(n, seed, decimals, data):
    k = data.draw(st.integers(1, n - 1))
    kept = data.draw(st.integers(k, n - 1))
    g = np.random.default_rng(seed)
    repeated = g.integers(0, n, n)
    x, y = (g.standard_normal((n, 2)).round(decimals)[repeated] for _ in range(2))
    error = standard_error(graph(x, kept), graph(y, kept), k)
    assert 0 <= error < 2
    low, high = confidence_interval(0.5, error)
    assert 0 <= low <= 0.5 <= high <= 1


def test_intervals() -> None:
    low, high = confidence_interval(0.3, 0.01)
    quantile = stats.t(40).ppf(0.975)
    assert (low, high) == pytest.approx((0.3 - 0.01 * quantile, 0.3 + 0.01 * quantile))
    assert confidence_interval(0.01, 0.02)[0] == 0
    assert confidence_interval(0.99, 0.02)[1] == 1
    assert confidence_interval(0.4, 0.0) == (0.4, 0.4)
    low, high = confidence_interval(0.5, 0.1, level=0.5)
    assert stats.t(40).cdf((high - 0.5) / 0.1) == pytest.approx(0.75)


def test_a_difference_is_surer_than_its_scores() -> None:
    y, a, b = (graph(x, 60) for x in drawn(3, 150, 3))
    there, back = paired_difference(a, y, b, y, 5), paired_difference(b, y, a, y, 5)
    assert there.difference > 0 > back.difference
    assert there.difference == -back.difference
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == back.p
    assert there.p == pytest.approx(2 * stats.t(40).sf(there.difference / there.stderr))
    alone = [standard_error(each, y, 5) for each in (a, b)]
    assert there.stderr < math.hypot(*alone)
    # Halves have one neighbour at least.
    assert paired_difference(a, y, b, y, 1).stderr > 0
    # Of two references the error is that of all four graphs.
    other = paired_difference(a, y, b, a, 5)
    assert other.stderr != there.stderr


def test_a_difference_that_is_rounding_is_none() -> None:
    """Weights of ties are fractions, whose sums differ in their last bits."""
    constant, random = np.ones((100, 3)), np.random.default_rng(0).standard_normal((100, 3))
    a, b = (graph(x, 99) for x in (constant, random))
    found = paired_difference(a, a, b, a, 10)
    assert (found.difference, found.stderr, found.p) == (0.0, 0.0, 1.0)


def test_mistakes() -> None:
    x, y = (graph(side, 10) for side in drawn(0, 30))
    few = graph(drawn(0, 20)[0], 10)
    two = NeighborGraph(x.indices.expand(2, -1, -1), x.tied.expand(2, -1, -1), 10)
    with pytest.raises(PrhEvalError, match="30 and 20 items"):
        standard_error(x, few, 5)
    with pytest.raises(PrhEvalError, match="20 items"):
        paired_difference(x, y, few, few, 5)
    with pytest.raises(PrhEvalError, match="k = 11"):
        standard_error(x, y, 11)
    with pytest.raises(ValueError, match="one layer a side"):
        standard_error(x, two, 2)


@pytest.mark.parametrize("world", ["hubby", "uneven"])
def test_intervals_hold_over_fresh_draws(world: str) -> None:
    draw, noise, _ = WORLDS[world]
    found = score_coverage(draw, 128, 5, noise, draws=80, kept=60)
    # Of 80 draws the spread is known to 8 %, and a coverage of 0.95 to 0.024.
    assert 0.78 < found.ratio < 1.22
    assert 0.87 <= found.covered <= 1


# Halves of the clusters have about 6 items each, of which 5 neighbours would be nearly all.
@pytest.mark.parametrize(("world", "n"), [("isotropic", 128), ("clustered", 256)])
def test_differences_over_fresh_draws(world: str, n: int) -> None:
    draw, noise, _ = WORLDS[world]
    found = difference_coverage(draw, n, 5, (noise, noise), draws=60, kept=60)
    # By as many neighbours in halves as in all, the ratio in clusters would be 0.78.
    assert 0.82 < found.ratio < 1.22
    assert 0.86 <= found.covered <= 1
    assert found.rejected == pytest.approx(1 - found.covered)
