"""``prh-eval rescore``: models that were run once against references of later days."""

from __future__ import annotations

import argparse
from pathlib import Path

from prh_eval.commands.arguments import caption, positive


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``rescore``."""
    parser = commands.add_parser(
        "rescore",
        help="score every model in the cache against references, without running a model",
        description="Writes lm-eval result files, one a model. A model is scored where it was run "
        "on the captions of the reference's data with these options.",
    )
    parser.add_argument(
        "references",
        nargs="*",
        metavar="REFERENCE",
        help="names or YAML files, built where needed; by default all that are built",
    )
    parser.add_argument(
        *("--output_path", "--output-path"),
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder for result files, as lm-eval's own option",
    )
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help="only these; by default all"
    )
    parser.add_argument("--k", type=positive, default=10, help="neighbourhood size; default: 10")
    parser.add_argument("--protocol", default="paper", help="preprocessing; default: paper")
    parser.add_argument(
        "--pooling", default="mean", help="over a caption's tokens, mean or last; default: mean"
    )
    parser.add_argument(
        "--caption",
        type=caption,
        default=0,
        help="which caption, where an item has several, or mean; default: 0",
    )
    parser.set_defaults(command=_rescore)


def _rescore(arguments: argparse.Namespace) -> int:
    from tabulate import tabulate

    from prh_eval.harness.rescore import rescore

    written = rescore(
        arguments.references,
        arguments.output_path,
        models=arguments.models,
        options={
            name: getattr(arguments, name) for name in ("k", "protocol", "pooling", "caption")
        },
    )
    rows = [
        (
            each.model,
            each.reference,
            each.metric,
            f"{each.score:.3f}" + ("" if each.stderr is None else f" ± {each.stderr:.3f}"),
            each.path,
        )
        for each in written
    ]
    headers = ("model", "reference", "metric", "score", "file")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return 0
