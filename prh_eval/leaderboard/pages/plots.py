"""Which figures a board has, with their file names, titles and alternative texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

from prh_eval.leaderboard.board import Association, Board, Row
from prh_eval.leaderboard.pages import points
from prh_eval.leaderboard.pages.formats import amount, coefficient, counted, models_of
from prh_eval.leaderboard.pages.wording import heading, plain

Kind = Literal[
    "scores", "given parameters", "parameters", "release date", "bits per byte", "layers",
    "correlations",
]  # fmt: skip

MOST_PANELS = 9
"""Of small multiples; what there is beyond is in the figure of all correlations."""


@dataclass(frozen=True)
class Figure:
    """A figure of a board.

    Attributes:
        name: Stem of its files: lower-case letters, digits and hyphens; unique.
        title: A heading, one line; names in it are as they were written.
        alt: What is seen, with the numbers, as plain text: names in it are stripped of what any
            format would take for its own.
        kind: What it shows.
        references: Keys of its alignment columns.
        others: Keys of the columns that these are set against.
    """

    name: str
    title: str
    alt: str
    kind: Kind
    references: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of all columns that it is of."""
        return self.references + self.others


def figures(board: Board) -> tuple[Figure, ...]:
    """The figures of a board, in the order of a page.

    The primary reference (the first alignment column) has a figure with each task, and those given
    size, against size, release date, bits per byte, and over layers. Of the other references there
    is one figure of small panels with the primary task (the first where none was declared), for at
    most nine; and every reference and task is in the figure of all correlations, the last. A figure
    that would show nothing is not there.

    Args:
        board: The board.
    """
    alignment = [column.key for column in board.of_kind("alignment")]
    if not alignment:
        return ()
    first = alignment[0]
    tasks = [column.key for column in board.of_kind("task")]
    bits = [column.key for column in board.of_kind("bits per byte")]
    declared = next((each.y for each in board.associations if each.primary), None)
    main_task = declared if declared in tasks else (tasks[0] if tasks else None)
    found: list[Figure | None] = [
        _task(board, first, task, name)
        for task, name in zip(tasks, _names("task", tasks), strict=True)
    ]
    if main_task is not None:
        found.append(_references(board, alignment, main_task))
    found += [
        _given_parameters(board, first, tasks),
        _parameters(board, first),
        _release(board, first),
        _bits(board, first, bits),
        _layers(board, first),
        _correlations(board, alignment, tasks + bits),
    ]
    return tuple(figure for figure in found if figure)


def panels(board: Board, figure: Figure) -> tuple[points.Panel, ...]:
    """The panels of a figure that is a scatter plot, or several; of another none.

    Args:
        board: The board.
        figure: One of its figures.
    """
    references, pairs = figure.references, list(product(figure.references, figure.others))
    if figure.kind == "scores":
        return tuple(points.scores(board, x, y) for x, y in pairs)
    if figure.kind == "given parameters":
        left = (points.given_parameters(board, x, y) for x, y in pairs)
        return tuple(panel for panel in left if panel)
    if figure.kind == "bits per byte":
        return tuple(points.scores(board, other, reference) for reference, other in pairs)
    if figure.kind == "parameters":
        return tuple(points.parameters(board, reference) for reference in references)
    if figure.kind == "release date":
        return tuple(points.release(board, reference) for reference in references)
    return ()


def profiles(board: Board, reference: str) -> tuple[list[Row], list[Row]]:
    """The models, and the controls, whose alignment is known for two language layers or more."""

    def known(row: Row) -> bool:
        cell = row.cells.get(reference)
        return cell is not None and cell.profile is not None and len(cell.profile) > 1

    return [row for row in board.rows if known(row)], [row for row in board.controls if known(row)]


def _task(board: Board, reference: str, task: str, name: str) -> Figure | None:
    found = points.association(board, reference, task)
    if found.models < 2:
        return None
    what, against = heading(board.column(task)), heading(board.column(reference))
    return Figure(
        name=name,
        title=f"{what} against alignment with {against}",
        alt=f"Scatter plot of {plain(what)} against alignment with {plain(against)}: "
        f"{models_of(found.models, found.families)}. {_numbers(found)}{_best(board, reference)}",
        kind="scores",
        references=(reference,),
        others=(task,),
    )


