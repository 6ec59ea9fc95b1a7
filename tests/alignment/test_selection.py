"""The exact order statistic against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from prh_eval.alignment import selection
from prh_eval.alignment.selection import select_magnitude


@st.composite
def matrices(draw, dtype):
    columns = draw(st.integers(1, 4))
    width = np.dtype(dtype).itemsize * 8
    values = st.floats(allow_nan=False, allow_infinity=False, width=width)
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, np.float32(1.0000001)])
    return draw(npst.arrays(dtype, (draw(st.integers(1, 12)), columns), elements=values | few))


@given(st.data())
def test_equals_the_sorted_magnitudes(data):
    dtypes = data.draw(st.lists(st.sampled_from([np.float32, np.float64]), min_size=1, max_size=3))
    arrays = [data.draw(matrices(dtype)) for dtype in dtypes]
    ranked = np.sort(np.concatenate([np.abs(a.astype(np.float64)).ravel() for a in arrays]))
    rank = data.draw(st.integers(0, len(ranked) - 1))
    assert select_magnitude([torch.from_numpy(a) for a in arrays], rank) == ranked[rank]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_many_values_in_chunks_and_any_layout(dtype, share, monkeypatch):
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    rank = int(share * (x.numel() - 1))
    expected = float(x.double().abs().flatten().sort().values[rank])
    assert select_magnitude([x], rank) == expected
    monkeypatch.setattr(selection, "_CHUNK", 7)
    # Transposed, cut in pieces and in another order: the same values.
    assert select_magnitude([x.T[:90], x.T[150:], x.T[90:150]], rank) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_on_another_device_are_counted_alike(dtype):
    """What runs there, run here; the values stay where they are."""
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    kind = selection.Magnitudes.of([x])
    for shift in range(torch.iinfo(kind.integers).bits - 16, -1, -16):
        pattern = int(kind.patterns(x)[4, 5]) >> shift
        for higher in (None, pattern >> 16):
            if higher is None and pattern >> 16:
                continue
            here = selection._counts(kind, shift, higher, [(x, slice(0, 30))])
            there = selection._device_counts(kind, shift, higher, x.flatten())
            assert (here == there).all() and here[pattern & 0xFFFF] >= 1


def test_types_of_16_bits_that_differ_lose_nothing():
    fine, large = torch.tensor([[1.0009765625, 3.0]]), torch.tensor([[-70144.0, 1.0]])
    tensors = [fine.to(torch.float16), large.to(torch.bfloat16)]
    found = [select_magnitude(tensors, rank) for rank in range(4)]
    assert found == [1.0, 1.0009765625, 3.0, 70144.0]
