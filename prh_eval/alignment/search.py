"""The nearest neighbours by candidates: a product in low precision, then exact similarities."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from prh_eval.alignment.candidates import Candidates
from prh_eval.alignment.filters import (
    HAS_OUT_DTYPE,
    Frame,
    bounds,
    columns,
    copied,
    single_dtype,
    turn,
)
from prh_eval.alignment.ranking import TIE_TOLERANCE, Found, nearest, stacked
from prh_eval.alignment.sharing import Sharing
from prh_eval.alignment.tiles import SearchPlan, is_memory, smaller

# Ties that the candidates leave room for; an item with more is searched for exactly.
_TIES = 8
# The share of the items without proof beyond which a product of higher precision pays.
_UNPROVEN_SHARE = 8
# Values of either side of products of pairs that are held at a time.
_PAIR_VALUES = 1 << 24
# Rows of a block of a symmetric product.
_STEP = 128


def searched(
    layer: Frame, plan: SearchPlan, items: slice, sharing: Sharing
) -> tuple[Found, Tensor]:
    """The nearest neighbours of some items, for as many of them as can be proven.

    Args:
        layer: n items, k nearest wanted.
        plan: Sizes and types.
        items: This process's items.
        sharing: The processes; all call this at the same time.

    Returns:
        The neighbours of the items, and the numbers of those without proof, int64, rising.
    """
    found, unproven = _filtered(layer, plan, items, sharing)
    count = sharing.all_gather(torch.tensor([len(unproven)], device=unproven.device)).sum()
    better = replace(plan, dtype=single_dtype())
    if (
        int(count) * _UNPROVEN_SHARE > plan.n
        and better.dtype not in (plan.dtype, torch.float64)
        and better.peak_bytes <= plan.memory_bytes
    ):
        return _filtered(layer, better, items, sharing)
    return found, unproven


def _filtered(
    layer: Frame, plan: SearchPlan, items: slice, sharing: Sharing
) -> tuple[Found, Tensor]:
    matrix, stats = _copy(layer, plan, items)
    largest = sharing.all_gather(stats.amax(dim=1)[None]).amax(dim=0)
    error = bounds(stats, largest, matrix.shape[1])
    while True:
        candidates, failure = _gathered(layer, plan, matrix, error, items, sharing)
        if failure is not None and not is_memory(failure):
            raise failure
        failed = torch.tensor([failure is not None], device=error.device)
        if not sharing.all_gather(failed).any():
            break
        # The largest tile may have been another process's.
        plan = smaller(plan, failure)
    del matrix
    found, unproven = [], []
    for side in layer.rows.blocks(plan.side, items.start, items.stop):
        part, proven = _rescored(layer, plan, side, candidates.pop(0))
        found.append(part)
        unproven.append((~proven).nonzero().squeeze(1) + side.start)
    return stacked(found), torch.cat(unproven)


def _gathered(
    layer: Frame, plan: SearchPlan, matrix: Tensor, error: Tensor, items: slice, sharing: Sharing
) -> tuple[list[Candidates], Exception | None]:
    """The candidates of every side of this process's items; or what went wrong."""
    margin = layer.scaled(_TIES * TIE_TOLERANCE * layer.scale)
    kind = torch.float32 if _in_float32(matrix) else matrix.dtype
    sides = list(layer.rows.blocks(plan.side, 0, len(matrix)))
    candidates = [
        Candidates(plan.k, plan.keep, error[side], margin, kind, plan.near) for side in sides
    ]
    failure = None
    for owner, others in sharing.passed_round(matrix):
        if failure is not None:
            continue
        start = sharing.rows(plan.n, owner).start
        try:
            for number, left in enumerate(sides):
                turned = turn(matrix[left], layer.rows.dim)
                if owner != sharing.rank:
                    for right in layer.rows.blocks(plan.side, 0, len(others)):
                        values = _product(turned, others[right])
                        candidates[number].add(values, start + right.start)
                    continue
                candidates[number].add(_gram(turned, matrix[left]), start + left.start)
                for other in range(number + 1, len(sides)):
                    values = _product(turned, matrix[sides[other]])
                    candidates[number].add(values, start + sides[other].start)
                    candidates[other].add(values, start + left.start, items_first=False)
        except (RuntimeError, MemoryError) as error_:
            # Others wait for what this process passes on; kept, its traceback would keep the tile.
            failure = error_.with_traceback(None)
    return candidates, failure


