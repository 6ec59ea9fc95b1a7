"""The columns of the page's table: what each reads from a row, and how it sorts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prh_eval.leaderboard.board import Board, BoardColumn, Row
from prh_eval.leaderboard.pages.formats import MISSING, amount, score


class Shown(NamedTuple):
    """What a row shows in one field."""

    value: float | str | None
    text: str
    error: float | None = None
    tier: int | None = None


@dataclass(frozen=True)
class Field:
    """A column of the table."""

    label: str
    detail: str
    kind: Literal["text", "number", "date"]
    read: Callable[[Row], Shown]
    log: bool = False
    axis: bool = False  # whether the plot offers it
    rising: bool = True  # whether the first click sorts from the lowest up
    column: BoardColumn | None = None  # the scores that it shows

    @property
    def axis_label(self) -> str:
        """What it is called where no column stands below it."""
        alignment = self.column is not None and self.column.kind == "alignment"
        return f"Alignment with {self.label}" if alignment else self.label


def table_fields(board: Board) -> list[Field]:
    """The table's columns; of those that no row needs only the ones that readers expect."""
    always = [
        Field("Model", "", "text", lambda row: Shown(row.name, row.name)),
        Field("Family", "", "text", lambda row: _plain(row.family)),
        _amounts("Parameters", lambda row: row.parameters),
    ]
    optional = [
        _amounts("Training tokens", lambda row: row.training_tokens),
        Field(
            "Released", "", "date", lambda row: _plain(row.release_date), axis=True, rising=False
        ),
        Field("Kind", "", "text", lambda row: _plain(row.kind)),
        Field("Precision", "", "text", lambda row: _plain(row.dtype)),
        Field("Licence", "", "text", lambda row: _plain(row.licence)),
    ]
    alignment = board.of_kind("alignment")
    calibrated = [_calibrated(column) for column in alignment]
    layers = [_layer(column) for column in alignment[:1]]
    scores = [_scores(column) for column in board.columns]
    rows = board.rows + board.controls

    def used(field: Field) -> bool:
        return any(field.read(row).value is not None for row in rows)

    return [*always, *scores, *filter(used, [*calibrated, *layers, *optional])]


def _plain(text: str | None) -> Shown:
    return Shown(text, MISSING if text is None else text)


def _amounts(label: str, value: Callable[[Row], float | None]) -> Field:
    def read(row: Row) -> Shown:
        return Shown(value(row), amount(value(row)))

    return Field(label, "", "number", read, log=True, axis=True, rising=False)


def _scores(column: BoardColumn) -> Field:
    def read(row: Row) -> Shown:
        cell = row.cells.get(column.key)
        if cell is None:
            return Shown(None, MISSING)
        return Shown(cell.value, score(cell.value, cell.stderr), cell.stderr, cell.tier)

    return Field(
        column.label,
        _protocol(column),
        "number",
        read,
        axis=True,
        rising=not column.higher_is_better,
        column=column,
    )


def _calibrated(column: BoardColumn) -> Field:
    def read(row: Row) -> Shown:
        cell = row.cells.get(column.key)
        value = None if cell is None else cell.calibrated
        return Shown(value, score(value))

    detail = "corrected for chance"
    return Field(f"{column.label}, calibrated", detail, "number", read, rising=False)


def _layer(column: BoardColumn) -> Field:
    def read(row: Row) -> Shown:
        cell = row.cells.get(column.key)
        if cell is None or cell.layer is None:
            return Shown(None, MISSING)
        of = f" of {len(cell.profile) - 1}" if cell.profile else ""
        return Shown(cell.layer, f"{cell.layer}{of}")

    return Field("Layer", f"best of {column.label}", "number", read)


def _protocol(column: BoardColumn) -> str:
    """How a column was measured, in short."""
    facts = column.alignment
    parts = [
        "alignment" if facts else "",
        column.metric if column.filter == "none" else f"{column.metric}, {column.filter}",
        *([f"k = {facts.k}", f"n = {facts.n:,}"] if facts else []),
        f"{column.n_shot}-shot" if column.kind == "task" and column.n_shot is not None else "",
        f"v{column.version}" if column.version else "",
        "" if column.higher_is_better else "lower is better",
    ]
    return " · ".join(part for part in parts if part)
