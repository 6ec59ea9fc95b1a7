"""Sorting rows and finding what is true, on a CPU by NumPy, which is several times faster."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Values of a row up to which sorting all of them is faster than choosing.
_SHORT = 128
# Rows so many times as long as what is chosen torch goes over once, which is as fast as NumPy.
_LONG = 64
# One in so many places of a mask is few.
_FEW = 32


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row, in falling order; equal ones in any.

    Args:
        values: float32 or float64 without NaN, shape (rows, n).
        count: How many, at most n.

    Returns:
        The values and their columns, int64, both of shape (rows, count).
    """
    n = values.shape[1]
    if values.device.type != "cpu" or n > max(_SHORT, _LONG * count):
        found = values.topk(count, dim=1)
        return found.values, found.indices
    if n <= _SHORT:
        return _falling(values, count)
    chosen = torch.from_numpy(np.argpartition(values.numpy(), n - count, axis=1)[:, n - count :])
    most, order = _falling(values.gather(1, chosen), count)
    return most, chosen.gather(1, order)


def _falling(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """:func:`largest` by sorting all."""
    order = np.argsort(values.numpy(), axis=1)[:, ::-1][:, :count]
    columns = torch.from_numpy(order.copy())
    return values.gather(1, columns), columns


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row.

    Args:
        values: float32 or float64 without NaN, shape (rows, n).
        k: From 1 to n.

    Returns:
        Shape (rows,).
    """
    n = values.shape[1]
    if values.device.type != "cpu":
        return values.topk(k, dim=1).values[:, -1]
    if n <= _SHORT:
        return torch.from_numpy(np.sort(values.numpy(), axis=1)[:, -k].copy())
    return torch.from_numpy(np.partition(values.numpy(), n - k, axis=1)[:, n - k].copy())


def group_maxima(values: Tensor, dim: int) -> Tensor:
    """The largest values along a dimension, as ``amax`` has them: of what is not NaN."""
    if values.device.type != "cpu" or values.dtype != torch.bfloat16:
        return values.amax(dim=dim)
    # As integers, in half the time; where all are below 0 the least integer is the largest value.
    bits = values.view(torch.int16)
    most = bits.amax(dim=dim)
    below = most.numpy() < 0
    if below.any():
        np.copyto(most.numpy(), bits.amin(dim=dim).numpy(), where=below)
    return most.view(torch.bfloat16)


def rising(values: Tensor) -> Tensor:
    """Rows in rising order.

    Args:
        values: int64, shape (rows, n).
    """
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))


def reaching(values: Tensor, floor: Tensor) -> Tensor:
    """Where values are not below their row's floor: positions as :func:`positions` gives them.

    Args:
        values: Without NaN, shape (rows, n).
        floor: float32, in whose place values of their type can stand, finite; shape (rows,).
    """
    if values.device.type != "cpu":
        return positions(values >= floor[:, None])
    if values.dtype != torch.bfloat16:
        return _places(values.numpy() >= floor.numpy()[:, None])
    bits = values.view(torch.int16).numpy()
    mask = bits >= _bits(floor)
    # Of integers of what is below 0 the larger is the smaller value.
    low = np.flatnonzero(floor.numpy() <= 0)
    if len(low):
        some = bits[low]
        mask[low] = (some >= 0) | (some <= _bits(-floor[low].abs()))
    return _places(mask)


def _bits(floor: Tensor) -> NDArray[np.int16]:
    """Values of rows as those of bfloat16 are compared: shape (rows, 1)."""
    return floor.to(torch.bfloat16).view(torch.int16).numpy()[:, None]


def stable_order(numbers: Tensor, limit: int) -> Tensor:
    """The order in which numbers rise, equal ones as they stand: positions, int64.

    Args:
        numbers: int64, from 0, shape (numbers,).
        limit: What all are below.
    """
    if numbers.device.type != "cpu":
        return numbers.argsort(stable=True)
    # Of numbers of 16 bits NumPy looks at the digits, which is several times faster.
    kind = np.uint16 if limit <= 1 << 16 else np.int64
    return torch.from_numpy(np.argsort(numbers.numpy().astype(kind), kind="stable"))


def positions(mask: Tensor) -> Tensor:
    """Where a mask is true: positions in it laid out flat, int64, rising; shape (true,)."""
    if mask.device.type != "cpu":
        return mask.reshape(-1).nonzero().squeeze(1)
    return _places(mask.numpy())


def _places(mask: NDArray[np.bool_]) -> Tensor:
    """:func:`positions` of an array; where few are true, eight at a time."""
    if mask.size % 8 or _FEW * np.count_nonzero(mask) > mask.size:
        return torch.from_numpy(np.flatnonzero(mask))
    words = mask.reshape(-1).view(np.int64)
    some = np.flatnonzero(words != 0)
    found = np.flatnonzero(words[some].view(np.bool_))
    return torch.from_numpy(8 * some[found // 8] + found % 8)