def _references(board: Board, alignment: list[str], task: str) -> Figure | None:
    found = [points.association(board, each, task) for each in alignment]
    shown = [each for each in found if each.models >= 2]
    if len(alignment) < 2 or len(shown) < 2:
        return None
    drawn = shown[:MOST_PANELS]
    what = heading(board.column(task))
    part = f"the first {len(drawn)} of {len(alignment)}" if len(drawn) < len(alignment) else "all"
    each = "; ".join(
        f"{plain(heading(board.column(of.x)))} {_with_interval(of)}, {counted(of.models, 'model')}"
        for of in drawn
    )
    return Figure(
        name="references",
        title=f"{what} against alignment with {part} references",
        alt=f"Scatter plots of {plain(what)} against alignment with {part} references. "
        f"Spearman's correlation: {each}.",
        kind="scores",
        references=tuple(of.x for of in drawn),
        others=(task,),
    )


def _given_parameters(board: Board, reference: str, tasks: list[str]) -> Figure | None:
    shown = [task for task in tasks if points.given_parameters(board, reference, task)]
    if not shown:
        return None
    drawn = tuple(shown[:MOST_PANELS])
    against = heading(board.column(reference))
    each = "; ".join(_partial(board, reference, task) for task in drawn)
    return Figure(
        name="given-parameters",
        title=f"Tasks against alignment with {against}, ranks with size partialled out",
        alt="Scatter plots of what log parameters leave of the ranks of task scores and of the "
        f"ranks of alignment with {plain(against)}. Partial Spearman correlation: {each}.",
        kind="given parameters",
        references=(reference,),
        others=drawn,
    )


def _parameters(board: Board, reference: str) -> Figure | None:
    panel = points.parameters(board, reference)
    if not _spread(panel):
        return None
    least, most = min(p.x for p in panel.points), max(p.x for p in panel.points)
    against = heading(board.column(reference))
    return Figure(
        name="parameters",
        title=f"Alignment with {against} against parameters",
        alt=f"Scatter plot of alignment with {plain(against)} against the number of parameters, "
        f"{amount(least)} to {amount(most)} on a logarithmic axis. {_statistics(panel)}",
        kind="parameters",
        references=(reference,),
    )


def _release(board: Board, reference: str) -> Figure | None:
    panel = points.release(board, reference)
    if not _spread(panel):
        return None
    dates = sorted(point.row.release_date or "" for point in panel.points)
    against = heading(board.column(reference))
    return Figure(
        name="release-date",
        title=f"Alignment with {against} against release date",
        alt=f"Scatter plot of alignment with {plain(against)} against release date, {dates[0]} to "
        f"{dates[-1]}. {_statistics(panel)}",
        kind="release date",
        references=(reference,),
    )


def _bits(board: Board, reference: str, bits: list[str]) -> Figure | None:
    found = [points.association(board, reference, each) for each in bits]
    drawn = [each for each in found if each.models >= 2][:MOST_PANELS]
    if not drawn:
        return None
    against = heading(board.column(reference))
    each = " ".join(f"{models_of(of.models, of.families)}. {_numbers(of)}" for of in drawn)
    return Figure(
        name="bits-per-byte",
        title=f"Alignment with {against} against bits per byte",
        alt=f"Scatter plot of alignment with {plain(against)} against bits per byte, which are "
        f"lower for better language models: {each}",
        kind="bits per byte",
        references=(reference,),
        others=tuple(of.y for of in drawn),
    )


