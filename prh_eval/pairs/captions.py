"""The captions of paired data: out of their columns, and the ones that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prh_eval.errors import PrhEvalError
from prh_eval.pairs.dataset import PairedDataset

Captions = tuple[tuple[str, ...], ...]


def caption_columns(column: str | Sequence[str]) -> tuple[str, ...]:
    """The columns that a file's ``caption_column`` names, be it one or several."""
    return (column,) if isinstance(column, str) else tuple(column)


def captions_of(columns: Mapping[str, Sequence[Any]], ids: Sequence[str], name: str) -> Captions:
    """Every caption of each item, column after column.

    Args:
        columns: n strings or lists of strings by column; a missing one (None) is an empty caption.
        ids: The items' names, for messages.
        name: The data's name, for messages.

    Raises:
        PrhEvalError: If something else stands in a column.
    """
    texts: list[list[str]] = [[] for _ in ids]
    for column, values in columns.items():
        for item, value, found in zip(ids, values, texts, strict=True):
            entries = value if isinstance(value, list) else [value]
            if not all(entry is None or isinstance(entry, str) for entry in entries):
                raise PrhEvalError(
                    f"{name}: item {item} has {value!r} in the column {column!r}; "
                    "'caption_column' should name a column of strings or lists of strings"
                )
            found.extend(entry or "" for entry in entries)
    return tuple(map(tuple, texts))


def choose(pairs: PairedDataset, caption: int | Literal["mean"]) -> Captions:
    """The captions of each item that are read, at least one and none of them empty.

    Args:
        pairs: The items.
        caption: Which caption, from 0; or ``"mean"`` for all of them.

    Raises:
        PrhEvalError: If an item has no such caption, or an empty one.
    """
    counts = [len(texts) for texts in pairs.all_captions]
    for item, count in zip(pairs.ids, counts, strict=True):
        if count == 0:
            raise PrhEvalError(f"{pairs.name}: item {item} has no caption")
        if caption != "mean" and caption not in range(count):
            raise PrhEvalError(
                f"{pairs.name}: item {item} has {count} caption{'s' * (count > 1)}, so there is no "
                f"caption {caption} (they count from 0; {_numbers(counts)})"
            )
    chosen = (
        pairs.all_captions
        if caption == "mean"
        else tuple((texts[caption],) for texts in pairs.all_captions)
    )
    empty = [
        item
        for item, texts in zip(pairs.ids, chosen, strict=True)
        if not all(text.strip() for text in texts)
    ]
    if empty:
        raise PrhEvalError(
            f"{pairs.name}: item {empty[0]} has an empty caption ({len(empty)} such items of "
            f"{len(pairs)}); an empty text has no representation"
        )
    return chosen


def _numbers(counts: Sequence[int]) -> str:
    fewest, most = min(counts), max(counts)
    return f"each item has {most}" if fewest == most else f"the items have {fewest} to {most} each"
