"""The nearest neighbours by candidates: a product in low precision, then exact similarities."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from prh_eval.alignment.candidates import Candidates
from prh_eval.alignment.filters import (
    bounds,
    columns,
    copied,
    single_bounds,
    turn,
)
from prh_eval.alignment.frames import OFF_UNIT, Frame, Single
from prh_eval.alignment.precision import single_dtype
from prh_eval.alignment.products import Products
from prh_eval.alignment.ranking import TIE_TOLERANCE, Found, stacked
from prh_eval.alignment.rescoring import rescored
from prh_eval.alignment.sharing import Sharing
from prh_eval.alignment.tiles import SearchPlan, is_memory, smaller

# Ties that the candidates leave room for; an item with more is searched for exactly.
_TIES = 8
# The share of the items without proof beyond which a product of higher precision pays.
_UNPROVEN_SHARE = 8


class Strayed(Exception):
    """Rows that only some had been seen of are not as they should be; in all processes at once."""


def searched(
    layer: Frame, plan: SearchPlan, items: slice, sharing: Sharing
) -> tuple[Found, Tensor]:
    """The nearest neighbours of some items, for as many of them as can be proven.

    Args:
        layer: n items, k nearest wanted; several layers only in one tile, by one process.
        plan: Sizes and types.
        items: This process's items.
        sharing: The processes; all call this at the same time.

    Returns:
        The neighbours of the items, and the numbers of those without proof, int64, rising.

    Raises:
        Strayed: If the frame must be made with care.
    """
    found, unproven = _filtered(layer, plan, items, sharing)
    count = sharing.all_gather(torch.tensor([len(unproven)], device=unproven.device)).sum()
    better = replace(plan, dtype=single_dtype())
    if (
        int(count) * _UNPROVEN_SHARE > len(layer.rows)
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
    # Not so where it is not a number.
    if layer.glimpsed and not largest[-1] < OFF_UNIT:
        raise Strayed
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
    products, turned = Products(matrix), partial(turn, dim=layer.rows.dim)
    sides = list(layer.rows.blocks(plan.side, 0, len(matrix)))
    candidates = [
        Candidates(
            plan.k,
            plan.keep,
            error[side],
            margin,
            products.dtype,
            plan.near,
            at_once=len(sides) == sharing.world_size == 1,
        )
        for side in sides
    ]
    failure = None
    for owner, others in sharing.passed_round(matrix):
        if failure is not None:
            continue
        start, own = sharing.rows(plan.n, owner).start, owner == sharing.rank
        try:
            for number, left in enumerate(sides):
                rows = matrix[left]
                if own:
                    values = products.within(rows, min(plan.n, len(rows)), turned)
                    candidates[number].add(values, start + left.start)
                    # On a GPU two products would be held else.
                    del values
                    rest = sides[number + 1 :]
                else:
                    rest = [*layer.rows.blocks(plan.side, 0, len(others))]
                rows = turned(rows) if rest else rows
                for other, right in enumerate(rest, number + 1):
                    values = products.between(rows, others[right])
                    candidates[number].add(values, start + right.start)
                    if own:
                        candidates[other].add(values, start + left.start, items_first=False)
                    del values
        except (RuntimeError, MemoryError) as error_:
            # Others wait for what this process passes on; kept, its traceback would keep the tile.
            failure = error_.with_traceback(None)
    return candidates, failure


def _copy(layer: Frame, plan: SearchPlan, items: slice) -> tuple[Tensor, Tensor, Single | None]:
    """Some items in low precision: their matrix and statistics; and all in float32, if held."""
    shape = items.stop - items.start, columns(plan.dim, plan.dtype)
    matrix = torch.empty(shape, dtype=plan.dtype, device=layer.mean.device)
    single = Single.empty(layer) if plan.held else None
    return matrix, copied(layer, items, plan.block, matrix, single), single
