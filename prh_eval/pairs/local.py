"""Paired data in files that a person has: a folder of images, or a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prh_eval.errors import PrhEvalError
from prh_eval.hub import missing_folder
from prh_eval.pairs.captions import caption_columns, captions_of
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.images import Images
from prh_eval.schema import ImageFolderPairs, TablePairs
from prh_eval.tables import read_table

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMN = "file_name"


def read_image_folder(spec: ImageFolderPairs) -> PairedDataset:
    """Read the captions of a folder of images, in the layout of datasets' imagefolder.

    The images may be missing until they are asked for. Items are named by their rows, from 0.

    Raises:
        PrhEvalError: If the folder or its metadata file is not there or cannot be read, or a
            column is missing or holds something else.
    """
    folder = _absolute(spec.path)
    name = f"the folder {spec.path!r}"
    if not folder.is_dir():
        raise missing_folder("the image folder", spec.path)
    metadata = _metadata(folder, name)
    return _read(spec, metadata, f"{name} ({metadata.name})", FILE_COLUMN, FILE_COLUMN, None)


def read_pairs_table(spec: TablePairs) -> PairedDataset:
    """Read the captions of a table; images may be missing until they are asked for.

    Raises:
        PrhEvalError: If the table is not there or cannot be read, or a column is missing or holds
            something else.
    """
    name = f"the table {spec.path!r}"
    return _read(
        spec, _absolute(spec.path), name, spec.image_column, "image_column", spec.id_column
    )


def _read(
    spec: ImageFolderPairs | TablePairs,
    file: Path,
    name: str,
    image_column: str | None,
    image_key: str,
    id_column: str | None,
) -> PairedDataset:
    """Read a table; its paths are relative to the folder that it is in."""
    texts = caption_columns(spec.caption_column)
    wanted = dict.fromkeys(texts, "caption_column")
    if image_column is not None:
        wanted[image_column] = image_key
    if id_column is not None:
        wanted[id_column] = "id_column"
    table = read_table(file, wanted, name)
    rows = range(len(table.columns[texts[0]]))
    ids = tuple(map(str, rows))
    if id_column is not None:
        ids = _names(table.columns[id_column], id_column, name)
    images = None
    if image_column is not None:
        files = _files(table.columns[image_column], file.parent, ids, image_column, name)
        images = Images.in_files(files, ids, name)
    captions = captions_of({text: table.columns[text] for text in texts}, ids, name)
    return PairedDataset(
        name=name,
        ids=ids,
        captions=captions,
        all_captions=captions,
        source={**spec.model_dump(mode="json"), "file": file.name, "sha256": table.sha256},
        images=images,
    )


def _metadata(folder: Path, name: str) -> Path:
    found = [folder / each for each in METADATA if (folder / each).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(each.name for each in found)
        raise PrhEvalError(f"{name} has {names}; there should be one of them, or it is not clear")
    below = sorted(each.parent for file in METADATA for each in folder.glob(f"*/{file}"))
    hint = f"; {below[0]} has one: is 'path' meant to be that folder?" if below else ""
    raise PrhEvalError(
        f"{name} has no {', '.join(METADATA[:-1])} or {METADATA[-1]}, which should name each image "
        f"in the column {FILE_COLUMN!r}{hint}"
    )


def _names(values: Sequence[Any], column: str, name: str) -> tuple[str, ...]:
    """The items' names: text, or whole numbers."""
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
            raise PrhEvalError(
                f"{name}: row {row} (they count from 0) has {value!r} in the column {column!r}; "
                "'id_column' should name a column with a text or whole number for every item"
            )
    return tuple(map(str, values))


def _files(
    values: Sequence[Any], folder: Path, ids: Sequence[str], column: str, name: str
) -> list[str | None]:
    """The image files' absolute paths; None where a row has none."""
    for item, value in zip(ids, values, strict=True):
        if not (value is None or isinstance(value, str)):
            raise PrhEvalError(
                f"{name}: item {item} has a value of the type {type(value).__name__} in the column "
                f"{column!r}, which should hold paths of image files"
            )
    return [str(folder / value) if value else None for value in values]


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
