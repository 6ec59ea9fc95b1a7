"""All files of a board: made in memory, written whole or not at all, and checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.board import SCHEMA_FILE, Board
from prh_eval.leaderboard.pages import drawing, markdown, page, plots, tabular

README = "README.md"
CSV = "leaderboard.csv"
JSON = "leaderboard.json"
HTML = "leaderboard.html"
FIGURES = "figures"

_STAGE = ".leaderboard-being-written"
_SHOWN = 100  # characters of a line that differs


class Difference(NamedTuple):
    """How a folder differs from what it should hold.

    Attributes:
        problems: A clause on every file that is missing, stale or superfluous.
        remarks: What differs and is no fault.
    """

    problems: list[str]
    remarks: list[str]


def render(board: Board, *, figures: bool) -> dict[str, bytes]:
    """Every file of a board.

    Args:
        board: The board.
        figures: Whether to draw the figures too.

    Returns:
        Content by the file's path in the board's folder, with forward slashes.

    Raises:
        PrhEvalError: If there are figures to draw and no matplotlib.
    """
    texts = {
        README: markdown.readme(board, with_figures=figures),
        CSV: tabular.to_csv(board),
        JSON: tabular.to_json(board),
        SCHEMA_FILE: tabular.json_schema(),
        HTML: page.html_page(board),
    }
    files = {name: text.encode("utf-8") for name, text in texts.items()}
    if figures:
        for figure in plots.figures(board):
            drawn = drawing.draw(board, figure)
            files[f"{FIGURES}/{figure.name}.svg"] = drawn.svg
            files[f"{FIGURES}/{figure.name}.png"] = drawn.png
    return files


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a board's files, and remove figures of an earlier board that it has not.

    They are first written beside their places and then moved there, so that no file is ever half
    written; where that fails in the middle, what was there before is put back. Files that are as
    they should be are not touched.

    Raises:
        PrhEvalError: If the folder cannot be written, or holds a file of that name that is no
            board's.
    """
    current = _read(folder, files)
    for name, content in current.items():
        if name in files and not _is_ours(name, content, files[name]):
            raise PrhEvalError(
                f"{folder / name} is not of a board and would be overwritten; move it, or give "
                "another --output"
            )
    changed = {name: files[name] for name in files if current.get(name) != files[name]}
    gone = {name: content for name, content in current.items() if name not in files}
    replace(folder, {**changed, **dict.fromkeys(gone)}, current)


def replace(folder: Path, changes: Mapping[str, bytes | None], before: Mapping[str, bytes]) -> None:
    """Write and remove files of a folder: all of them, or none.

    Args:
        folder: Made where it is missing.
        changes: New content by the path in the folder; None for a file to remove.
        before: The content of those that are there.

    Raises:
        PrhEvalError: If it cannot be written.
    """
    if not changes:
        return
    stage = folder / _STAGE
    moved: list[str] = []
    try:
        for kind, contents in (("new", changes), ("old", {n: before.get(n) for n in changes})):
            for name, content in contents.items():
                if content is not None:
                    place = stage / kind / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
        for name, content in changes.items():
            moved.append(name)
            _move(stage / "new" / name if content is not None else None, folder / name)
    except BaseException as error:
        for name in reversed(moved):
            _move(stage / "old" / name if name in before else None, folder / name)
        if isinstance(error, OSError):
            raise PrhEvalError(
                f"the folder {folder} cannot be written: {error.strerror or error}; nothing in it "
                "was changed"
            ) from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _move(staged: Path | None, place: Path) -> None:
    """Put a staged file in its place; None removes what is there."""
    if staged is None:
        place.unlink(missing_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(place)


def check(files: Mapping[str, bytes], folder: Path) -> Difference:
    """Compare a folder with what it should hold.

    A figure that another matplotlib drew from the same board is no problem.

    Raises:
        PrhEvalError: If a file cannot be read.
    """
    current = _read(folder, files)
    found = Difference([], [])
    for name in sorted({*files, *current}):
        if name not in current:
            found.problems.append(f"{name} is missing")
        elif name not in files:
            found.problems.append(f"{name} is of an earlier board and should be removed")
        elif current[name] == files[name]:
            continue
        elif not name.startswith(f"{FIGURES}/"):
            found.problems.append(
                f"{name} is stale: {_first_difference(current[name], files[name])}"
            )
        elif remark := _drawn_by_another(current[name], files[name]):
            found.remarks.append(f"{name} {remark}")
        else:
            found.problems.append(f"{name} is stale: it was not drawn from this board")
    return found


# ---------------------------------------------------------------- what is there


def _read(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of that name in a folder, and figures of boards whatever their name."""
    if folder.exists() and not folder.is_dir():
        raise PrhEvalError(f"{folder} is a file; the output should be a folder")
    try:
        found = {name: (folder / name).read_bytes() for name in files if (folder / name).exists()}
        for path in sorted((folder / FIGURES).glob("*")):
            name = f"{FIGURES}/{path.name}"
            if path.suffix in (".svg", ".png") and name not in found:
                content = path.read_bytes()
                if drawing.drawn_from(content) is not None:
                    found[name] = content
    except OSError as error:
        raise PrhEvalError(f"{error.filename} cannot be read: {error.strerror}") from error
    return found


def _is_ours(name: str, content: bytes, new: bytes) -> bool:
    """Whether a file is of a board, as far as it tells, and may be overwritten by `new`."""
    if name.startswith(f"{FIGURES}/"):
        return drawing.drawn_from(content) is not None
    if name == README:
        return content.startswith(markdown.MARKER.encode())
    if name == HTML:
        return f'<meta name="generator" content="{page.GENERATOR}">'.encode() in content
    if name == CSV:  # the first headings are every board's
        return content.split(b",")[:2] == new.split(b",")[:2]
    key = "title" if name == SCHEMA_FILE else "$schema"
    try:
        return bool(json.loads(content)[key] == json.loads(new)[key])
    except (ValueError, KeyError, TypeError):
        return False


# ---------------------------------------------------------------- how files differ


def _first_difference(old: bytes, new: bytes) -> str:
    """The first line in which two texts differ."""
    lines = zip_longest(*(text.decode("utf-8", "replace").split("\n") for text in (old, new)))
    number, is_, should_be = next((n, a, b) for n, (a, b) in enumerate(lines, 1) if a != b)
    return f"line {number} is {_short(is_)}, and should be {_short(should_be)}"


def _short(line: str | None) -> str:
    if line is None:
        return "not there"
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")


def _drawn_by_another(old: bytes, new: bytes) -> str | None:
    """A remark if two figures are of one board, drawn by two versions of matplotlib."""
    then, now = drawing.drawn_from(old), drawing.drawn_from(new)
    if then is None or now is None or then[0] == now[0] or then[1] != now[1]:
        return None
    return f"was drawn from this board by matplotlib {then[0]}, and now would be by {now[0]}"
