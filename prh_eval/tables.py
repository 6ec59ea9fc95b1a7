"""Tables that a person has on disk, read so that no text in them changes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from prh_eval.errors import PrhEvalError, suggestion


@dataclass(frozen=True)
class Table:
    """Some columns of a table.

    Attributes:
        columns: Values by column, each as long as the table: text only in a CSV file, whatever
            JSON or Parquet hold elsewhere; None where a value is missing, which in a CSV none is.
        sha256: Of the file, in hexadecimal.
    """

    columns: dict[str, list[Any]]
    sha256: str


class _BadTableError(Exception):
    """What is wrong with a file's content, and in which line where there are lines."""


def read_table(file: Path, wanted: Mapping[str, str], name: str) -> Table:
    """Read columns of a CSV file (with a header, separated by commas), JSONL or Parquet file.

    In a CSV every value is the text that stands there: ``NA``, ``null``, ``1.0`` and nothing at all
    are what they are.

    Args:
        file: The file; its ending tells what it is.
        wanted: The key of a reference's YAML that names it, by column.
        name: What to call it in messages.

    Raises:
        PrhEvalError: If it is not there, cannot be read or lacks a column; with the line.
    """
    reader = _READERS.get(file.suffix.lower())
    if file.is_dir():
        raise PrhEvalError(f"{name} is a folder; 'path' should name a {_TYPES} file")
    if reader is None:
        raise PrhEvalError(f"{name} has the ending {file.suffix!r}; it should be a {_TYPES} file")
    if not file.is_file():
        raise PrhEvalError(_missing(file, name))
    try:
        content = file.read_bytes()
        columns = reader(content, wanted)
    except OSError as error:
        raise PrhEvalError(f"{name} cannot be read: {error.strerror or error}") from error
    except _BadTableError as error:
        raise PrhEvalError(f"{name}, {error}") from error
    if not columns:
        raise PrhEvalError(f"{name} is empty")
    for column, key in wanted.items():
        if column not in columns:
            raise PrhEvalError(
                f"{name} has no column {column!r} ('{key}'); {suggestion(column, columns)}"
            )
    chosen = {column: columns[column] for column in wanted}
    return Table(chosen, hashlib.sha256(content).hexdigest())


_Columns = dict[str, list[Any]]


def _csv(content: bytes, wanted: Iterable[str]) -> _Columns:
    reader = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    rows = []
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise _BadTableError(
                    f"line {reader.line_num}: {len(row)} fields where the header has {len(header)}"
                )
            if row:  # what csv makes of a blank line is empty
                rows.append(row)
    except csv.Error as error:
        raise _BadTableError(f"line {reader.line_num}: this is not CSV: {error}") from error
    _refuse_repeated(header, wanted)
    return {column: [row[place] for row in rows] for place, column in enumerate(header)}


def _jsonl(content: bytes, wanted: Iterable[str]) -> _Columns:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise _BadTableError(f"line {number}: this is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _BadTableError(
                f'line {number}: {line.strip()[:40]} is no object, as {{"text": "a caption"}}'
            )
        rows.append(row)
    names = dict.fromkeys(column for row in rows for column in row)
    return {column: [row.get(column) for row in rows] for column in names}


def _parquet(content: bytes, wanted: Iterable[str]) -> _Columns:
    try:
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        _refuse_repeated(names, wanted)
        table = file.read([column for column in wanted if column in names])
        read = {column: table.column(column).to_pylist() for column in table.column_names}
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise _BadTableError(f"which cannot be read as Parquet: {reason}") from error
    # The others' names are for a message on a column that is not there.
    return {column: read.get(column, []) for column in names}


_READERS: dict[str, Callable[[bytes, Iterable[str]], _Columns]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
_TYPES = ".csv, .jsonl or .parquet"


def _text(content: bytes) -> str:
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _BadTableError(f"line {line}: this is not UTF-8: {error.reason}") from error


def _refuse_repeated(names: list[str], wanted: Iterable[str]) -> None:
    for column in wanted:
        if names.count(column) > 1:
            raise _BadTableError(f"which has {names.count(column)} columns {column!r}")


def _missing(file: Path, name: str) -> str:
    if not file.parent.is_dir():
        return f"{name} is not there: there is no folder {str(file.parent)!r}"
    beside = [each.name for each in file.parent.iterdir() if each.suffix.lower() in _READERS]
    near = f"; {suggestion(file.name, beside)}" if beside else f"; {file.parent} has no {_TYPES}"
    return f"{name} is not there{near}"
