"""Exact neighbours among candidates: similarities in float32, in float64 where they are too close.

A product in float32 is off by a known bound. Where two neighbours are further apart than that says
nothing more is needed; only runs of closer ones, ties among them, are computed in float64.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from prh_eval.alignment.candidates import Candidates
from prh_eval.alignment.frames import Frame, Single
from prh_eval.alignment.ordering import positions
from prh_eval.alignment.ranking import TIE_TOLERANCE, Found, nearest, unsettled, widened
from prh_eval.alignment.tiles import SearchPlan

# Values of either side of products of pairs that are held at a time.
_PAIR_VALUES = 1 << 24


def rescored(
    layer: Frame,
    plan: SearchPlan,
    items: slice,
    candidates: Candidates,
    single: Single | None,
    error: Tensor,
) -> tuple[Found, Tensor]:
    """The neighbours of some items among their candidates, and whether that is proven.

    Args:
        layer: n items; or several layers, all rows of which are in ``items``.
        plan: Sizes and types.
        items: Which items.
        candidates: Of these items, by their numbers in their layer.
        single: The layer in float32; None to compute all similarities in float64.
        error: How far those in float32 may be off; float64, shape (items,).

    Returns:
        The neighbours, and bool, shape (items,).
    """
    names, wanted, bound = candidates.result()
    bound = bound / layer.factor / layer.factor + layer.level(items)
    tolerance = TIE_TOLERANCE * layer.scale
    rows = torch.arange(items.start, items.stop, device=wanted.device)
    nearness = torch.full(wanted.shape, -torch.inf, dtype=torch.float64, device=wanted.device)
    # By position, which is faster than by mask.
    at = positions(wanted)
    if single is None:
        nearness.view(-1).index_copy_(0, at, _exact(layer, plan, rows, names, wanted))
        indices, tied, lowest = nearest(nearness, plan.k, tolerance, names)
        return (indices, tied), lowest - tolerance > bound
    chosen, counts = names.view(-1).index_select(0, at).long(), wanted.sum(dim=1)
    chosen = layer.names(rows, chosen, counts)
    nearness.view(-1).index_copy_(0, at, _close(layer, single, items, chosen, counts))
    indices, lowest, some, unsure = unsettled(nearness, plan.k, tolerance + 2 * error, names)
    lowest = lowest - error
    tied = torch.zeros_like(indices, dtype=torch.bool)
    if len(some):
        values, named = nearness[some], names[some]
        values[unsure] = _exact(layer, plan, rows[some], named, unsure)
        their_indices, their_ties, least = nearest(values, plan.k, tolerance, named)
        # The smallest of them may be one from float32.
        lowest[some] = least - error[some]
        width = max(indices.shape[1], their_indices.shape[1])
        indices, tied = widened((indices, tied), width)
        indices[some], tied[some] = widened((their_indices, their_ties), width)
    return (indices, tied), lowest - tolerance > bound


def _close(layer: Frame, single: Single, items: slice, chosen: Tensor, counts: Tensor) -> Tensor:
    """Nearness of each item to as many of the chosen as it has, from products in float32."""
    own = single.offsets[items] + layer.level(items)
    products = _inner([part[items] for part in single.parts], single.parts, counts, chosen)
    products = products / layer.factor / layer.factor
    own = own.repeat_interleave(counts, output_size=len(chosen))
    return products + own + single.offsets.index_select(0, chosen)


def _exact(layer: Frame, plan: SearchPlan, items: Tensor, names: Tensor, wanted: Tensor) -> Tensor:
    """Nearness of items to their wanted candidates in float64: shape (wanted pairs,)."""
    counts = wanted.sum(dim=1)
    chosen = layer.names(items, names[wanted].long(), counts)
    if len(others := torch.unique(chosen)) <= plan.pairs:
        # Made once, where that is no more than is made at a time anyway.
        return _pairs(layer, items, others, chosen, counts)
    size = max(1, plan.pairs // max(1, int(counts.max())))
    parts = [slice(start, start + size) for start in range(0, len(items), size)]
    some = torch.split(chosen, [int(counts[part].sum()) for part in parts])
    return torch.cat(
        [
            _pairs(layer, items[part], torch.unique(own), own, counts[part])
            for part, own in zip(parts, some, strict=True)
        ]
    )


def _pairs(layer: Frame, items: Tensor, others: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    """Nearness in float64 of each item to as many of the chosen as it has, all among others."""
    index = torch.searchsorted(others, chosen)
    if layer.similarity == "cosine":
        return _inner([layer.rows[items]], [layer.rows[others]], counts, index)
    (mine, b), (theirs, c) = layer.centred(items), layer.centred(others)
    b = b.repeat_interleave(counts, output_size=len(index))
    return _inner([mine], [theirs], counts, index) + b + c[index]


def _inner(x: list[Tensor], y: list[Tensor], counts: Tensor, index: Tensor) -> Tensor:
    """Inner products of each row of x with as many rows of y as it has.

    Args:
        x: Parts of the dimensions, each (rows of x, dimensions).
        y: The same parts, each (rows of y, dimensions).
        counts: How many, int64, shape (rows of x,).
        index: Which rows of y, in the order of those of x: int64, shape (pairs,).

    Returns:
        float64, shape (pairs,): the parts' products, added up in it.
    """
    result = torch.zeros(len(index), dtype=torch.float64, device=index.device)
    if index.device.type == "cpu":
        ends = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            pattern = torch.sparse_csr_tensor(
                ends,
                index,
                x[0].new_zeros(len(index)),
                (len(x[0]), len(y[0])),
                check_invariants=False,
            )
        for mine, theirs in zip(x, y, strict=True):
            result += torch.sparse.sampled_addmm(pattern, mine, theirs.T, beta=0.0).values()
        return result
    item = torch.arange(len(counts), device=index.device)
    item = item.repeat_interleave(counts, output_size=len(index))
    for mine, theirs in zip(x, y, strict=True):
        size = max(1, _PAIR_VALUES // mine.shape[1])
        for some in torch.split(torch.arange(len(index), device=index.device), size):
            result[some] += (mine[item[some]] * theirs[index[some]]).sum(dim=1)
    return result
