"""The graph of some items against a search among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.subsets import subset
from prh_eval.errors import PrhEvalError


def searched(layers: np.ndarray, k: int) -> NeighborGraph:
    return neighbor_graph([torch.from_numpy(x) for x in layers], k, similarity="euclidean")


@given(
    st.integers(0, 2**32 - 1), st.integers(3, 14), st.integers(1, 3), st.integers(1, 6), st.data()
)
def test_is_a_search_among_these_items(seed, n, layers, levels, data):
    # Few levels of similarity make duplicates and ties.
    g = np.random.default_rng(seed)
    x = g.integers(0, levels, size=(layers, n, 2)).astype(np.float64)
    graph = searched(x, data.draw(st.integers(1, n - 1)))
    if data.draw(st.booleans()):
        # Rows that end within a group of ties, as a trimmed graph's may.
        graph = graph.trimmed(data.draw(st.integers(1, graph.k)))
    chosen = np.sort(g.permutation(n)[: data.draw(st.integers(2, n))])
    anew = searched(x[:, chosen], len(chosen) - 1)
    try:
        got = subset(graph, torch.from_numpy(g.permutation(chosen)))
    except PrhEvalError:
        # Then some row of what is known for certain has no neighbour among them.
        assert ((dense(graph, graph.k) > 0)[:, chosen][:, :, chosen].sum(axis=2) == 0).any()
        return
    # As far as every row goes for certain.
    assert got.k == (dense(graph, graph.k) > 0)[:, chosen][:, :, chosen].sum(axis=2).min()
    assert (got.layers, got.n) == (layers, len(chosen))
    for k in range(1, got.k + 1):
        np.testing.assert_array_equal(dense(got, k), dense(anew, k))
    trimmed = anew.trimmed(got.k)
    assert torch.equal(got.indices[..., : got.k], trimmed.indices[..., : got.k])
    assert torch.equal(got.tied[..., : got.k], trimmed.tied[..., : got.k])


def test_what_lies_beyond_the_known_neighbours_is_not_made_up():
    # Item 0 keeps 1 and 2 for certain; of 3, 4, 5, which tie, the row shows two.
    indices = torch.tensor([[0, 1, 2, 3]] * 6, dtype=torch.int32)
    indices[0] = torch.tensor([1, 2, 3, 4])
    indices[1, 1], indices[2, 2], indices[3, 3] = 4, 4, 4
    indices[1, 0], indices[2, 0] = 0, 0
    tied = torch.zeros_like(indices, dtype=torch.bool)
    tied[0, 3] = True
    graph = NeighborGraph(indices[None], tied[None], 2)
    with pytest.raises(PrhEvalError, match="has only 0 among these"):
        subset(graph, torch.tensor([0, 3, 4, 5]))
    assert subset(graph, torch.tensor([0, 1, 2])).k == 1


def test_too_few_neighbours_are_refused_in_a_sentence():
    graph = searched(np.arange(20.0).reshape(1, 20, 1) ** 2, 4)
    with pytest.raises(PrhEvalError, match=r"keeps their 4 nearest .* only 0 among these"):
        subset(graph, torch.tensor([0, 19]))
    with pytest.raises(PrhEvalError, match="only 2 among these, where 3 are needed"):
        subset(graph, torch.tensor([0, 1, 2]), 3)
    assert subset(graph, torch.tensor([0, 1, 2])).k == 2
    with pytest.raises(PrhEvalError, match="of the 0 has only 0"):
        subset(graph, torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize(
    ("items", "match"), [([1, 1], "once each"), ([0, 20], "0 to 19"), ([-1, 3], "0 to 19")]
)
def test_items_that_are_not_a_subset(items, match):
    graph = searched(np.arange(20.0).reshape(1, 20, 1), 4)
    with pytest.raises(ValueError, match=match):
        subset(graph, torch.tensor(items))
