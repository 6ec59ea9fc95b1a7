"""``prh-eval leaderboard``: a board from lm-eval's result files, and what goes with it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prh_eval.errors import PrhEvalError, suggestion

if TYPE_CHECKING:
    from prh_eval.leaderboard.board import Association, Board
    from prh_eval.leaderboard.config import TaskColumn
    from prh_eval.leaderboard.publish import Difference
    from prh_eval.leaderboard.results import Results

EXIT_FOUND_MISTAKES = 1

SUBCOMMANDS = (
    "leaderboard init",
    "leaderboard validate",
    "leaderboard pack",
    "leaderboard schema",
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``leaderboard`` and its subcommands, each as a command of two words."""
    board = commands.add_parser(
        "leaderboard",
        help="write a leaderboard from lm-eval's result files",
        description="Reads every lm-eval result file under RESULTS and writes README.md, "
        "leaderboard.csv, leaderboard.json with its schema, leaderboard.html and figures. Columns "
        "and model cards stand in board.yaml (`prh-eval leaderboard init` writes one).",
        epilog="Subcommands: init, validate, pack, schema. A folder of such a name is given as "
        "./init.",
    )
    _add_results(board)
    board.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder for the board"
    )
    _add_board(board, "default: board.yaml in DIR; without one the columns are what is found")
    board.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK[=METRIC[,FILTER]][@SHOTS]",
        help="a column in place of HellaSwag and GSM8K, without a board.yaml; may be repeated",
    )
    board.add_argument("--title", help="the board's heading, where there is no board.yaml")
    board.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if the board in DIR is not what RESULTS give",
    )
    board.add_argument("--no-figures", action="store_true", help="without figures and matplotlib")
    board.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    board.set_defaults(command=_board)

    init = commands.add_parser(
        "leaderboard init",
        help="write a board.yaml to finish: columns and a card for every model that is found",
        description="Fills in what result files tell, and the hub where it can be reached. A "
        "model's family is for you to state. An existing file is not touched: cards that it lacks "
        "are printed.",
    )
    _add_results(init)
    init.add_argument(
        "--output",
        type=Path,
        default=Path("leaderboard/board.yaml"),
        metavar="FILE",
        help="default: leaderboard/board.yaml",
    )
    init.add_argument("--offline", action="store_true", help="do not ask the hub")
    init.set_defaults(command=_init)

    validate = commands.add_parser(
        "leaderboard validate",
        help="say all that a board would refuse of result files",
        description="Exits with 1 if anything would be refused, else says what would be added.",
    )
    validate.add_argument("results", type=Path, metavar="PATH", help="a folder of result files")
    _add_board(
        validate,
        "default: the nearest board.yaml in PATH and the folders above it, else "
        "leaderboard/board.yaml",
    )
    validate.set_defaults(command=_validate)

    pack = commands.add_parser(
        "leaderboard pack",
        help="copy result files, without what tells about the machine, to share them",
    )
    _add_results(pack)
    pack.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="gets a folder for each model"
    )
    pack.set_defaults(command=_pack)

    schema = commands.add_parser(
        "leaderboard schema", help="JSON Schema of board.yaml, for editors"
    )
    schema.set_defaults(command=_schema)


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="folder with lm-eval's result files"
    )


