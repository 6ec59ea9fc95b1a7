"""Load paired data from where a reference's YAML says it is."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from prh_eval.errors import PrhEvalError
from prh_eval.pairs.captions import choose
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.hub import read_hub
from prh_eval.pairs.local import read_image_folder, read_pairs_table
from prh_eval.schema import EmbeddedPairs, HubPairs, ImageFolderPairs, PairsSpec

_DATA = Path(__file__).parents[1] / "data"


def load_pairs(spec: PairsSpec, caption: int | Literal["mean"] = 0) -> PairedDataset:
    """Load paired data; images stay undecoded, and files of images may be missing.

    Args:
        spec: Where it comes from.
        caption: Which caption to take where an item has several, from 0; or ``"mean"``: all of
            them are read, and an item's features are the mean over its captions'.

    Returns:
        The items.

    Raises:
        PrhEvalError: If the data cannot be reached, lacks a column, has no items, names or lists an
            item twice, or an item has no such caption or an empty one.
    """
    pairs = read_pairs(spec)
    if not pairs.ids:
        raise PrhEvalError(f"{pairs.name} has no items")
    for first, second, *_ in repeated(pairs.ids):
        raise PrhEvalError(
            f"{pairs.name}: rows {first} and {second} (they count from 0) have the same id "
            f"{pairs.ids[first]!r}; 'id_column' should name a column of ids that differ"
        )
    for first, second, *_ in listed_twice(pairs):
        raise PrhEvalError(
            f"{pairs.name}: the items {pairs.ids[first]} and {pairs.ids[second]} are the same: the "
            f"image {pairs.images.files[first] if pairs.images else ''} with the same captions"
        )
    return replace(
        pairs, captions=choose(pairs, caption), source={**pairs.source, "caption": caption}
    )


def read_pairs(spec: PairsSpec) -> PairedDataset:
    """Read paired data as it is: all captions, whatever is wrong with them or with the items.

    Raises:
        PrhEvalError: If the data cannot be reached, or a column is missing or holds something else.
    """
    if isinstance(spec, EmbeddedPairs):
        return _read_colors(spec)
    if isinstance(spec, HubPairs):
        return read_hub(spec)
    if isinstance(spec, ImageFolderPairs):
        return read_image_folder(spec)
    return read_pairs_table(spec)


def listed_twice(pairs: PairedDataset) -> list[tuple[int, ...]]:
    """Positions of items with the same image file and the same captions, in groups."""
    if pairs.images is None:
        return []
    return repeated(
        file and (file, texts)
        for file, texts in zip(pairs.images.files, pairs.all_captions, strict=True)
    )


def repeated(values: Iterable[Hashable]) -> list[tuple[int, ...]]:
    """The positions of each value that stands there more than once; None is like nothing."""
    places: dict[Hashable, list[int]] = {}
    for position, value in enumerate(values):
        if value is not None:
            places.setdefault(value, []).append(position)
    return [tuple(found) for found in places.values() if len(found) > 1]


def _read_colors(spec: EmbeddedPairs) -> PairedDataset:
    with (_DATA / f"{spec.name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    captions = tuple((row["name"],) for row in rows)
    return PairedDataset(
        name=spec.name,
        ids=tuple(map(str, range(len(rows)))),
        captions=captions,
        all_captions=captions,
        source=spec.model_dump(mode="json"),
        targets=tuple(row["hex"] for row in rows),
    )
