"""Products of rows with rows, symmetric ones on a CPU at half the cost."""

from __future__ import annotations

import torch
from torch import Tensor

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

    def within(self, left: Tensor, right: Tensor, n: int) -> Tensor:
        """Of every n rows with each other, symmetric, and -inf with themselves; (rows, n)."""
        layers = list(zip(torch.split(left, n), torch.split(right, n), strict=True))
        if self._on_cpu:
            result = self._placed(len(left), n)
            for layer, out in zip(layers, torch.split(result, n), strict=True):
                write_symmetric_product(*layer, out)
        else:
            products = [self.between(*layer) for layer in layers]
            result = products[0] if len(products) == 1 else torch.cat(products)
        torch.unflatten(result, 0, (-1, n)).diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return result

    def _placed(self, rows: int, columns: int) -> Tensor:
        if self._room.numel() < rows * columns:
            self._room = self._room.new_empty(rows * columns)
        return self._room[: rows * columns].view(rows, columns)


def write_symmetric_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left @ right.T where that is symmetric: on a CPU half of it is multiplied.

    Args:
        left: Shape (n, dim).
        right: Shape (n, dim).
        out: Where to; shape (n, n), of the same type.
    """
    if left.device.type != "cpu":
        torch.mm(left, right.T, out=out)
        return
    for start in range(0, len(left), _STEP):
        rows = slice(start, start + _STEP)
        tile = torch.mm(left[start:], right[rows].T)
        out[start:, rows] = tile
        # Turned over in one piece, which is three times as fast.
        out[rows, start + _STEP :] = tile[_STEP:].T.contiguous()
