"""Products of rows with rows, symmetric ones on a CPU at half the cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prh_eval.alignment.precision import cpu_has_units

# Whether a product of float16 can be had in float32 (torch 2.8, on CUDA).
HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call]
# Rows of a block of a symmetric product.
_STEP = 128


class Products:
    """Products of rows in low precision: in float32 where a device can do so from float16.

    On a CPU each takes the place of the last, as memory that is new costs a tenth of a product.

    Args:
        matrix: Rows as they will be multiplied.

    Attributes:
        dtype: Type of the products.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._on_cpu = matrix.device.type == "cpu"
        self._widened = matrix.dtype == torch.float16 and matrix.is_cuda and HAS_OUT_DTYPE
        self.dtype = torch.float32 if self._widened else matrix.dtype
        self._room = matrix.new_empty(0)

    def between(self, left: Tensor, right: Tensor) -> Tensor:
        """Of rows with other rows: left @ right.T."""
        if self._widened:
            return torch.mm(left, right.T, out_dtype=torch.float32)
        if self._on_cpu:
            return torch.mm(left, right.T, out=self._placed(len(left), len(right)))
        return left @ right.T

    def within(self, rows: Tensor, n: int, turned: Callable[[Tensor], Tensor]) -> Tensor:
        """Of every n rows with each other, symmetric, and -inf with themselves; (rows, n).

        Args:
            rows: One side of the product.
            n: Number of rows that are multiplied with each other.
            turned: Makes the other side of some rows.
        """
        if self._on_cpu:
            result = self._placed(len(rows), n)
            write_symmetric_products(rows, result, turned)
        elif len(rows) == n:
            result = self.between(turned(rows), rows)
        else:
            x, y = (torch.unflatten(part, 0, (-1, n)) for part in (turned(rows), rows))
            several = torch.bmm(x, y.mT, self.dtype) if self._widened else x @ y.mT
            result = several.flatten(0, 1)
        torch.unflatten(result, 0, (-1, n)).diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return result

    def _placed(self, rows: int, columns: int) -> Tensor:
        if self._room.numel() < rows * columns:
            self._room = self._room.new_empty(rows * columns)
        return self._room[: rows * columns].view(rows, columns)


def write_symmetric_products(
    x: Tensor, out: Tensor, turned: Callable[[Tensor], Tensor] = lambda rows: rows
) -> None:
    """Write x @ turned(x).T of every n rows, which is symmetric: on a CPU half is multiplied.

    Unless the CPU has matrix units, which multiply bfloat16 faster than the half is moved.

    Args:
        x: Shape (layers n, dim).
        out: Where to; shape (layers n, n), of the same type.
        turned: Makes the other side of some rows.
    """
    n = out.shape[1]
    if out.device.type != "cpu" or cpu_has_units(x.dtype):
        left, right, products = (torch.unflatten(part, 0, (-1, n)) for part in (x, turned(x), out))
        torch.bmm(left, right.mT, out=products)
        return
    for rows, product in zip(torch.split(x, n), torch.split(out, n), strict=True):
        for start in range(0, n, _STEP):
            some = slice(start, start + _STEP)
            tile = torch.mm(rows[start:], turned(rows[some]).T)
            product[start:, some] = tile
            # Turned over in one piece, which is three times as fast.
            product[some, start + _STEP :] = tile[_STEP:].T.contiguous()
