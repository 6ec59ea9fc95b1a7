"""The rows of layers in float64, made of what is stored a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prh_eval.alignment.precision import with_float64

# How far a row made in float32 may be off, as a share of its length: clipped to a rounded limit,
# times a rounded number.
SINGLE_ERROR = 2.0**-22
# Lengths that are in the normal range of float32, and so are their reciprocals.
_SHORTEST, _LONGEST = 1e-30, 1e37
_MOST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Rows:
    """A layer of n items as it is compared: clipped and normalised, or as it is stored.

    Only the rows that are asked for are ever held in float64, so that what is stored may be of
    half the precision or less, lie on another device, or be mapped from a file.

    Several layers of n items may be taken together: their rows follow each other.

    Attributes:
        stored: Shape (n, dim), any floating type, on any device.
        limit: Magnitude that values are clipped to; None for no clipping.
        unit: Whether each row is divided by its length; a row of zeros stays as it is.
        made: Whether all this is done already.
        device: Where the rows are given; None for where they are stored.
        below: What further layers are stored in, each of the same shape and type, and beside it.
    """

    stored: Tensor
    limit: float | None = None
    unit: bool = False
    made: bool = False
    device: torch.device | None = None
    below: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.layers * self.n

    @property
    def n(self) -> int:
        """Number of items of a layer."""
        return self.stored.shape[0]

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return 1 + len(self.below)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self.stored.shape[1]

    @property
    def place(self) -> torch.device:
        """Where rows are given."""
        return with_float64(self.stored[:0]).device if self.device is None else self.device

    def on(self, device: torch.device | None) -> Rows:
        """The same layer, its rows given on a device; None for where they are stored."""
        return replace(self, device=device)

    def held(self, block: int) -> Rows:
        """The same layer, whole in float64; made of ``block`` rows at a time."""
        x = torch.empty(len(self), self.dim, dtype=torch.float64, device=self.place)
        for part in self.blocks(block):
            self._write(self._taken(part), x[part])
        first, *below = torch.split(x, self.n)
        return Rows(first, unit=self.unit, made=True, below=tuple(below))

    def loaded(self) -> Rows:
        """The same layer, stored where its rows are given."""
        first, *below = (x.to(self.place) for x in (self.stored, *self.below))
        return replace(self, stored=first, below=tuple(below))

    @property
    def loading_bytes(self) -> int:
        """What it would take to store the layer where its rows are given; 0 where it is."""
        return 0 if self.stored.device == self.place else self.stored.nbytes

    def joins(self, other: Rows) -> bool:
        """Whether another layer can be taken together with this one."""
        mine, its = (
            (x.stored.shape, x.stored.dtype, x.stored.device, x.limit, x.unit, x.made, x.place)
            for x in (self, other)
        )
        return mine == its

    @classmethod
    def joined(cls, layers: Sequence[Rows]) -> Rows:
        """Layers that can be taken together, in one."""
        return replace(layers[0], below=tuple(layer.stored for layer in layers[1:]))

    def _taken(self, index: slice | Tensor) -> Tensor:
        """Some rows as they are stored, where they are given; of several layers in rising order."""
        layers = self.stored, *self.below
        firsts = [number * self.n for number in range(len(layers))]
        if isinstance(index, Tensor):
            index = index.to(self.stored.device)
            ends = torch.searchsorted(index, index.new_tensor(firsts[1:])).tolist()
            result = self.stored.new_empty(len(index), self.dim)
            shares = (x.tensor_split(ends) for x in (index, result))
            for x, at, part, out in zip(layers, firsts, *shares, strict=True):
                torch.index_select(x, 0, part - at, out=out)
            return result.to(self.place)
        # Of one layer nothing is copied.
        start, stop, _ = index.indices(len(self))
        own = [
            x[max(0, start - at) : max(0, stop - at)] for x, at in zip(layers, firsts, strict=True)
        ]
        some = [x for x in own if len(x)] or own[:1]
        return (some[0] if len(some) == 1 else torch.cat(some)).to(self.place)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Some rows, by slice or by position: float64, shape (rows, dim).

        Positions in several layers are in rising order.
        """
        x = self._taken(index)
        if self.made:
            return x
        # Contiguous, so that every row is summed in the same order and equal rows stay equal.
        if self.exact:
            return x.double().contiguous()
        return self._write(x, torch.empty(x.shape, dtype=torch.float64, device=x.device))

    def _write(self, x: Tensor, out: Tensor) -> Tensor:
        """Write rows as they are compared, of rows as they are stored."""
        out.copy_(x)
        if self.limit is not None:
            out.clamp_(-self.limit, self.limit)
        if self.unit:
            if x.dtype == torch.float64:
                # Squares of what float64 holds may be beyond its range; this changes no digit.
                exponent = torch.frexp(out.abs().amax(dim=1, keepdim=True)).exponent
                torch.ldexp(out, -exponent.clamp(-1000, 1000), out=out)
            length = torch.linalg.vector_norm(out, dim=1, keepdim=True)
            out.div_(torch.where(length > 0, length, 1.0))
        return out

    @property
    def exact(self) -> bool:
        """Whether rows are compared as they are stored."""
        return self.limit is None and not self.unit

    def single(self, index: slice | Tensor) -> Tensor:
        """Some rows made in float32, shape (rows, dim): exact, or off by ``SINGLE_ERROR``.

        Not of what is stored in float64. Where a length is near the ends of float32's range, the
        row is not finite.
        """
        x = self._taken(index).float()
        if self.limit is not None:
            limit = min(self.limit, _MOST)
            x = x.clamp(-limit, limit)
        if self.unit:
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
            outside = (length < _SHORTEST) | (length > _LONGEST)
            scale = torch.where(outside, torch.inf, 1 / length)
            x = x * torch.where(length > 0, scale, 1.0).float()
        return x

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """The rows from start to stop, at most ``size`` at a time: of a layer, or whole layers."""
        stop = len(self) if stop is None else stop
        n = self.n
        while start < stop:
            end = (start // n + 1) * n if size < n else start + size - size % n
            part = slice(start, min(start + size, end, stop))
            yield part
            start = part.stop
