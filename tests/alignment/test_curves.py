"""Curves against scores of graphs that are searched anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from prh_eval.alignment import curves
from prh_eval.alignment.curves import AtK, AtN, k_curve, n_curve
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.errors import PrhEvalError


def searched(x: np.ndarray, k: int) -> NeighborGraph:
    return neighbor_graph([torch.from_numpy(x)], k, similarity="euclidean")


def two_sides(n: int, decimals: int = 8) -> list[np.ndarray]:
    g = np.random.default_rng(n)
    z = g.standard_normal((n, 3))
    return [(z + 0.5 * g.standard_normal((n, 3))).round(decimals) for _ in range(2)]


@pytest.mark.parametrize("decimals", [8, 0])
def test_over_k(decimals):
    x, y = two_sides(150, decimals)
    points = k_curve(searched(x, 120), searched(y, 110))
    assert points[0].k == 1 and points[-1].k == 100 and 12 <= len(points) <= 20
    for point in points:
        alone = overlap(searched(x, point.k), searched(y, point.k), point.k)
        assert point == AtK(point.k, float(alone), point.k / 149)
    assert k_curve(searched(x, 20), searched(y, 30), [20, 3]) == [
        AtK(k, float(overlap(searched(x, k), searched(y, k), k)), k / 149) for k in (20, 3)
    ]
    assert [p.k for p in k_curve(searched(x, 6), searched(y, 8))] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(PrhEvalError, match="k = 9 is not among"):
        k_curve(searched(x, 6), searched(y, 9), [9])


@pytest.mark.parametrize(("n", "k", "kept", "decimals"), [(120, 4, 70, 8), (40, 3, 39, 0)])
def test_over_n_is_searches_among_nested_subsets(n, k, kept, decimals):
    x, y = two_sides(n, decimals)
    points = n_curve(searched(x, kept), searched(y, kept), k, repeats=3, seed=5)
    assert points[-1] == AtN(
        n, float(overlap(searched(x, k), searched(y, k), k)), 0, 1, k / (n - 1)
    )
    sizes = [p.n for p in points]
    assert len(sizes) >= 4
    assert sizes == [round(n / 2 ** (j / 3)) for j in reversed(range(len(sizes)))]
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(n, generator=generator).numpy() for _ in range(3)]
    for point in points[:-1]:
        scores = []
        for order in orders:
            items = order[: point.n]
            scores.append(float(overlap(searched(x[items], k), searched(y[items], k), k)))
        assert point.score == pytest.approx(np.mean(scores), abs=1e-12)
        assert point.spread == pytest.approx(np.std(scores, ddof=1), abs=1e-12)
        assert (point.repeats, point.chance) == (3, k / (point.n - 1))


def test_sizes_go_as_far_down_as_the_kept_neighbours_answer():
    assert [size for size, _ in curves._sizes(1024, 10, 100)] == [813, 645, 512, 406]
    for size, reach in curves._sizes(1024, 10, 100):
        fails = 2 * size * hypergeom.cdf(9, 1023, size - 1, [reach - 1, reach])
        assert fails[1] <= 1e-5 < fails[0]
    assert list(curves._sizes(1024, 10, 10)) == []
    # All neighbours answer for any size above k.
    assert [size for size, _ in curves._sizes(30, 10, 29)] == [24, 19, 15, 12]
    x, y = (searched(side, 5) for side in two_sides(60))
    assert [p.n for p in n_curve(x, y, 5, seed=0)] == [60]


@pytest.mark.parametrize("n", [3, 5, 12])
def test_few_items_have_each_size_once(n):
    x, y = (searched(side, n - 1) for side in two_sides(n))
    sizes = [point.n for point in n_curve(x, y, 1, seed=0)]
    assert sizes == sorted(set(sizes))


@given(st.integers(2, 60), st.data())
def test_probability_of_too_few(total, data):
    drawn, k = data.draw(st.integers(0, total)), data.draw(st.integers(1, total))
    got = curves._fewer(total, torch.arange(total + 1), drawn, k)
    expected = hypergeom.cdf(k - 1, total, np.arange(total + 1), drawn)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-15)


def test_a_size_at_which_a_subset_fails_is_left_out(monkeypatch):
    monkeypatch.setattr(curves, "_FAILURE", 1e9)
    x, y = (searched(side, 30) for side in two_sides(60))
    assert [p.n for p in n_curve(x, y, 5, repeats=2, seed=0)] == [60]


def test_a_size_at_which_one_of_the_subsets_fails_is_left_out(monkeypatch):
    x, y = (searched(side, 40) for side in two_sides(60))
    whole = n_curve(x, y, 5, repeats=2, seed=0)
    score, calls = curves._subset_score, []

    def fails_once(*args):
        calls.append(args)
        return None if len(calls) == 2 else score(*args)

    monkeypatch.setattr(curves, "_subset_score", fails_once)
    assert n_curve(x, y, 5, repeats=2, seed=0) == whole[:-2] + whole[-1:]


def test_what_cannot_be_drawn():
    x, y = (searched(side, 5) for side in two_sides(20))
    with pytest.raises(ValueError, match="repeats = 1"):
        n_curve(x, y, 3, repeats=1, seed=0)
    with pytest.raises(PrhEvalError, match="k = 6 is not among"):
        n_curve(x, y, 6, seed=0)
    twice = NeighborGraph(x.indices.repeat(2, 1, 1), x.tied.repeat(2, 1, 1), 5)
    with pytest.raises(ValueError, match="one layer a side"):
        k_curve(twice, y)


def test_equal_items_and_equal_sides():
    same = searched(np.ones((30, 2)), 29)
    other = searched(two_sides(30)[0], 29)
    for point in n_curve(same, other, 4, seed=0):
        assert point.score == pytest.approx(point.chance, abs=1e-12)
    assert all(p.score == 1 for p in n_curve(other, other, 4, seed=0))
    assert all(p.score == 1 for p in k_curve(other, other))
