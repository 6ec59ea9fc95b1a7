"""``prh-eval demo``: the main job on data that it makes, with no download.

A ladder of tiny language models is trained on text about colours. Each is scored through lm-eval's
own command line by its alignment with human colour perception and by a multiple-choice task on the
same colours, and the leaderboard shows how the two go together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from prh_eval.demo.ladder import Model

# Stands in every folder that a demo wrote, and says how.
MARKER = "prh_eval_demo.json"
FOLDERS = ("models", "results", "logs", "cache", "leaderboard")

# Processes of lm-eval; each takes one core and about 1 GB of memory.
AT_ONCE = 2
FAMILIES = 8
LARGEST_SEED = 2**32 - 1  # torch's generator looks at no more bits than these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``prh-eval demo``."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("prh_eval_demo"),
        metavar="DIR",
        help="folder for what is made; an earlier demo in it is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--families",
        type=_whole(1, FAMILIES),
        default=FAMILIES,
        metavar="N",
        help="families of three models each; the test over families needs 6 (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=_whole(2),
        default=300,
        help="training steps of a model (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, LARGEST_SEED),
        default=0,
        help="decides weights and sentences (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, score, write the board, print what it shows.

    Args:
        args: What `add_arguments` declares.

    Returns:
        The exit status, 0.

    Raises:
        PrhEvalError: If the folder holds something else, cannot be written, or lm-eval fails.
    """
    output: Path = args.output
    options = {name: getattr(args, name) for name in ("families", "steps", "seed")}
    prepare(output, options)
    # Here and in lm-eval's processes, before anything is imported that reads them.
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )
    models = _train_and_score(output, args.families, args.steps, args.seed)

    from prh_eval.demo.story import pages, seen, table, write_board

    board, figures = write_board(output, models, options)
    print(f"\n{table(board, models)}\n\n{seen(board)}\n{pages(output, figures=figures)}")
    return 0


def prepare(output: Path, options: Mapping[str, int]) -> None:
    """Make the folder ready: new, empty, or emptied of what an earlier demo wrote.

    Args:
        output: The folder.
        options: Kept in it, for whoever finds it.

    Raises:
        PrhEvalError: If it holds something that no demo wrote, or cannot be written.
    """
    try:
        if output.exists() and not output.is_dir():
            raise PrhEvalError(f"{output} is a file, and --output should be a folder")
        if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
            raise PrhEvalError(
                f"{output} is not empty and no demo wrote it (it has no {MARKER}), so that "
                "--output should be another folder"
            )
        for name in FOLDERS:
            if (output / name).exists():
                shutil.rmtree(output / name)
            (output / name).mkdir(parents=True)
        (output / MARKER).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PrhEvalError(f"--output {output} cannot be written: {error}") from None


def _train_and_score(output: Path, families: int, steps: int, seed: int) -> list[Model]:
    """Score each model while the next ones are trained; the first failure ends all."""
    from tqdm import tqdm

    from prh_eval.demo.ladder import climb, plan
    from prh_eval.demo.scoring import ALIGNMENT, CHOICE, MODELS, Scoring

    models: list[Model] = []
    print(
        "Training models on sentences in which colours that look alike are named together, and "
        f"scoring each with lm_eval --tasks {ALIGNMENT[0]},{CHOICE[0]}",
        flush=True,
    )
    with Scoring(output, min(AT_ONCE, _cores())) as scoring:
        for model in climb(output / MODELS, plan(families, steps), seed):
            if model is not None:
                models.append(model)
                scoring.add(model.name)
            for line in scoring.poll():
                tqdm.write(line)  # above the bar
                sys.stdout.flush()
        for line in scoring.rest():
            print(line, flush=True)
    return models


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least or (most is not None and value > most):
            upper = "or more" if most is None else f"to {most}"
            raise argparse.ArgumentTypeError(f"{value} is not {least} {upper}")
        return value

    return parse
