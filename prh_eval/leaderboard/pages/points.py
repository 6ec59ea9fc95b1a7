"""What the panels of a scatter plot show, as numbers: points, their errors, levels, statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from prh_eval.leaderboard import correlation
from prh_eval.leaderboard.associations import common, covariates, release_day
from prh_eval.leaderboard.board import (
    Association,
    Board,
    BoardColumn,
    Coefficient,
    CoefficientInterval,
    Row,
)
from prh_eval.leaderboard.pages.formats import (
    coefficient,
    counted,
    interval,
    models_of,
    p_stated,
    p_value,
)
from prh_eval.leaderboard.pages.wording import axis_label, shortened

Scale = Literal["linear", "log", "date"]

_RESIDUAL = "rank, what log parameters leave of it"


@dataclass(frozen=True)
class Point:
    """One model, or control.

    Attributes:
        row: Its row.
        x: A score, residual rank, number of parameters, or days since 1970-01-01.
        y: A score, or residual rank.
        x_error: Standard error of x; None where there is none.
        y_error: That of y.
    """

    row: Row
    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        name: What is along it.
        detail: How it was measured; may be empty.
        scale: How values are laid out.
        levels: Values that mean something, by name, such as the chance level.
    """

    name: str
    detail: str = ""
    scale: Scale = "linear"
    levels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """A scatter plot.

    Attributes:
        statistics: The correlation with its interval and its test, a line or two.
        short: The correlation with its interval.
        x: The horizontal axis.
        y: The vertical axis.
        points: Models.
        controls: Controls that have both values.
    """

    statistics: tuple[str, ...]
    short: str
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    controls: tuple[Point, ...] = ()


def association(board: Board, one: str, other: str) -> Association:
    """The statistics of two columns, in either order."""
    return next(each for each in board.associations if {each.x, each.y} == {one, other})


def scores(board: Board, x: str, y: str) -> Panel:
    """One column against another, as in Figure 4 of Huh et al. 2024.

    Args:
        board: The board.
        x: Key of the column along the horizontal axis.
        y: Key of that along the vertical axis.
    """
    found = association(board, x, y)
    models = models_of(found.models, found.families)
    if found.p is None:
        test = _reason(found.p_note)
    else:
        test = f"{p_stated(found.p)} by sign flips of families"
        test += "" if found.p_holm is None else f" ({p_value(found.p_holm)} after Holm)"
    declared = "primary hypothesis" if found.primary else "exploratory"
    return Panel(
        statistics=(
            _sentence(found.spearman, found.over_families),
            f"{models}; {test}; {declared}",
        ),
        short=_short(found.spearman, found.over_families, found.models),
        x=_axis(board.column(x)),
        y=_axis(board.column(y)),
        points=_pairs(common(x, y, board.rows), x, y),
        controls=_pairs(common(x, y, board.controls), x, y),
    )


def given_parameters(board: Board, x: str, y: str) -> Panel | None:
    """What is left of the ranks of two columns given log parameters; None where nothing is.

    Args:
        board: The board.
        x: Key of the column along the horizontal axis.
        y: Key of that along the vertical axis.
    """
    rows = [row for row in common(x, y, board.rows) if row.parameters]
    if not rows:
        return None
    a, b = ([row.cells[key].value for row in rows] for key in (x, y))
    left = correlation.residual_ranks(a, b, covariates(rows, compute=False))
    if left.note:
        return None
    found = association(board, x, y)
    value, plainly = found.given_parameters.value, found.spearman.value
    if value is None:
        return None
    beside = "" if plainly is None else f" (plain Spearman {coefficient(plainly)})"
    return Panel(
        statistics=(
            f"Partial Spearman given log parameters {coefficient(value)}{beside}; "
            f"{counted(len(rows), 'model')}",
        ),
        short=_short(found.given_parameters, None, len(rows)),
        x=Axis(axis_label(board.column(x))[0], _RESIDUAL),
        y=Axis(axis_label(board.column(y))[0], _RESIDUAL),
        points=tuple(
            Point(row, float(u), float(v)) for row, u, v in zip(rows, left.x, left.y, strict=True)
        ),
    )


def parameters(board: Board, y: str) -> Panel:
    """A column against the number of parameters."""
    axis = Axis("Parameters", scale="log")
    return _against(board, y, axis, "parameters", lambda row: row.parameters)


def release(board: Board, y: str) -> Panel:
    """A column against the release date."""
    return _against(board, y, Axis("Release date", scale="date"), "release date", release_day)


def _against(
    board: Board, y: str, axis: Axis, of: str, value: Callable[[Row], float | None]
) -> Panel:
    points, controls = (
        tuple(
            Point(row, x, row.cells[y].value, None, row.cells[y].stderr)
            for row in common(y, y, rows)
            if (x := value(row)) is not None
        )
        for rows in (board.rows, board.controls)
    )
    trend = next(each for each in board.trends if (each.of, each.column) == (of, y))
    found = _sentence(trend.spearman, trend.over_families)
    return Panel(
        statistics=(f"{found}; {counted(trend.models, 'model')}",),
        short=_short(trend.spearman, trend.over_families, trend.models),
        x=axis,
        y=_axis(board.column(y)),
        points=points,
        controls=controls,
    )


def _pairs(rows: Sequence[Row], x: str, y: str) -> tuple[Point, ...]:
    cells = ((row, row.cells[x], row.cells[y]) for row in rows)
    return tuple(Point(row, a.value, b.value, a.stderr, b.stderr) for row, a, b in cells)


def _axis(column: BoardColumn) -> Axis:
    return Axis(*axis_label(column), levels=_levels(column))


def _levels(column: BoardColumn) -> tuple[tuple[str, float], ...]:
    levels = []
    if column.chance is not None:
        levels.append(("chance", column.chance))
    if column.alignment and column.alignment.shared_words is not None:
        levels.append(("shared words", column.alignment.shared_words))
    return tuple(levels)


def _sentence(spearman: Coefficient, found: CoefficientInterval) -> str:
    if spearman.value is None:
        return f"No Spearman correlation ({_reason(spearman.note)})"
    text = f"Spearman {coefficient(spearman.value)}"
    if found.low is None:
        return f"{text}, no interval ({_reason(found.note)})"
    text += f", 95 % interval over families {interval(found.low, found.high)}"
    return f"{text} ({found.note})" if found.note else text


def _short(spearman: Coefficient, found: CoefficientInterval | None, models: int) -> str:
    if spearman.value is None:
        return f"no correlation, {counted(models, 'model')}"
    value = f"ρ = {coefficient(spearman.value)}"
    if found and found.low is not None:
        value += f" ({interval(found.low, found.high)})"
    return f"{value}, {counted(models, 'model')}"


def _reason(note: str | None) -> str:
    """A note without the models that it names."""
    return shortened((note or "not testable").partition(" (")[0], 80)
