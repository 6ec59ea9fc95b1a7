"""``prh-eval compare``: the alignment among references and models, from their graphs alone."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from prh_eval.artifacts import Kept
    from prh_eval.compare import Comparison, PairScore


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare``."""
    parser = commands.add_parser(
        "compare",
        help="the alignment among references and models that were run, from their graphs alone",
        description="A matrix of the alignment of every two, each that of its best layer pair. "
        "A NAME is a reference that was built, a model as it was given to lm-eval (or the last "
        "part of its path), or the path of an artifact file. All must be of the same paired data.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="at least two")
    parser.add_argument("--k", type=int, default=10, help="neighbourhood size; default: 10")
    parser.add_argument("--metric", default="mutual_knn", help="default: mutual_knn")
    parser.add_argument(
        "--protocol", default="paper", help="preprocessing of the graphs to take; default: paper"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for machines, in place of the tables")
    form.add_argument("--csv", action="store_true", help="a line a pair, in place of the tables")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write to this file, not to stdout"
    )
    parser.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from prh_eval.alignment.metrics import metric
    from prh_eval.alignment.preprocess import protocol
    from prh_eval.artifacts import choose
    from prh_eval.compare import compare
    from prh_eval.store import read_artifact

    metric(arguments.metric), protocol(arguments.protocol)
    chosen = choose(arguments.names, arguments.protocol)
    artifacts = [read_artifact(kept.path) for kept in chosen]
    comparison = compare(
        artifacts, _labels(arguments.names), arguments.k, arguments.metric, progress=True
    )
    if arguments.json:
        text = _json(comparison, chosen)
    elif arguments.csv:
        text = _csv(comparison)
    else:
        text = tables(comparison)
    if arguments.output is None:
        print(text)
        return 0
    try:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PrhEvalError(
            f"--output {arguments.output} cannot be written: {error.strerror or error}"
        ) from error
    return 0


def _labels(names: Sequence[str]) -> list[str]:
    """The names as they were given; files without their folders, where that tells them apart."""
    short = [Path(name).stem if name.endswith(".safetensors") else name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def tables(comparison: Comparison) -> str:
    """Scores with their standard errors, what they were made on, and which layers."""
    scores = _matrix(comparison, lambda pair, _: f"{pair.score:.3f} ± {pair.stderr:.3f}")
    layers = _matrix(
        comparison,
        lambda pair, turned: (
            f"{pair.b_layer} / {pair.a_layer}" if turned else f"{pair.a_layer} / {pair.b_layer}"
        ),
    )
    return (
        f"{scores}\n\n"
        f"{comparison.metric}, best layer pair ± standard error; n = {comparison.n}, "
        f"k = {comparison.k}, chance {comparison.chance:.4f}, on {comparison.data}\n\n"
        f"Layer of the row / of the column, from 0:\n\n{layers}"
    )


def _matrix(comparison: Comparison, cell: Callable[[PairScore, bool], str]) -> str:
    """A table of all pairs; ``cell`` is told whether the row is the second of its pair."""
    from tabulate import tabulate

    cells = {}
    for pair in comparison.pairs:
        cells[pair.a, pair.b], cells[pair.b, pair.a] = cell(pair, False), cell(pair, True)
    names = comparison.names
    rows = [[row, *(cells.get((row, column), "—") for column in names)] for row in names]
    aligned = ("left", *("right" for _ in names))
    return tabulate(rows, ["", *names], tablefmt="github", colalign=aligned, disable_numparse=True)


def _json(comparison: Comparison, chosen: Sequence[Kept]) -> str:
    files = [
        {"name": name, "kind": kept.header["kind"], "file": str(kept.path)}
        for name, kept in zip(comparison.names, chosen, strict=True)
    ]
    content = {**dataclasses.asdict(comparison), "graphs": files}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _csv(comparison: Comparison) -> str:
    shared = {field: getattr(comparison, field) for field in ("n", "k", "metric", "chance", "data")}
    rows = [dataclasses.asdict(pair) | shared for pair in comparison.pairs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
