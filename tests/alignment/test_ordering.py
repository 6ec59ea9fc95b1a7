"""The largest of rows and positions in masks, against sorted lists."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment import ordering
from prh_eval.alignment.ordering import (
    group_maxima,
    kth_largest,
    largest,
    positions,
    quotients,
    reaching,
    rising,
    stable_order,
)


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
    for limit in ("_SHORT", "_LONG"):
        monkeypatch.setattr(ordering, limit, 1)
        for one, other in zip(short, getattr(ordering, name)(values, 7), strict=True):
            assert torch.equal(one, other)


@given(
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.sampled_from([0, 1]),
    # Of either sign, with zeros of both, and infinite: groups may have no value above 0.
    st.lists(
        st.lists(st.floats(width=16, allow_nan=False), min_size=3, max_size=3),
        min_size=1,
        max_size=20,
    ),
    st.floats(-2, 2),
    st.sampled_from([1, ordering._FEW]),
)
def test_maxima_of_groups_are_those_of_lists(dtype, dim, values, level, few):
    x = torch.tensor(values, dtype=torch.float32).sub(level).to(dtype)
    lists = x.T.tolist() if dim == 0 else x.tolist()
    with patch.object(ordering, "_FEW", few):
        found = group_maxima(x, dim)
    assert found.dtype == dtype
    assert found.tolist() == [max(group) for group in lists]


@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([-3.0, 0.0, 1.0]), st.data())
def test_kth_largest_of_bfloat16_are_those_of_lists(n, seed, level, data):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, n, generator=g) + level
    for value in (0.0, -0.0, torch.inf, -torch.inf):
        x[torch.rand(9, n, generator=g) < 0.1] = value
    x = x.bfloat16()
    k = data.draw(st.integers(1, n))
    found = kth_largest(x, k)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [sorted(row, reverse=True)[k - 1] for row in x.tolist()]


@given(st.lists(st.lists(st.integers(-(2**60), 2**60), min_size=4, max_size=4), max_size=5))
def test_rising_rows_are_sorted_lists(rows):
    found = rising(torch.tensor(rows, dtype=torch.int64).reshape(-1, 4))
    assert found.tolist() == [sorted(row) for row in rows]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=30))
def test_positions_are_those_in_a_flat_list(mask):
    flat = [value for row in mask for value in row]
    expected = [place for place, value in enumerate(flat) if value]
    found = positions(torch.tensor(mask, dtype=torch.bool).reshape(-1, 3))
    assert found.tolist() == expected
    assert found.dtype == torch.int64


@given(st.data(), st.sampled_from([8, 100, 128, 1024]))
def test_positions_where_few_are_true(data, size):
    expected = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=size // 16)))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[expected] = True
    for shape in ((-1, 4), (2, -1)):
        assert positions(mask.reshape(shape)).tolist() == expected


@given(
    st.data(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    # Rows of eight are looked at eight at a time where few reach.
    st.sampled_from([3, 8]),
    st.sampled_from([0.0, 1.0, 5.0]),
)
def test_what_reaches_a_floor_is_what_is_not_below_it(data, dtype, columns, level):
    number = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 1.0, -math.inf]), st.floats(-3, 3))
    rows = data.draw(st.lists(st.lists(number, min_size=columns, max_size=columns), max_size=20))
    floors = data.draw(st.lists(st.floats(-3, 3), min_size=len(rows), max_size=len(rows)))
    values = torch.tensor(rows, dtype=dtype).reshape(-1, columns)
    floor = (torch.tensor(floors, dtype=torch.float32) + level).to(dtype).float()
    expected = [
        columns * row + column
        for row, (numbers, least) in enumerate(zip(values.tolist(), floor.tolist(), strict=True))
        for column in range(columns)
        if numbers[column] >= least
    ]
    found = reaching(values, floor)
    assert reaching(values.T.contiguous().T, floor).tolist() == expected
    assert found.tolist() == expected
    # Two rows at a time.
    with patch.object(ordering, "_AT_HAND", 3 * columns - 1):
        assert reaching(values, floor).tolist() == expected


@given(st.lists(st.integers(0, 2**62), max_size=20), st.integers(1, 2**40))
def test_quotients_are_those_of_integers(numbers, divisor):
    found = quotients(torch.tensor(numbers, dtype=torch.int64), divisor)
    assert found.tolist() == [number // divisor for number in numbers]


@given(st.lists(st.integers(0, 3), max_size=50), st.sampled_from([0, 65_532, 65_533, 10**9]))
def test_a_stable_order_is_that_of_sorted(numbers, offset):
    numbers = [number + offset for number in numbers]
    found = stable_order(torch.tensor(numbers, dtype=torch.int64), offset + 4)
    assert found.tolist() == sorted(range(len(numbers)), key=numbers.__getitem__)