def _add_board(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--board", type=Path, metavar="FILE", help=f"a board.yaml; {default}")


# ---------------------------------------------------------------- commands


def _board(arguments: argparse.Namespace) -> int:
    from prh_eval.leaderboard import publish
    from prh_eval.leaderboard.assemble import assemble
    from prh_eval.leaderboard.config import BOARD_FILE, read_board
    from prh_eval.leaderboard.results import read_some_results

    beside = arguments.output / BOARD_FILE
    file = arguments.board or (beside if beside.exists() else None)
    if file is not None and (arguments.task or arguments.title is not None):
        given = "--task" if arguments.task else "--title"
        raise PrhEvalError(f"{given} is for a board without a board.yaml, but here is {file}")
    config = None if file is None else read_board(file)
    results = read_some_results(arguments.results, progress=not arguments.quiet)
    board = assemble(results, config, _task_columns(arguments.task, results))
    if arguments.title is not None:
        board = board.model_copy(update={"title": arguments.title})
    files = publish.render(board, figures=not arguments.no_figures)
    if arguments.check:
        return _check(publish.check(files, arguments.output), arguments)
    publish.write(files, arguments.output)
    if not arguments.quiet:
        print("\n".join(_summary(board, results, arguments.output)))
    if config is None and not arguments.quiet:
        words = ["prh-eval", "leaderboard", "init", str(arguments.results), "--output", str(beside)]
        print(
            "There is no board.yaml, so that the columns are what was found and no family is "
            f"known; to write one: {shlex.join(words)}",
            file=sys.stderr,
        )
    return 0


def _check(found: Difference, arguments: argparse.Namespace) -> int:
    for remark in found.remarks:
        print(f"prh-eval: {remark}", file=sys.stderr)
    if not found.problems:
        if not arguments.quiet:
            print(f"The board in {arguments.output} is what {arguments.results} gives.")
        return 0
    for problem in found.problems:
        print(problem)
    words = ["prh-eval", "leaderboard", str(arguments.results), "--output", str(arguments.output)]
    words += ["--board", str(arguments.board)] if arguments.board else []
    words += [word for task in arguments.task for word in ("--task", task)]
    words += ["--title", arguments.title] if arguments.title is not None else []
    words += ["--no-figures"] if arguments.no_figures else []
    print(f"To mend it: {shlex.join(words)}")
    return EXIT_FOUND_MISTAKES


def _summary(board: Board, results: Results, output: Path) -> list[str]:
    lines = [
        f"{_families(board)}; {len(board.controls)} {_s('control', len(board.controls))}",
        f"{results.files} result {_s('file', results.files)} read, "
        f"{len({skip.path for skip in results.skipped})} skipped in whole or part; "
        f"{len(board.left_out)} left out (README.md says why)",
    ]
    if board.associations:
        lines.append(_headline(board, board.associations[0]))
    return [*lines, str(output / "README.md"), str(output / "leaderboard.html")]


def _families(board: Board) -> str:
    """How many models there are, and of how many families."""
    models = f"{len(board.rows)} {_s('model', len(board.rows))}"
    stated = {row.family for row in board.rows if row.family is not None}
    without = sum(row.family is None for row in board.rows)
    if not stated:
        return f"{models}, families not stated"
    some = f", {without} of no stated family" if without else ""
    return f"{models} of {len(stated)} {_s('family', len(stated))}{some}"


def _headline(board: Board, found: Association) -> str:
    """The first association in a line."""
    x, y = board.column(found.x).label, board.column(found.y).label
    about = f"{x} and {y}, {found.models} {_s('model', found.models)}"
    if found.spearman.value is None:
        return f"{about}: no correlation, {found.spearman.note}"
    interval = found.over_families
    within = (
        f"95 % {interval.low:.2f} to {interval.high:.2f} over families"
        if interval.low is not None and interval.high is not None
        else f"no interval over families: {interval.note}"
    )
    return f"{about}: Spearman {found.spearman.value:.2f} ({within})"


def _s(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def _task_columns(given: Sequence[str], results: Results) -> list[TaskColumn]:
    """The columns that all ``--task`` ask for; of one task several, under names of their own."""
    columns: dict[str, TaskColumn] = {}
    for text in given:
        column = _task_column(text, results)
        key = column.key
        if key in columns:
            key = text
            column = column.model_copy(update={"name": text, "label": text})
        if key in columns:
            raise PrhEvalError(f"--task {text} is given twice")
        columns[key] = column
    return list(columns.values())


def _task_column(given: str, results: Results) -> TaskColumn:
    """The column that ``--task TASK[=METRIC[,FILTER]][@SHOTS]`` asks for."""
    from prh_eval.leaderboard.config import USUAL, TaskColumn

    named, at, shots = given.partition("@")
    task, equals, metric = named.partition("=")
    if not task or (equals and not metric) or (at and not shots.isdecimal()):
        raise PrhEvalError(
            f"--task {given} should be TASK, TASK=METRIC or TASK=METRIC,FILTER, each also with "
            "@SHOTS, as gsm8k=exact_match,strict-match@5"
        )
    by_task: dict[str, set[str]] = {}
    for score in results.scores:
        by_task.setdefault(score.task, set()).add(score.metric_key)
    if task not in by_task:
        raise PrhEvalError(f"--task {given}: no result is of {task!r}; {suggestion(task, by_task)}")
    if any(score.record and score.task == task for score in results.scores):
        raise PrhEvalError(f"--task {given}: an alignment task is a column without being named")
    found = by_task[task]
    usual = USUAL.get(task, {})
    if metric and metric not in found:
        raise PrhEvalError(f"--task {given}: no result has {metric!r}; {suggestion(metric, found)}")
    if not metric and not usual and len(found) > 1:
        some = f"{task}={sorted(found)[0]}"
        raise PrhEvalError(
            f"--task {given}: results have several metrics for {task}; one should be named, as "
            f"{some} (valid: {', '.join(sorted(found))})"
        )
    keys: dict[str, Any] = {"task": task, "metric": metric or usual.get("metric") or min(found)}
    if usual.get("metric") == keys["metric"]:
        keys = {**usual}
    return TaskColumn.model_validate(keys | ({"num_fewshot": int(shots)} if at else {}))


def _init(arguments: argparse.Namespace) -> int:
    from prh_eval.leaderboard.config import read_board
    from prh_eval.leaderboard.initial import board_yaml, cards_yaml, hub_facts, models
    from prh_eval.leaderboard.publish import replace
    from prh_eval.leaderboard.results import read_some_results

    file: Path = arguments.output
    there = read_board(file) if file.exists() else None
    results = read_some_results(arguments.results)
    found = models(results, there)
    facts = {} if arguments.offline else hub_facts(found)
    if there is None:
        replace(file.parent, {file.name: board_yaml(results, facts).encode()}, {})
        print(
            f"{file}: {len(found)} model {_s('card', len(found))}; state each model's family, then "
            + shlex.join(
                ["prh-eval", "leaderboard", str(arguments.results), "--output", str(file.parent)]
            )
        )
    elif found:
        print(cards_yaml(found, facts), end="")
        print(
            f"{file} is there and was not touched; above are the cards of {len(found)} "
            f"{_s('model', len(found))} that it lacks, to be put under 'models'",
            file=sys.stderr,
        )
    else:
        print(f"{file} is there, with a card for every model that was found; nothing was touched")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from prh_eval.leaderboard.contribution import find_board, validate

    file = arguments.board or find_board(arguments.results)
    report = validate(arguments.results, file)
    print(f"Checked against {file}.")
    for heading, lines in (
        ("Would be refused", report.refused),
        ("To be aware of", report.warnings),
        ("Would be on the board", report.added),
    ):
        if lines:
            print("\n".join([f"{heading}:", *(f"  - {' '.join(line.split())}" for line in lines)]))
    return EXIT_FOUND_MISTAKES if report.refused else 0


def _pack(arguments: argparse.Namespace) -> int:
    from prh_eval.leaderboard.sharing import pack

    packed = pack(arguments.results, arguments.output)
    for skip in packed.skipped:
        print(f"prh-eval: {skip.path} is not packed: {skip.reason}", file=sys.stderr)
    for name in packed.files:
        print(arguments.output / name)
    return 0


def _schema(_: argparse.Namespace) -> int:
    from prh_eval.leaderboard.config import BoardConfig

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    json.dump({**dialect, **BoardConfig.model_json_schema()}, sys.stdout, indent=2)
    print()
    return 0
