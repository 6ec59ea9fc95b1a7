"""What metrics of features share, against NumPy, and the sentences on what they cannot compare."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.feature_examples import noise, related
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment.feature_layers import centered, normal, place, principal
from prh_eval.alignment.predictivity import linear_predictivity_grid
from prh_eval.alignment.procrustes import procrustes_grid
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.similarity_analysis import rsa_grid
from prh_eval.alignment.svcca import svcca_grid
from prh_eval.alignment.triplets import triplets_grid
from prh_eval.errors import PrhEvalError

CPU = torch.device("cpu")
# With the fewest items they accept, at k = 2.
GRIDS = {
    svcca_grid: 4,
    procrustes_grid: 2,
    rsa_grid: 3,
    linear_predictivity_grid: 10,
    triplets_grid: 3,
}


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 12))
def test_decompositions_equal_numpy(seed, n, dim):
    g = np.random.default_rng(seed)
    raw = g.standard_normal((n, dim)) + 5
    z = centered(torch.from_numpy(raw), CPU)
    expected = raw - raw.mean(axis=0)
    np.testing.assert_allclose(z.numpy(), expected, rtol=0, atol=1e-13)
    x = normal(torch.from_numpy(raw), CPU)
    assert x.shape == (n, min(n, dim))
    gram = expected @ expected.T
    # What was near 5 is rounded to about 1e-15, and then of length 1.
    rounding = 1e-14 / np.sqrt(np.trace(gram))
    unit = gram / np.trace(gram)
    np.testing.assert_allclose((x @ x.T).numpy(), unit, rtol=0, atol=1e-13 + rounding)
    vectors, values = principal(z)
    singular = np.linalg.svd(expected, compute_uv=False)
    rank = min(n - 1, dim)
    assert vectors.shape == (n, rank)
    np.testing.assert_allclose(values.numpy(), singular[:rank] ** 2, rtol=1e-7)
    np.testing.assert_allclose((vectors.T @ vectors).numpy(), np.eye(rank), rtol=0, atol=1e-6)
    np.testing.assert_allclose((vectors * values @ vectors.T).numpy(), gram, rtol=0, atol=1e-10)


def test_constant_dimensions_become_zero_and_no_others():
    rows = [[0.1, 1e-9, 7.0], [0.1, 2e-9, 7.0 * (1 + 1e-15)], [0.1, 4e-9, 7.0]]
    x = torch.tensor(rows, dtype=torch.float64)
    assert x[0, 2] != x[1, 2]
    z = centered(x, CPU)
    assert not z[:, [0, 2]].any()
    assert z[:, 1].abs().min() > 0
    assert principal(torch.zeros(5, 3).double())[0].shape == (5, 0)
    assert not normal(torch.full((5, 3), 0.1), CPU).any()


def test_rows_of_any_length_become_of_length_one():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [-6e30, 8e30]], dtype=torch.float64)
    expected = [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [-0.6, 0.8]]
    np.testing.assert_allclose(Rows(x, unit=True, device=CPU)[:].numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_is_of_every_pair_in_float64(grid):
    g = np.random.default_rng(0)
    layers = related(g, 30, [3, 40, 7, 30, 5])
    x, y = layers[:2], layers[2:]
    got = grid(x, y, 2)
    assert got.dtype == torch.float64
    assert got.shape == (2, 3)
    singles = [[float(grid([a], [b], 2)) for b in y] for a in x]
    np.testing.assert_allclose(got.numpy(), singles, rtol=0, atol=1e-7)
    assert torch.equal(grid(x, y, 2), got)
    # What is stored in less precision is compared as it is stored.
    stored = [[layer.float() for layer in side] for side in (x, y)]
    same = [[layer.double() for layer in side] for side in stored]
    assert torch.equal(grid(*stored, 2), grid(*same, 2))
    np.testing.assert_allclose(grid(*stored, 2).numpy(), got.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_no_grid_can_compare_is_one_sentence(grid):
    g = np.random.default_rng(0)
    x = noise(g, 20, 3)
    spoilt = x.clone()
    spoilt[4, 1] = torch.nan
    for sides, sentence in (
        (([], [x]), "the first side has no layers"),
        (([x], []), "the second side has no layers"),
        (([x, x[:19]], [x]), "layer 1 of the first side has 19 items and layer 0"),
        (([x], [x[:19]]), "layer 0 of the second side has 19 items and layer 0"),
        (([x], [x, x[0]]), "layer 1 of the second side is a torch.float64 tensor of shape"),
        (([x], [x.long()]), "layer 0 of the second side is a torch.int64 tensor of shape"),
        (([x[:, :0]], [x]), "layer 0 of the first side is a torch.float64 tensor of shape"),
        (([x], [x, spoilt]), "layer 1 of the second side has values that are NaN or infinite"),
    ):
        with pytest.raises(PrhEvalError, match=f"^[a-z_]+: {sentence}"):
            grid(*sides, 2)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_fewest_items_give_a_number_and_fewer_a_sentence(grid):
    g = np.random.default_rng(0)
    least = GRIDS[grid]
    x, y = noise(g, least, 6), noise(g, least, 2)
    assert grid([x, y], [x, y], 2).isfinite().all()
    with pytest.raises(
        PrhEvalError, match=f"there are {least - 1} items, where at least {least} are needed"
    ):
        grid([x[1:]], [y[1:]], 2)


@pytest.mark.parametrize("grid", GRIDS)
def test_layers_without_variance_have_a_score(grid):
    g = np.random.default_rng(0)
    x = noise(g, 20, 3)
    # Equal rows, rows equal but for rounding, rows of zeros, and few different ones.
    same = x[:1].expand(20, 3)
    rounded = same * torch.linspace(0.5, 3, 20)[:, None].double()
    rounded = rounded / rounded.norm(dim=1, keepdim=True)
    assert rounded.unique(dim=0).shape[0] > 1
    layers = [same, rounded, torch.zeros(20, 3), x[[0, 1] * 10]]
    scores = grid(layers, [x, *layers], 2)
    assert scores.isfinite().all()
    nothing = 0.5 if grid is triplets_grid else 0.0
    np.testing.assert_allclose(scores[:3, 1:].numpy()[:, :3], nothing, atol=1e-12)
    if grid is linear_predictivity_grid:
        assert (scores[:3, 0] < 0).all()
        assert (scores[:3, 0] > -0.2).all()
    else:
        np.testing.assert_allclose(scores[:3].numpy(), nothing, atol=1e-12)
        np.testing.assert_allclose(scores[3, 1:4].numpy(), nothing, atol=1e-12)


def test_layers_are_compared_on_the_device_of_the_first():
    assert place([torch.zeros(2, 2)]) == CPU


def test_no_grid_depends_on_the_names_of_dimensions_or_the_scale():
    g = np.random.default_rng(0)
    x, y = related(g, 40, [6, 50])
    for grid in GRIDS:
        score = grid([x], [y], 2).item()
        for changed in (x * 1e-3, x * 1e3, x[:, torch.from_numpy(g.permutation(6))]):
            assert grid([changed], [y], 2).item() == pytest.approx(score, abs=1e-6)
            assert grid([x], [y * 1e-12], 2).item() == pytest.approx(score, abs=1e-6)
