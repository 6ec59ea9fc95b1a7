"""The largest of each row, ties with the last of them included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prh_eval.alignment.ordering import largest, rising

# Relative to the scale of a layer: far above the rounding of a float64 product (about 1e-15) and
# far below the noise that float32 features carry (about 1e-7).
TIE_TOLERANCE = 1e-12
# Values beyond k that are looked at first; a row whose ties reach further is looked at again.
_MARGIN = 6

# Indices, int32, and ties, bool, both (rows, width), as a NeighborGraph has them of a layer.
Found = tuple[Tensor, Tensor]


def nearest(
    nearness: Tensor, k: int, tolerance: float, names: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row, with all that tie with the k-th.

    Args:
        nearness: Shape (rows, n), at least k of each row finite; -inf where an item is no
            neighbour, as the row's own.
        k: At least 1 and below n.
        tolerance: Values that differ by at most this much are tied.
        names: Which items the columns are, shape (rows, n); None for their numbers.

    Returns:
        Indices, int32, shape (rows, width), -1 where a row has fewer; whether each ties with
        the one before it; and the smallest value of each row that was taken, shape (rows,).
    """
    count, n = nearness.shape
    todo = torch.arange(count, device=nearness.device)
    looked_at = min(k + _MARGIN, n)
    most = n if names is None else max(1, int(names.max()) + 1)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    lowest = nearness.new_empty(count)
    while todo.numel():
        values, found = largest(nearness, looked_at)
        tied = torch.zeros_like(found, dtype=torch.bool)
        tied[:, 1:] = values[:, :-1] - values[:, 1:] <= tolerance
        group = (~tied).cumsum(dim=1)
        kept = (group <= group[:, k - 1 : k]) & (values > -torch.inf)
        closed = ~kept[:, -1] if looked_at < n else torch.ones_like(kept[:, -1])
        named = found if names is None else names.gather(1, found).long()
        # Groups stay in order; within one, the order of the values gives way to that of the items.
        ordered = rising(group * most + named) % most
        indices = torch.where(kept, ordered, -1).to(torch.int32)
        if not parts and bool(closed.all()):
            width = int(kept.sum(dim=1).max())
            least = torch.where(kept, values, torch.inf).amin(dim=1)
            return indices[:, :width], (tied & kept)[:, :width], least
        width = int(kept[closed].sum(dim=1).max()) if closed.any() else 0
        parts.append((todo[closed], indices[closed, :width], (tied & kept)[closed, :width]))
        lowest[todo] = torch.where(kept, values, torch.inf).amin(dim=1)
        todo, nearness = todo[~closed], nearness[~closed]
        names = names if names is None else names[~closed]
        looked_at = min(4 * looked_at, n)
    width = max(indices.shape[1] for _, indices, _ in parts)
    indices = torch.full((count, width), -1, dtype=torch.int32, device=todo.device)
    tied = torch.zeros_like(indices, dtype=torch.bool)
    for rows, part_indices, part_tied in parts:
        indices[rows], tied[rows] = widened((part_indices, part_tied), width)
    return indices, tied, lowest


def unsettled(
    nearness: Tensor, k: int, apart: Tensor, names: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k largest of each row by values that are not exact, and which values must be.

    Args:
        nearness: As for :func:`nearest`.
        k: As for :func:`nearest`.
        apart: Two values of a row whose difference is larger are in this order, and not tied;
            shape (rows,).
        names: Which items the columns are, shape (rows, n).

    Returns:
        Indices, int32, shape (rows, k); the k-th largest of each row, shape (rows,); the rows in
        which the order, or ties, of the k largest may be wrong, int64, rising; and bool, shape
        (those rows, n): the values of theirs that may be the reason.
    """
    n = nearness.shape[1]
    looked_at = min(k + _MARGIN, n)
    values, found = largest(nearness, looked_at)
    close = values[:, :-1] - values[:, 1:] <= apart[:, None]
    some = close[:, :k].any(dim=1).nonzero().squeeze(1)
    pad = torch.nn.functional.pad
    close = close[some]
    run = pad((~close).cumsum(dim=1), (1, 0))
    kept = run <= run[:, k - 1 : k]
    alone = ~(pad(close, (1, 0)) | pad(close, (0, 1)))
    unsure = torch.zeros(len(some), n, dtype=torch.bool, device=nearness.device)
    unsure.scatter_(1, found[some], kept & ~alone)
    if looked_at < n:
        # A run that goes on where nothing was looked at.
        longer = kept[:, -1]
        unsure[longer] = nearness[some[longer]] > -torch.inf
    return names.gather(1, found[:, :k]), values[:, k - 1], some, unsure


def stacked(parts: Sequence[Found]) -> Found:
    """Rows below each other, padded to a common width."""
    width = max(indices.shape[1] for indices, _ in parts)
    indices, tied = zip(*(widened(part, width) for part in parts), strict=True)
    return torch.cat(indices), torch.cat(tied)


def widened(found: Found, width: int) -> Found:
    """With padding to a common width."""
    missing = (0, width - found[0].shape[1])
    if not missing[1]:
        return found
    pad = torch.nn.functional.pad
    return pad(found[0], missing, value=-1), pad(found[1], missing, value=False)
