"""What a score becomes in random halves of the items, and without each item: what errors are of."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from prh_eval.alignment.bits import WORD, bit_counts
from prh_eval.alignment.graph import NeighborGraph

# The same items give the same numbers everywhere.
_SEED = 0
_BITS = 1 << torch.arange(WORD)


def halves_reach(k: int) -> int:
    """How many neighbours of all items nearly always hold the k + 1 nearest of either half.

    Of w neighbours about w / 2 are in an item's own half, with a standard deviation of
    sqrt(w) / 2. For every k about one item in 10,000 has too few of them.
    """
    return math.ceil(2 * (k + 1) + 4 * math.sqrt(2 * (k + 1)) + 4)


def half_words(n: int, words: int) -> Tensor:
    """Random splits of the items into halves, as bits.

    Args:
        n: Number of items.
        words: How many words of 64 splits.

    Returns:
        int64, shape (words, n): bit s of word w is set for the n // 2 items that are in the first
        half of split 64 w + s.
    """
    generator = torch.Generator().manual_seed(_SEED)
    result = torch.zeros(words, n, dtype=torch.int64)
    for word in result:
        for split in range(WORD):
            word[torch.randperm(n, generator=generator)[: n // 2]] |= _BITS[split]
    return result


class Layers(NamedTuple):
    """One layer of two models, and where the neighbours of the one are among those of the other.

    Attributes:
        x: Neighbours of the one.
        y: Neighbours of the other.
        place: int64, shape (n, width of x): the place in y's row of x's neighbour, 0 where it has
            none.
        found: bool, of the same shape: whether it has one.
    """

    x: Neighbors
    y: Neighbors
    place: Tensor
    found: Tensor


class Neighbors(NamedTuple):
    """The neighbours of n items in one layer, and in which places of a row each one's ties are.

    Attributes:
        indices: int64, shape (n, width), 0 in the padding.
        present: bool, False in the padding.
        first: int64, the place of the first of those that tie with it.
        last: int64, the place of the last.
        tied: bool, shape (n,): whether a row has ties.
    """

    indices: Tensor
    present: Tensor
    first: Tensor
    last: Tensor
    tied: Tensor


def layers(x: NeighborGraph, y: NeighborGraph, reach: int) -> Layers:
    """Two graphs of one layer each, on the CPU, as far as ``reach`` neighbours."""
    near_x, near_y = _neighbors(x, reach), _neighbors(y, reach)
    # The padding of y is sorted behind all items, and that of x is not found there.
    names = torch.where(near_y.present, near_y.indices, y.n)
    ordered, order = names.sort(dim=1)
    wanted = torch.where(near_x.present, near_x.indices, -1)
    place = torch.searchsorted(ordered, wanted).clamp(max=ordered.shape[1] - 1)
    found = ordered.gather(1, place) == wanted
    return Layers(near_x, near_y, torch.where(found, order.gather(1, place), 0), found)


def _neighbors(graph: NeighborGraph, reach: int) -> Neighbors:
    graph = graph.trimmed(min(reach, graph.k))
    indices, tied = graph.indices[0].cpu().long(), graph.tied[0].cpu()
    places = torch.arange(graph.width).expand_as(indices)
    first = torch.where(tied, 0, places).cummax(dim=1).values
    # A row's groups end where the next one begins; those of the padding are of no use.
    ends = torch.cat([~tied[:, 1:], torch.ones_like(tied[:, :1])], dim=1)
    last = torch.where(ends, places, graph.width).flip(1).cummin(dim=1).values.flip(1)
    return Neighbors(indices.clamp(min=0), indices >= 0, first, last, tied.any(dim=1))


def half_scores(pair: Layers, k: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """Mutual k-nearest-neighbour alignment in each half of random splits of the items.

    Every item's neighbours are those in its own half. Splits are bits of words, so that each
    operation is on 64 of them at a time; items with ties, whose weights are fractions, are added a
    split at a time.

    Args:
        pair: As far as :func:`halves_reach`.
        k: Neighbourhood size.
        words: What :func:`half_words` returns.

    Returns:
        float64, shape (splits,), for the first halves and for the second.
    """
    n = words.shape[1]
    tied = pair.x.tied | pair.y.tied
    rest = _rows(pair, tied.nonzero()[:, 0])
    item = torch.arange(n)
    totals = []
    for word in words:
        theirs = _nearest_in_half(pair.y, k, word)
        both = _nearest_in_half(pair.x, k, word) & theirs.flatten()[pair.place.T * n + item]
        both = torch.where(pair.found.T & ~tied, both, 0)
        first = bit_counts((both & word).reshape(-1, 1))[:, 0]
        total = torch.stack([first, bit_counts(both.reshape(-1, 1))[:, 0] - first], dim=1).double()
        if tied.any():
            for split in range(WORD):
                half = (word >> split & 1).bool()
                x, y = (_weights(side, half, half[tied], k)[0] for side in (rest.x, rest.y))
                overlaps = (x * _there(rest, y)).sum(dim=1)
                total[split, 0] += overlaps[half[tied]].sum()
                total[split, 1] += overlaps[~half[tied]].sum()
        totals.append(total)
    first, second = torch.cat(totals).T
    return first / (n // 2 * k), second / ((n - n // 2) * k)


def scores_without(pair: Layers, k: int, half: Tensor | None = None) -> Tensor:
    """What the score would be without each item, in turn.

    Those that have the item as a neighbour lose it and get the next one. With a and b the weights
    on the two sides, and u and v what k + 1 in place of k would add to them (1 for the next
    neighbour), the overlap of item j changes by

        a_ji sum_m u_jm b_jm + b_ji sum_m v_jm a_jm + a_ji b_ji (sum_m u_jm v_jm - 1),

    which is exact but where the item is itself among those that tie for the k-th place.

    Args:
        pair: As far as k + 1 neighbours, or :func:`halves_reach` where there is a half.
        k: Neighbourhood size.
        half: bool, shape (n,): which items are in the one half. Neighbours are then those in an
            item's own half, and scores those of the item's own half. None for all as one.

    Returns:
        float64, shape (n,).
    """
    n = len(pair.x.indices)
    half = torch.ones(n, dtype=torch.bool) if half is None else half
    (a, u), (b, v) = (_weights(side, half, half, k) for side in (pair.x, pair.y))
    b_there, v_there = _there(pair, b), _there(pair, v)
    both = a * b_there
    gained_x = (u * b_there).sum(dim=1, keepdim=True)
    gained_y = (a * v_there).sum(dim=1, keepdim=True)
    gained_both = (u * v_there).sum(dim=1, keepdim=True)
    overlaps = both.sum(dim=1)
    change = -overlaps
    lost = a * gained_x + both * (gained_both - 1)
    change.index_add_(0, pair.x.indices.flatten(), lost.flatten())
    change.index_add_(0, pair.y.indices.flatten(), (b * gained_y).flatten())
    totals = torch.where(half, overlaps[half].sum(), overlaps[~half].sum())
    sizes = torch.where(half, half.sum(), (~half).sum())
    return (totals + change) / ((sizes - 1) * k)


def _nearest_in_half(near: Neighbors, k: int, word: Tensor) -> Tensor:
    """Bits (width, n): whether a neighbour is among the k nearest in the item's half; no ties."""
    same = torch.where(near.present, ~(word[near.indices] ^ word[:, None]), 0).T.contiguous()
    # A counter for each item and split, whose digits are bits of words.
    digits = [torch.zeros_like(word) for _ in range(k.bit_length())]
    full = torch.zeros_like(word)
    for column in same:
        column &= ~full
        carry = column
        full = torch.full_like(word, -1)
        for place in range(len(digits)):
            carry, digits[place] = carry & digits[place], carry ^ digits[place]
            full &= digits[place] if k >> place & 1 else ~digits[place]
    return same


def _weights(near: Neighbors, half: Tensor, mine: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How much neighbours belong to the k nearest in the item's half, and what k + 1 adds to it.

    ``half`` tells of all items which half they are in, and ``mine`` of those with neighbours here.
    """
    same = ((half[near.indices] == mine[:, None]) & near.present).double()
    counts = same.cumsum(dim=1)
    before = counts.gather(1, near.first) - same.gather(1, near.first)
    tied = (counts.gather(1, near.last) - before).clamp(min=1)
    nearest, following = (same * ((to - before) / tied).clamp(0, 1) for to in (k, k + 1))
    return nearest, following - nearest


def _there(pair: Layers, weights: Tensor) -> Tensor:
    """What is of the neighbours in y, at the places where the same are neighbours in x, or 0."""
    return torch.where(pair.found, weights.gather(1, pair.place), 0.0)


def _rows(pair: Layers, rows: Tensor) -> Layers:
    """Some of the items."""
    x, y = (Neighbors(*(part[rows] for part in side)) for side in (pair.x, pair.y))
    return Layers(x, y, pair.place[rows], pair.found[rows])
