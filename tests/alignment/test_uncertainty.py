"""The standard error against its formula, and against the true spread over fresh draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import item_overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.alignment.uncertainty import standard_error


def graph(x: np.ndarray, k: int) -> NeighborGraph:
    return neighbor_graph(preprocess([torch.from_numpy(x)], protocol("unclipped")), k)


@given(st.integers(3, 20), st.integers(0, 2**32 - 1), st.sampled_from([0, 8]), st.data())
def test_equals_its_formula_and_is_never_below_that_of_independent_items(n, seed, decimals, data):
    k = data.draw(st.integers(1, n - 1))
    g = np.random.default_rng(seed)
    x, y = (graph(g.standard_normal((n, 3)).round(decimals), k) for _ in range(2))
    shared = dense(x, k)[0] * dense(y, k)[0]
    errors = shared.sum(axis=1) / k
    errors = errors - errors.mean()
    independent = (errors**2).sum()
    dependent = sum(errors[i] * errors[j] * shared[i, j] for i in range(n) for j in range(n))
    expected = math.sqrt(independent + max(dependent, 0)) / n
    got = standard_error(x, y, k)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert standard_error(y, x, k) == pytest.approx(got, rel=1e-9, abs=1e-12)


def test_is_zero_where_all_items_agree():
    x = np.random.default_rng(0).standard_normal((30, 4))
    assert standard_error(graph(x, 5), graph(x, 5), 5) == 0
    constant = graph(np.ones((30, 4)), 5)
    assert standard_error(graph(x, 5), constant, 5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("latent", "noise", "k"), [(8, 0.5, 10), (16, 1.0, 10), (8, 1.0, 5)])
def test_is_fair_over_fresh_draws(latent, noise, k):
    n, dim, draws = 200, 24, 150
    g = np.random.default_rng(0)
    maps = g.standard_normal((2, latent, dim)) / math.sqrt(latent)
    scores, errors, independent = [], [], []
    for _ in range(draws):
        z = g.standard_normal((n, latent))
        x, y = (graph(z @ w + noise * g.standard_normal((n, dim)), k) for w in maps)
        items = item_overlap(x, y, k)
        scores.append(float(items.mean()))
        errors.append(standard_error(x, y, k))
        independent.append(float(items.std()) / math.sqrt(n))
    # The spread of 150 draws is itself known to 6 % (one standard deviation).
    spread = np.std(scores, ddof=1)
    assert 0.8 < np.mean(errors) / spread < 1.3
    assert np.mean(independent) / spread < 0.9
    assert abs(math.log(np.mean(errors) / spread)) < abs(math.log(np.mean(independent) / spread))
