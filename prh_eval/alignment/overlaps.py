"""How many neighbours layers have in common: layers as bits of words, counted many at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prh_eval.alignment.bits import WORD, bit_counts, shortest_word

# Numbering an item's neighbours pays where so many times as many items could be among them.
_SPARSE = 64


def shared_counts(x: Tensor, y: Tensor, n: int, *, each_item: bool = False) -> Tensor:
    """How many neighbours every layer of x has in common with every layer of y.

    A table has a word for each item and each possible neighbour of it, with a bit for every layer
    of one side that has it as a neighbour. The words of the other side's neighbours are looked up
    and their bits counted, so that one look-up answers for up to 64 layer pairs.

    Args:
        x: Integers, shape (items, layers_x, width_x): some items' neighbours in each layer, 0 to
            n - 1, without repeats in a row; -1 where a row has fewer.
        y: The same items' neighbours in the layers of y, (items, layers_y, width_y).
        n: How many items there are to be neighbours, below 2^31.
        each_item: Whether to count for each item, and not for all together.

    Returns:
        int64, shape (layers_x, layers_y), or (items, layers_x, layers_y) with ``each_item``.
    """
    if x.shape[1] < y.shape[1]:
        return shared_counts(y, x, n, each_item=each_item).transpose(-1, -2)
    counts = [bit_counts(found if each_item else found.flatten(0, 1)) for found in _words(x, y, n)]
    result = torch.cat(counts)[: x.shape[1]]
    return result.transpose(0, 1) if each_item else result


def shared_counts_in_halves(x: Tensor, y: Tensor, n: int, items: Tensor, first: Tensor) -> Tensor:
    """The same where only neighbours in an item's own half count, for several splits into halves.

    Args:
        x: As for :func:`shared_counts`.
        y: As for :func:`shared_counts`.
        n: As for :func:`shared_counts`.
        items: int64, shape (items,): which of the n items they are.
        first: bool, shape (splits, n): which items are in the first half.

    Returns:
        int64, shape (splits, 2, layers_x, layers_y): of the items of the first half, and of the
        second.
    """
    if x.shape[1] < y.shape[1]:
        return shared_counts_in_halves(y, x, n, items, first).transpose(-1, -2)
    near = y.transpose(1, 2).clamp(min=0)
    groups = []
    for found in _words(x, y, n):
        splits = []
        for half in first:
            mine = half[items]
            same = half.index_select(0, near.flatten()).view(near.shape) == mine[:, None, None]
            inside = torch.where(same, found, 0)
            # What is no neighbour was never found.
            counts = [bit_counts(inside[rows].flatten(0, 1)) for rows in (mine, ~mine)]
            splits.append(torch.stack(counts))
        groups.append(torch.stack(splits))
    return torch.cat(groups, dim=2)[:, :, : x.shape[1]]


def _words(x: Tensor, y: Tensor, n: int) -> Iterator[Tensor]:
    """For up to 64 layers of x at a time which of them have the neighbours in y.

    The words are of shape (items, width_y, layers_y), and may be overwritten.
    """
    # Number 0 is for what is no neighbour. Layers of y last, so that all else is added up.
    y = y.transpose(1, 2).contiguous()
    numbers_x, numbers_y, columns = (x + 1).long(), (y + 1).long(), n + 1
    if _is_sparse(x.shape[1] * x.shape[2], n):
        numbers_x, numbers_y = _renumbered(numbers_x, numbers_y)
        columns = x.shape[1] * x.shape[2] + 1
    # Short ones are for a CPU's caches.
    for table in layer_tables(numbers_x, columns, short=x.device.type == "cpu"):
        yield table.gather(1, numbers_y.flatten(1)).view(y.shape)


def shared_counts_bytes(x: int, y: int, n: int) -> int:
    """About how many bytes :func:`shared_counts` takes for an item of x and y neighbours.

    Args:
        x: The item's neighbours in all layers of one side together, layers times width.
        y: Those of the other.
        n: How many items there are to be neighbours.
    """
    edges = max(x, y)
    return 8 * (6 * (x + y) + (edges if _is_sparse(edges, n) else n))


def layer_tables(numbers: Tensor, columns: int, *, short: bool = False) -> Iterator[Tensor]:
    """:func:`layer_words` of up to 64 layers at a time.

    Args:
        numbers: As for :func:`layer_words`, integers of any type and of any number of layers; 0 is
            for what is no neighbour, and no layer has it.
        columns: As for :func:`layer_words`.
        short: Whether words may be shorter than 64 bits where layers are few.
    """
    for layers in torch.split(numbers, WORD, dim=1):
        dtype = shortest_word(layers.shape[1]) if short else torch.int64
        table = layer_words(layers.long(), columns, dtype)
        table[:, 0] = 0
        yield table


def layer_words(neighbors: Tensor, columns: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Which layers have which neighbour, as a bit for each layer.

    Args:
        neighbors: int64, shape (items, layers, width): numbers 0 to ``columns`` - 1.
        columns: How many numbers there are.
        dtype: Type of the words, with a bit for each layer.

    Returns:
        Words, shape (items, columns): bit l of word j of item i is set where layer l of item i has
        j. The word of a number that one row has several times means nothing.
    """
    items, layers, width = neighbors.shape
    words = neighbors.new_zeros(items, columns, dtype=dtype)
    bits = (1 << torch.arange(layers, device=neighbors.device)).to(dtype)
    bits = bits.repeat_interleave(width).expand(items, -1)
    # The sum of different powers of two is their union.
    return words.scatter_add_(1, neighbors.flatten(1), bits)


def _is_sparse(edges: int, n: int) -> bool:
    """Whether a table with a column for each of n items would be mostly empty."""
    return _SPARSE * edges < n


def _renumbered(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Number each item's neighbours in any layer of x from 1.

    0 stays 0, and is what becomes of neighbours in y that no layer of x has.
    """
    ranked, order = x.flatten(1).sort(dim=1)
    new = torch.ones_like(ranked)
    new[:, 0] = ranked[:, 0] > 0
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    number = new.cumsum(dim=1)
    wanted = y.flatten(1)
    place = torch.searchsorted(ranked, wanted.contiguous()).clamp(max=ranked.shape[1] - 1)
    numbers_y = torch.where(ranked.gather(1, place) == wanted, number.gather(1, place), 0)
    numbers_x = torch.empty_like(number).scatter_(1, order, number)
    return numbers_x.view(x.shape), numbers_y.view(y.shape)
