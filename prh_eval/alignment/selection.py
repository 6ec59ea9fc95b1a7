"""An exact order statistic of magnitudes over many tensors, in small memory and any order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prh_eval.alignment.threads import READERS

_DIGIT_BITS = 16
# Values looked at together: on the CPU what stays in a core's cache, elsewhere what hides launches.
_CHUNK = 1 << 17
_DEVICE_CHUNK = 1 << 24


class Magnitudes(NamedTuple):
    """Magnitudes as integers: the bit patterns of non-negative floats sort as the floats do.

    Attributes:
        floats: The type that values are read as; each is exact in it.
        integers: The signed type of the same size.
    """

    floats: torch.dtype
    integers: torch.dtype

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Magnitudes:
        """For float tensors; types that differ are read as float32, or float64 where one is it."""
        kinds = {x.dtype for x in tensors}
        if len(kinds) == 1 and kinds <= {torch.float16, torch.bfloat16}:
            return cls(kinds.pop(), torch.int16)
        if torch.float64 in kinds:
            return cls(torch.float64, torch.int64)
        return cls(torch.float32, torch.int32)

    def patterns(self, x: Tensor) -> npt.NDArray[Any]:
        """The bits of values, as integers of this type, their signs cleared."""
        bits: npt.NDArray[Any] = x.to("cpu", self.floats).view(self.integers).numpy()
        return bits & np.iinfo(bits.dtype).max

    def values(self, patterns: npt.NDArray[Any]) -> Tensor:
        """The magnitudes that have these bits; float64."""
        return torch.from_numpy(patterns).view(self.floats).double()


def select_magnitude(tensors: Sequence[Tensor], rank: int) -> float:
    """The ``rank``-th smallest |x| over all values of all tensors, counted from 0.

    Radix selection: one histogram of 16 bits at a time finds the value exactly, whatever the order
    of the values. Each of several threads counts its share of them.

    Args:
        tensors: Float tensors of shape (rows, columns) without NaN, with at least ``rank`` + 1
            values together.
        rank: Position in the sorted magnitudes, 0 <= rank < number of values.

    Returns:
        The value, one of the magnitudes.
    """
    kind = Magnitudes.of(tensors)
    bits = torch.iinfo(kind.integers).bits
    chunks = _chunks(tensors)
    shares = [chunks[thread::READERS] for thread in range(min(READERS, len(chunks)))]
    prefix = 0
    with ThreadPoolExecutor(len(shares)) as threads:
        for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
            higher = prefix if shift + _DIGIT_BITS < bits else None
            counts = sum(threads.map(partial(_counts, kind, shift, higher), shares))
            upto = np.cumsum(counts)
            digit = int(np.searchsorted(upto, rank, side="right"))
            rank -= int(upto[digit - 1]) if digit else 0
            prefix = prefix << _DIGIT_BITS | digit
    return float(torch.tensor(prefix, dtype=kind.integers).view(kind.floats))


def _chunks(tensors: Sequence[Tensor]) -> list[tuple[Tensor, slice]]:
    """All tensors in blocks of rows, none of which is read yet."""
    found = []
    for x in tensors:
        values = _CHUNK if x.device.type == "cpu" else _DEVICE_CHUNK
        rows = max(1, values // x.shape[1])
        found += [(x, slice(start, start + rows)) for start in range(0, x.shape[0], rows)]
    return found


def _counts(
    kind: Magnitudes, shift: int, higher: int | None, chunks: list[tuple[Tensor, slice]]
) -> npt.NDArray[np.int64]:
    """How often each digit occurs, of magnitudes with these higher digits."""
    counts = np.zeros(1 << _DIGIT_BITS, dtype=np.int64)
    for x, rows in chunks:
        if x.device.type != "cpu":
            counts += _device_counts(kind, shift, higher, x[rows].flatten())
            continue
        # Not torch, which would start threads of its own in each of ours.
        digits = _below(kind.patterns(x[rows]).ravel() >> shift, higher)
        counts += np.bincount(digits, minlength=len(counts))
    return counts


def _device_counts(
    kind: Magnitudes, shift: int, higher: int | None, x: Tensor
) -> npt.NDArray[np.int64]:
    """The same of values that are on another device, and stay there."""
    patterns = x.to(kind.floats).view(kind.integers) & torch.iinfo(kind.integers).max
    digits = _below(patterns >> shift, higher)
    counts: npt.NDArray[np.int64] = torch.bincount(digits, minlength=1 << _DIGIT_BITS).cpu().numpy()
    return counts


def _below(patterns: Any, higher: int | None) -> Any:
    """The lowest digit of those patterns, of NumPy or torch, whose other digits are these."""
    if higher is None:
        return patterns
    return patterns[patterns >> _DIGIT_BITS == higher] - (higher << _DIGIT_BITS)
