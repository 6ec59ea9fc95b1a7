"""Layers in low precision, where one matrix product ranks neighbours to within a known error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prh_eval.alignment.rows import Rows
from prh_eval.alignment.sharing import Sharing

Similarity = Literal["cosine", "euclidean"]

# Relative error of a sum of products in float32, a term: in any order, truncated rather than
# rounded, as matrix units of accelerators do (2^-24 is that of rounding).
_SUMMING = 2.0**-22
# The error bounds are computed in floating point themselves, with far less error than this.
_INFLATED = 1.001
# What squares and products are scaled to; float16 reaches 65,504.
_LARGEST = 2.0**13
# Matrix units like multiples of it.
_MULTIPLE = 32
# Whether a product of float16 can be had in float32 (torch 2.8, on CUDA).
HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call]
# Error of rounding to nearest, relative; float16's below its normal range is absolute.
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 1.01 * 2.0**-8, torch.float16: 1.01 * 2.0**-11}


@dataclass(frozen=True, eq=False)
class Frame:
    """A layer, and what the nearness of its items is measured from.

    Without the mean of the items, m, what is left to round is small even where all items point
    the same way. With d = x - m the nearness of two items is f_ij = d_i.d_j + b_i + b_j, where

    - cosine: b = d.m, so that f is the inner product of the unit rows less m.m;
    - Euclidean: b = -|d|^2 / 2, so that f is -1/2 of the squared distance.

    Attributes:
        rows: The layer, n items.
        similarity: Which nearness.
        mean: m, float64, shape (dim,).
        scale: What ties are relative to: 1 for cosine, the largest squared distance from the mean
            for Euclidean.
        offsets: b of all items, float64, shape (n,), where ``rows`` are d already; else None.
    """

    rows: Rows
    similarity: Similarity
    mean: Tensor
    scale: float
    offsets: Tensor | None = None

    @property
    def factor(self) -> float:
        """The power of 2 that d is multiplied with to be within the range of every type."""
        # Of rows of length 1, squares and products of d are below 4.
        largest = 4.0 if self.similarity == "cosine" else self.scale
        if largest == 0:
            return 1.0
        # Its square is a float64 too.
        return 2.0 ** min(math.floor((math.log2(_LARGEST) - math.log2(largest)) / 2), 500)

    def scaled(self, value: float) -> float:
        """A nearness in the units of products."""
        return value * self.factor * self.factor

    def centred(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        """D and b of some rows: float64, shapes (rows, dim) and (rows,)."""
        if self.offsets is not None:
            return self.rows[index], self.offsets[index]
        d = self.rows[index] - self.mean
        if self.similarity == "cosine":
            return d, d @ self.mean
        return d, torch.linalg.vecdot(d, d) / -2


def frame(
    rows: Rows, similarity: Similarity, block: int, sharing: Sharing, *, own: bool = False
) -> Frame:
    """Measure a layer: its mean and its scale.

    Args:
        rows: n items.
        similarity: Which nearness; for cosine the rows must have length 1 or 0.
        block: Rows that are held in float64 at a time.
        sharing: The processes that share the items.
        own: Whether what is held may be changed: for distances the mean is then taken off it.

    Raises:
        ValueError: If a value is not finite, or rows are not of length 1 where similarity is
            cosine.
    """
    share = sharing.rows(len(rows))
    parts = [*rows.blocks(block, share.start, share.stop)]
    total = torch.zeros(rows.dim, dtype=torch.float64, device=rows.place)
    unit = True
    for part in parts:
        x = rows[part]
        total += x.new_ones(len(x)) @ x
        if similarity == "cosine" and not rows.unit:
            squares = torch.linalg.vecdot(x, x)
            unit = unit and bool(((squares == 0) | ((squares - 1).abs() < 2e-5)).all())
    mean = sharing.all_gather(total[None]).sum(dim=0) / len(rows)
    if not torch.isfinite(mean).all():
        bad = (part.start + int(row) for part in parts for row in _not_finite(rows[part]))
        raise ValueError(
            f"neighbours need finite features, and item {next(bad, 'unknown')} is not; call "
            "validate_features first"
        )
    if not unit:
        raise ValueError("cosine neighbours need rows of length 1; call preprocess first")
    if similarity == "cosine":
        return Frame(rows, similarity, mean, 1.0)
    largest = torch.zeros((), dtype=torch.float64, device=rows.place)
    for part in parts:
        largest = largest.maximum((rows[part] - mean).square().sum(dim=1).max())
    scale = float(sharing.all_gather(largest[None]).max())
    if not math.isfinite(scale):
        raise ValueError("neighbours need features whose squared distances are finite")
    if not (own and rows.made):
        return Frame(rows, similarity, mean, scale)
    # Distances are of d alone, so that it takes the place of what is held.
    rows.stored.sub_(mean)
    offsets = torch.cat([torch.linalg.vecdot(d, d) for d in torch.split(rows.stored, block)]) / -2
    return Frame(rows, similarity, mean, scale, offsets)


def _not_finite(x: Tensor) -> Tensor:
    return (~torch.isfinite(x)).any(dim=1).nonzero().squeeze(1)


def copied(frame: Frame, index: slice | Tensor, matrix: Tensor) -> Tensor:
    """Write some rows in low precision: d rounded, then b in pieces, ones, and zeros.

    All of it is times the frame's factor, so that products are times its square. The product of
    the rows of items i, turned, and those of items j is f_ij rounded: see :func:`bounds`.

    Args:
        frame: The layer.
        index: Which rows.
        matrix: Where to; shape (rows, P) of float32, bfloat16 or float16.

    Returns:
        Statistics, float64, shape (4, rows): e = |d - d rounded|, a = |d rounded|, what the pieces
        leave of b, and |b|.
    """
    d, b = frame.centred(index)
    dim, pieces = frame.rows.dim, _pieces(matrix.dtype)
    # In the range of float32 first: what is stored may be of any magnitude.
    single = d.mul_(frame.factor).float() if frame.offsets is None else (d * frame.factor).float()
    matrix[:, :dim] = single
    matrix[:, dim + pieces : dim + 2 * pieces] = 1
    matrix[:, dim + 2 * pieces :] = 0
    b = rest = b * frame.factor * frame.factor
    for piece in range(pieces):
        matrix[:, dim + piece] = rest
        rest = rest - matrix[:, dim + piece].double()
    low = matrix[:, :dim].float()
    length = torch.linalg.vector_norm(low, dim=1).double()
    lost = 2.0**-23 * length
    if matrix.dtype != torch.float32:
        lost = lost + torch.linalg.vector_norm(single.sub_(low), dim=1).double()
    return torch.stack([lost, length, rest.abs(), b.abs()]) * _INFLATED


def turn(matrix: Tensor, dim: int) -> Tensor:
    """Rows of a copy with b and the ones changed over: the other side of a product."""
    pieces = _pieces(matrix.dtype)
    result = matrix.clone()
    result[:, dim : dim + pieces] = matrix[:, dim + pieces : dim + 2 * pieces]
    result[:, dim + pieces : dim + 2 * pieces] = matrix[:, dim : dim + pieces]
    return result


def bounds(stats: Tensor, largest: Tensor, width: int) -> Tensor:
    """How far the products of rows of :func:`copied` are from f_ij at most.

    With r what the pieces leave of b, and the largest of each over all items, it is

        e_i max(a) + a_i max(e) + e_i max(e)             (rounded factors; Cauchy-Schwarz)
        + r_i + max(r)                                   (what is left of b)
        + P 2^-22 (a_i max(a) + |b_i| + max(|b|))        (P products added up in float32)

    in any order of the sum; a product that is itself rounded adds :func:`output_error`.

    Args:
        stats: float64, shape (4, rows), of the rows.
        largest: float64, shape (4,): the largest of every statistic over all items.
        width: P.

    Returns:
        float64, shape (rows,).
    """
    e, a, r, b = stats
    most_e, most_a, most_r, most_b = largest
    rounded: Tensor = e * most_a + a * most_e + e * most_e + r + most_r
    summed: Tensor = width * _SUMMING * (a * most_a + b + most_b)
    return (rounded + summed) * _INFLATED + 2.0**-100


def output_error(values: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding a product to ``dtype`` may have moved one that became ``values``."""
    # Below its normal range float16 is spaced evenly.
    least = 2.0**-24 if dtype == torch.float16 else 0.0
    return values.abs() * _ROUNDING[dtype] + least


def columns(dim: int, dtype: torch.dtype) -> int:
    """P: columns of a copy."""
    return -(-(dim + 2 * _pieces(dtype)) // _MULTIPLE) * _MULTIPLE


def fastest_dtype(device: torch.device) -> torch.dtype:
    """The type in which a device multiplies matrices fastest, of those that a filter can use."""
    # Without float32 for the result, or if torch is told so, sums are rounded on the way.
    rounded = getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
    if device.type == "cuda" and HAS_OUT_DTYPE and not rounded:
        return torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return single_dtype()


def single_dtype() -> torch.dtype:
    """float32, or float64 where torch is set to multiply float32 with less than its precision."""
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set in two of torch's ways
        exact = False
    return torch.float32 if exact else torch.float64


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for it; without, it is slower than float32."""
    return any(
        bool(getattr(torch.cpu, name, bool)())
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _pieces(dtype: torch.dtype) -> int:
    """How many numbers of a type hold what a float32 does."""
    return 1 if dtype == torch.float32 else 3
