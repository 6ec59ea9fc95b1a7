"""What the metrics of features share: their checks, centring, and decompositions of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prh_eval.alignment.precision import with_float64
from prh_eval.errors import PrhEvalError

# Deviations this small, relative to the values, are rounding.
_ROUNDING = 1e-12
# Eigenvalues this small, relative to the largest, belong to directions without variance.
_NO_VARIANCE = 1e-10


def check_layers(x: Sequence[Tensor], y: Sequence[Tensor], *, least: int, metric: str) -> None:
    """Refuse layers that a metric of features cannot compare.

    Args:
        x: Layers of one model, each a float tensor (n, dim).
        y: Layers of the other.
        least: The smallest number of items that the metric is defined for.
        metric: Its name, for the message.

    Raises:
        PrhEvalError: If a side has no layers, a layer is not a matrix of finite floats, layers are
            of different numbers of items, or these are fewer than ``least``.
    """
    for side, layers in (("first", x), ("second", y)):
        if not layers:
            raise PrhEvalError(
                f"{metric}: the {side} side has no layers, where at least one is needed"
            )
        for number, layer in enumerate(layers):
            if layer.ndim != 2 or not layer.shape[1] or not layer.is_floating_point():
                raise PrhEvalError(
                    f"{metric}: layer {number} of the {side} side is a {layer.dtype} tensor of "
                    f"shape {tuple(layer.shape)}, where floats of shape (items, dimensions) are "
                    "needed"
                )
            if len(layer) != len(x[0]):
                raise PrhEvalError(
                    f"{metric}: layer {number} of the {side} side has {len(layer)} items and layer "
                    f"0 of the first side has {len(x[0])}, where all must describe the same items"
                )
            if not bool(torch.isfinite(layer).all()):
                raise PrhEvalError(
                    f"{metric}: layer {number} of the {side} side has values that are NaN or "
                    "infinite; all must be finite"
                )
    if len(x[0]) < least:
        raise PrhEvalError(
            f"{metric}: there are {len(x[0])} items, where at least {least} are needed"
        )


def place(x: Sequence[Tensor]) -> torch.device:
    """Where layers are compared: the device of the first, or the CPU where that has no float64."""
    return with_float64(x[0][:0]).device


def centered(layer: Tensor, device: torch.device) -> Tensor:
    """A layer with the mean of every dimension subtracted.

    A dimension that is the same for all items but for rounding becomes exactly 0, so that what
    follows need not guess whether a layer varies.

    Args:
        layer: Float, shape (n, dim).
        device: Where to.

    Returns:
        float64, shape (n, dim), on ``device``.
    """
    x = with_float64(layer).to(device).double()
    scale = x.abs().amax(dim=0)
    # Less the first item: where all items are equal, nothing is left to be rounded.
    x = x - x[0]
    x -= x.mean(dim=0)
    return torch.where(x.abs().amax(dim=0) > _ROUNDING * scale, x, 0.0)


def normal(layer: Tensor, device: torch.device) -> Tensor:
    """A layer centred and scaled to a sum of squares of 1, in at most as many dimensions as items.

    Args:
        layer: Float, shape (n, dim).
        device: Where to.

    Returns:
        float64, shape (n, min(n, dim)), on ``device``: turned by an orthogonal map where dim > n,
        so that all inner products between items stay; zeros where all items are equal.
    """
    x = centered(layer, device)
    if x.shape[1] > x.shape[0]:
        x = torch.linalg.qr(x.T, mode="r").R.T.contiguous()
    norm = torch.linalg.vector_norm(x)
    return x / norm if norm > 0 else x


def principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """The left singular vectors of a centred layer and the squares of its singular values.

    Of the two Gram matrices, of items and of dimensions, the smaller is decomposed.

    Args:
        x: float64, shape (n, dim).

    Returns:
        Singular vectors (n, rank) in orthonormal columns, and the squared singular values (rank,),
        falling. The rank is the number of these above 1e-10 of the largest; 0 for zeros.
    """
    items = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if items else x.T @ x)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = (values > _NO_VARIANCE * values[0]) & (values > 0)
    values, vectors = values[kept], vectors[:, kept]
    return (vectors if items else x @ vectors / values.sqrt()), values
