"""Kernel matrices of layers, centred, and the cosines of those of every layer pair.

Matrices are made in tiles of 512 x 512 items, of all layers at once: beyond the features that takes
2 MiB a layer and what 1,024 rows take in float64, whatever the number of items. Sums are in
float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prh_eval.alignment.rows import Rows
from prh_eval.alignment.selection import select_magnitude
from prh_eval.errors import PrhEvalError

# A self-similarity so small a share of what it is a sum of is rounding.
ROUNDING = 1e-12

_TILE = 512
# Of so many items the distances of all pairs are held (128 MiB), of more made again when needed.
_HELD = 4096

Layer = Tensor | Rows


@dataclass(frozen=True, eq=False)
class Centred:
    """A layer of n items about the mean of its rows."""

    rows: Rows
    mean: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, items: slice) -> Tensor:
        return self.rows[items] - self.mean

    @property
    def parts(self) -> Iterator[slice]:
        """All items, in slices as long as a tile."""
        return self.rows.blocks(_TILE)

    @property
    def squares(self) -> Tensor:
        """Squared length of each row, (n,)."""
        return torch.cat([self[part].square().sum(dim=1) for part in self.parts])


def centred(x: Sequence[Layer], y: Sequence[Layer], *, least: int) -> list[list[Centred]]:
    """Both sides' layers about their means, on one device.

    Args:
        x: One layer each, shape (n, dim_l).
        y: Likewise, the same items.
        least: Smallest n that will do.

    Raises:
        PrhEvalError: If numbers of items differ or are too small, or a value is not finite.
    """
    place = _rows(x[0]).place
    n = len(x[0])
    sides = []
    for name, side in (("x", x), ("y", y)):
        layers = []
        for index, layer in enumerate(side):
            rows = _rows(layer).on(place)
            if len(rows) != n:
                raise PrhEvalError(
                    f"layer {index} of {name} has {len(rows)} items and layer 0 of x has {n}, "
                    "where all must be of the same items"
                )
            if n < least:
                raise PrhEvalError(
                    f"the features are of {n} items, where this metric needs at least {least}"
                )
            # About the first row, so that rows that are all equal become exactly 0.
            first = rows[slice(1)]
            total = sum(
                ((rows[part] - first).sum(dim=0) for part in rows.blocks(_TILE)),
                torch.zeros_like(first[0]),
            )
            if not bool(torch.isfinite(total).all()):
                raise PrhEvalError(
                    f"layer {index} of {name} has values that are NaN or infinite, where all must "
                    "be finite"
                )
            layers.append(Centred(rows, first[0] + total / n, f"layer {index} of {name}"))
        sides.append(layers)
    return sides


def _rows(layer: Layer) -> Rows:
    return layer if isinstance(layer, Rows) else Rows(layer)


class Kernel(Protocol):
    """A kernel matrix of n items, of which tiles are made."""

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Its values at some rows and columns, float64."""

    def row_sums(self, *, diagonal: bool) -> Tensor:
        """The sum of each row, float64 (n,), with or without the diagonal."""


@dataclass(frozen=True, eq=False)
class Linear:
    """Inner products of centred rows."""

    layer: Centred

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """As for :class:`Kernel`."""
        return _products(self.layer, rows, columns)

    def row_sums(self, *, diagonal: bool) -> Tensor:
        """As for :class:`Kernel`."""
        # The rows are centred, so that all inner products of one sum to 0.
        squares = self.layer.squares
        return torch.zeros_like(squares) if diagonal else -squares


@dataclass(frozen=True, eq=False)
class Rbf:
    """exp(-d^2 / (2 sigma^2)) - 1: near equal items as exact as 0; centring takes the 1 off."""

    layer: Centred
    squares: Tensor
    sigma: float

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """As for :class:`Kernel`."""
        distances = _distances(self.layer, self.squares, rows, columns)
        return distances.div_(-2 * self.sigma**2).expm1_()

    def row_sums(self, *, diagonal: bool) -> Tensor:
        """As for :class:`Kernel`."""
        # Nothing is on the diagonal.
        sums = torch.zeros_like(self.squares)
        for rows, columns in _tiles(len(self.layer)):
            tile = self.tile(rows, columns)
            sums[rows] += tile.sum(dim=1)
            if rows != columns:
                sums[columns] += tile.sum(dim=0)
        return sums


def _tiles(n: int) -> Iterator[tuple[slice, slice]]:
    """The tiles of the upper triangle of an n x n matrix, with its diagonal."""
    parts = [slice(start, min(start + _TILE, n)) for start in range(0, n, _TILE)]
    for index, rows in enumerate(parts):
        for columns in parts[index:]:
            yield rows, columns


def _products(layer: Centred, rows: slice, columns: slice) -> Tensor:
    """Inner products of centred rows."""
    x = layer[rows]
    return x @ (x if rows == columns else layer[columns]).T


def _distances(layer: Centred, squares: Tensor, rows: slice, columns: slice) -> Tensor:
    """Squared distances."""
    distances = _products(layer, rows, columns).mul_(-2)
    distances += squares[rows, None]
    distances += squares[columns]
    distances.clamp_(min=0)
    if rows == columns:
        distances.fill_diagonal_(0)
    return distances


