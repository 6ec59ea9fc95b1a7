"""Moments against every permutation of a few items, the null against a plain loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prh_eval.alignment import permutation
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.permutation import (
    Calibrated,
    Moments,
    calibrate,
    permutation_covariance,
    permutation_moments,
    permutation_null,
    z_scores,
)
from prh_eval.errors import PrhEvalError


@st.composite
def graphs(draw, n, k, layers=3):
    """A graph of random rows with random ties, as long as they need to be, and longer."""
    count = draw(st.integers(1, layers))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    indices = np.full((count, n, n - 1), -1, dtype=np.int32)
    tied = np.zeros((count, n, n - 1), dtype=bool)
    for layer, i in np.ndindex(count, n):
        others = g.permutation([j for j in range(n) if j != i])
        ties = g.random(n - 1) < share
        ties[0] = False
        length = k
        while length < n - 1 and (ties[length] or g.random() < 0.2):
            length += 1
        indices[layer, i, :length] = others[:length]
        tied[layer, i, :length] = ties[:length]
    return NeighborGraph(torch.from_numpy(indices), torch.from_numpy(tied), k)


def grids(x: NeighborGraph, y: NeighborGraph, k: int, orders) -> np.ndarray:
    """Scores (orders, layers_x, layers_y) when x's item i is paired with y's item order[i]."""
    a, b = dense(x, k), dense(y, k)
    orders = np.array([list(order) for order in orders])
    moved = b[:, orders[:, :, None], orders[:, None, :]]
    return np.einsum("aij,bpij->pab", a, moved) / (x.n * k)


def drawn(n, layers, seed, *, decimals=9, k=10):
    """A graph of random features, of enough dimensions to have hubs."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((n, 16)) + 0.5 * g.standard_normal((layers, n, 16))
    rows = [torch.from_numpy(layer.round(decimals)) for layer in x]
    return neighbor_graph(rows, k, similarity="euclidean")


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
@settings(max_examples=40)
@given(data=st.data())
def test_moments_are_those_over_all_permutations(n, data):
    k = data.draw(st.integers(1, n - 1))
    x, y = data.draw(graphs(n, k)), data.draw(graphs(n, k))
    smaller = data.draw(st.integers(1, k))
    scores = grids(x, y, smaller, itertools.permutations(range(n)))
    moments = permutation_moments(x, y, smaller)
    assert scores.mean(axis=0) == pytest.approx(moments.mean, abs=1e-12)
    assert moments.variance.dtype == torch.float64
    np.testing.assert_allclose(moments.variance, scores.var(axis=0), rtol=0, atol=1e-12)
    flat = scores.reshape(len(scores), -1)
    np.testing.assert_allclose(
        permutation_covariance(x, y, smaller),
        np.cov(flat.T, bias=True).reshape(flat.shape[1], -1),
        rtol=0,
        atol=1e-12,
    )


def test_hubs_and_ties_at_a_common_size():
    x, y = drawn(200, 3, 0), drawn(200, 4, 1, decimals=0)
    moments, covariance = permutation_moments(x, y, 10), permutation_covariance(x, y, 10)
    assert moments.mean == pytest.approx(10 / 199)
    np.testing.assert_allclose(covariance.diagonal(), moments.variance.flatten(), rtol=1e-9)
    torch.testing.assert_close(covariance, covariance.T)
    assert float(torch.linalg.eigvalsh(covariance)[0]) > -1e-12
    torch.testing.assert_close(permutation_moments(y, x, 10).variance, moments.variance.T)
    g = np.random.default_rng(2)
    scores = grids(x, y, 10, [g.permutation(200) for _ in range(400)])
    variance = moments.variance.numpy()
    assert np.abs((scores.mean(axis=0) - moments.mean) / np.sqrt(variance / 400)).max() < 4
    np.testing.assert_allclose(scores.var(axis=0), variance, rtol=0.35)


def test_moments_in_blocks_and_by_sorting(monkeypatch):
    x, y = drawn(150, 2, 0, k=12), drawn(150, 3, 1, k=12)
    variance = permutation_moments(x, y, 9).variance
    monkeypatch.setitem(permutation._ROW_VALUES, "cpu", 7 * 81)
    assert torch.equal(permutation_moments(x, y, 9).variance, variance)
    monkeypatch.setattr(permutation, "_NARROW", 8)
    torch.testing.assert_close(permutation_moments(x, y, 9).variance, variance, rtol=1e-12, atol=0)


