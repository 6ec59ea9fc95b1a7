"""Bits of words counted by digits, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment.bits import BitCounter, bit_counts, shortest_word


def plain_bit_counts(words: torch.Tensor) -> np.ndarray:
    given = words.numpy().view(np.uint64)
    return np.array([((given >> np.uint64(bit)) & np.uint64(1)).sum(axis=-2) for bit in range(64)])


@given(
    st.sampled_from([0, 1, 2, 3, 4, 5, 14, 15, 16, 254, 255, 256, 770]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.floats(0, 1),
    st.sampled_from([1, 2, 7, 40]),
    st.integers(0, 2**32 - 1),
)
def test_bit_counts_equal_a_plain_loop(m, shape, share, height, seed):
    g = np.random.default_rng(seed)
    words = g.integers(-(2**63), 2**63, (*shape[:-1], m, shape[-1]))
    words = torch.from_numpy(np.where(g.random(words.shape) < share, -1, words))
    expected = plain_bit_counts(words)
    counter = BitCounter(height)
    for part in words.clone().split([m // 3, 0, m - m // 3], dim=-2):
        counter.add(part)
    np.testing.assert_array_equal(counter.counts(), expected)
    got = bit_counts(words)
    assert got.dtype == torch.int64
    np.testing.assert_array_equal(got, expected)


@given(
    st.sampled_from([torch.int8, torch.int16, torch.int32]),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.sampled_from([1, 2, 17, 300]),
    st.integers(0, 2**32 - 1),
)
def test_bits_of_short_words_are_those_of_long_ones(dtype, shape, m, seed):
    size, g = 8 * dtype.itemsize, np.random.default_rng(seed)
    words = torch.from_numpy(g.integers(0, 2**size, (*shape[:-1], m, shape[-1])))
    expected = plain_bit_counts(words)[:size]
    np.testing.assert_array_equal(bit_counts(words.to(dtype)), expected)


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [
        (0, "int8"),
        (8, "int8"),
        (9, "int16"),
        (16, "int16"),
        (17, "int32"),
        (33, "int64"),
        (64, "int64"),
    ],
)
def test_the_shortest_words_hold_as_many_bits(bits, dtype):
    assert shortest_word(bits) == getattr(torch, dtype)


def test_bits_that_all_words_have_are_not_lost():
    # Beyond what any field but the last holds.
    words = torch.full((70_000, 1), -1)
    assert bit_counts(words).unique().tolist() == [70_000]


def test_no_count_is_read_as_negative():
    # 8 digits, then 16 of them, then 17.
    for count in (255, 33_000, 66_000):
        counter = BitCounter(1)
        counter.add(torch.full((count, 1), -1))
        assert counter.counts().unique().tolist() == [count]
