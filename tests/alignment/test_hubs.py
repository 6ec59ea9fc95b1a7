"""In-degrees against SciPy and plain loops; the warning in worlds with and without hubs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import skew

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.hubs import Hubs, _even_share, hub_warning, hubs
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.errors import PrhEvalError
from prh_eval.findings import Hubs as Recorded


def graph(x: np.ndarray, k: int) -> NeighborGraph:
    return neighbor_graph(preprocess([torch.from_numpy(x)], protocol("unclipped")), k)


@given(st.integers(3, 30), st.integers(0, 2**32 - 1), st.sampled_from([8, 0]), st.data())
def test_equals_loops(n, seed, decimals, data):
    k = data.draw(st.integers(1, n - 1))
    g = np.random.default_rng(seed)
    sides = [g.standard_normal((n, 3)).round(decimals) for _ in range(2)]
    x, y = (graph(side, data.draw(st.integers(k, n - 1))) for side in sides)
    got = hubs(x, y, k)
    a, b = dense(x, k)[0], dense(y, k)[0]
    for side, weights in (("model", a), ("reference", b)):
        degrees = weights.sum(axis=0)
        expected = skew(degrees) if degrees.std() > 1e-9 else 0
        assert getattr(got, f"{side}_skewness") == pytest.approx(expected, abs=1e-6)
        assert getattr(got, f"{side}_orphans") == (degrees == 0).mean()
        assert getattr(got, f"{side}_largest") == pytest.approx(degrees.max() / k)
    carried = np.sort((a * b).sum(axis=0))[::-1]
    expected = carried[0] / carried.sum() if carried.sum() else 0
    assert got.carried == pytest.approx(expected)


def test_what_is_left_without_the_hubs():
    g = np.random.default_rng(1)
    n, k = 250, 4
    x, y = (g.standard_normal((n, 3)) for _ in range(2))
    got = hubs(graph(x, 40), graph(y, 40), k)
    carried = (dense(graph(x, k), k)[0] * dense(graph(y, k), k)[0]).sum(axis=0)
    top = np.argsort(carried, kind="stable")[-2:]
    assert got.carried == pytest.approx(carried[top].sum() / carried.sum())
    rest = [np.delete(side, top, axis=0) for side in (x, y)]
    assert got.without == float(overlap(*(graph(side, k) for side in rest), k))
    # Rows without their hubs no longer answer for k.
    assert hubs(graph(x, k), graph(y, k), k).without is None


def test_a_star_by_hand():
    # Everyone's neighbour is item 0, whose own is item 1, on both sides.
    indices = torch.tensor([[[1], [0], [0], [0], [0]]], dtype=torch.int32)
    star = NeighborGraph(indices, torch.zeros_like(indices, dtype=torch.bool), 1)
    got = hubs(star, star, 1)
    assert (got.model_largest, got.model_orphans, got.carried) == (4, 3 / 5, 4 / 5)
    assert got.model_skewness == got.reference_skewness == pytest.approx(skew([4, 1, 0, 0, 0]))
    other = NeighborGraph(
        torch.tensor([[[2], [2], [3], [4], [1]]], dtype=torch.int32), star.tied, 1
    )
    assert hubs(star, other, 1).carried == 0


def test_equal_items_have_no_hubs():
    same = graph(np.ones((40, 3)), 5)
    got = hubs(same, same, 5)
    assert (got.model_skewness, got.model_orphans) == (0, 0)
    assert got.model_largest == pytest.approx(1)
    assert got.carried == pytest.approx(1 / 40)
    assert hub_warning(got, 5 / 39, 40, 5) is None


def test_has_the_fields_of_the_record():
    names = {field.name for field in dataclasses.fields(Hubs)}
    # The sentence is hub_warning's.
    assert set(Recorded.model_fields) - {"warning"} <= names


def test_larger_k_than_kept():
    x = graph(np.random.default_rng(0).standard_normal((9, 3)), 4)
    with pytest.raises(PrhEvalError, match="k = 5 is not among"):
        hubs(x, x, 5)


@pytest.mark.parametrize("edges", [20, 300, 5000])
def test_expected_share_against_draws(edges):
    g = np.random.default_rng(0)
    counts = [np.sort(np.bincount(g.integers(0, 600, edges), minlength=600)) for _ in range(300)]
    expected = np.mean([c[-6:].sum() / edges for c in counts])
    assert _even_share(edges, 600) == pytest.approx(expected, rel=0.05)


def warning(spread: float, noise: float, n: int = 500) -> str | None:
    """Of layers of one latent, where items differ in their distance from a common offset."""
    g = np.random.default_rng(3)
    z, scale = g.standard_normal((n, 32)), np.exp(spread * g.standard_normal((n, 1)))
    sides = []
    for _ in range(2):
        signal = z @ g.standard_normal((32, 64)) / np.sqrt(32)
        x = scale * (signal + noise * g.standard_normal((n, 64)))
        sides.append(graph(x + (3 * g.standard_normal(64) if spread else 0), 60))
    return hub_warning(hubs(*sides, 10), float(overlap(*sides, 10)), n, 10)


def test_warns_of_hubs_and_of_nothing_else():
    assert warning(0, 0.3) is None
    assert warning(0, 2) is None
    assert warning(0, 1e6) is None
    sentence = warning(0.6, 1)
    assert sentence is not None
    assert sentence.startswith("a few hubs carry the score: 5 of the 500 items are ")
    assert "the score of the other items among themselves is 0." in sentence
