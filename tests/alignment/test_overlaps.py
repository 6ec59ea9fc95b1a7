"""Neighbours in common, counted by bits of words, against sets and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment import overlaps
from prh_eval.alignment.overlaps import (
    layer_words,
    shared_counts,
    shared_counts_bytes,
    shared_counts_in_halves,
)


def neighbors(g: np.random.Generator, items: int, layers: int, width: int, n: int) -> np.ndarray:
    """Rows without repeats, of which some are short."""
    rows = np.array([g.choice(n, width, replace=False) for _ in range(items * layers)])
    rows = rows.reshape(items, layers, width)
    return np.where(g.random(rows.shape) < g.choice([0, 0.3, 1], (items, layers, 1)), -1, rows)


def shared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(items, layers_x, layers_y) sizes of intersections of sets."""
    return np.array([[[len(set(a) & set(b) - {-1}) for b in v] for a in u]
                     for u, v in zip(x.tolist(), y.tolist(), strict=True)])  # fmt: skip


@given(
    st.sampled_from([(1, 1), (1, 9), (7, 8), (8, 7), (9, 3), (63, 2), (2, 64), (65, 2), (1, 130)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([5, 30, 2**31 - 1]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_shared_counts_equal_sets(layers, width_x, width_y, n, numbered, seed):
    g = np.random.default_rng(seed)
    # Neighbours far apart where n is large, and close enough to be shared.
    names = g.choice(n, min(n, 12), replace=False) if n < 100 else np.arange(n - 12, n)
    x, y = (
        np.where((slots := neighbors(g, 4, count, width, len(names))) < 0, -1, names[slots])
        for count, width in zip(layers, (width_x, width_y), strict=True)
    )
    expected = shared(x, y)
    with pytest.MonkeyPatch.context() as patch:
        if numbered:
            patch.setattr(overlaps, "_SPARSE", 0)
        each = shared_counts(torch.from_numpy(x), torch.from_numpy(y), n, each_item=True)
        got = shared_counts(torch.from_numpy(x), torch.from_numpy(y), n)
    assert (each.dtype, got.dtype) == (torch.int64, torch.int64)
    np.testing.assert_array_equal(each, expected)
    np.testing.assert_array_equal(got, expected.sum(axis=0))


@given(
    st.sampled_from([(1, 1), (2, 7), (7, 2), (65, 2), (1, 130)]),
    st.sampled_from([12, 2000]),
    st.integers(0, 2**32 - 1),
)
def test_shared_counts_in_halves_equal_sets(layers, n, seed):
    g = np.random.default_rng(seed)
    # Of few items, or of so many that they are numbered.
    names = g.choice(n, 12, replace=False)
    x, y = (
        np.where((slots := neighbors(g, 5, count, 4, 12)) < 0, -1, names[slots]) for count in layers
    )
    items, first = g.choice(n, 5, replace=False), g.random((3, n)) < g.choice([0, 0.5, 1], (3, 1))
    got = shared_counts_in_halves(
        *(torch.from_numpy(part) for part in (x, y)), n, *map(torch.from_numpy, (items, first))
    )
    assert got.dtype == torch.int64
    for split, half in enumerate(first):
        mine = half[items][:, None, None]
        each = shared(*(np.where(half[part] == mine, part, -1) for part in (x, y)))
        for number, mine in enumerate((half[items], ~half[items])):
            np.testing.assert_array_equal(got[split, number], each[mine].sum(axis=0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_more_than_bytes_hold(dtype):
    rows = torch.stack([torch.randperm(400)[:300] for _ in range(3)]).to(dtype)
    x = rows.expand(20, 3, 300)
    expected = 20 * shared(x[:1].numpy(), x[:1].numpy())[0]
    assert expected.max() == 6000
    np.testing.assert_array_equal(shared_counts(x, x, 400), expected)
    np.testing.assert_array_equal(shared_counts(x, x, 400, each_item=True)[7], expected // 20)


def test_no_items():
    none = torch.zeros(0, 3, 2, dtype=torch.int32)
    for n in (5, 10_000):
        assert not shared_counts(none, none[:, :2], n).any()
        assert shared_counts(none, none[:, :2], n, each_item=True).shape == (0, 3, 2)


def test_layer_words():
    words = layer_words(torch.tensor([[[0, 2], [2, 3]], [[1, 0], [3, 1]]]), 4)
    assert words.tolist() == [[1, 0, 3, 2], [1, 3, 0, 2]]


def test_memory_does_not_grow_with_the_number_of_items_where_they_are_numbered():
    assert shared_counts_bytes(10, 10, 10**6) == shared_counts_bytes(10, 10, 10**9) < 3000
    assert shared_counts_bytes(330, 400, 1024) < 1 << 16
