"""``prh-eval pairs``: whether paired data can be used, and what is in them."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prh_eval.pairs.check import PairsReport, Range

EXIT_UNUSABLE = 1


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``pairs`` and its subcommand."""
    parser = commands.add_parser("pairs", help="check the paired data of a reference")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = actions.add_parser(
        "check",
        help="count items and captions, decode every image, say what would stop a run",
        description="Exit status: 0 if a run can use the data, 1 if something would stop it.",
    )
    check.add_argument("reference", metavar="REFERENCE", help="name, or path of a YAML file")
    check.add_argument("--no-images", action="store_true", help="do not decode the images")
    check.add_argument(
        "--json", action="store_true", help="everything that was found, for machines"
    )
    check.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    from prh_eval.pairs.check import check_pairs
    from prh_eval.pairs.load import read_pairs
    from prh_eval.references.registry import load_reference

    pairs = read_pairs(load_reference(arguments.reference).pairs)
    report = check_pairs(pairs, images=not arguments.no_images)
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print(_text(report, pairs.images is not None))
    return 0 if report.usable else EXIT_UNUSABLE


def _text(report: PairsReport, has_images: bool) -> str:
    from tabulate import tabulate

    rows = [("items", f"{report.items:,}")]
    if report.captions:
        rows.append(("captions per item", _range(report.captions)))
    if report.words:
        rows.append(("words per caption", _range(report.words)))
    rows.append(("images", _images(report, has_images)))
    if report.smallest_image and report.largest_image:
        small, large = (f"{w} x {h}" for w, h in (report.smallest_image, report.largest_image))
        sizes = small if small == large else f"{small} to {large}"
        rows.append(("image sizes", f"{sizes} pixels"))
    parts = [report.name, tabulate(rows, tablefmt="plain", disable_numparse=True)]
    if report.problems:
        parts.append(_section("Problems, which would stop a run:", report.problems))
    if report.notes:
        heading = "Notes (duplicates stop nothing, and make no alignment: ties are shared):"
        parts.append(_section(heading, report.notes))
    if report.usable:
        parts.append("A run can use these pairs.")
    return "\n\n".join(parts)


def _images(report: PairsReport, has_images: bool) -> str:
    if report.images is not None:
        return f"{report.images:,} of {report.items:,} can be read"
    return "not looked at" if has_images and report.items else "none"


def _range(numbers: Range) -> str:
    if numbers.least == numbers.most:
        return f"{numbers.least:,}"
    return f"{numbers.least:,} to {numbers.most:,}, {numbers.mean:,.1f} on average"


def _section(heading: str, sentences: list[str]) -> str:
    items = (sentence.replace("\n", "\n      ") for sentence in sentences)
    return "\n".join([heading, *(f"  - {item}" for item in items)])
