"""Layers in low precision, where one matrix product ranks neighbours to within a known error."""

from __future__ import annotations

import torch
from torch import Tensor

from prh_eval.alignment.frames import SUMMED, Frame, Single, parts
from prh_eval.alignment.precision import cpu_has, cpu_has_units, single_dtype
from prh_eval.alignment.products import HAS_OUT_DTYPE

# Relative error of a sum of products in float32, a term: in any order, truncated rather than
# rounded, as matrix units of accelerators do (2^-24 is that of rounding).
_SUMMING = 2.0**-22
# The error bounds are computed in floating point themselves, with far less error than this.
_INFLATED = 1.001
# Columns are a multiple of what matrix units like, and vectors of a CPU.
_MATRIX_UNITS, _VECTORS = 32, 8
# Error of rounding to nearest, relative; float16's below its normal range is absolute.
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 1.01 * 2.0**-8, torch.float16: 1.01 * 2.0**-11}


def copied(
    frame: Frame, items: slice, block: int, matrix: Tensor, held: Single | None = None
) -> Tensor:
    """Write some rows in low precision: d rounded, then b in pieces, ones, and zeros.

    All of it is times the frame's factor, so that products are times its square. The product of
    the rows of items i, turned, and those of items j is f_ij rounded: see :func:`bounds`.

    Args:
        frame: The layer.
        items: Which rows.
        block: How many are made at a time.
        matrix: Where to; shape (items, P) of float32, bfloat16 or float16.
        held: Where to keep the rows in float32 too, if anywhere; then all rows are written.

    Returns:
        Statistics, float64, shape (6, items): e = |d - d rounded|, l = |d| in float32, how far the
        pieces may be from b, |b|, c = |d - d in float32|, and :meth:`Frame.strayed`.
    """
    dim, count = frame.rows.dim, len(matrix)
    squares = frame.mean.new_empty(2, count)
    b = frame.mean.new_empty(count) if held is None else held.offsets
    room = torch.empty(block, min(SUMMED, dim), device=matrix.device)
    of_parts = torch.zeros(2, len(parts(frame.mean)), block, device=matrix.device)
    for rows in frame.rows.blocks(block, items.start, items.stop):
        place = slice(rows.start - items.start, rows.stop - items.start)
        made = frame.singles(rows, b[place], None if held is None else held.parts)
        lengths = of_parts[:, :, : rows.stop - rows.start]
        for single, copy, length, off in zip(
            made, parts(matrix[place, :dim]), *lengths, strict=True
        ):
            copy.copy_(single)
            torch.linalg.vector_norm(single, dim=1, out=length)
            if copy.dtype != torch.float32:
                low = room[: len(single), : single.shape[1]].copy_(copy)
                torch.linalg.vector_norm(low.sub_(single), dim=1, out=off)
        torch.sum(lengths.double().square_(), dim=1, out=squares[:, place])
    length, off = squares.sqrt_()
    lost = frame.single_error(length)
    pieces = _pieces(matrix.dtype)
    matrix[:, dim + pieces : dim + 2 * pieces] = 1
    matrix[:, dim + 2 * pieces :] = 0
    strayed = frame.strayed(length, b)
    b = rest = b * frame.factor * frame.factor
    for piece in range(pieces):
        matrix[:, dim + piece] = rest
        rest = rest - matrix[:, dim + piece].double()
    rest = rest.abs() + frame.offset_error(lost)
    return torch.stack([lost + off, length, rest, b.abs(), lost, strayed]) * _INFLATED


def turn(matrix: Tensor, dim: int) -> Tensor:
    """Rows of a copy with b and the ones changed over: the other side of a product."""
    pieces = _pieces(matrix.dtype)
    result = matrix.clone()
    result[:, dim : dim + pieces] = matrix[:, dim + pieces : dim + 2 * pieces]
    result[:, dim + pieces : dim + 2 * pieces] = matrix[:, dim : dim + pieces]
    return result


def bounds(stats: Tensor, largest: Tensor, width: int) -> Tensor:
    """How far the products of rows of :func:`copied` are from f_ij at most.

    With r what the pieces leave of b, a = l + e, which is no less than |d| and |d rounded|, and the
    largest of each over all items, it is

        e_i max(a) + a_i max(e)                          (rounded factors; Cauchy-Schwarz)
        + r_i + max(r)                                   (what is left of b)
        + P 2^-22 (a_i max(a) + |b_i| + max(|b|))        (P products added up in float32)

    in any order of the sum; a product that is itself rounded adds :func:`output_error`.

    Args:
        stats: As :func:`copied` returns them, of some rows.
        largest: float64, shape (6,): the largest of every statistic over all items.
        width: P.

    Returns:
        float64, shape (rows,).
    """
    e, length, r, b, *_ = stats
    most_e, most_length, most_r, most_b, *_ = largest
    a, most_a = length + e, most_length + most_e
    rounded: Tensor = e * most_a + a * most_e + r + most_r
    summed: Tensor = width * _SUMMING * (a * most_a + b + most_b)
    # Matrix units take numbers below 2^-126 for 0.
    return (rounded + summed) * _INFLATED + 2.0**-100


def single_bounds(stats: Tensor, largest: Tensor, frame: Frame) -> Tensor:
    """How far products of rows in float32, plus b of either, are from f_ij at most.

    With a = l + c, which is no less than |d|, and o how far b is off for c:

        c_i max(a) + a_i max(c)                          (rounded factors)
        + o(c_i) + o(max(c))                             (b of either, of the rounded rows)
        + S 2^-24 a_i max(a)                             (S products added up in float32)

    in any order of the sum, each step rounded to nearest. Sums of S products, at most ``SUMMED``,
    one for each part of the dimensions, are added up in float64.

    Args:
        stats: As for :func:`bounds`.
        largest: As for :func:`bounds`.
        frame: The layer.

    Returns:
        float64, shape (rows,), in units of nearness.
    """
    _, length, _, _, c, _ = stats
    _, most_length, _, _, most_c, _ = largest
    a, most_a = length + c, most_length + most_c
    summed: Tensor = min(frame.rows.dim, SUMMED) * 2.0**-24 * a * most_a
    rounded: Tensor = c * most_a + a * most_c
    rounded = rounded + frame.offset_error(c) + frame.offset_error(most_c)
    return ((rounded + summed) * _INFLATED + 2.0**-100) / frame.factor / frame.factor


def output_error(values: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding a product to ``dtype`` may have moved one that became ``values``."""
    # Below its normal range float16 is spaced evenly.
    least = 2.0**-24 if dtype == torch.float16 else 0.0
    return values.abs() * _ROUNDING[dtype] + least


def columns(dim: int, dtype: torch.dtype) -> int:
    """P: columns of a copy."""
    multiple = _MATRIX_UNITS if dtype == torch.float16 or cpu_has_units(dtype) else _VECTORS
    return -(-(dim + 2 * _pieces(dtype)) // multiple) * multiple


def fastest_dtype(device: torch.device) -> torch.dtype:
    """The type in which a device multiplies matrices fastest, of those that a filter can use."""
    # Without float32 for the result, or if torch is told so, sums are rounded on the way.
    rounded = getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
    if device.type == "cuda" and HAS_OUT_DTYPE and not rounded:
        return torch.float16
    # On a CPU without instructions for it bfloat16 is slower than float32.
    if device.type == "cpu" and cpu_has("avx512_bf16", "amx_tile"):
        return torch.bfloat16
    return single_dtype()


def _pieces(dtype: torch.dtype) -> int:
    """How many numbers of a type hold what a float32 does."""
    return 1 if dtype == torch.float32 else 3
