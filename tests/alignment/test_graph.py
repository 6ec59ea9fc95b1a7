"""Weights of hand-made rows, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph


def rows(indices: list[list[int]], tied: list[list[bool]], k: int) -> NeighborGraph:
    return NeighborGraph(
        torch.tensor([indices], dtype=torch.int32), torch.tensor([tied], dtype=torch.bool), k
    )


T, F = True, False
GRAPH = rows(
    [[1, 2, 3, 4, 5, 6], [0, 2, 3, 4, -1, -1], [0, 1, 3, -1, -1, -1]],
    [[F, F, T, T, F, T], [F, T, T, T, F, F], [F, F, F, F, F, F]],
    3,
)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [[1, 0, 0, 0, 0, 0], [1 / 4] * 4 + [0, 0], [1, 0, 0, 0, 0, 0]]),
        (2, [[1, 1 / 3, 1 / 3, 1 / 3, 0, 0], [2 / 4] * 4 + [0, 0], [1, 1, 0, 0, 0, 0]]),
        (3, [[1, 2 / 3, 2 / 3, 2 / 3, 0, 0], [3 / 4] * 4 + [0, 0], [1, 1, 1, 0, 0, 0]]),
    ],
)
def test_weights(k, expected):
    got = GRAPH.weights(k)
    assert got.dtype == torch.float64
    assert got[0].tolist() == expected


@pytest.mark.parametrize("k", [0, 4])
def test_sizes_it_does_not_answer_for(k):
    with pytest.raises(ValueError, match=r"outside 1\.\.3"):
        GRAPH.weights(k)


def test_one_layer():
    two = NeighborGraph(torch.stack([GRAPH.indices[0]] * 2), torch.stack([GRAPH.tied[0]] * 2), 3)
    two.indices[1, 0, 0] = 6
    assert (two.layers, two.n, two.width) == (2, 3, 6)
    assert two.layer(-1).indices[0, 0, 0] == two.layer(1).indices[0, 0, 0] == 6
    assert two.layer(0).layers == 1
    with pytest.raises(IndexError):
        two.layer(2)


def test_trimmed_by_hand():
    # The second row's ties reach to its fourth place, whatever k.
    assert GRAPH.trimmed(1).indices[0].tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, -1]]
    one = rows([[1, 2, 3]], [[F, F, T]], 2)
    assert (one.trimmed(1).width, one.trimmed(1).k) == (1, 1)
    assert one.trimmed(2).width == 3


@given(
    st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(1, 3), st.integers(1, 4), st.data()
)
def test_trimming_changes_no_weight(seed, n, layers, levels, data):
    # Few levels of similarity make many ties.
    x = np.random.default_rng(seed).integers(0, levels, size=(layers, n, 1)).astype(np.float64)
    graph = neighbor_graph([torch.from_numpy(layer) for layer in x], n - 1, similarity="euclidean")
    k = data.draw(st.integers(1, n - 1))
    trimmed = graph.trimmed(k)
    for smaller in range(1, k + 1):
        whole, part = graph.weights(smaller), trimmed.weights(smaller)
        assert torch.equal(whole[..., : trimmed.width], part)
        assert not whole[..., trimmed.width :].any()
    assert torch.equal(graph.indices[..., : trimmed.width], trimmed.indices)
    assert graph.weights(k)[..., trimmed.width - 1].any()
