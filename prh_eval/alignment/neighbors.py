"""Exact nearest neighbours of every item in every layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.precision import with_float64
from prh_eval.errors import PrhEvalError

# Relative to the largest squared length of a row: far above the rounding of a float64 product
# (about 1e-15) and far below the noise that float32 features carry (about 1e-7).
TIE_TOLERANCE = 1e-12
# Candidates beyond k that are looked at first; a row whose ties reach further is looked at again.
_MARGIN = 6
# The similarities of a row, a copy of them, and their ranking where a row is ranked whole.
_BYTES_PER_SIMILARITY = 32


def neighbor_graph(
    features: Sequence[Tensor],
    k: int,
    *,
    similarity: Literal["cosine", "euclidean"] = "cosine",
    memory_bytes: int = 1 << 28,
    progress: Callable[[int], None] | None = None,
) -> NeighborGraph:
    """The k nearest neighbours of each of n items in each layer.

    Similarities are computed and ranked in float64, whatever the dtype of the features. Two
    neighbours in a row are tied where their similarities differ by no more than 1e-12 of the
    layer's scale: 1 for cosine, the largest squared distance from the mean for Euclidean, where
    half the squared distance is compared. A group of ties is a run in which each is tied with the
    next. Equal items therefore always tie, and the result depends on neither the device, nor the
    size of the chunks, nor the order of the items.

    Args:
        features: One tensor a layer, each (n, dim_l); widths may differ. For cosine similarity
            the rows must have length 1 (or 0, which is equally similar to everything).
        k: Neighbourhood size, 1 <= k <= n - 1.
        similarity: ``"cosine"``: larger inner product is nearer. ``"euclidean"``: smaller
            distance is nearer.
        memory_bytes: About how much the similarities of a chunk of rows may take, beyond one
            layer in float64; one row is always held.
        progress: Called with the number of layers done after each layer.

    Returns:
        The graph, on the device of the features (on the CPU for mps, which has no float64).

    Raises:
        PrhEvalError: If layers differ in the number of items, or k is outside 1..n - 1.
        ValueError: If there is no layer, a value is not finite, or rows are not of unit length
            where similarity is cosine.
    """
    if not len(features):
        raise ValueError("neighbours need at least one layer")
    n = features[0].shape[0]
    if not 1 <= k <= n - 1:
        raise PrhEvalError(
            f"k = {k} nearest neighbours cannot be found among {n} items; k must be between 1 and "
            f"{n - 1}"
        )
    rows = max(1, memory_bytes // (_BYTES_PER_SIMILARITY * n))
    layers = []
    for index, x in enumerate(features):
        if x.shape[0] != n:
            raise PrhEvalError(
                f"layer {index} has {x.shape[0]} items and layer 0 has {n}, where all layers must "
                "describe the same items"
            )
        layers.append(_layer(with_float64(x).double(), k, similarity, rows))
        if progress:
            progress(index + 1)
    width = max(indices.shape[1] for indices, _ in layers)
    return NeighborGraph(
        torch.stack([_widen(indices, width, -1) for indices, _ in layers]),
        torch.stack([_widen(tied, width, False) for _, tied in layers]),
        k,
    )


def _layer(x: Tensor, k: int, similarity: str, rows: int) -> tuple[Tensor, Tensor]:
    """Neighbours of one float64 layer (n, dim): indices (n, width) int32 and ties, bool."""
    if similarity == "euclidean":
        # Without the mean, which changes no distance, squares have nothing large to cancel.
        x = x - x.mean(dim=0)
    half_squares = x.square().sum(dim=1) / 2
    scale = 2 * float(half_squares.max())
    if not torch.isfinite(half_squares).all():
        raise ValueError("neighbours need finite features; call validate_features first")
    if similarity == "cosine":
        unit = (half_squares == 0) | ((2 * half_squares - 1).abs() < 1e-5)
        if not unit.all():
            raise ValueError("cosine neighbours need rows of length 1; call preprocess first")
        scale = 1.0
    chunks = []
    for start in range(0, x.shape[0], rows):
        nearness = x[start : start + rows] @ x.T
        if similarity == "euclidean":
            # -|a - b|^2 / 2 = a.b - |b|^2 / 2 - |a|^2 / 2, whose last term ranks nothing in a row.
            nearness -= half_squares
        nearness.diagonal(start).fill_(-torch.inf)
        chunks.append(nearest(nearness, k, TIE_TOLERANCE * scale))
    width = max(indices.shape[1] for indices, _ in chunks)
    return (
        torch.cat([_widen(indices, width, -1) for indices, _ in chunks]),
        torch.cat([_widen(tied, width, False) for _, tied in chunks]),
    )


def nearest(nearness: Tensor, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The k largest of each row, with all that tie with the k-th.

    Args:
        nearness: Shape (rows, n); -inf where an item is no neighbour, as the row's own.
        k: At least 1 and below n.
        tolerance: Values that differ by at most this much are tied.

    Returns:
        Indices, int32, shape (rows, width), -1 where a row has fewer; and whether each ties with
        the one before it.
    """
    count, n = nearness.shape
    todo = torch.arange(count, device=nearness.device)
    looked_at = min(k + _MARGIN, n - 1)
    parts = []
    while todo.numel():
        values, found = nearness.topk(looked_at, dim=1)
        tied = torch.zeros_like(found, dtype=torch.bool)
        tied[:, 1:] = values[:, :-1] - values[:, 1:] <= tolerance
        group = (~tied).cumsum(dim=1)
        kept = group <= group[:, k - 1 : k]
        closed = ~kept[:, -1] if looked_at < n - 1 else torch.ones_like(kept[:, -1])
        # Groups stay in order; within one, the order of topk gives way to that of the items.
        ordered = (group * n + found).sort(dim=1).values % n
        indices = torch.where(kept, ordered, -1).to(torch.int32)
        width = int(kept[closed].sum(dim=1).max()) if closed.any() else 0
        parts.append((todo[closed], indices[closed, :width], (tied & kept)[closed, :width]))
        todo, nearness = todo[~closed], nearness[~closed]
        looked_at = min(4 * looked_at, n - 1)
    width = max(indices.shape[1] for _, indices, _ in parts)
    indices = torch.full((count, width), -1, dtype=torch.int32, device=todo.device)
    tied = torch.zeros_like(indices, dtype=torch.bool)
    for rows, part_indices, part_tied in parts:
        indices[rows] = _widen(part_indices, width, -1)
        tied[rows] = _widen(part_tied, width, False)
    return indices, tied


def _widen(x: Tensor, width: int, fill: int | bool) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill)
