"""The largest of rows and positions in masks, against sorted lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment import ordering
from prh_eval.alignment.ordering import kth_largest, largest, positions


@given(st.data(), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_the_largest_of_rows_are_those_of_sorted_lists(data, dtype, coarse):
    rows, n = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 200))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    values = torch.randn(rows, n, generator=g, dtype=dtype)
    values = (2 * values).round() if coarse else values
    values[torch.rand(rows, n, generator=g) < 0.1] = -torch.inf
    k = data.draw(st.integers(1, n))
    found, columns = largest(values, k)
    expected = [sorted(row, reverse=True) for row in values.tolist()]
    assert found.tolist() == [row[:k] for row in expected]
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row)) == k for row in columns.tolist())
    assert kth_largest(values, k).tolist() == [row[k - 1] for row in expected]


@pytest.mark.parametrize("name", ["largest", "kth_largest"])
def test_short_and_long_rows_are_alike(monkeypatch, name):
    values = torch.randn(20, 100)
    short = getattr(ordering, name)(values, 7)
    monkeypatch.setattr(ordering, "_SHORT", 99)
    for one, other in zip(short, getattr(ordering, name)(values, 7), strict=True):
        assert torch.equal(one, other)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=30))
def test_positions_are_those_in_a_flat_list(mask):
    flat = [value for row in mask for value in row]
    expected = [place for place, value in enumerate(flat) if value]
    found = positions(torch.tensor(mask, dtype=torch.bool).reshape(-1, 3))
    assert found.tolist() == expected
    assert found.dtype == torch.int64
