"""Triplet agreement against brute force and SciPy's rank correlation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from alignment.feature_examples import noise, related, rotation
from alignment.oracles import Array, nearness
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kendalltau

from prh_eval.alignment.triplets import TRIPLETS, _triplets, triplet_agreement, triplets_grid


def brute(x: Array, y: Array) -> float:
    """Every triplet, one by one."""
    a, b = nearness(x, "cosine").round(12), nearness(y, "cosine").round(12)
    points = []
    for i, j, l in itertools.permutations(range(len(x)), 3):  # noqa: E741
        orders = np.sign(a[i, j] - a[i, l]), np.sign(b[i, j] - b[i, l])
        points.append(0.5 if 0 in orders else float(orders[0] == orders[1]))
    return float(np.mean(points))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.booleans())
def test_equals_every_triplet(seed, n, ties):
    g = np.random.default_rng(seed)
    x, y = related(g, n, [4, 5])
    if ties:
        x = torch.from_numpy(g.integers(1, 3, (n, 3))).double()
    expected = brute(x.numpy(), y.numpy())
    assert triplet_agreement(x, y) == pytest.approx(expected, abs=1e-12)
    assert triplet_agreement(y, x) == pytest.approx(expected, abs=1e-12)
    order = torch.from_numpy(g.permutation(n))
    assert triplet_agreement(x[order], y[order]) == pytest.approx(expected, abs=1e-12)
    for moved in (x @ rotation(g, x.shape[1]), x * torch.from_numpy(g.uniform(0.1, 9, (n, 1)))):
        assert triplet_agreement(moved, y) == pytest.approx(expected, abs=1e-12)


def test_is_the_mean_of_rank_correlations():
    x, y = related(np.random.default_rng(0), 60, [6, 8])
    taus = [
        kendalltau(np.delete(a, i), np.delete(b, i)).statistic
        for i, (a, b) in enumerate(
            zip(nearness(x.numpy(), "cosine"), nearness(y.numpy(), "cosine"), strict=True)
        )
    ]
    assert triplet_agreement(x, y) == pytest.approx((1 + np.mean(taus)) / 2, abs=1e-12)


def test_the_mean_is_a_half_under_re_pairing():
    g = np.random.default_rng(0)
    x, y = noise(g, 5, 3), noise(g, 5, 4)
    scores = [triplet_agreement(x, y[list(order)]) for order in itertools.permutations(range(5))]
    assert np.mean(scores) == pytest.approx(0.5, abs=1e-12)


def test_all_triplets_are_asked_up_to_126_items():
    asked = _triplets(126, TRIPLETS)
    assert asked.shape == (3, 126 * 125 * 124 // 2)
    assert len(((asked[0] * 126 + asked[1]) * 126 + asked[2]).unique()) == asked.shape[1]
    assert (asked[1] < asked[2]).all()
    assert (asked[0] != asked[1]).all()
    assert (asked[0] != asked[2]).all()
    assert _triplets(127, TRIPLETS).shape == (3, TRIPLETS)


def test_drawn_triplets_are_of_different_items_and_all_as_likely():
    asked = _triplets(5, 29)
    assert asked.shape == (3, 29)
    asked = _triplets(126, TRIPLETS - 50_000)
    assert asked.min() == 0
    assert asked.max() == 125
    for a, b in itertools.combinations(asked, 2):
        assert (a != b).all()
        # Of two items every ordered pair of different ones.
        counts = torch.bincount(a * 126 + b, minlength=126**2).reshape(126, 126)
        assert chisquare(counts[~torch.eye(126, dtype=torch.bool)]).pvalue > 1e-3
    assert torch.equal(asked, _triplets(126, TRIPLETS - 50_000))


@pytest.mark.parametrize("count", [60, 2000, 40_000])
def test_a_sample_is_near_all_triplets(count):
    # At 60 triplets the similarities are of the sampled pairs alone; else of all pairs.
    layers = related(np.random.default_rng(0), 90, [6, 8, 10, 3])
    x, y = layers[:2], layers[2:]
    exact = triplets_grid(x, y, 1)
    drawn = triplets_grid(x, y, 1, count=count)
    assert (drawn - exact).abs().max() < 4 * 0.5 / count**0.5
    anchor, near, far = _triplets(90, count)
    for row, a in zip(drawn, x, strict=True):
        for score, b in zip(row, y, strict=True):
            answers = [
                (s[anchor, near] > s[anchor, far]).numpy() for s in (a @ a.T, b @ b.T)
            ]  # fmt: skip
            assert score.item() == pytest.approx(np.mean(answers[0] == answers[1]), abs=1e-12)


def test_the_ends_of_the_range():
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    assert triplet_agreement(x, x) == 1
    assert triplet_agreement(x, y) == pytest.approx(brute(x.numpy(), y.numpy()))
