"""An exact order statistic of magnitudes over many tensors, in small memory and any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_DIGIT_BITS = 16
# Values looked at together; small enough to stay in a core's cache.
_CHUNK = 1 << 18


def select_magnitude(tensors: Sequence[Tensor], rank: int) -> float:
    """The ``rank``-th smallest |x| over all values of all tensors, counted from 0.

    Radix selection: non-negative floats sort as their bit patterns read as integers do, so one
    histogram of 16 bits at a time finds the value exactly, whatever the order of the values.

    Args:
        tensors: Float tensors of shape (rows, columns) without NaN, with at least ``rank`` + 1
            values together. Types that differ are read as float32, or as float64 where one is that.
        rank: Position in the sorted magnitudes, 0 <= rank < number of values.

    Returns:
        The value, one of the magnitudes.
    """
    kinds = {x.dtype for x in tensors}
    if len(kinds) == 1 and kinds <= {torch.float16, torch.bfloat16}:
        floats, integers, bits = *kinds, torch.int16, 16
    elif torch.float64 in kinds:
        floats, integers, bits = torch.float64, torch.int64, 64
    else:
        floats, integers, bits = torch.float32, torch.int32, 32
    prefix = 0
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
        for chunk in _chunks(tensors):
            # Without the sign, the highest bit.
            pattern = chunk.to(floats).view(integers) & torch.iinfo(integers).max
            if shift + _DIGIT_BITS < bits:
                pattern = pattern[pattern >> (shift + _DIGIT_BITS) == prefix]
            digits = (pattern >> shift) & ((1 << _DIGIT_BITS) - 1)
            counts += torch.bincount(digits, minlength=counts.numel()).cpu()
        upto = counts.cumsum(0)
        digit = int(torch.searchsorted(upto, rank, right=True))
        rank -= int(upto[digit] - counts[digit])
        prefix = prefix << _DIGIT_BITS | digit
    return float(torch.tensor(prefix, dtype=integers).view(floats))


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    for x in tensors:
        rows = max(1, _CHUNK // x.shape[1])
        for start in range(0, x.shape[0], rows):
            yield x[start : start + rows].reshape(-1)