def rbf(layer: Centred, fraction: float, sigma: float | None) -> Rbf:
    """The RBF kernel of a layer.

    Args:
        layer: The layer.
        fraction: Bandwidth in units of the median distance between different items.
        sigma: The bandwidth itself; None for the fraction.

    Raises:
        PrhEvalError: If the bandwidth would be 0 and some rows differ.
    """
    squares = layer.squares
    if sigma is None:
        sigma = fraction * _median_distance(layer, squares)
    if sigma == 0:
        if bool(squares.any()):
            raise PrhEvalError(
                f"at least half of the distances between items in {layer.name} are 0, and so would "
                "be the bandwidth of the kernel; repeated items should be removed, or sigma be "
                "given"
            )
        # All distances are 0, and with any bandwidth all of the kernel's values are 1.
        sigma = 1.0
    return Rbf(layer, squares, sigma)


class _Pairs(Sequence[Tensor]):
    """Squared distances of all pairs of different items, made a tile at a time."""

    def __init__(self, layer: Centred, squares: Tensor) -> None:
        self.layer, self.squares = layer, squares
        self.tiles = list(_tiles(len(layer)))

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        rows, columns = self.tiles[index]
        distances = _distances(self.layer, self.squares, rows, columns)
        if rows == columns:
            above = torch.ones_like(distances, dtype=torch.bool).triu_(diagonal=1)
            distances = distances[above]
        return distances.reshape(-1, 1)


def _median_distance(layer: Centred, squares: Tensor) -> float:
    """The (lower) median of the distances between different items."""
    pairs: Sequence[Tensor] = _Pairs(layer, squares)
    middle = (len(layer) * (len(layer) - 1) // 2 - 1) // 2
    if len(layer) > _HELD:
        return float(select_magnitude(pairs, middle) ** 0.5)
    return float(torch.cat(list(pairs)).flatten().kthvalue(middle + 1).values.sqrt())


def gram_grid(x: Sequence[Kernel], y: Sequence[Kernel], *, unbiased: bool) -> Tensor:
    """Cosines of centred kernel matrices of every layer pair, a tile at a time.

    Args:
        x: Kernels of n items.
        y: Kernels of the same items.
        unbiased: Whether to leave out the diagonal and U-centre, or to double-centre.

    Returns:
        float64, shape (layers_x, layers_y).
    """
    offsets = [_offsets(kernel, unbiased) for kernel in (*x, *y)]
    n, device = len(offsets[0][0]), offsets[0][0].device
    inner = torch.zeros(len(x), len(y), dtype=torch.float64, device=device)
    # Of each layer the squares of its matrix, centred and before that.
    own, raw = (torch.zeros(len(offsets), dtype=torch.float64, device=device) for _ in range(2))
    held = torch.empty(len(offsets), min(n, _TILE) ** 2, dtype=torch.float64, device=device)
    for rows, columns in _tiles(n):
        size = (rows.stop - rows.start) * (columns.stop - columns.start)
        # A tile off the diagonal stands for the one below it too.
        times = 1 if rows == columns else 2
        for index, kernel in enumerate((*x, *y)):
            sums, constant = offsets[index]
            tile = kernel.tile(rows, columns)
            if unbiased and rows == columns:
                tile.fill_diagonal_(0)
            raw[index] += times * tile.square().sum()
            tile += constant - sums[rows, None] - sums[columns]
            if unbiased and rows == columns:
                tile.fill_diagonal_(0)
            held[index, :size] = tile.flatten()
            own[index] += times * tile.square().sum()
        tiles = held[:, :size]
        inner += times * (tiles[: len(x)] @ tiles[len(x) :].T)
    return _cosines(inner, own, raw, ROUNDING**2)


def _offsets(kernel: Kernel, unbiased: bool) -> tuple[Tensor, Tensor]:
    """What centring takes off each row and column, and adds everywhere."""
    sums = kernel.row_sums(diagonal=not unbiased)
    n = len(sums)
    if unbiased:
        return sums / (n - 2), sums.sum() / ((n - 1) * (n - 2))
    return sums / n, sums.sum() / n**2


def covariance_grid(x: list[Centred], y: list[Centred], *, unbiased: bool) -> Tensor:
    """:func:`gram_grid` of linear kernels, from dimensions x dimensions matrices.

    Args:
        x: Layers of n items.
        y: Layers of the same items.
        unbiased: As for :func:`gram_grid`.
    """
    layers = (*x, *y)
    squares = torch.stack([layer.squares for layer in layers])
    raw = torch.stack([_covariance(layer, layer) for layer in layers])
    inner = torch.stack([_covariance(a, b) for a in x for b in y]).reshape(len(x), len(y))
    if not unbiased:
        return _cosines(inner, raw, raw, 0.0)
    # Without the diagonal's products, and U-centred: the sums of rows are -squares.
    n = squares.shape[1]
    total = squares.sum(dim=1) / ((n - 1) * (n - 2)) ** 0.5
    own = raw + total.square() - squares.square().sum(dim=1) * n / (n - 2)
    of_x, of_y = squares[: len(x)], squares[len(x) :]
    inner += torch.outer(total[: len(x)], total[len(x) :]) - of_x @ of_y.T * n / (n - 2)
    return _cosines(inner, own, raw, ROUNDING)


def _covariance(x: Centred, y: Centred) -> Tensor:
    """|Xc^T Yc|^2."""
    products = x.mean.new_zeros(x.rows.dim, y.rows.dim)
    for part in x.parts:
        products += x[part].T @ y[part]
    return products.square().sum()


def _cosines(inner: Tensor, own: Tensor, raw: Tensor, tolerance: float) -> Tensor:
    """Inner products over lengths; 0 where no more than rounding is left of a side's matrix."""
    empty = own <= tolerance * raw
    lengths = torch.where(empty, torch.inf, own.sqrt())
    rows, columns = inner.shape
    # By rounding two that are the same may be beyond 1.
    return (inner / torch.outer(lengths[:rows], lengths[rows : rows + columns])).clamp(-1, 1)