def _copy(layer: Frame, plan: SearchPlan, items: slice) -> tuple[Tensor, Tensor]:
    """Some items in low precision: their matrix and statistics."""
    device, count = layer.mean.device, items.stop - items.start
    matrix = torch.empty(count, columns(plan.dim, plan.dtype), dtype=plan.dtype, device=device)
    stats = torch.empty(4, count, dtype=torch.float64, device=device)
    for part in layer.rows.blocks(plan.block, items.start, items.stop):
        place = slice(part.start - items.start, part.stop - items.start)
        stats[:, place] = copied(layer, part, matrix[place])
    return matrix, stats


def _rescored(
    layer: Frame, plan: SearchPlan, items: slice, candidates: Candidates
) -> tuple[Found, Tensor]:
    """The neighbours of some items among their candidates, and whether that is proven."""
    names, wanted, bound = candidates.result()
    nearness = torch.full(wanted.shape, -torch.inf, dtype=torch.float64, device=wanted.device)
    size = len(names) if plan.held else plan.pair_rows
    for start in range(0, len(names), size):
        part = slice(start, start + size)
        rows = slice(items.start + start, min(items.start + start + size, items.stop))
        nearness[part][wanted[part]] = _pairs(layer, rows, names[part], wanted[part])
    indices, tied, lowest = nearest(nearness, plan.k, TIE_TOLERANCE * layer.scale, names)
    bound = bound / layer.factor / layer.factor
    if layer.similarity == "cosine":
        bound = bound + layer.mean.square().sum()
    return (indices, tied), lowest - TIE_TOLERANCE * layer.scale > bound


def _pairs(layer: Frame, rows: slice, names: Tensor, wanted: Tensor) -> Tensor:
    """Nearness of items to their wanted candidates in float64: shape (wanted pairs,)."""
    chosen = names[wanted].long()
    if layer.rows.made:
        others, index = slice(None), chosen
    else:
        others, index = torch.unique(chosen, return_inverse=True)
    counts = wanted.sum(dim=1)
    if layer.similarity == "cosine":
        return _inner(layer.rows[rows], layer.rows[others], counts, index)
    (mine, b), (theirs, c) = layer.centred(rows), layer.centred(others)
    return _inner(mine, theirs, counts, index) + b.repeat_interleave(counts) + c[index]


def _inner(x: Tensor, y: Tensor, counts: Tensor, index: Tensor) -> Tensor:
    """Inner products of each row of x with as many rows of y as it has: shape (pairs,)."""
    if x.device.type == "cpu":
        ends = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            pattern = torch.sparse_csr_tensor(
                ends, index, x.new_zeros(len(index)), (len(x), len(y)), check_invariants=False
            )
        values: Tensor = torch.sparse.sampled_addmm(pattern, x, y.T, beta=0.0).values()
        return values
    item = torch.arange(len(x), device=x.device).repeat_interleave(counts)
    size = max(1, _PAIR_VALUES // x.shape[1])
    parts = zip(torch.split(item, size), torch.split(index, size), strict=True)
    return torch.cat([(x[i] * y[j]).sum(dim=1) for i, j in parts])


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right.T where that is symmetric, with -inf on the diagonal."""
    n, step = len(left), _STEP
    if left.device.type != "cpu":
        result = _product(left, right)
    else:
        result = left.new_empty(n, n)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            torch.mm(left[rows], right[start:].T, out=result[rows, start:])
            result[start + step :, rows] = result[rows, start + step :].T
    return result.fill_diagonal_(-torch.inf)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right.T; in float32 where the device can do so from float16."""
    if _in_float32(left):
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left @ right.T


def _in_float32(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float16 and matrix.is_cuda and HAS_OUT_DTYPE