def test_moments_of_more_items_than_four_factors_of_which_fit_into_64_bits():
    """Of a directed ring and a random order of it about Poisson(1) edges coincide."""
    n = 70_000
    following = (torch.arange(n, dtype=torch.int32) + 1) % n
    ring = NeighborGraph(following[None, :, None], torch.zeros(1, n, 1, dtype=torch.bool), 1)
    moments = permutation_moments(ring, ring, 1)
    assert float(moments.variance) * n**2 == pytest.approx(1, rel=1e-3)
    assert len(permutation_null(ring, ring, 1, draws=2, seed=0)) == 2


def test_hubs_widen_the_null():
    g = np.random.default_rng(0)
    n, k = 60, 5
    others = [[j for j in range(n) if j != i] for i in range(n)]
    even = [g.permutation(row)[:k] for row in others]
    hubby = [row[:k] for row in others]
    variances = []
    for rows in (even, hubby):
        indices = torch.from_numpy(np.array([rows], dtype=np.int32))
        graph = NeighborGraph(indices, torch.zeros_like(indices, dtype=torch.bool), k)
        variances.append(permutation_moments(graph, graph, k).variance.item())
        scores = grids(graph, graph, k, [g.permutation(n) for _ in range(2000)])
        assert scores.var() == pytest.approx(variances[-1], rel=0.25)
    assert variances[1] > 4 * variances[0]


def test_z_scores():
    moments = Moments(0.25, torch.tensor([[0.01, 0.0]], dtype=torch.float64))
    scores = torch.tensor([[0.45, 0.25 + 1e-16]], dtype=torch.float64)
    assert z_scores(scores, moments).tolist() == [[pytest.approx(2), 0]]


@pytest.mark.parametrize("k", [1, 7, 12, 39])
def test_where_every_pairing_gives_the_same_score(k):
    flat = neighbor_graph([torch.zeros(40, 2, dtype=torch.float64)], k, similarity="euclidean")
    other = drawn(40, 2, 0, k=k)
    for x, y in ((flat, other), (other, flat), (flat, flat)):
        moments = permutation_moments(x, y, k)
        assert not moments.variance.any()
        assert not z_scores(overlap(x, y, k), moments).any()
    null = permutation_null(flat, other, k, draws=19, seed=0)
    assert null.numpy() == pytest.approx(k / 39)
    assert calibrate(float(overlap(flat, other, k).max()), null).p == 1


def test_symmetric_against_antisymmetric_weights_have_no_variance():
    # In a ring of 11 the five ahead, and the five nearest where the last six compete for one place.
    rings = []
    for steps, ties in (
        (range(1, 6), ()),
        ([1, -1, 2, -2, 3, -3, 4, -4, 5, -5], range(5, 10)),
    ):
        indices = torch.tensor([[[(i + d) % 11 for d in steps] for i in range(11)]])
        tied = torch.tensor([place in ties for place in range(len(steps))]).expand(indices.shape)
        rings.append(NeighborGraph(indices.int(), tied, 5))
    x, y = rings
    assert permutation_moments(x, y, 5).variance.item() == 0
    assert z_scores(overlap(x, y, 5), permutation_moments(x, y, 5)).item() == 0
    assert permutation_moments(x, x, 5).variance.item() > 0


