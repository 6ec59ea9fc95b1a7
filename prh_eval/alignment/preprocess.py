"""What layer features go through before they are compared: the checks and the named protocols."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prh_eval.alignment.rows import Rows
from prh_eval.alignment.selection import Magnitudes, select_magnitude
from prh_eval.alignment.threads import READERS
from prh_eval.errors import PrhEvalError, suggestion

_QUANTILE = 0.95
# Values of a block of items that are looked at together.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Protocol:
    """A named way to turn raw layer features into rows of unit length.

    Attributes:
        name: What a person writes.
        description: One sentence on what it does and whose it is.
        limit: Gives the magnitude that values are clipped to, from all layers at once; None where
            nothing is clipped.
    """

    name: str
    description: str
    limit: Callable[[Sequence[Tensor]], float] | None


def joint_quantile(features: Sequence[Tensor]) -> float:
    """The 0.95 quantile of |x| over all items, layers and dimensions.

    The sorted magnitudes at index int(0.95 * count), as the released code of Huh et al. (2024)
    takes it with ``--precise``.

    Args:
        features: One float tensor a layer, each (n, dim_l).
    """
    return select_magnitude(features, int(_QUANTILE * sum(x.numel() for x in features)))


def mean_item_quantile(features: Sequence[Tensor]) -> float:
    """The mean over items of each item's own 0.95 quantile of |x| over its layers and dimensions.

    Quantiles are interpolated linearly, as the released code of Huh et al. (2024) takes them
    without ``--precise``. Each of several threads looks at a block of items at a time.

    Args:
        features: One float tensor a layer, each (n, dim_l).
    """
    kind = Magnitudes.of(features)
    count = sum(x.shape[1] for x in features)
    position = _QUANTILE * (count - 1)
    below, above = math.floor(position), math.ceil(position)
    weight = position - below
    rows = max(1, _CHUNK // count)

    def quantiles(start: int) -> list[float]:
        block = [kind.patterns(x[start : start + rows]) for x in features]
        ranked = np.concatenate(block, axis=1)
        ranked.partition(below, axis=1)
        low, high = kind.values(np.stack([ranked[:, below], ranked[:, above:].min(axis=1)]))
        found: list[float] = torch.lerp(low, high, weight).tolist()
        return found

    n = features[0].shape[0]
    with ThreadPoolExecutor(READERS) as threads:
        each = [q for block in threads.map(quantiles, range(0, n, rows)) for q in block]
    # fsum rounds once, so that the order of the items cannot matter.
    return math.fsum(each) / n


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "paper",
            "Clip to the 0.95 quantile of the magnitudes of all layers, then normalise each row: "
            "Huh et al. (2024), the released code with --precise.",
            joint_quantile,
        ),
        Protocol(
            "paper_loose",
            "Clip to the mean over items of each item's own 0.95 quantile, then normalise each "
            "row: Huh et al. (2024), the released code without --precise.",
            mean_item_quantile,
        ),
        Protocol("unclipped", "Normalise each row and clip nothing.", None),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        PrhEvalError: If there is none.
    """
    if name not in PROTOCOLS:
        raise PrhEvalError(f"there is no protocol {name!r}; {suggestion(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def validate_features(
    features: Sequence[Tensor],
    *,
    k: int,
    name: str = "the features",
    constant: Literal["raise", "allow"] = "raise",
) -> None:
    """Refuse layer features that could only give a meaningless score.

    Args:
        features: One float tensor a layer, each (n, dim_l).
        k: Neighbourhood size they will be used for.
        name: What the features are of, for the message.
        constant: Whether a layer in which all items are equal is refused. Such a layer scores
            exactly chance; last-token pooling makes the embedding layer one where all texts end
            in the same token.

    Raises:
        PrhEvalError: If there is no layer, a layer is not a float matrix with a column, layers
            differ in the number of items, there are fewer than k + 2 items, a value is not finite
            in float32, or a layer is constant.
    """
    if not features:
        raise PrhEvalError(f"{name} have no layers, where at least one is needed")
    n = features[0].shape[0] if features[0].ndim else 0
    for layer, x in enumerate(features):
        if x.ndim != 2 or not x.shape[1] or not x.is_floating_point():
            raise PrhEvalError(
                f"layer {layer} of {name} is a {x.dtype} tensor of shape {tuple(x.shape)}, where "
                "floats of shape (items, dimensions) are needed"
            )
        if x.shape[0] != n:
            raise PrhEvalError(
                f"layer {layer} of {name} has {x.shape[0]} items and layer 0 has {n}, where all "
                "layers must describe the same items"
            )
    if n < k + 2:
        raise PrhEvalError(
            f"{name} have {n} items, where k = {k} nearest neighbours need at least {k + 2}"
        )
    for layer, x in enumerate(features):
        bad, first, varies = 0, -1, False
        rows = max(1, _CHUNK // x.shape[1])
        for start in range(0, n, rows):
            block = x[start : start + rows]
            # Squares of finite float32 values are safe in float64; those of larger ones are not.
            if not torch.isfinite(torch.stack(torch.aminmax(block)).float()).all():
                wrong = ~torch.isfinite(block.float()).all(dim=1)
                first = start + int(wrong.nonzero()[0]) if first < 0 else first
                bad += int(wrong.sum())
            varies = varies or not torch.equal(block, x[0].expand_as(block))
        if bad:
            raise PrhEvalError(
                f"layer {layer} of {name} is NaN, infinite or beyond float32 at item {first}, the "
                f"first of {bad} such items; all values must be finite"
            )
        if constant == "raise" and not varies:
            raise PrhEvalError(
                f"layer {layer} of {name} is the same for all {n} items, so that it has no nearest "
                "neighbours; the items must differ"
            )


def preprocess(features: Sequence[Tensor], protocol: Protocol) -> list[Rows]:
    """Clip and normalise layer features.

    Args:
        features: One float tensor a layer, each (n, dim_l) and finite; widths may differ.
        protocol: The rule, from :data:`PROTOCOLS`.

    Returns:
        One layer each: (n, dim_l) in float64, in rows of length 1, or 0 where the input row is
        zero. Rows are computed when they are asked for, so that nothing is held twice.
    """
    limit = protocol.limit(features) if protocol.limit else None
    return [Rows(x, limit, unit=True) for x in features]
