"""Procrustes similarity against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from alignment.feature_examples import moved, noise, related
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment.procrustes import procrustes


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 15), st.integers(1, 15))
def test_equals_the_scale_of_the_best_map(seed, n, a, b):
    x, y = related(np.random.default_rng(seed), n, [a, b])
    padded = []
    for layer in (x, y):
        z = layer.numpy() - layer.numpy().mean(axis=0)
        z = z / np.linalg.norm(z) if np.linalg.norm(z) > 1e-9 else 0 * z
        padded.append(np.pad(z, [(0, 0), (0, 15 - z.shape[1])]))
    _, expected = scipy.linalg.orthogonal_procrustes(*padded)
    assert procrustes(x, y) == pytest.approx(expected, abs=1e-12)
    assert procrustes(y, x) == pytest.approx(expected, abs=1e-12)


def test_equals_the_disparity_of_scipy():
    x, y = related(np.random.default_rng(0), 50, [6, 6])
    disparity = scipy.spatial.procrustes(x.numpy(), y.numpy())[2]
    assert procrustes(x, y) == pytest.approx((1 - disparity) ** 0.5, abs=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([[4, 7], [30, 5], [30, 40]]))
def test_turning_moving_and_scaling_a_layer_changes_nothing(seed, dims):
    g = np.random.default_rng(seed)
    x, y = related(g, 20, dims)
    score = procrustes(x, y)
    assert 0 < score < 1
    assert procrustes(moved(g, x), y) == pytest.approx(score, abs=1e-12)
    assert procrustes(x, moved(g, x)) == pytest.approx(1, abs=1e-12)
    order = torch.from_numpy(g.permutation(20))
    assert procrustes(x[order], y[order]) == pytest.approx(score, abs=1e-12)
    # A linear map that is no rotation is seen.
    assert procrustes(x * torch.linspace(0.1, 3, dims[0]), x) < 1 - 1e-4


def test_what_noise_scores():
    g = np.random.default_rng(0)
    few, many = (procrustes(noise(g, 512, dim), noise(g, 512, dim)) for dim in (64, 512))
    assert (few, many) == (pytest.approx(0.29, abs=0.01), pytest.approx(0.75, abs=0.01))