@given(
    st.integers(2, 12),
    st.integers(0, 2**63 - 1),
    st.sampled_from(["look-ups", "hits", "search", "remainders"]),
    st.data(),
)
def test_null_equals_a_plain_loop(n, seed, way, data):
    k = data.draw(st.integers(1, n - 1))
    x, y = data.draw(graphs(n, k)), data.draw(graphs(n, k))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(9)]
    expected = grids(x, y, k, orders).max(axis=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "_few_hits", lambda *_: way == "hits")
        if way in ("search", "remainders"):
            patch.setattr(permutation, "_TABLE_CELLS", 0)
        if way == "remainders":
            patch.setattr(permutation, "_FILTER_CELLS", n * (1 + n // 3))
        null = permutation_null(x, y, k, draws=9, seed=seed)
        few = permutation_null(x, y, k, draws=4, seed=seed)
    assert (null.dtype, null.shape) == (torch.float64, (9,))
    np.testing.assert_allclose(null, expected, rtol=0, atol=1e-13)
    assert torch.equal(null[:4], few)


@pytest.mark.parametrize("decimals", [0, 9], ids=["ties", "no ties"])
def test_null_at_a_common_size_and_smaller_k(decimals):
    x, y = drawn(150, 3, 0, decimals=decimals), drawn(150, 2, 1, decimals=decimals)
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(150, generator=generator).tolist() for _ in range(20)]
    null = permutation_null(x, y, 7, draws=20, seed=3)
    expected = grids(x, y, 7, orders).max(axis=(1, 2))
    np.testing.assert_allclose(null, expected, rtol=0, atol=1e-13)
    assert len(permutation_null(x, y, 7, seed=3)) == 1000
    assert not torch.equal(null, permutation_null(x, y, 7, draws=20, seed=4))


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0], ids=["no ties", "few ties", "ties"])
@pytest.mark.parametrize("layers", [(3, 2), (2, 70), (66, 1)], ids=str)
def test_null_is_the_same_in_any_blocks_of_rows_and_draws(layers, share, monkeypatch):
    n, k, draws = 50, 4, 23
    g = np.random.default_rng(0)
    x, y = (
        NeighborGraph(
            torch.from_numpy(
                np.array([[g.permutation(n - 1)[:6] for _ in range(n)] for _ in range(count)])
            ).int(),
            torch.from_numpy((g.random((count, n, 1)) < share) & (np.arange(6) >= 2)),
            k,
        )
        for count in layers
    )
    # Item i's neighbours are among the others.
    for graph in (x, y):
        graph.indices[graph.indices >= torch.arange(n)[:, None]] += 1
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(draws)]
    expected = grids(x, y, k, orders).max(axis=(1, 2))
    monkeypatch.setattr(permutation, "_few_hits", lambda *_: False)
    nulls = [permutation_null(x, y, k, draws=draws, seed=5)]
    for added, beside, size in ((16, 1, 1), (1, 5, 20_000), (3, 2, 1 << 20)):
        monkeypatch.setattr(permutation, "_ADDED", added)
        monkeypatch.setattr(permutation, "_BESIDE", {"cpu": beside})
        monkeypatch.setattr(permutation, "_LOOKED_UP_BYTES", {"cpu": size})
        nulls.append(permutation_null(x, y, k, draws=draws, seed=5))
    np.testing.assert_allclose(nulls[0], expected, rtol=0, atol=1e-14)
    assert all(torch.equal(null, nulls[0]) for null in nulls[1:])
    monkeypatch.setattr(permutation, "_TABLE_CELLS", 0)
    searched = permutation_null(x, y, k, draws=draws, seed=5)
    np.testing.assert_allclose(searched, expected, rtol=0, atol=1e-14)
    assert share or torch.equal(searched, nulls[0])


def test_the_way_depends_on_how_alike_layers_are():
    g = np.random.default_rng(0)
    z = torch.from_numpy(g.standard_normal((300, 8)))
    for spread, few in ((0.01, True), (3, False)):
        x, y = (
            neighbor_graph(
                [z + spread * torch.from_numpy(g.standard_normal((300, 8))) for _ in range(12)],
                10,
                similarity="euclidean",
            )
            for _ in range(2)
        )
        edges = [len(torch.cat([torch.arange(300)[:, None] * 300 + layer for layer in side.indices])
                     .unique()) for side in (x, y)]  # fmt: skip
        assert permutation._few_hits(*edges, x, y) == few
        ways = []
        for way in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(permutation, "_few_hits", lambda *_, way=way: way)
                ways.append(permutation_null(x, y, 10, draws=20, seed=0))
        assert torch.equal(*ways)
        assert torch.equal(ways[0], permutation_null(x, y, 10, draws=20, seed=0))


def test_p_is_uniform_where_nothing_links_the_sides():
    draws, runs = 19, 400
    p = []
    for run in range(runs):
        x = drawn(30, 3, 2 * run, k=5)
        y = drawn(30, 3, 2 * run + 1, k=5)
        null = permutation_null(x, y, 5, draws=draws, seed=run)
        p.append(calibrate(float(overlap(x, y, 5).max()), null).p)
    counts = np.bincount(np.rint(np.array(p) * (draws + 1)).astype(int), minlength=draws + 2)[1:]
    # Scores that tie make p larger, never smaller.
    for level in range(1, draws + 1):
        rate = level / (draws + 1)
        assert counts[:level].sum() <= runs * rate + 3.5 * math.sqrt(runs * rate * (1 - rate))
    assert np.mean(p) == pytest.approx((draws + 2) / (2 * (draws + 1)), abs=0.06)
    assert stats.binomtest(int(counts[:4].sum()), runs, 0.2).pvalue > 0.001


