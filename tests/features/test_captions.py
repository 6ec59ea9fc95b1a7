"""Means over items' captions against NumPy, in exact arithmetic where it matters."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.features.captions import mean_over_items


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_each_item_has_the_mean_of_its_rows(
    counts: list[int], widths: list[int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal((sum(counts), width), dtype=np.float32) for width in widths]
    layers = mean_over_items([torch.from_numpy(array) for array in arrays], counts)
    ends = np.cumsum(counts)
    for layer, array in zip(layers, arrays, strict=True):
        wanted = [
            array[end - count : end].astype(np.float64).mean(axis=0)
            for end, count in zip(ends, counts, strict=True)
        ]
        assert layer.dtype == torch.float32
        np.testing.assert_allclose(layer.numpy(), np.array(wanted), rtol=1e-6, atol=1e-7)


def test_one_caption_each_changes_nothing() -> None:
    layers = [torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2)]
    assert mean_over_items(layers, [1, 1, 1, 1]) is layers


def test_sums_lose_no_small_terms() -> None:
    values = [2.0**30, 1.0, -(2.0**30), 1.5]
    (mean,) = mean_over_items([torch.tensor(values).unsqueeze(1)], [4])
    assert Fraction(mean.item()) == Fraction(5, 8)


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False), count=st.integers(2, 7))
def test_equal_captions_give_their_own_features(value: float, count: int) -> None:
    (mean,) = mean_over_items([torch.full((count, 2), value)], [count])
    assert torch.equal(mean, torch.full((1, 2), value))


@pytest.mark.parametrize("counts", [[2, 0, 1], [], [1, 1], [2, 2], [4, -1]])
def test_counts_that_do_not_fit_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1 caption|counts add up to"):
        mean_over_items([torch.ones(3, 2)], counts)
