"""The demo's board, and what it prints of it."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from prh_eval.demo.ladder import Model
from prh_eval.demo.scoring import ALIGNMENT, CHOICE, MODELS, RESULTS
from prh_eval.leaderboard import publish
from prh_eval.leaderboard.assemble import assemble
from prh_eval.leaderboard.board import LEVEL, Board, Row
from prh_eval.leaderboard.config import BOARD_FILE, read_board
from prh_eval.leaderboard.pages.formats import (
    coefficient,
    counted,
    interval,
    models_of,
    p_stated,
    score,
)
from prh_eval.leaderboard.results import read_results
from prh_eval.leaderboard.sharing import pack

LEADERBOARD = "leaderboard"


def about(options: Mapping[str, int]) -> str:
    """What the board's rows are.

    Args:
        options: The demo's, by name.
    """
    command = " ".join(["prh-eval demo", *(f"--{name} {value}" for name, value in options.items())])
    return (
        "Every row is a tiny language model that `prh-eval demo` trained within minutes, on "
        'sentences such as "hot magenta looks like pinkish purple ." in which colours that look '
        "alike are named together. None of them is a published model: what is said of them is said "
        "of this coloured world alone. A family is an architecture; its models are a small one, a "
        "larger one, and the larger one early in its training. They are scored by their alignment "
        "with human colour perception, and by how often they tell which of four colours looks like "
        f"another. `{command}` makes them again."
    )


def write_board(
    output: Path, models: Sequence[Model], options: Mapping[str, int]
) -> tuple[Board, bool]:
    """Write the board of a demo's models to ``leaderboard`` in its folder.

    Args:
        output: The demo's folder, with lm-eval's result files in ``results``.
        models: What was trained.
        options: The demo's, by name.

    Returns:
        The board, and whether it has figures: they need matplotlib.

    Raises:
        PrhEvalError: If the folder cannot be written.
    """
    place = output / LEADERBOARD
    pack(output / RESULTS, place / RESULTS)
    file = place / BOARD_FILE
    text = yaml.safe_dump(
        board_config(models, options), sort_keys=False, width=100, allow_unicode=True
    )
    file.write_text(text, encoding="utf-8")
    board = assemble(read_results(place / RESULTS, progress=False), read_board(file))
    figures = importlib.util.find_spec("matplotlib") is not None
    publish.write(publish.render(board, figures=figures), place)
    return board, figures


def board_config(models: Sequence[Model], options: Mapping[str, int]) -> dict[str, Any]:
    """The content of ``board.yaml``: the columns, the hypothesis, a card for every model."""
    (reference, mnn), (task, acc) = ALIGNMENT, CHOICE
    return {
        "title": "Models of a coloured world",
        "about": about(options),
        "references": [{"task": reference, "label": "human colour perception", "metric": mnn}],
        "tasks": [{"task": task, "label": "Colour choice", "metric": acc, "chance": 0.25}],
        "primary": {"reference": reference, "task": task},
        "models": [_card(model) for model in models],
    }


def _card(model: Model) -> dict[str, Any]:
    layers = counted(model.size.layers, "layer")
    card = {
        "name": f"{MODELS}/{model.name}",
        "title": model.title,
        "family": model.family,
        "parameters": model.parameters,
        "kind": "base",
        "notes": f"{layers} of width {model.size.width}, {counted(model.steps, 'training step')}",
    }
    return card | (
        {"training_tokens": model.tokens} if model.steps else {"control": "untrained weights"}
    )


def table(board: Board, models: Sequence[Model]) -> str:
    """One row a model, best alignment first: loss, alignment and accuracy with their errors."""
    losses = {f"{MODELS}/{model.name}": model.loss for model in models}
    rows = [
        (
            row.name,
            f"{losses[row.model]:.3f}",
            *(_cell(row, task) for task, _ in (ALIGNMENT, CHOICE)),
        )
        for row in (*board.rows, *board.controls)
    ]
    headers = ("model", "loss", ALIGNMENT[1], CHOICE[1])
    align = ("left", "right", "right", "right")
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=align)


def _cell(row: Row, key: str) -> str:
    return score(row.cells[key].value, row.cells[key].stderr)


def seen(board: Board) -> str:
    """One or two sentences on the primary association, said of its numbers only."""
    found = board.associations[0]
    among = f"Among {models_of(found.models, found.families)}"
    if found.spearman.value is None:
        return f"{among}, alignment and accuracy have no correlation: {found.spearman.note}."
    value = coefficient(found.spearman.value)
    within = found.over_families
    if within.low is None:
        said = f"no interval over families: {within.note}"
    else:
        said = f"95 % over families {interval(within.low, within.high)}"
    first = f"{among}, alignment and accuracy correlate with Spearman {value} ({said})."
    if found.p is None:
        return f"{first} Whether that is more than chance is {found.p_note}."
    note = f" ({found.p_note})" if found.p_note else ""
    shown = "an association is shown" if found.p < LEVEL else "no association is shown"
    return (
        f"{first} The test over families gives {p_stated(found.p)}{note}: {shown} at the 5 % level."
    )


def pages(output: Path, *, figures: bool) -> str:
    """Where the board is, and where it has no figures, how to get them."""
    place = output / LEADERBOARD
    said = f"The board is {place / publish.README} and {place / publish.HTML}."
    if not figures:
        command = shlex.join(
            ["prh-eval", "leaderboard", str(place / RESULTS), "--output", str(place)]
        )
        said += (
            "\nIt has no figures, which need matplotlib (pip install 'prh_eval[plots]'); with it, "
            f"they are drawn by: {command}"
        )
    return said
