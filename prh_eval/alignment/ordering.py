"""Sorting rows and finding what is true, on a CPU by NumPy, which is several times faster."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Values of a row up to which sorting all of them is faster than choosing.
_SHORT = 128
# Rows so many times as long as what is chosen torch goes over once, which is as fast as NumPy.
_LONG = 64
# Values that are compared at a time.
_AT_HAND = 1 << 19
# One in so many places of a mask is few.
_FEW = 32
# NumPy finds what is true in half the time where it is more than a tenth. A share of words around
# which two are looked at together to be above.
_TENTH = 0.05, 0.11


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
        values: Without NaN, shape (rows, n).
        k: From 1 to n.

    Returns:
        Shape (rows,).
    """
    if values.device.type != "cpu":
        return values.topk(k, dim=1).values[:, -1]
    if values.dtype == torch.bfloat16:
        bits = values.view(torch.int16).numpy()
        kth = _kth_largest(bits, k)
        # Of what is below 0 the larger integer is the smaller value.
        low = np.flatnonzero(kth < 0)
        if len(low):
            kth[low] = _as_integers(_kth_largest(_as_integers(bits[low]), k))
        return torch.from_numpy(kth).view(torch.bfloat16)
    return torch.from_numpy(_kth_largest(values.numpy(), k))


def _kth_largest(values: NDArray[Any], k: int) -> NDArray[Any]:
    n = values.shape[1]
    ranked = np.sort(values, axis=1) if n <= _SHORT else np.partition(values, n - k, axis=1)
    return np.array(ranked[:, n - k])


def _as_integers(bits: NDArray[np.int16]) -> NDArray[np.int16]:
    """Integers in the order of the values of bfloat16 that have these bits, and the other way."""
    turned: NDArray[np.int16] = bits ^ ((bits >> 15) & 0x7FFF)
    return turned


def group_maxima(values: Tensor, dim: int) -> Tensor:
    """The largest values along a dimension, as ``amax`` has them: of what is not NaN."""
    if values.device.type != "cpu" or values.dtype != torch.bfloat16:
        return values.amax(dim=dim)
    # As integers, in half the time; where all are below 0 the least integer is the largest value.
    bits = values.view(torch.int16)
    most = bits.amax(dim=dim)
    below = most.numpy() < 0
    some = np.flatnonzero(below)
    if _FEW * len(some) < below.size:
        at = np.unravel_index(some, below.shape)
        most.numpy()[at] = np.moveaxis(bits.numpy(), dim, -1)[at].min(axis=-1)
    else:
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
    rows = max(1, _AT_HAND // values.shape[1])
    if rows < len(values):
        # A mask that stays in the caches.
        pieces = zip(torch.split(values, rows), torch.split(floor, rows), strict=True)
        found = [reaching(*piece) for piece in pieces]
        return torch.cat([part + at * rows * values.shape[1] for at, part in enumerate(found)])
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


def quotients(numbers: Tensor, divisor: int) -> Tensor:
    """How often each number, int64 and from 0, holds another, which NumPy vectorises."""
    if numbers.device.type != "cpu":
        return numbers // divisor
    return torch.from_numpy(numbers.numpy() // divisor)


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
    count = int(np.count_nonzero(mask))
    if mask.size % 8 or _FEW * count > mask.size:
        return torch.from_numpy(np.flatnonzero(mask))
    words = mask.reshape(-1).view(np.int64)
    some = _words(words, count)
    found = np.flatnonzero(words.take(some).view(np.bool_))
    places = some.take(found >> 3)
    places <<= 3
    places += found & 7
    return torch.from_numpy(places)


def _words(words: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where words are not 0, of which no more than ``count`` are."""
    half = len(words) // 2
    if len(words) % 2 or not _TENTH[0] * len(words) < count < _TENTH[1] * len(words):
        return np.flatnonzero(words != 0)
    some = np.flatnonzero((words[:half] | words[half:]) != 0)
    both = np.concatenate([some, some + half])
    return both.take(np.flatnonzero(words.take(both) != 0))
