"""Cross-fitting against plain loops, and that it is unbiased where the best pair is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment.crossfit import cross_fitted
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.errors import PrhEvalError


def graph(layers: list[np.ndarray], k: int) -> NeighborGraph:
    return neighbor_graph([torch.from_numpy(x) for x in layers], k, similarity="euclidean")


@settings(max_examples=25)
@given(st.integers(10, 24), st.integers(0, 2**32 - 1), st.sampled_from([8, 0]), st.data())
def test_equals_loops(n, seed, decimals, data):
    k = data.draw(st.integers(1, 5))
    g = np.random.default_rng(seed)
    x, y = (
        graph([g.standard_normal((n, 2)).round(decimals) for _ in range(layers)], k + 1)
        for layers in (3, 2)
    )
    got = cross_fitted(x, y, k, splits=3, seed=4)
    assert got is not None
    a, b = dense(x, k), dense(y, k)
    generator = torch.Generator().manual_seed(4)
    shared, possible, higher, pairs = 0.0, 0.0, 0.0, iter(got.layers)
    for _ in range(3):
        halves = torch.randperm(n, generator=generator).tensor_split(2)
        for choosing, scored in (halves, halves[::-1]):
            pair = next(pairs)
            sums = []
            for half in (choosing, scored):
                cells = np.ix_(half.numpy(), half.numpy())
                ab = np.array([[(p[cells] * q[cells]).sum() for q in b] for p in a])
                norm = np.array([[p[cells].sum() * q[cells].sum() for q in b] for p in a]) ** 0.5
                sums.append((ab, norm))
            ratio, other = (
                np.divide(*each, out=np.zeros((3, 2)), where=each[1] > 0) for each in sums
            )
            assert pair == divmod(int((ratio.flatten() >= ratio.max() - 1e-12).argmax()), 2)
            shared += sums[1][0][pair]
            possible += sums[1][1][pair]
            higher += ratio[pair] - other[pair]
    assert got.score == pytest.approx(shared / possible, abs=1e-9)
    assert 0 <= got.score <= 1 and got.stderr >= 0
    assert got.flattery == pytest.approx(higher / 6 / 2, abs=1e-9)
    assert got.flattery >= 0


def features(n: int, layers: int, hubby: bool, g: np.random.Generator) -> list[np.ndarray]:
    x = g.standard_normal((layers, n, 16))
    return list(x * np.exp(0.3 * g.standard_normal((layers, n, 1))) if hubby else x)


@pytest.mark.parametrize("hubby", [False, True])
def test_the_best_of_unrelated_layers_is_above_chance_and_this_is_not(hubby):
    n, k, g = 120, 5, np.random.default_rng(2)
    best, fitted, flattery = [], [], []
    for _ in range(60):
        x, y = (graph(features(n, 5, hubby, g), k) for _ in range(2))
        best.append(float(overlap(x, y, k).max()))
        result = cross_fitted(x, y, k, splits=2, seed=0)
        assert result is not None
        fitted.append(result.score)
        flattery.append(result.flattery)
    chance = k / (n - 1)
    error = np.std(fitted) / np.sqrt(60)
    assert error < 0.04 * chance
    assert abs(np.mean(fitted) - chance) < 3 * error
    assert np.mean(best) > 1.2 * chance
    assert np.mean(flattery) == pytest.approx(np.mean(best) - chance, rel=0.2)


def test_planted_layers_are_found_and_scored_as_they_are():
    n, k, g = 300, 10, np.random.default_rng(0)
    z = g.standard_normal((n, 8))
    noises = ([9, 9, 0.3], [9, 0.3, 9, 9])
    x, y = (graph([z + s * g.standard_normal((n, 8)) for s in side], k) for side in noises)
    got = cross_fitted(x, y, k, seed=0)
    assert got is not None
    assert got.layers == [(2, 1)] * 10
    assert got.flattery == 0
    whole = float(overlap(x, y, k)[2, 1])
    assert got.score == pytest.approx(whole, rel=0.05)
    assert 0 < got.stderr < 0.1 * whole
    assert cross_fitted(x, y, k, seed=0) == got
    assert cross_fitted(x, y, k, seed=1) != got
    same = cross_fitted(x, x, k, seed=0)
    assert same is not None
    assert same.score == pytest.approx(1)


def test_small_and_wrong_input():
    g = np.random.default_rng(0)
    few = graph([g.standard_normal((9, 2))], 2)
    assert cross_fitted(few, few, 2, seed=0) is None
    constant, x = graph([np.ones((30, 2))], 3), graph([g.standard_normal((30, 2))], 3)
    got = cross_fitted(x, constant, 3, seed=0)
    assert got is not None
    assert got.score == pytest.approx(3 / 29, rel=0.3)
    with pytest.raises(PrhEvalError, match="k = 4 is not among"):
        cross_fitted(x, constant, 4, seed=0)
    with pytest.raises(ValueError, match="splits = 1"):
        cross_fitted(x, constant, 3, splits=1, seed=0)
