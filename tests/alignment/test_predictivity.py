"""Linear predictivity against scikit-learn, and that no held-out item has a say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.feature_examples import moved, noise, related
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from prh_eval.alignment.predictivity import (
    FOLDS,
    PENALTIES,
    linear_predictivity,
    linear_predictivity_grid,
)


def folds(n: int) -> list[np.ndarray]:
    """The held-out items of each fold."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    return np.array_split(order, FOLDS)


def smoother(x: np.ndarray, at: np.ndarray, penalty: float) -> np.ndarray:
    """The matrix that turns training targets into the predictions of a ridge with intercept."""
    mean, n = x.mean(axis=0), len(x)
    kernel, centring = (x - mean) @ (x - mean).T, np.eye(n) - 1 / n
    maps = np.linalg.solve(kernel + penalty * np.eye(n), centring)
    return (at - mean) @ (x - mean).T @ maps + 1 / n


def expected(x: np.ndarray, y: np.ndarray) -> float:
    """A ridge regression for each fold and penalty, solved directly."""
    predicted = np.zeros_like(y)
    for test in folds(len(x)):
        train = np.setdiff1d(np.arange(len(x)), test)
        unit = np.square(x[train] - x[train].mean(axis=0)).sum() / len(train)
        errors = []
        for penalty in PENALTIES:
            hat = smoother(x[train], x[train], penalty * unit)
            freedom = len(train) - np.trace(hat)
            errors.append(np.square(y[train] - hat @ y[train]).sum() / freedom**2)
        best = PENALTIES[int(np.argmin(errors))]
        predicted[test] = smoother(x[train], x[test], best * unit) @ y[train]
    return r2_score(y, predicted, multioutput="variance_weighted")


def test_the_oracle_is_ridge_regression():
    x, y = (layer.numpy() for layer in related(np.random.default_rng(0), 30, [6, 4]))
    for penalty in (1e-3, 0.1, 10):
        ridge = Ridge(penalty).fit(x[:20], y[:20])
        got = smoother(x[:20], x[20:], penalty) @ y[:20]
        np.testing.assert_allclose(got, ridge.predict(x[20:]), rtol=0, atol=1e-9)


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(10, 40),
    st.sampled_from([[2, 1], [3, 50], [60, 5], [60, 60]]),
    st.sampled_from([0.2, 1.0, 5.0]),
)
def test_equals_ridge_regressions(seed, n, dims, spread):
    x, y = related(np.random.default_rng(seed), n, dims, spread, latent=2)
    # Errors that make the score far below 0 are as exact as they are large.
    expected_score = expected(x.numpy(), y.numpy())
    assert linear_predictivity(x, y) == pytest.approx(expected_score, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("spread", [0.3, 1.0])
@pytest.mark.parametrize("dims", [[10, 20], [150, 120]])
def test_near_leave_one_out_choice_of_the_penalty(dims, spread):
    x, y = related(np.random.default_rng(0), 100, dims, spread)
    split = np.empty(100, dtype=int)
    for fold, test in enumerate(folds(100)):
        split[test] = fold
    unit = float(x.square().sum() / 100)
    ridge = RidgeCV(alphas=unit * np.array(PENALTIES))
    predicted = cross_val_predict(ridge, x.numpy(), y.numpy(), cv=PredefinedSplit(split))
    score = r2_score(y.numpy(), predicted, multioutput="variance_weighted")
    assert 0.2 < score < 1
    assert linear_predictivity(x, y) == pytest.approx(score, abs=0.03)


def test_planted_linear_maps():
    g = np.random.default_rng(0)
    x = noise(g, 120, 8)
    y = x @ torch.from_numpy(g.standard_normal((8, 30))) + 3
    assert linear_predictivity(x, y) == pytest.approx(1, abs=1e-5)
    assert linear_predictivity(y, x) == pytest.approx(1, abs=1e-5)
    # What x does not hold cannot be predicted, though x can be.
    more = torch.cat([x, noise(g, 120, 8)], dim=1)
    assert linear_predictivity(more, x) == pytest.approx(1, abs=1e-5)
    assert linear_predictivity(x, more) == pytest.approx(0.5, abs=0.1)
    # Of variance a and b, predicted and not, the share a / (a + b).
    weighted = torch.cat([3 * x, noise(g, 120, 8)], dim=1)
    assert linear_predictivity(x, weighted) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("dim", [5, 40, 400])
def test_unrelated_features_predict_nothing(dim):
    g = np.random.default_rng(0)
    scores = []
    for _ in range(30):
        x, y = noise(g, 40, dim), noise(g, 40, 6)
        scores.append(linear_predictivity(x, y))
    assert -0.2 < np.mean(scores) < -0.01
    if dim > 40:
        # A map that has seen the items explains all of them.
        seen = Ridge(1e-6).fit(x.numpy(), y.numpy()).predict(x.numpy())
        assert r2_score(y.numpy(), seen) > 0.99


def test_a_choice_by_held_out_items_would_be_seen():
    g = np.random.default_rng(0)
    honest, flattered = [], []
    for _ in range(30):
        x, y = noise(g, 15, 10), noise(g, 15, 1)
        honest.append(linear_predictivity(x, y))
        x, y = x.numpy(), y.numpy()
        squares = 0.0
        for test in folds(15):
            train = np.setdiff1d(np.arange(15), test)
            maps = (smoother(x[train], x[test], penalty) for penalty in PENALTIES)
            squares += min(np.square(y[test] - each @ y[train]).sum() for each in maps)
        flattered.append(1 - squares / np.square(y - y.mean(axis=0)).sum())
    assert np.mean(honest) < -0.05
    assert np.mean(flattered) > 0.05


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([[4, 7], [30, 5], [30, 40]]))
def test_turning_moving_and_scaling_a_layer_changes_nothing(seed, dims):
    g = np.random.default_rng(seed)
    x, y = related(g, 24, dims)
    score = linear_predictivity(x, y)
    for side in (0, 1):
        sides = [x, y]
        sides[side] = moved(g, sides[side])
        assert linear_predictivity(*sides) == pytest.approx(score, abs=1e-6)


def test_the_direction_is_from_the_first_side():
    g = np.random.default_rng(0)
    x = noise(g, 60, 6)
    grid = linear_predictivity_grid([x[:, :2], x], [x], 1)
    assert grid[1, 0] > 0.999
    assert grid[0, 0] < 0.6
