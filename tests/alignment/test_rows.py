"""Layers below each other: which can be, and the blocks that they are made in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment.rows import Rows


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 150), st.data())
def test_blocks_are_of_a_layer_or_whole_layers(n, layers, size, data):
    rows = Rows(torch.zeros(n, 1), below=(torch.zeros(n, 1),) * (layers - 1))
    assert rows.n == n
    if layers == 1:
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
    else:
        start, stop = 0, n * layers
    blocks = list(rows.blocks(size, start, stop))
    assert [row for block in blocks for row in range(block.start, block.stop)] == [
        *range(start, stop)
    ]
    for block in blocks:
        assert 1 <= block.stop - block.start <= size
        within = block.start // n == (block.stop - 1) // n
        assert within or (block.start % n == 0 and block.stop % n == 0)


@given(st.data())
def test_joined_layers_are_made_as_each_is(data):
    layers = [
        Rows(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)), 0.7, unit=True)
        for seed in range(data.draw(st.integers(1, 4)))
    ]
    assert all(layers[0].joins(layer) for layer in layers)
    joined, each = Rows.joined(layers), torch.cat([layer[:] for layer in layers])
    assert (len(joined), joined.n, joined.layers) == (len(each), 5, len(layers))
    start = data.draw(st.integers(0, len(each)))
    some = slice(start, data.draw(st.integers(start, len(each))))
    rising = torch.tensor(
        sorted(data.draw(st.sets(st.integers(0, len(each) - 1)))), dtype=torch.long
    )
    for whole in (joined, joined.held(4), joined.loaded()):
        for rows in (some, rising):
            assert torch.equal(whole[rows], each[rows])
        assert (whole.n, whole.layers) == (5, len(layers))
    singles = torch.cat([layer.single(slice(0, 5)) for layer in layers])
    assert torch.equal(joined.single(some), singles[some])


@pytest.mark.parametrize(
    "change",
    [
        {"stored": torch.zeros(5, 4)},
        {"stored": torch.zeros(5, 3, dtype=torch.float64)},
        {"stored": torch.zeros(5, 3, device="meta")},
        {"limit": 0.8},
        {"unit": False},
        {"made": True},
        {"device": torch.device("meta")},
    ],
)
def test_layers_of_another_making_are_not_joined(change):
    layer = Rows(torch.zeros(5, 3), 0.7, unit=True)
    assert not layer.joins(replace(layer, **change))
