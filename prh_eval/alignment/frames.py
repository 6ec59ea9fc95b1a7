"""Layers as their items are measured: from the mean, in units that every precision can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from prh_eval.alignment.precision import single_dtype
from prh_eval.alignment.rows import SINGLE_ERROR, Rows
from prh_eval.alignment.sharing import Sharing

Similarity = Literal["cosine", "euclidean"]

# What squares and products are scaled to; float16 reaches 65,504.
_LARGEST = 2.0**13
# Dimensions whose products are added up in float32; of more, sums are added up in float64.
SUMMED = 192
# Squared distances below which ties are no longer told apart, relative to them, in float64.
_LEAST_SCALE = 1e-280
# Mean squared distance of unit rows from their mean below which float32 loses too much of it.
_SPREAD = 1e-3
# How far the length of a row that should be 1 may be from it, or its square.
OFF_UNIT = 1e-5
# Items, at most, that a mean is taken of at first.
_GLIMPSED = 64


@dataclass(frozen=True, eq=False)
class Frame:
    """A layer, or several, and what the nearness of the items of each is measured from.

    Without the mean of the items, m, what is left to round is small even where all items point
    the same way. With d = x - m the nearness of two items is f_ij = d_i.d_j + b_i + b_j, where

    - cosine: b = d.m, so that f is the inner product of the unit rows less m.m;
    - Euclidean: b = -|d|^2 / 2, so that f is -1/2 of the squared distance.

    Attributes:
        rows: The layer, n items; several only for cosine.
        similarity: Which nearness.
        mean: m of each layer, float64, shape (layers, dim): the mean of its items, or for cosine a
            vector near it.
        scale: What ties are relative to: 1 for cosine, the largest squared distance from the mean
            for Euclidean.
        offsets: b of all items, float64, shape (n,), where ``rows`` are d already; else None.
        quick: Whether rows in float32 may be made without float64, which takes a third of the time.
        glimpsed: Whether only some rows have been seen, and whoever makes all of them must see that
            they are as they should be: see :meth:`strayed`.
    """

    rows: Rows
    similarity: Similarity
    mean: Tensor
    scale: float
    offsets: Tensor | None = None
    quick: bool = False
    glimpsed: bool = False

    @cached_property
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
        mean = self._mean_of(index)
        d = self.rows[index] - mean
        if self.similarity != "cosine":
            return d, torch.linalg.vecdot(d, d) / -2
        b = d.new_zeros(len(d))
        _add_dot(b, d, mean)
        return d, b

    def level(self, items: slice) -> Tensor:
        """What nearness of some items is less than their inner products: float64, (items,) or (1,).

        It is m.m for cosine; Euclidean nearness is meant as it is.
        """
        level = self.mean.square().sum(dim=1)
        if self.similarity != "cosine":
            return torch.zeros_like(level)
        return level if self.rows.layers == 1 else level.repeat_interleave(self.rows.n)[items]

    def names(self, items: Tensor, others: Tensor, counts: Tensor) -> Tensor:
        """Rows of other items, as many as each item has, of which the number in its layer is known.

        Args:
            items: Rows of items, int64, shape (items,).
            others: The numbers of the others, int64, shape (pairs,), in the order of the items.
            counts: How many others each item has, int64, shape (items,).
        """
        if self.rows.layers == 1:
            return others
        first = items - items % self.rows.n
        return others + first.repeat_interleave(counts, output_size=len(others))

    def _mean_of(self, index: slice | Tensor) -> Tensor:
        """M of some rows: shape (rows, dim), or (1, dim) where it is the same for all."""
        if self.rows.layers == 1:
            return self.mean
        if isinstance(index, Tensor):
            return self.mean[index // self.rows.n]
        n = self.rows.n
        means = self.mean[index.start // n : -(-index.stop // n)]
        # Of whole layers, or of one.
        return means if len(means) == 1 else means.repeat_interleave(n, dim=0)

    def singles(
        self, index: slice, offsets: Tensor, out: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """D, times the factor, of some rows in float32, by :func:`parts` of the dimensions.

        Each part is best used before the next is made, while it is at hand.

        Args:
            index: Which rows.
            offsets: Where to write b of the same rows, float64, shape (rows,), off by
                :meth:`offset_error`; complete after the last part.
            out: Where to; for each part (n, dimensions), float32, of all items.

        Yields:
            Each part: float32, shape (rows, dimensions), off by :meth:`single_error`.
        """
        # Room for one part at a time, where none is to be kept.
        singles = (
            _empty_parts(index.stop - index.start, self)
            if out is None
            else (part[index] for part in out)
        )
        if not self.quick:
            d, b = self.centred(index)
            offsets.copy_(b)
            # What is stored may be of any magnitude, the product is in the range of float32.
            for part, single in zip(parts(d.mul_(self.factor)), singles, strict=True):
                yield single.copy_(part)
            return
        mean = self._mean_of(index)
        shift = mean.float() * -self.factor
        of_parts = map(parts, (self.rows.single(index), shift, mean))
        room = mean.new_empty(len(offsets), min(SUMMED, self.rows.dim))
        offsets.zero_()
        for x, less, m, single in zip(*of_parts, singles, strict=True):
            torch.add(less, x, alpha=self.factor, out=single)
            _add_dot(offsets, room[:, : single.shape[1]].copy_(single), m)
            yield single
        offsets /= self.factor

    def single_error(self, length: Tensor) -> Tensor:
        """How far rows in float32 may be off: the length of the difference, float64, (rows,).

        Args:
            length: Of such rows, float64, shape (rows,), within 1 %.
        """
        # Twice that of rounding each value.
        lost = 2.0**-23 * length
        if self.quick and not self.rows.exact:
            lost = lost + self.factor * SINGLE_ERROR
        return lost

    def offset_error(self, lost: Tensor) -> Tensor:
        """How far b from rows in float32 may be off, in units of products: |m| c.

        Args:
            lost: c, how far the rows are off, float64.
        """
        if not self.quick:
            return torch.zeros_like(lost)
        return lost * (self.factor * float(torch.linalg.vector_norm(self.mean, dim=1).max()))

    def strayed(self, length: Tensor, offsets: Tensor) -> Tensor:
        """How far rows are from the length that cosine needs, where that has not been seen.

        Args:
            length: |d| of all items, times the factor, float64, shape (n,).
            offsets: b of the same items, float64, shape (n,).

        Returns:
            float64, shape (n,): the difference of |x|^2 = |d|^2 + 2 b + |m|^2 from 1; not finite
            where a row is not; 0 where it is known to be none.
        """
        squared = (length / self.factor).square() + 2 * offsets
        if not self.glimpsed or self.rows.unit:
            # Of what is finite 0.
            return squared * 0
        return (squared + self.level(slice(0, len(self.rows))) - 1).abs()


def _add_dot(total: Tensor, x: Tensor, mean: Tensor) -> None:
    """Add inner products of rows with a mean each, or with one of all."""
    if len(mean) == 1:
        total.addmv_(x, mean[0])
    else:
        total += torch.linalg.vecdot(x, mean)


def parts(x: Tensor) -> tuple[Tensor, ...]:
    """All dimensions of rows, as many at a time as are added up in float32."""
    return torch.split(x, SUMMED, dim=1)


def _empty_parts(count: int, frame: Frame) -> Iterator[Tensor]:
    """Room for so many rows in float32, a part after the other."""
    for part in parts(frame.mean):
        yield frame.mean.new_empty(count, part.shape[1], dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Single:
    """A layer in float32, for what need not be exact.

    Attributes:
        parts: d of all items, times the frame's factor, in :func:`parts` of the dimensions: each
            float32, shape (n, dimensions).
        offsets: b, float64, shape (n,).
    """

    parts: list[Tensor]
    offsets: Tensor

    @classmethod
    def empty(cls, frame: Frame) -> Single:
        """Of a layer, to be filled."""
        n = len(frame.rows)
        return cls(list(_empty_parts(n, frame)), frame.mean.new_empty(n))


def frame(
    rows: Rows, similarity: Similarity, block: int, sharing: Sharing, *, own: bool = False
) -> Frame:
    """Measure a layer, or several: the means and the scale.

    Args:
        rows: The layer, n items; several only for cosine, and where one process has all items.
        similarity: Which nearness; for cosine the rows must have length 1 or 0.
        block: Rows that are held in float64 at a time.
        sharing: The processes that share the items.
        own: Whether what is held may be changed: for distances the mean is then taken off it.

    Raises:
        ValueError: If a value is not finite, rows are not of length 1 where similarity is cosine,
            or squared distances are beyond the range of float64.
    """
    share = sharing.rows(len(rows))
    blocks = [*rows.blocks(block, share.start, share.stop)]
    quick = similarity == "cosine" and _quick(rows)
    total, unit = _measured(rows, blocks, similarity, quick)
    if quick and not torch.isfinite(total).all():
        # Not finite, or beyond what float32 can hold on the way.
        quick = False
        total, unit = _measured(rows, blocks, similarity, quick)
    mean = sharing.all_gather(total[None]).sum(dim=0) / rows.n
    if not torch.isfinite(mean).all():
        found = (part.start + int(row) for part in blocks for row in _not_finite(rows[part]))
        bad = (row % rows.n for row in found)
        raise ValueError(
            f"neighbours need finite features, and item {next(bad, 'unknown')} is not; call "
            "validate_features first"
        )
    if not unit:
        raise ValueError("cosine neighbours need rows of length 1; call preprocess first")
    if similarity == "cosine":
        return _cosine(rows, mean, quick=quick)
    largest = torch.zeros((), dtype=torch.float64, device=rows.place)
    for part in blocks:
        largest = largest.maximum((rows[part] - mean).square().sum(dim=1).max())
    scale = float(sharing.all_gather(largest[None]).max())
    if not math.isfinite(scale) or 0 < scale < _LEAST_SCALE:
        raise ValueError("neighbours need features whose squared distances float64 can hold")
    if not (own and rows.made):
        return Frame(rows, similarity, mean, scale)
    # Distances are of d alone, so that it takes the place of what is held.
    rows.stored.sub_(mean)
    offsets = torch.cat([torch.linalg.vecdot(d, d) for d in torch.split(rows.stored, block)]) / -2
    return Frame(rows, similarity, mean, scale, offsets)


def glimpse(rows: Rows, similarity: Similarity, sharing: Sharing) -> Frame | None:
    """Measure a layer, or several, by a few items: going over all takes a fifteenth of a search.

    Any vector near the mean will do for cosine. What all rows are is seen when they are made: where
    they are not finite, or not of length 1, a frame must be made with care, by :func:`frame`.

    Args:
        rows: As for :func:`frame`.
        similarity: As for :func:`frame`.
        sharing: As for :func:`frame`.

    Returns:
        None where that is known to be so already, or the similarity is another.
    """
    if similarity != "cosine" or not _quick(rows):
        return None
    step = -(-rows.n // _GLIMPSED)
    some = torch.arange(0, rows.n, step, device=rows.place)
    every = torch.cat([some + layer * rows.n for layer in range(rows.layers)])
    mean = torch.unflatten(rows.single(every), 0, (rows.layers, -1)).mean(dim=1).double()
    # The same in all processes, to the last bit.
    mean = sharing.all_gather(mean[None])[0]
    found = _cosine(rows, mean, quick=True)
    return replace(found, glimpsed=True) if found.quick else None


def _quick(rows: Rows) -> bool:
    """Whether rows can be made in float32 at all."""
    return rows.stored.dtype != torch.float64 and single_dtype() != torch.float64


def _cosine(rows: Rows, mean: Tensor, *, quick: bool) -> Frame:
    # Any vector near the mean will do: one that float32 holds.
    mean = mean.float().double()
    # False as well where it is not finite.
    spread = bool(1 - mean.square().sum(dim=1).max() > _SPREAD)
    return Frame(rows, "cosine", mean, 1.0, quick=quick and (rows.exact or spread))


def _measured(
    rows: Rows, blocks: list[slice], similarity: Similarity, quick: bool
) -> tuple[Tensor, bool]:
    """The sum of some rows, float64, (layers, dim); and whether each row is of length 1 or 0."""
    total = torch.zeros(rows.layers, rows.dim, dtype=torch.float64, device=rows.place)
    lengths = []
    for part in blocks:
        x = rows.single(part) if quick else rows[part]
        # First, as what is read row by row is read faster, and then at hand.
        if similarity == "cosine" and not rows.unit:
            lengths.append(torch.linalg.vector_norm(x, dim=1))
        layers = slice(part.start // rows.n, -(-part.stop // rows.n))
        total[layers] += torch.unflatten(x, 0, (layers.stop - layers.start, -1)).sum(dim=1)
    length = torch.cat([total.new_zeros(1), *lengths])
    return total, bool(((length == 0) | ((length - 1).abs() < OFF_UNIT)).all())


def _not_finite(x: Tensor) -> Tensor:
    return (~torch.isfinite(x)).any(dim=1).nonzero().squeeze(1)