def test_a_planted_link_is_found():
    g = np.random.default_rng(0)
    z = g.standard_normal((200, 4))
    x, y = (
        neighbor_graph(
            [torch.from_numpy(z + s * g.standard_normal((200, 4))) for s in (0.5, 2)],
            10,
            similarity="euclidean",
        )
        for _ in range(2)
    )
    score = overlap(x, y, 10)
    result = calibrate(float(score.max()), permutation_null(x, y, 10, draws=199, seed=0))
    assert result.p == 1 / 200
    assert 0.05 < result.threshold < result.score < float(score.max())
    assert z_scores(score, permutation_moments(x, y, 10))[0, 0] > 20


def null(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("score", "values", "alpha", "expected"),
    [
        # Of ten values the ninth, ceil(0.9 * 10), which is a null's.
        (0.7, [0.1] * 7 + [0.3, 0.4], 0.1, (0.4, 0.5, 0.1)),
        # The fourth of five, ceil(0.75 * 5).
        (0.5, [0.1, 0.2, 0.3, 0.6], 0.25, (0.5, 0.0, 0.4)),
        # A null value as high as the score counts.
        (0.4, [0.1] * 8 + [0.4], 0.1, (0.4, 0.0, 0.2)),
        (0.4, [0.1] * 8 + [0.4], 0.2, (0.1, 1 / 3, 0.2)),
        (0.4, [0.1] * 8 + [0.4 + 1e-14], 0.1, (0.4, 0.0, 0.2)),
        (0.4, [0.1] * 8 + [0.4 - 1e-14], 0.1, (0.4, 0.0, 0.2)),
        (0.1, [0.2, 0.3, 0.4], 0.5, (0.2, 0.0, 1.0)),
        # Too few draws for the level.
        (0.9, [0.1, 0.2, 0.3], 0.05, (0.9, 0.0, 0.25)),
        (1.0, [1.0, 1.0, 1.0], 0.5, (1.0, 0.0, 1.0)),
    ],
)
def test_calibrated_by_hand(score, values, alpha, expected):
    result = calibrate(score, null(*values), alpha)
    assert (result.threshold, result.score, result.p) == pytest.approx(expected)


def test_rank_survives_rounding():
    # 1 - 0.05 of 1,000 values is the 950th, and 1 - 0.3 of ten the seventh.
    assert calibrate(0.999, torch.arange(999, dtype=torch.float64) / 1000).threshold == 0.949
    assert calibrate(0.95, null(*(i / 10 for i in range(9))), 0.3).threshold == 0.6
    for count, alpha in itertools.product((10, 50, 100, 200), np.arange(1, 100) / 100):
        values = torch.arange(count - 1, dtype=torch.float64) / count
        rank = -(-(100 - round(100 * alpha)) * count // 100)
        expected = (rank - 1) / count if rank < count else 0.9999
        assert calibrate(0.9999, values, alpha).threshold == pytest.approx(expected)


@given(
    st.integers(0, 10),
    st.lists(st.integers(0, 10), min_size=1, max_size=30),
    st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]),
)
def test_above_the_threshold_exactly_where_significant(score, values, alpha):
    result = calibrate(score / 10, null(*(v / 10 for v in values)), alpha)
    assert (result.score > 0) == (score / 10 > result.threshold) == (result.p <= alpha + 1e-12)
    assert 0 <= result.score <= 1
    assert result.p == pytest.approx((1 + sum(v >= score for v in values)) / (len(values) + 1))


def test_what_cannot_be_answered():
    x, y = drawn(20, 1, 0, k=5), drawn(21, 1, 0, k=5)
    for function in (permutation_moments, permutation_covariance):
        with pytest.raises(PrhEvalError, match="of 20 and 21 items"):
            function(x, y, 5)
        with pytest.raises(PrhEvalError, match="k = 6 is not among"):
            function(x, x, 6)
    with pytest.raises(PrhEvalError, match="of 20 and 21 items"):
        permutation_null(x, y, 5, seed=0)
    with pytest.raises(ValueError, match="draws = 0"):
        permutation_null(x, x, 5, draws=0, seed=0)
    with pytest.raises(ValueError, match="the null has no values"):
        calibrate(0.5, null())
    for alpha in (0, 1, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            calibrate(0.5, null(0.1), alpha)
    for score, value in ((math.nan, 0.1), (0.5, math.nan), (1.5, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            calibrate(score, null(value))
    assert calibrate(0.5, null(0.1)) == Calibrated(0.5, 0.0, 0.5)
