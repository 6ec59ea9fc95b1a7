"""Neighbour graphs against brute force in float64, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.oracles import dense, nearness, weights
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.errors import PrhEvalError

UNCLIPPED = protocol("unclipped")
SIMILARITIES = st.sampled_from(["cosine", "euclidean"])


def graph(x, k: int, similarity: str = "cosine", **options) -> NeighborGraph:
    features = [torch.as_tensor(x)]
    if similarity == "cosine":
        features = list(preprocess(features, UNCLIPPED))
    return neighbor_graph(features, k, similarity=similarity, **options)


@st.composite
def tied_items(draw):
    """Items on a small grid of integers: many equal, many equally near."""
    n, dim = draw(st.integers(3, 20)), draw(st.integers(1, 4))
    reach = draw(st.integers(1, 3))
    x = draw(npst.arrays(np.int64, (n, dim), elements=st.integers(-reach, reach)))
    return x.astype(np.float64)


@st.composite
def generic_items(draw):
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return g.standard_normal((draw(st.integers(3, 40)), draw(st.integers(2, 20))))


@given(st.data(), tied_items() | generic_items(), SIMILARITIES)
def test_equals_brute_force(data, x, similarity):
    k = data.draw(st.integers(1, len(x) - 1))
    got = graph(x, k, similarity)
    similarities = nearness(x, similarity)
    for smaller in range(1, k + 1):
        np.testing.assert_array_equal(dense(got, smaller)[0], weights(similarities, smaller))
    check_form(got, similarities)


def check_form(got: NeighborGraph, similarities: np.ndarray) -> None:
    """What the class promises of every row."""
    assert got.indices.dtype == torch.int32 and got.tied.dtype == torch.bool
    assert not got.tied[..., 0].any()
    for i, (row, tied) in enumerate(
        zip(got.indices[0].tolist(), got.tied[0].tolist(), strict=True)
    ):
        length = sum(j >= 0 for j in row)
        assert length >= got.k and row[length:] == [-1] * (got.width - length)
        assert not any(tied[length:])
        assert i not in row and len(set(row[:length])) == length
        near = similarities[i][row[:length]]
        for place in range(1, length):
            assert tied[place] == (near[place - 1] - near[place] <= 1e-12)
            assert row[place - 1] < row[place] if tied[place] else near[place - 1] > near[place]
        # Nothing beyond the group that the k-th neighbour is in.
        assert all(tied[got.k : length])
    assert max((got.indices[0] >= 0).sum(dim=1)) == got.width


@given(st.data(), tied_items() | generic_items(), SIMILARITIES)
def test_order_of_items_changes_nothing(data, x, similarity):
    k = data.draw(st.integers(1, len(x) - 1))
    order = np.array(data.draw(st.permutations(range(len(x)))))
    before, after = (dense(graph(rows, k, similarity), k)[0] for rows in (x, x[order]))
    np.testing.assert_array_equal(after, before[np.ix_(order, order)])


@given(st.data(), tied_items() | generic_items(), SIMILARITIES)
def test_rotation_and_scale_change_nothing(data, x, similarity):
    k = data.draw(st.integers(1, len(x) - 1))
    g = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rotation = np.linalg.qr(g.standard_normal((x.shape[1], x.shape[1])))[0]
    scale = data.draw(st.floats(1e-3, 1e3))
    moved = scale * (x @ rotation)
    if similarity == "euclidean":
        moved = moved + 10 * g.standard_normal(x.shape[1])
    before, after = (dense(graph(rows, k, similarity), k)[0] for rows in (x, moved))
    np.testing.assert_array_equal(after, before)


@given(tied_items() | generic_items(), st.integers(0, 2**32 - 1))
def test_lengths_of_items_do_not_change_cosine(x, seed):
    lengths = np.random.default_rng(seed).uniform(0.1, 10, (len(x), 1))
    k = len(x) // 2
    np.testing.assert_array_equal(dense(graph(x * lengths, k), k), dense(graph(x, k), k))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_larger_input_with_duplicates(similarity):
    g = np.random.default_rng(5)
    x = g.standard_normal((300, 24)).astype(np.float32)
    x[g.permutation(300)[:150]] = x[g.integers(0, 300, 150)]
    similarities = nearness(x, similarity)
    for k in (1, 10, 299):
        np.testing.assert_array_equal(
            dense(graph(x, k, similarity), k)[0], weights(similarities, k)
        )


def test_large_offset_does_not_blur_distances():
    x = np.random.default_rng(0).integers(0, 1000, (60, 3)).astype(np.float64)
    far = graph(x + 1e9, 10, "euclidean")
    np.testing.assert_array_equal(dense(far, 10)[0], weights(nearness(x, "euclidean"), 10))


def test_near_ties_beyond_rounding_are_not_ties():
    angles = torch.tensor([0.0, 0.5, 0.5 + 1e-10, 2.0], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    result = graph(x, 1)
    assert result.indices[0, 0].tolist() == [1]
    assert not result.tied.any()


def test_layers_of_different_widths_and_tie_groups():
    g = np.random.default_rng(1)
    generic, constant = g.standard_normal((20, 5)), np.ones((20, 3))
    both = neighbor_graph(
        preprocess([torch.from_numpy(generic), torch.from_numpy(constant)], UNCLIPPED), 4
    )
    assert (both.layers, both.n, both.width, both.k) == (2, 20, 19, 4)
    np.testing.assert_array_equal(dense(both, 4)[0], weights(nearness(generic, "cosine"), 4))
    np.testing.assert_allclose(dense(both, 4)[1], (1 - np.eye(20)) * 4 / 19)
    np.testing.assert_array_equal(dense(both.layer(-1), 4)[0], dense(both, 4)[1])


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_zero_and_constant_features_tie_with_everything(similarity):
    result = graph(np.zeros((8, 3)), 3, similarity)
    np.testing.assert_allclose(dense(result, 3)[0], (1 - np.eye(8)) * 3 / 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_short_floats_are_read_and_never_ranked(dtype, similarity):
    g = torch.Generator().manual_seed(0)
    # All in one narrow cone, where similarities in bfloat16 are nearly all tied.
    x = (torch.randn(120, 32, generator=g) + 5).to(dtype)
    short, long = (graph(rows, 10, similarity) for rows in (x, x.double()))
    assert torch.equal(short.indices, long.indices)
    assert short.width == 10
    exact = weights(nearness(x.double().numpy(), similarity), 10)
    np.testing.assert_array_equal(dense(short, 10)[0], exact)


def test_progress_counts_layers():
    done: list[int] = []
    features = preprocess([torch.eye(6)] * 3, UNCLIPPED)
    neighbor_graph(features, 2, progress=done.append)
    assert done == [1, 2, 3]


@pytest.mark.parametrize("k", [-1, 0, 6, 7])
def test_impossible_k(k):
    with pytest.raises(PrhEvalError, match=f"k = {k} .* between 1 and 5"):
        neighbor_graph([torch.eye(6)], k)


def test_layers_of_different_items():
    with pytest.raises(PrhEvalError, match="layer 1 has 5 items and layer 0 has 6"):
        neighbor_graph([torch.eye(6), torch.eye(5)], 2)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        neighbor_graph([], 2)
    with pytest.raises(ValueError, match="length 1"):
        neighbor_graph([torch.eye(6) * 1.001], 2)
    with pytest.raises(ValueError, match="finite"):
        neighbor_graph([torch.eye(6) * torch.nan], 2, similarity="euclidean")
