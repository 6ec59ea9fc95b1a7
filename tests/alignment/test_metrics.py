"""Overlap of neighbour graphs against dense products, and what a score may not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import (
    item_overlap,
    item_overlaps,
    overlap,
    shared_weights,
)
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.errors import PrhEvalError


def graph(layers: list[np.ndarray], k: int, name: str = "unclipped") -> NeighborGraph:
    return neighbor_graph(preprocess([torch.from_numpy(x) for x in layers], protocol(name)), k)


@st.composite
def models(draw, n: int) -> list[np.ndarray]:
    """Layers with and without ties, of one to four dimensions."""
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    decimals = draw(st.lists(st.sampled_from([0, 8]), min_size=1, max_size=4))
    return [g.standard_normal((n, g.integers(1, 5))).round(d) for d in decimals]


@given(st.data(), st.integers(3, 24))
def test_overlap_equals_dense_products(data, n):
    k = data.draw(st.integers(1, n - 1))
    largest = data.draw(st.integers(k, n - 1))
    x, y = graph(data.draw(models(n)), k), graph(data.draw(models(n)), largest)
    expected = np.einsum("aij,bij->abi", dense(x, k), dense(y, k)) / k
    memory = data.draw(st.sampled_from([1, 5000, 1 << 26]))
    got = overlap(x, y, k, memory_bytes=memory)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected.mean(axis=2), rtol=0, atol=1e-13)
    np.testing.assert_allclose(overlap(y, x, k).numpy(), got.T.numpy(), rtol=0, atol=1e-13)
    items = item_overlap(x.layer(-1), y.layer(0), k)
    np.testing.assert_allclose(items.numpy(), expected[-1, 0], rtol=0, atol=1e-13)


@given(st.data(), st.integers(3, 24))
def test_shared_weights_equal_dense_products(data, n):
    k = data.draw(st.integers(1, n - 1))
    x, y = (graph(data.draw(models(n)), k).layer(0) for _ in range(2))
    got = np.zeros((n, n + 1))
    np.add.at(got, (np.arange(n)[:, None], x.indices[0].numpy()), shared_weights(x, y, k).numpy())
    np.testing.assert_allclose(got[:, :n], dense(x, k)[0] * dense(y, k)[0], rtol=0, atol=1e-15)


@settings(max_examples=40)
@given(st.data(), st.integers(3, 16))
def test_overlap_over_some_items_equals_dense_products(data, n):
    k = data.draw(st.integers(1, n - 1))
    x, y = graph(data.draw(models(n)), k), graph(data.draw(models(n)), k)
    items = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    expected = np.einsum("aij,bij->abi", dense(x, k), dense(y, k))[:, :, items].mean(axis=2) / k
    memory = data.draw(st.sampled_from([1, 5000, 1 << 26]))
    got = overlap(x, y, k, items=torch.tensor(items), memory_bytes=memory)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-13)
    every = overlap(x, y, k, items=torch.randperm(n), memory_bytes=memory)
    assert every.equal(overlap(x, y, k, memory_bytes=memory))


@pytest.mark.parametrize("items", [[], [20], [-1], [3, 3], [[1, 2]]])
def test_items_that_cannot_be_meant(items):
    x = graph([np.random.default_rng(0).standard_normal((20, 4))], 5)
    with pytest.raises(ValueError, match="some of the items 0 to 19, each once"):
        overlap(x, x, 5, items=torch.tensor(items, dtype=torch.int64))


@pytest.mark.parametrize("layers", [1, 5, 40], ids=["numbered", "numbered too", "own numbers"])
def test_many_layers_in_any_chunks(layers):
    g = np.random.default_rng(0)
    z = g.standard_normal((150, 6))
    x, y = (
        graph([z @ g.standard_normal((6, 9)) + 0.3 * g.standard_normal((150, 9))
               for _ in range(count)], 10)
        for count in (layers, 3)
    )  # fmt: skip
    expected = np.einsum("aij,bij->ab", dense(x, 7), dense(y, 7)) / (150 * 7)
    assert expected.max() > 0.2
    for memory in (1, 100_000, 1 << 26):
        np.testing.assert_array_equal(overlap(x, y, 7, memory_bytes=memory).numpy(), expected)


@st.composite
def tied_rows(draw, n: int, k: int) -> NeighborGraph:
    """Layers whose rows have ties at the k-th place: none, some or all, few or many."""
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers, width = draw(st.sampled_from([1, 2, 9, 33])), draw(st.integers(k, n - 1))
    indices = g.permuted(np.tile(np.arange(n - 1, dtype=np.int32), (layers, n, 1)), axis=2)
    indices = indices[..., :width]
    # Item i's neighbours are among the others.
    indices += indices >= np.arange(n)[:, None]
    begin, end = g.integers(1, k + 1, (layers, n, 1)), g.integers(1, width + 1, (layers, n, 1))
    column = np.arange(width)
    tied = (column >= begin) & (column < end)
    tied &= g.random((layers, n, 1)) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    # In some drawn graphs only the first layer's ties go beyond the k-th place.
    tied[1:, :, k:] &= draw(st.booleans())
    return NeighborGraph(torch.from_numpy(indices), torch.from_numpy(tied), k)


@settings(max_examples=40)
@given(st.data(), st.integers(6, 16), st.integers(1, 5))
def test_overlap_is_the_same_to_the_last_bit_in_any_chunks_and_order(data, n, k):
    x, y = data.draw(tied_rows(n, k)), data.draw(tied_rows(n, k))
    exact = np.array([
        [math.fsum((a * b).flatten()) for b in dense(y, k)] for a in dense(x, k)
    ]) / (n * k)  # fmt: skip
    score = overlap(x, y, k)
    np.testing.assert_allclose(score.numpy(), exact, rtol=4e-16, atol=1e-17)
    for memory in (1, 30_000, 300_000):
        assert torch.equal(overlap(x, y, k, memory_bytes=memory), score)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    names = torch.cat([order.argsort(), torch.tensor([-1])]).int()
    moved = (
        NeighborGraph(names[graph.indices[:, order].long()], graph.tied[:, order], k)
        for graph in (x, y)
    )
    assert torch.equal(overlap(*moved, k), score)
    assert torch.equal(overlap(y, x, k), score.T)
    pairs = [(0, 0), (-1, y.layers - 1), (x.layers // 2, -1)]
    items = item_overlaps(x, y, k, pairs)
    for got, (a, b) in zip(items, pairs, strict=True):
        expected = (dense(x, k)[a] * dense(y, k)[b]).sum(axis=1) / k
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-15)


def test_a_layer_of_ties_among_layers_without():
    g = np.random.default_rng(0)
    x, y = (
        graph([g.standard_normal((60, 5)), np.ones((60, 2)), g.standard_normal((60, 1)).round()], 4)
        for _ in range(2)
    )
    expected = np.einsum("aij,bij->ab", dense(x, 4), dense(y, 4)) / (60 * 4)
    np.testing.assert_allclose(overlap(x, y, 4).numpy(), expected, rtol=0, atol=1e-15)
    assert overlap(x, y, 4)[1].tolist() == pytest.approx([4 / 59] * 3, abs=1e-15)


def test_more_neighbours_than_a_byte_counts():
    x, y = np.random.default_rng(0).standard_normal((2, 400, 8))
    many, other = graph([x, x, y], 300), graph([y, x], 310)
    expected = np.einsum("aij,bij->ab", dense(many, 300), dense(other, 300)) / (400 * 300)
    assert expected[0, 1] == 1
    np.testing.assert_array_equal(overlap(many, other, 300).numpy(), expected)


def test_far_more_items_than_neighbours():
    g = np.random.default_rng(0)
    n = 3000
    indices = (np.arange(n)[:, None] + g.integers(1, 9, (3, 1, 1)) * [1, 2, 5, 11]) % n
    x, y = (
        NeighborGraph(torch.from_numpy(part.astype(np.int32)), torch.zeros(part.shape).bool(), 4)
        for part in (indices, indices[::-1].copy())
    )
    expected = [[(a[:, :, None] == b[:, None]).sum() / (4 * n) for b in indices[::-1]]
                for a in indices]  # fmt: skip
    for memory in (1 << 16, None):
        assert overlap(x, y, 4, memory_bytes=memory).tolist() == expected
    tied = NeighborGraph(x.indices, x.tied, 3)
    tied.tied[:, ::7, 2:] = True
    left, right = dense(tied, 3), dense(y, 3)
    np.testing.assert_allclose(
        overlap(tied, y, 3, memory_bytes=1 << 20).numpy(),
        np.einsum("aij,bij->ab", left, right) / (3 * n),
        rtol=1e-14,
    )


@given(st.data(), st.integers(6, 40), st.sampled_from(["paper", "paper_loose", "unclipped"]))
def test_scale_and_shared_order_change_nothing(data, n, name):
    g = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    k = data.draw(st.integers(1, n - 1))
    x, y = g.standard_normal((2, n, 5))
    score = overlap(graph([x], k, name), graph([y], k, name), k)
    order = np.array(data.draw(st.permutations(range(n))))
    scale = data.draw(st.floats(1e-3, 1e3))
    moved = overlap(graph([scale * x[order]], k, name), graph([y[order]], k, name), k)
    np.testing.assert_allclose(moved.numpy(), score.numpy(), rtol=0, atol=1e-13)
    rotation = np.linalg.qr(g.standard_normal((5, 5)))[0]
    if name == "unclipped":
        rotated = overlap(graph([x @ rotation], k), graph([y], k), k)
        np.testing.assert_allclose(rotated.numpy(), score.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [1, 10, 59])
def test_identical_inputs_score_one(k):
    x = np.random.default_rng(0).standard_normal((60, 8))
    assert float(overlap(graph([x], k), graph([x], k), k)) == 1
    assert item_overlap(graph([x], k), graph([x], k), k).tolist() == [1.0] * 60


def test_everything_is_a_neighbour_at_the_largest_k():
    x, y = np.random.default_rng(0).standard_normal((2, 20, 4))
    assert float(overlap(graph([x], 19), graph([y], 19), 19)) == 1


def by_index(x: np.ndarray, k: int) -> np.ndarray:
    """0/1 weights where ties are broken by index."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarities = (unit @ unit.T).round(9)
    np.fill_diagonal(similarities, -2)
    result = np.zeros_like(similarities)
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    np.put_along_axis(result, nearest, 1, axis=1)
    return result


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_independent_inputs_score_chance_however_many_are_equal(share):
    n, k = 256, 10
    g = np.random.default_rng(0)
    shared, broken = [], []
    for _ in range(20):
        x, y = g.standard_normal((2, n, 32)).astype(np.float32)
        for side in (x, y):
            equal = g.permutation(n)[: int(share * n)]
            side[equal] = side[equal[:1]]
        shared.append(float(overlap(graph([x], k), graph([y], k), k)))
        # What it guards against: the same data with ties broken by index.
        broken.append((by_index(x, k) * by_index(y, k)).sum() / (n * k))
    # Three standard errors of the mean of 20 draws; exact where there is nothing to draw.
    chance = chance_level(n, k)
    assert np.mean(shared) == pytest.approx(chance, abs=1e-12 if share == 1 else 0.004)
    assert np.mean(broken) > 3 * chance or share == 0


def test_a_constant_layer_scores_exactly_chance():
    g = np.random.default_rng(0)
    constant = graph([np.ones((50, 3))], 7)
    model = graph([g.standard_normal((50, 4)) for _ in range(3)], 7)
    grid = overlap(model, constant, 7)
    np.testing.assert_allclose(grid.numpy(), chance_level(50, 7), rtol=1e-13)


def test_graphs_that_do_not_fit():
    g = np.random.default_rng(0)
    x, fewer = graph([g.standard_normal((20, 4))], 5), graph([g.standard_normal((19, 4))], 5)
    for function in (overlap, item_overlap):
        with pytest.raises(PrhEvalError, match="of 20 and 19 items"):
            function(x, fewer, 5)
        for k in (0, 6):
            with pytest.raises(PrhEvalError, match=f"k = {k} is not among .* 1 to 5"):
                function(x, x, k)
    with pytest.raises(PrhEvalError, match="k = 6 is not among"):
        item_overlaps(x, x, 6, [(0, 0)])
    two = graph([g.standard_normal((20, 4))] * 2, 5)
    with pytest.raises(ValueError, match="not 1 and 2"):
        item_overlap(x, two, 5)
