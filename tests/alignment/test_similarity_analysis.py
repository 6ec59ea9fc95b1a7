"""Representational similarity against SciPy, with ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from alignment.feature_examples import noise, related, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import rankdata, spearmanr

from prh_eval.alignment.similarity_analysis import rsa, rsa_grid


def distances(x: torch.Tensor) -> np.ndarray:
    """Cosine distances, equal where they are equal but for rounding."""
    return pdist(x.numpy(), "cosine").round(12)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.sampled_from([None, 3, 2]))
def test_equals_spearman(seed, n, levels):
    g = np.random.default_rng(seed)
    x, y = related(g, n, [4, 6])
    if levels:
        # Few values make ties, among them items that occur twice.
        x = torch.from_numpy(g.integers(1, levels + 1, (n, 3))).double()
    a, b = distances(x), distances(y)
    expected = spearmanr(a, b).statistic if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    assert rsa(x, y) == pytest.approx(expected, abs=1e-12)
    assert rsa(y, x) == pytest.approx(expected, abs=1e-12)
    order = torch.from_numpy(g.permutation(n))
    assert rsa(x[order], y[order]) == pytest.approx(expected, abs=1e-12)
    for moved in (x @ rotation(g, x.shape[1]), x * torch.from_numpy(g.uniform(0.1, 9, (n, 1)))):
        assert rsa(moved, y) == pytest.approx(expected, abs=1e-12)


def test_ties_are_within_rounding_and_no_wider():
    angles = torch.tensor([0.0, 0.3, 0.3 + 1e-9, 1.0, 2.1], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    y = noise(np.random.default_rng(0), 5, 3)
    ranks = rankdata(pdist(x.numpy(), "cosine"))
    assert rsa(x, y) == pytest.approx(np.corrcoef(ranks, rankdata(distances(y)))[0, 1], abs=1e-12)


@pytest.mark.parametrize("memory", [1, 4 * 40 * 39 * 2, 1 << 30])
def test_groups_of_layers(memory):
    g = np.random.default_rng(0)
    layers = related(g, 40, [3, 4, 5, 6, 7, 8])
    x, y = layers[:4], layers[4:]
    expected = [[spearmanr(distances(a), distances(b)).statistic for b in y] for a in x]
    got = rsa_grid(x, y, 1, memory_bytes=memory)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)


def test_the_mean_is_zero_under_re_pairing():
    g = np.random.default_rng(0)
    x, y = noise(g, 5, 3), noise(g, 5, 4)
    scores = [rsa(x, y[list(order)]) for order in itertools.permutations(range(5))]
    assert np.mean(scores) == pytest.approx(0, abs=1e-12)
    assert np.std(scores) > 0.1


def test_the_ends_of_the_range():
    # On a half circle nearness in x is farness in y.
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    y = torch.tensor([[1.0, 0.0, 0.0], [-0.9, 0.3, 0.0], [1.0, 0.1, 0.0]])
    assert rsa(x, x) == pytest.approx(1, abs=1e-15)
    assert rsa(x, y) == pytest.approx(
        spearmanr(distances(x.double()), distances(y.double())).statistic
    )
    assert rsa(x, y) < 0
