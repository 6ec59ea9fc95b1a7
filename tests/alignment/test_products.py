"""Products of low precision and symmetric ones, against products that are neither."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prh_eval.alignment import products
from prh_eval.alignment.products import Products, write_symmetric_products


@given(st.integers(1, 300), st.integers(1, 9), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=40)
def test_symmetric_products_are_products(n, dim, dtype):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(n), dtype=dtype)
    # The product is symmetric, its factors differ: as those of copies do.
    layer = torch.cat([x, x.sin()], dim=1)
    for rows in (layer, torch.cat([layer, layer.cos(), layer])):
        out = torch.full((len(rows), n), torch.nan, dtype=dtype)
        write_symmetric_products(rows, out, turned)
        each = torch.unflatten(rows, 0, (-1, n))
        torch.testing.assert_close(out, (each @ turned(each).mT).flatten(0, 1))
        write_symmetric_products(rows, out)
        torch.testing.assert_close(out, (each @ each.mT).flatten(0, 1))


@pytest.mark.parametrize("units", [True, False])
def test_symmetric_products_with_and_without_matrix_units(monkeypatch, units):
    monkeypatch.setattr(products, "cpu_has_units", lambda *_: units)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (600, 20), generator=g).bfloat16()
    out = torch.full((600, 300), torch.nan, dtype=torch.bfloat16)
    write_symmetric_products(x, out, turned)
    # Whole numbers as small as these are exact in bfloat16.
    each = torch.unflatten(x, 0, (-1, 300)).double()
    assert torch.equal(out.double(), (each @ turned(each).mT).flatten(0, 1))


def turned(x: Tensor) -> Tensor:
    """With the halves of the columns changed over."""
    return torch.cat(x.tensor_split(2, dim=-1)[::-1], dim=-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_in_the_place_of_others(dtype):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 16, generator=g).to(dtype) for n in (12, 7))
    several = Products(x)
    assert several.dtype == dtype
    for left, right in [(x, y), (y, x), (x, x), (y, y)]:
        exact = (left.double() @ right.double().T).float()
        rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}[dtype]
        got = several.between(left, right)
        assert got.shape == exact.shape
        torch.testing.assert_close(got.float(), exact, rtol=rounding, atol=1e-5)
    within = several.within(x, 4, turned).float()
    for start in range(0, 12, 4):
        part = x[start : start + 4].double()
        exact = (part @ turned(part).T).float().fill_diagonal_(-torch.inf)
        torch.testing.assert_close(within[start : start + 4], exact, rtol=2**-8, atol=1e-5)


def test_layers_on_another_device_are_multiplied_together():
    """The shapes of what runs there; a device without values."""
    x = torch.empty(12, 16, dtype=torch.float16, device="meta")
    several = Products(x)
    assert several.between(x, x[:7]).shape == (12, 7)
    assert several.within(x, 4, turned).shape == (12, 4)
    assert several.within(x, 12, turned).shape == (12, 12)
    write_symmetric_products(x, torch.empty(12, 4, dtype=torch.float16, device="meta"))
