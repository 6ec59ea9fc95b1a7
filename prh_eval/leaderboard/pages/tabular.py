"""A board as data: CSV for spreadsheets, JSON for programs, and the JSON's schema."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from prh_eval.leaderboard.board import SCHEMA_FILE, Board, BoardColumn, Cell, Row
from prh_eval.leaderboard.pages.escaping import spreadsheet

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_OF_ROW = [name for name in Row.model_fields if name not in ("cells", "reproduce")]
_OF_SCORE = ("value", "stderr", "tier", "date", "file")
_OF_ALIGNMENT = tuple(
    name for name in Cell.model_fields if name not in _OF_SCORE and name != "profile"
)


def baselines(board: Board) -> dict[str, dict[str, float]]:
    """Scores that no model made, by column: the captions' words alone, and chance.

    What no column knows is not there.
    """
    words = {
        column.key: column.alignment.shared_words
        for column in board.columns
        if column.alignment and column.alignment.shared_words is not None
    }
    chance = {column.key: column.chance for column in board.columns if column.chance is not None}
    found = {"shared words": words, "chance": chance}
    return {name: values for name, values in found.items() if values}


def to_csv(board: Board) -> str:
    """One line a model, control and baseline; what is not known is an empty cell.

    The first column, ``row``, is ``model``, ``control`` or ``baseline``. A column of scores has its
    key as heading, and what belongs to it has the key and a colon before (``prh_align:stderr``).
    Text is on one line, with an apostrophe before what a spreadsheet would compute.
    """
    facts = [(column.key, name) for column in board.columns for name in _facts(column)]
    header = ["row", *_OF_ROW, *(_heading(key, name) for key, name in facts)]
    lines: list[list[Any]] = [header]
    for kind, rows in (("model", board.rows), ("control", board.controls)):
        for row in rows:
            of_row = [getattr(row, name) for name in _OF_ROW]
            lines.append([kind, *of_row, *(_fact(row, key, name) for key, name in facts)])
    for label, values in baselines(board).items():
        of_row = [label if name == "name" else None for name in _OF_ROW]
        scores = [values.get(key) if name == "value" else None for key, name in facts]
        lines.append(["baseline", *of_row, *scores])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_harmless(cell) for cell in line] for line in lines)
    return text.getvalue()


def to_json(board: Board) -> str:
    """The whole board, as its schema describes it.

    Raises:
        ValueError: If a number is NaN or infinite, which a board holds as None.
    """
    content = {"$schema": SCHEMA_FILE, **board.model_dump()}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # Half characters, which UTF-8 cannot hold, as JSON writes them: \ud800.
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def read_json(text: str) -> Board:
    """The board that `to_json` wrote.

    Raises:
        ValueError: If it is no JSON, or no board (pydantic's ValidationError).
    """
    content = json.loads(text)
    content.pop("$schema", None)
    return Board.model_validate(content)


def json_schema() -> str:
    """The JSON Schema (2020-12) of ``leaderboard.json``."""
    schema = Board.model_json_schema(mode="serialization")
    schema["properties"] = {"$schema": {"const": SCHEMA_FILE}, **schema["properties"]}
    head = {
        "$schema": _DIALECT,
        "title": "Leaderboard of prh_eval",
        "description": "Alignment of language models with references, what they score on tasks, "
        "and how the two go together. Numbers that cannot be had are null.",
    }
    whole = head | {key: value for key, value in schema.items() if key not in head}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _facts(column: BoardColumn) -> tuple[str, ...]:
    return _OF_SCORE + (_OF_ALIGNMENT if column.kind == "alignment" else ())


def _heading(key: str, name: str) -> str:
    return key if name == "value" else f"{key}:{name}"


def _fact(row: Row, key: str, name: str) -> Any:
    cell = row.cells.get(key)
    return getattr(cell, name) if cell else None


def _harmless(cell: Any) -> Any:
    return spreadsheet(cell) if isinstance(cell, str) else cell