def _layers(board: Board, reference: str) -> Figure | None:
    rows, _ = profiles(board, reference)
    if not rows:
        return None
    depths = sorted(best_layer(row, reference) / (_layer_count(row, reference) - 1) for row in rows)
    least, middle, most = depths[0], depths[len(depths) // 2], depths[-1]
    against = heading(board.column(reference))
    return Figure(
        name="layers",
        title=f"Alignment with {against}, layer by layer",
        alt=f"Alignment with {plain(against)} of each language layer over its relative depth, a "
        f"panel for each family, {counted(len(rows), 'model')}. The best layer is at relative "
        f"depths {least:.2f} to {most:.2f}, at the median {middle:.2f}.",
        kind="layers",
        references=(reference,),
    )


def best_layer(row: Row, reference: str) -> int:
    """The layer of a model's profile that a figure marks."""
    cell = row.cells[reference]
    profile = cell.profile or ()
    if cell.layer is not None and 0 <= cell.layer < len(profile):
        return cell.layer
    return profile.index(max(profile))


def _layer_count(row: Row, reference: str) -> int:
    return len(row.cells[reference].profile or ())


def _correlations(board: Board, alignment: list[str], others: list[str]) -> Figure | None:
    found = [points.association(board, x, y) for x, y in product(alignment, others)]
    known = [each for each in found if each.spearman.value is not None]
    if len(found) < 2 or not known:
        return None
    each = "; ".join(
        f"{plain(heading(board.column(of.x)))} and {plain(heading(board.column(of.y)))} "
        + ("none" if of.spearman.value is None else coefficient(of.spearman.value))
        + (" (primary)" if of.primary else "")
        for of in found
    )
    untested = sum(of.p is None for of in found)
    return Figure(
        name="correlations",
        title="Spearman's correlation of each reference with each task",
        alt=f"Heat map of Spearman's correlation of {counted(len(alignment), 'reference')} with "
        f"{counted(len(others), 'column')}, {untested} of {len(found)} cells not testable: {each}.",
        kind="correlations",
        references=tuple(alignment),
        others=tuple(others),
    )


def _names(prefix: str, keys: list[str]) -> list[str]:
    """A file name for each key."""
    taken: list[str] = []
    for key in keys:
        slug = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:60].strip("-")
        name = f"{prefix}-{slug}" if slug else prefix
        count = 2
        while name in taken:
            name = f"{prefix}-{slug}-{count}" if slug else f"{prefix}-{count}"
            count += 1
        taken.append(name)
    return taken


def _statistics(panel: points.Panel) -> str:
    return " ".join(" ".join(panel.statistics).split()) + "."


def _spread(panel: points.Panel) -> bool:
    return len({point.x for point in panel.points}) > 1


def _with_interval(found: Association) -> str:
    if found.spearman.value is None:
        return "none"
    low, high = found.over_families.low, found.over_families.high
    if low is None or high is None:
        return coefficient(found.spearman.value)
    return f"{coefficient(found.spearman.value)} ({coefficient(low)} to {coefficient(high)})"


def _numbers(found: Association) -> str:
    """The statistics as sentences, each with a space after it but the last."""
    if found.spearman.value is None:
        return f"No correlation: {plain(found.spearman.note or 'not known', 120)}."
    text = f"Spearman {coefficient(found.spearman.value)}"
    low, high = found.over_families.low, found.over_families.high
    if low is None or high is None:
        text += "; no interval over families."
    else:
        text += f", 95 % interval over families {coefficient(low)} to {coefficient(high)}."
    left = found.leave_one_family_out
    if left.low is not None and left.high is not None and left.most_influential is not None:
        text += (
            f" Leaving out one family gives {coefficient(left.low)} to {coefficient(left.high)}; "
            f"{plain(left.most_influential)} matters most."
        )
    return text


def _best(board: Board, reference: str) -> str:
    scored = [
        (row.cells[reference].value, row.name) for row in board.rows if reference in row.cells
    ]
    value, name = max(scored)
    return f" Best aligned: {plain(name)} ({value:.3f})."


def _partial(board: Board, reference: str, task: str) -> str:
    found = points.association(board, reference, task)
    partial, plainly = found.given_parameters, found.spearman.value
    text = f"{plain(heading(board.column(task)))} "
    text += "none" if partial.value is None else coefficient(partial.value)
    beside = "" if plainly is None else f" (plain Spearman {coefficient(plainly)})"
    return f"{text}{beside}, {counted(partial.n, 'model')}"
