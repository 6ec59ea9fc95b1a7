"""The nearest neighbours by candidates: a product in low precision, then exact similarities."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prh_eval.alignment.candidates import Candidates
from prh_eval.alignment.filters import (
    HAS_OUT_DTYPE,
    bounds,
    columns,
    copied,
    single_bounds,
    turn,
)
from prh_eval.alignment.frames import Frame, Single
from prh_eval.alignment.precision import single_dtype
from prh_eval.alignment.ranking import TIE_TOLERANCE, Found, stacked
from prh_eval.alignment.rescoring import rescored
from prh_eval.alignment.sharing import Sharing
from prh_eval.alignment.tiles import SearchPlan, is_memory, smaller

# Ties that the candidates leave room for; an item with more is searched for exactly.
_TIES = 8
# The share of the items without proof beyond which a product of higher precision pays.
_UNPROVEN_SHARE = 8
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
    matrix, stats, single = _copy(layer, plan, items)
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
    close = single_bounds(stats, largest, layer)
    found, unproven = [], []
    for side in layer.rows.blocks(plan.side, items.start, items.stop):
        own = slice(side.start - items.start, side.stop - items.start)
        part, proven = rescored(layer, plan, side, candidates.pop(0), single, close[own])
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


def _copy(layer: Frame, plan: SearchPlan, items: slice) -> tuple[Tensor, Tensor, Single | None]:
    """Some items in low precision: their matrix and statistics; and all in float32, if held."""
    device, count = layer.mean.device, items.stop - items.start
    matrix = torch.empty(count, columns(plan.dim, plan.dtype), dtype=plan.dtype, device=device)
    stats = torch.empty(5, count, dtype=torch.float64, device=device)
    single = Single.empty(layer) if plan.held else None
    for part in layer.rows.blocks(plan.block, items.start, items.stop):
        place = slice(part.start - items.start, part.stop - items.start)
        stats[:, place] = copied(layer, part, matrix[place], single)
    return matrix, stats, single


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right.T where that is symmetric, with -inf on the diagonal."""
    n, step = len(left), _STEP
    if left.device.type != "cpu":
        result = _product(left, right)
    else:
        result = left.new_empty(n, n)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            tile = torch.mm(left[start:], right[rows].T)
            result[start:, rows] = tile
            # Turned over in one piece, which is three times as fast.
            result[rows, start + step :] = tile[step:].T.contiguous()
    return result.fill_diagonal_(-torch.inf)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right.T; in float32 where the device can do so from float16."""
    if _in_float32(left):
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left @ right.T


def _in_float32(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float16 and matrix.is_cuda and HAS_OUT_DTYPE
