"""SVCCA against scikit-learn, SciPy and the scores of the reference implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from alignment.feature_examples import noise, related, unit
from alignment.oracles import GOLDEN, Array, golden_sides
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from sklearn.preprocessing import StandardScaler

from prh_eval.alignment.svcca import svcca, svcca_grid


def leading(x: torch.Tensor, k: int) -> Array:
    """The first left singular vectors of standardised dimensions."""
    z = StandardScaler().fit_transform(x.numpy())
    return np.linalg.svd(z, full_matrices=False)[0][:, : min(k, x.shape[1])]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([[3, 5], [9, 8], [30, 7]]))
def test_equals_the_angles_between_subspaces(seed, k, dims):
    x, y = related(np.random.default_rng(seed), 24, dims)
    expected = np.cos(scipy.linalg.subspace_angles(leading(x, k), leading(y, k))).mean()
    assert svcca(x, y, k) == pytest.approx(expected, abs=1e-9)
    assert svcca(y, x, k) == pytest.approx(svcca(x, y, k), abs=1e-12)


def test_equals_canonical_correlations():
    x, y = related(np.random.default_rng(0), 300, [20, 30])
    a, b = leading(x, 5), leading(y, 5)
    a, b = CCA(n_components=5, max_iter=5000, tol=1e-12).fit_transform(a, b)
    expected = np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(5)])
    assert svcca(x, y, 5) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", GOLDEN["pairs"], ids=lambda case: f"n{case['n']}")
def test_golden(case):
    x, y = (unit(side[0].double().numpy()) for side in golden_sides(case))
    score = svcca(x, y, 10)
    low, high = case["svcca_spread"]
    # The reference's decomposition is randomised, of two power iterations and no spare directions.
    # The same here gives scores such as the reference's: so all else is the same.
    scaled = [torch.from_numpy(StandardScaler().fit_transform(side.numpy())) for side in (x, y)]
    torch.manual_seed(0)

    def drawn(directions: int, iterations: int) -> float:
        bases = (
            torch.svd_lowrank(side, q=directions, niter=iterations)[0][:, :10] for side in scaled
        )
        return np.cos(scipy.linalg.subspace_angles(*(base.numpy() for base in bases))).mean()

    draws = [drawn(10, 2) for _ in range(100)]
    assert min(draws) <= low <= case["scores"]["svcca@10"] <= high <= max(draws)
    assert np.mean(draws) == pytest.approx(case["scores"]["svcca@10"], abs=0.015)
    # The exact score is among them, and what they come to as the decomposition is made finer.
    assert min(draws) <= score <= max(draws)
    assert drawn(30, 60) == pytest.approx(score, abs=1e-6)
    # At n = 256 it is above the reference's spread, by a tenth of that.
    assert low <= score <= high or (case["n"] == 256 and score - high < 0.1 * (high - low))


def test_known_scores():
    g = np.random.default_rng(0)
    x, y = related(g, 60, [8, 8], noise=0, latent=3)
    assert svcca(x, x, 3) == pytest.approx(1, abs=1e-12)
    # Each dimension's scale and origin are its own.
    assert svcca(x * torch.arange(1.0, 9) - 3, y, 3) == pytest.approx(svcca(x, y, 3), abs=1e-9)
    order = torch.from_numpy(g.permutation(60))
    assert svcca(x[order], y[order], 3) == pytest.approx(svcca(x, y, 3), abs=1e-9)
    # One side of two dimensions has two correlations, of which one is the first dimension's.
    flat = torch.from_numpy(np.linalg.qr(np.c_[np.ones(60), g.standard_normal((60, 3))])[0][:, 1:])
    assert svcca(flat[:, :2], flat[:, [0, 2]], 10) == pytest.approx(0.5, abs=1e-12)
    assert svcca(flat[:, :1], flat, 10) == pytest.approx(1, abs=1e-12)
    # A constant dimension says nothing.
    assert svcca(torch.cat([x, torch.ones(60, 1)], 1), y, 3) == pytest.approx(svcca(x, y, 3))


def test_the_mean_of_squares_is_exact_under_re_pairing():
    g = np.random.default_rng(0)
    x, y = noise(g, 5, 3), noise(g, 5, 4)
    squares = [
        svcca(x, y[list(order)], 1) ** 2 for order in itertools.permutations(range(5))
    ]  # fmt: skip
    assert np.mean(squares) == pytest.approx(1 / 4, abs=1e-12)


def test_the_number_of_directions_is_k():
    g = np.random.default_rng(0)
    layers = related(g, 40, [12, 15], noise=0.3, latent=2)
    scores = [svcca_grid(layers[:1], layers[1:], k).item() for k in (2, 10)]
    assert scores[0] > 0.9 > 0.7 > scores[1]
