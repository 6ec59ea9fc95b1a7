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
    from prh_eval.compare import (
        Comparison,
        PairScore,
        ReferenceComparison,
        ScoreDifference,
    )


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare``."""
    parser = commands.add_parser(
        "compare",
        help="the alignment among references and models that were run, from their graphs alone",
        description="A matrix of the alignment of every two, each that of its best layer pair; "
        "or, with --reference, that of each with the reference and the differences between them. "
        "A NAME is a reference that was built, a model as it was given to lm-eval (or the last "
        "part of its path), or the path of an artifact file. All must be of the same paired data.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="two or more")
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="score all against this one, and say how every two differ, with the difference's own "
        "error",
    )
    parser.add_argument("--k", type=int, default=10, help="neighbourhood size; default: 10")
    parser.add_argument(
        "--metric",
        default="mutual_knn",
        help="of neighbours: mutual_knn, cycle_knn, lcs_knn or edit_distance_knn; with --reference "
        "mutual_knn alone; default: mutual_knn",
    )
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
    from prh_eval.alignment.preprocess import protocol
    from prh_eval.alignment.registry import HEADLINE, metric
    from prh_eval.artifacts import choose
    from prh_eval.compare import compare, compare_with
    from prh_eval.store import read_artifact

    metric(arguments.metric, "graphs"), protocol(arguments.protocol)
    against = [] if arguments.reference is None else [arguments.reference]
    if against and arguments.metric != HEADLINE:
        raise PrhEvalError(
            f"--metric {arguments.metric} should be {HEADLINE} where there is a --reference, as "
            "the errors of differences are known of that alone"
        )
    given = [*arguments.names, *against]
    names, chosen = _labels(given), choose(given, arguments.protocol)
    artifacts = [read_artifact(kept.path) for kept in chosen]
    k = arguments.k
    comparison: Comparison | ReferenceComparison
    if against:
        comparison = compare_with(
            artifacts[:-1], names[:-1], artifacts[-1], names[-1], k, progress=True
        )
        text = reference_tables(comparison)
        lines: Sequence[PairScore | ScoreDifference] = comparison.differences
    else:
        comparison = compare(artifacts, names, k, arguments.metric, progress=True)
        text, lines = tables(comparison), comparison.pairs
    if arguments.json:
        text = _json(comparison, names, chosen)
    elif arguments.csv:
        text = _csv(comparison, lines)
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
    known = all(pair.stderr is not None for pair in comparison.pairs)
    scores = _matrix(
        comparison,
        lambda pair, _: f"{pair.score:.3f} ± {pair.stderr:.3f}" if known else f"{pair.score:.3f}",
    )
    layers = _matrix(
        comparison,
        lambda pair, turned: (
            f"{pair.b_layer} / {pair.a_layer}" if turned else f"{pair.a_layer} / {pair.b_layer}"
        ),
    )
    errors = " ± standard error" if known else ""
    return (
        f"{scores}\n\n"
        f"{comparison.metric}, best layer pair{errors}; {_made_on(comparison)}\n\n"
        f"Layer of the row / of the column, from 0:\n\n{layers}"
    )


def reference_tables(comparison: ReferenceComparison) -> str:
    """Scores against a reference with their intervals, and the models' differences with theirs."""
    scores = _table(
        ["", "score", "95 % interval", "layer", f"layer of {comparison.reference}"],
        [
            [
                each.name,
                f"{each.score:.3f} ± {each.stderr:.3f}",
                f"{each.low:.3f} to {each.high:.3f}",
                str(each.layer),
                str(each.reference_layer),
            ]
            for each in comparison.scores
        ],
    )
    differences = _table(
        ["", "difference", "95 % interval", "p", "p, adjusted"],
        [
            [
                f"{each.a} - {each.b}",
                f"{each.difference:+.3f} ± {each.stderr:.3f}",
                f"{each.low:+.3f} to {each.high:+.3f}",
                _p(each.p),
                _p(each.p_holm),
            ]
            for each in comparison.differences
        ],
    )
    count = len(comparison.differences)
    return (
        f"{scores}\n\n"
        f"{comparison.metric} with {comparison.reference}, best layer pair ± standard error, and "
        "interval around the score less what choosing the pair flatters it by; "
        f"{_made_on(comparison)}; layers from 0\n\n"
        f"{differences}\n\n"
        f"{count} difference{'s' if count > 1 else ''} on the same items, ± their own standard "
        "error; p of no difference (two-sided), adjusted for their number by Holm's method"
    )


def _made_on(comparison: Comparison | ReferenceComparison) -> str:
    chance = "" if comparison.chance is None else f", chance {comparison.chance:.4f}"
    return f"n = {comparison.n}, k = {comparison.k}{chance}, on {comparison.data}"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _matrix(comparison: Comparison, cell: Callable[[PairScore, bool], str]) -> str:
    """A table of all pairs; ``cell`` is told whether the row is the second of its pair."""
    cells = {}
    for pair in comparison.pairs:
        cells[pair.a, pair.b], cells[pair.b, pair.a] = cell(pair, False), cell(pair, True)
    names = comparison.names
    rows = [[row, *(cells.get((row, column), "—") for column in names)] for row in names]
    return _table(["", *names], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    aligned = ("left", *("right" for _ in header[1:]))
    return tabulate(rows, header, tablefmt="github", colalign=aligned, disable_numparse=True)


def _json(
    comparison: Comparison | ReferenceComparison, names: Sequence[str], chosen: Sequence[Kept]
) -> str:
    files = [
        {"name": name, "kind": kept.header["kind"], "file": str(kept.path)}
        for name, kept in zip(names, chosen, strict=True)
    ]
    content = {**dataclasses.asdict(comparison), "graphs": files}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _csv(
    comparison: Comparison | ReferenceComparison, lines: Sequence[PairScore | ScoreDifference]
) -> str:
    """A line a pair, or a difference."""
    told = dataclasses.asdict(comparison)
    fields = ("reference", "n", "k", "metric", "chance", "data")
    shared = {field: told[field] for field in fields if field in told}
    rows = [dataclasses.asdict(line) | shared for line in lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
