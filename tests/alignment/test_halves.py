"""Scores in halves and without an item, against searches among the items that are left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.halves import (
    half_scores,
    half_words,
    halves_reach,
    layers,
    scores_without,
)
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol


def graph(x: np.ndarray, k: int) -> NeighborGraph:
    return neighbor_graph(preprocess([torch.from_numpy(x)], protocol("unclipped")), k)


def drawn(seed: int, n: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sides that agree in part; values of no decimals repeat, so that items tie."""
    g = np.random.default_rng(seed)
    shared = g.standard_normal((n, 3))
    return tuple((shared + 0.7 * g.standard_normal((n, 3))).round(decimals) for _ in range(2))


def score(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """By a search among just these items."""
    shared = dense(graph(x, k), k)[0] * dense(graph(y, k), k)[0]
    return float(shared.sum() / (len(x) * k))


def test_splits_are_even_and_differ() -> None:
    words = half_words(21, 2)
    bits = torch.stack([words[split // 64] >> split % 64 & 1 for split in range(128)])
    assert (bits.sum(dim=1) == 10).all()
    assert len(bits.unique(dim=0)) > 120
    # Any two items are in one half about 9 / 20 times of all.
    together = (bits.T[:, None] == bits.T[None]).double().mean(dim=2)
    assert together.fill_diagonal_(0.45).sub(0.45).abs().max() < 0.2
    assert torch.equal(words, half_words(21, 2))


@settings(max_examples=15)
@given(st.integers(12, 25), st.integers(1, 3), st.sampled_from([0, 8]), st.integers(0, 2**32 - 1))
def test_half_scores_are_those_of_a_search_in_each_half(n, k, decimals, seed):
    x, y = drawn(seed, n, decimals)
    words = half_words(n, 1)
    first, second = half_scores(layers(graph(x, n - 1), graph(y, n - 1), n - 1), k, words)
    assert first.shape == second.shape == (64,)
    for split in (0, 1, 40, 63):
        half = (words[0] >> split & 1).bool().numpy()
        assert float(first[split]) == pytest.approx(score(x[half], y[half], k), abs=1e-12)
        assert float(second[split]) == pytest.approx(score(x[~half], y[~half], k), abs=1e-12)


def test_the_reach_is_enough() -> None:
    g = np.random.default_rng(0)
    for k in (1, 5, 10, 30):
        reach = halves_reach(k)
        assert reach <= 100
        fewer = g.binomial(reach, 0.5, 200_000) < k + 1
        assert fewer.mean() < 4e-4
    x, y = drawn(0, 120, 8)
    near = layers(graph(x, 99), graph(y, 99), halves_reach(5))
    assert near.x.indices.shape[1] == halves_reach(5)
    words = half_words(120, 1)
    all_of_it = layers(graph(x, 119), graph(y, 119), 119)
    for got, right in zip(
        half_scores(near, 5, words), half_scores(all_of_it, 5, words), strict=True
    ):
        assert torch.allclose(got, right, atol=1e-3)


@settings(max_examples=15)
@given(st.integers(10, 20), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_scores_without_an_item_are_those_of_a_search_without_it(n, k, seed):
    x, y = drawn(seed, n, 8)
    got = scores_without(layers(graph(x, n - 1), graph(y, n - 1), k + 1), k)
    for item in range(n):
        rest = np.arange(n) != item
        assert float(got[item]) == pytest.approx(score(x[rest], y[rest], k), abs=1e-12)


@settings(max_examples=15)
@given(st.integers(14, 20), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_scores_of_halves_without_an_item(n, k, seed):
    x, y = drawn(seed, n, 8)
    half = (half_words(n, 1)[0] >> 5 & 1).bool()
    got = scores_without(layers(graph(x, n - 1), graph(y, n - 1), n - 1), k, half)
    for item in range(n):
        rest = (half == half[item]).numpy() & (np.arange(n) != item)
        assert float(got[item]) == pytest.approx(score(x[rest], y[rest], k), abs=1e-12)


def test_nothing_there_to_share() -> None:
    constant = np.ones((30, 3))
    x = np.random.default_rng(0).standard_normal((30, 3))
    near = layers(graph(x, 29), graph(constant, 29), 29)
    first, second = half_scores(near, 3, half_words(30, 1))
    assert first.numpy() == pytest.approx(np.full(64, 3 / 14), abs=1e-12)
    assert second.numpy() == pytest.approx(np.full(64, 3 / 14), abs=1e-12)
