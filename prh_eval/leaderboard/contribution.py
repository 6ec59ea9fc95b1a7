"""What a board would make of result files before they are on it: refusals, warnings, additions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.cards import Cards, filtered
from prh_eval.leaderboard.columns import AnyColumn, Chosen, is_of, of_columns, one_of_each
from prh_eval.leaderboard.config import BOARD_FILE, BoardConfig, TaskColumn, read_board
from prh_eval.leaderboard.paths import is_folder
from prh_eval.leaderboard.results import Results, read_results, read_some_results
from prh_eval.leaderboard.scores import Identity, Score
from prh_eval.leaderboard.selection import select

RESULTS = "results"


class Report(NamedTuple):
    """What `validate` found, a sentence each.

    Attributes:
        refused: What the board would not take, with the file and what would be right.
        warnings: What it would take, and a contributor should know.
        added: Each model's scores that would be on the board.
    """

    refused: list[str]
    warnings: list[str]
    added: list[str]


def find_board(path: Path) -> Path:
    """The board.yaml that results belong to.

    It is the nearest one in their folder and those above it, else ``leaderboard/board.yaml``.

    Raises:
        PrhEvalError: If there is none.
    """
    here = path.resolve()
    places = (folder / BOARD_FILE for folder in (here, *here.parents))
    for file in (*places, Path("leaderboard") / BOARD_FILE):
        if file.is_file():
            return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    raise PrhEvalError(
        f"there is no {BOARD_FILE} in {path}, a folder above it or leaderboard; name one with "
        "--board"
    )


def validate(path: Path, board: Path) -> Report:
    """Say what a board would refuse of result files, and what it would take.

    They are looked at together with the results that the board has: those in the folder ``results``
    beside its board.yaml.

    Args:
        path: A folder of result files; a part of the board's own, or another.
        board: The board.yaml.

    Raises:
        PrhEvalError: If there is nothing to look at, or the board.yaml is at fault.
    """
    config = read_board(board)
    results = read_some_results(path)
    mine = _labelled(path, results)
    files = {score.file for score in mine}
    columns: list[AnyColumn] = [*config.references, *config.tasks]
    selection = select([*mine, *_of_the_board(path, board)], columns, config)
    every, kept, chosen = selection.every, selection.kept, selection.chosen

    refused = [f"{path / skip.path}: {skip.reason}" for skip in results.skipped]
    warnings = list(_paths(mine))
    for conflict in selection.conflicts:
        if files & set(conflict.files):
            (refused if conflict.kind == "limit" else warnings).append(conflict.sentence)
    for column in columns:
        for score, reason in chosen[column.key].refused:
            if score.file in files:
                refused.append(f"{score.file}: {score.model.name} on {column.heading}: {reason}")
    shown = [score for score in every if score.file in files]
    refused += _without_alignment(shown, every, config)
    refused += _by_cards(shown, selection.cards, config, board)
    warnings += _superseded(columns, of_columns(columns, shown), kept)
    warnings += _of_no_column(columns, shown)
    there = [score for score in every if score.file not in files]
    return Report(refused, warnings, _added(columns, chosen, files, there))


# ---------------------------------------------------------------- what there is


def _labelled(path: Path, results: Results) -> list[Score]:
    """Scores whose files are named as a reader finds them."""
    return [
        dataclasses.replace(score, file=(path / score.file).as_posix()) for score in results.scores
    ]


def _of_the_board(path: Path, board: Path) -> list[Score]:
    """The other scores that the board has."""
    home = board.parent / RESULTS
    if not home.is_dir():
        return []
    here = path.resolve()
    return [
        score
        for score in _labelled(home, read_results(home))
        if not Path(score.file).resolve().is_relative_to(here)
    ]


# ---------------------------------------------------------------- what is wrong


def _by_cards(
    scores: Iterable[Score], cards: Cards, config: BoardConfig, board: Path
) -> Iterator[str]:
    """What stands against models: no card, no family, a filter."""
    runs = {score.model.identity: score for score in reversed(list(scores))}
    for identity in sorted(runs):
        score = runs[identity]
        run, card = score.model, cards.of(score.model)
        if card is None:
            yield (
                f"{score.file}: {run.name} has no card in {board}; `prh-eval leaderboard init` "
                "prints one, to be put under 'models'"
            )
        elif card.family is None and card.control is None:
            yield f"{score.file}: the card of {run.name} in {board} should state its family"
        why = filtered(run, card, config.filters) if card else None
        if why:
            yield f"{score.file}: {run.name} is not taken: {why}"


def _without_alignment(
    mine: Iterable[Score], every: Iterable[Score], config: BoardConfig
) -> Iterator[str]:
    aligned = {
        score.model.name
        for score in every
        if any(is_of(column, score) for column in config.references)
    }
    first = {score.model.name: score.file for score in reversed(list(mine))}
    tasks = ",".join(column.task for column in config.references)
    for name in sorted(first.keys() - aligned):
        yield f"{first[name]}: {name} has no alignment score; run lm_eval with --tasks {tasks}"


def _paths(scores: Iterable[Score]) -> Iterator[str]:
    for name, file in sorted({(score.model.name, score.file) for score in scores}):
        if is_folder(name):
            yield (
                f"{file}: the model is given by a path of a machine, {name}; `prh-eval leaderboard "
                "pack` makes a copy without"
            )


def _superseded(
    columns: Sequence[AnyColumn], mine: Iterable[Score], kept: Sequence[Score]
) -> Iterator[str]:
    counted = set(kept)
    instead: dict[tuple[str, Identity], Score] = {}
    for column in columns:
        for score in kept:
            if is_of(column, score):
                instead.setdefault((column.key, score.model.identity), score)
    for score in mine:
        if score.limit is not None or score in counted:
            continue
        for column in columns:
            if is_of(column, score):
                newer = instead.get((column.key, score.model.identity))
                yield (
                    f"{score.file}: the score of {score.model.name} on {column.heading} does not "
                    "count" + (f", for that of {newer.file} does" if newer else "")
                )


def _of_no_column(columns: Sequence[AnyColumn], scores: Iterable[Score]) -> Iterator[str]:
    used: dict[str, bool] = {}
    for score in scores:
        used[score.file] = used.get(score.file, False) or any(is_of(c, score) for c in columns)
    for file in (file for file, is_used in used.items() if not is_used):
        known = ", ".join(column.task for column in columns)
        yield f"{file}: none of its tasks is a column of the board, which are {known}"


# ---------------------------------------------------------------- what would be added


def _added(
    columns: Sequence[AnyColumn],
    chosen: dict[str, Chosen],
    files: set[str],
    others: Sequence[Score],
) -> list[str]:
    """A line a model, with its scores and what they replace."""
    before: dict[tuple[str, Identity], Score] = {}
    for column in columns:
        before.update({(column.key, s.model.identity): s for s in others if is_of(column, s)})
    lines: dict[str, list[str]] = {}
    for column in columns:
        for score in one_of_each(column, chosen[column.key]).values():
            if score.file not in files:
                continue
            error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
            shots = ""
            if isinstance(column, TaskColumn) and score.n_shot is not None:
                shots = f" ({score.n_shot}-shot)"
            old = before.get((column.key, score.model.identity))
            replaced = f", replacing {old.value:.4f} of {old.file}" if old else ""
            lines.setdefault(_name(score), []).append(
                f"{column.heading} {score.value:.4f}{error}{shots}{replaced}"
            )
    return [f"{name}: {'; '.join(values)}" for name, values in sorted(lines.items())]


def _name(score: Score) -> str:
    model = score.model
    at = "" if model.revision == "main" else f" @ {model.revision}"
    return f"{model.name}{at}" + (f" ({model.dtype})" if model.dtype else "")
