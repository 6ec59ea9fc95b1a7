"""The tables of benchmarks/README.md: what was to be reached, and what was measured."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.common import RESULTS

README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        what: Is measured.
        reach: What it is to be.
        kind: Of device: "cpu" or "cuda".
        figures: The figures that answer it: label to name.
        of_peak: The part of the machine's peak whose share is to be told, if any.
    """

    what: str
    reach: str
    kind: str
    figures: dict[str, str]
    of_peak: str = ""


def _neighbours(n: int) -> dict[str, str]:
    return {kind: f"neighbours n = {n} {kind}" for kind in ("isotropic", "clustered")}


_FAISS = "exact neighbours against faiss-cpu IndexFlatIP, same sets, D = 768, "
GOALS = (
    Goal(
        "13 x 12 layers, n = 1,024, against the textbook way, CPU time, 1 thread",
        "80x",
        "cpu",
        {"": "scoring 13 x 12"},
    ),
    Goal(
        "33 x 40 layers, n = 1,024, the same",
        "200x",
        "cpu",
        {"": "scoring 33 x 40", "as the task": "scoring 33 x 40 as the task"},
    ),
    Goal(_FAISS + "n = 4,096", "1.3x", "cpu", _neighbours(4096)),
    Goal(_FAISS + "n = 16,384", "1.5x", "cpu", _neighbours(16384)),
    Goal(_FAISS + "n = 65,536", "3x", "cpu", _neighbours(65536)),
    Goal(
        "overlap of 1,320 layer pairs, n = 1,024, share of the neighbour search",
        "under 3 %",
        "cpu",
        {"": "overlap 33 x 40"},
    ),
    Goal(
        "1,000 permutations of the maximum over 1,320 pairs, one core",
        "2 s",
        "cpu",
        {"layers alike": "permutations alike", "layers unlike": "permutations unlike"},
    ),
    Goal(
        "chance, errors, cross-fitting, curves and hubs: time added to a run, n = 1,024",
        "under 10 %",
        "cpu",
        {"": "trust added"},
    ),
    Goal(
        "features against padded batches with the head, small GPT-2s, without loss",
        "7x",
        "cpu",
        {"D = 256": "features D = 256", "D = 768": "features D = 768"},
    ),
    Goal(
        "the same, with loss",
        "3.5x",
        "cpu",
        {
            f"D = {dim}{twice}": f"features D = {dim} with loss{twice}"
            for dim in (256, 768)
            for twice in ("", ", read twice")
        },
    ),
    Goal(
        "features against a bare forward pass of the same batches",
        "90 % of its speed",
        "cpu",
        {f"D = {dim}": f"features D = {dim} against a bare forward pass" for dim in (256, 768)},
    ),
    Goal(
        "added memory of features beyond the model and one batch",
        "one pooled array",
        "cpu",
        {"": "features memory D = 256"},
    ),
    Goal(
        "`prh-eval` and plugin start-up, and what they import that is heavy",
        "0.3 s, nothing",
        "cpu",
        {"": "startup prh-eval --help", "imported": "startup heavy libraries"},
    ),
    Goal(
        "one H200: n = 1M, D = 1,024, exact, a layer",
        "4 s (65 % of the float16 peak)",
        "cuda",
        _neighbours(1_000_000),
        "float16",
    ),
    Goal(
        "one H200: 33 x 40 at n = 1,024, against the textbook way on the same GPU",
        "100x",
        "cuda",
        {"": "scoring 33 x 40"},
    ),
    Goal(
        "one H200: time that chance, errors and controls add to a run, n = 1,024",
        "under 10 %",
        "cuda",
        {"": "trust added"},
    ),
)
NOT_MEASURED = "not measured yet"
_TABLES = re.compile(r"(<!-- tables: .*? -->\n).*?(<!-- end of tables -->)", re.DOTALL)


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every result in a folder, by device and benchmark.

    Raises:
        ValueError: If one is of a tiny run.
    """
    results = []
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["tiny"]:
            raise ValueError(f"{path} is of a tiny run, whose figures mean nothing")
        results.append(result)
    return results


def tables(results: list[dict[str, Any]]) -> str:
    """The goals with what was measured of them, then all figures of each device."""
    parts = [_goals(results)]
    by_device = defaultdict(list)
    for result in results:
        by_device[result["device"]].append(result)
    for device, theirs in by_device.items():
        rows = [
            [figure["what"], _value(figure), _seconds(figure), _of_peak(figure)]
            for result in theirs
            for figure in result["figures"]
        ]
        dates = sorted({result["date"] for result in theirs})
        dated = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        headers = ["what", "figure", "seconds", "share of peak"]
        parts.append(f"### {device}, {dated}\n\n{_table(headers, rows)}")
    return "\n\n".join(parts)


def with_tables(text: str, results: list[dict[str, Any]]) -> str:
    """The README's text with its tables made anew."""
    made = f"\n{tables(results)}\n\n"
    return _TABLES.sub(lambda found: found[1] + made + found[2], text)


def _goals(results: list[dict[str, Any]]) -> str:
    measured = {
        (result["kind"], figure["name"], result["device"]): figure
        for result in results
        for figure in result["figures"]
    }
    rows = []
    for goal in GOALS:
        devices = {result["device"]: None for result in results if result["kind"] == goal.kind}
        found = []
        for device in devices:
            values = [
                _cell(measured[goal.kind, name, device], label, goal.of_peak)
                for label, name in goal.figures.items()
                if (goal.kind, name, device) in measured
            ]
            if values:
                found.append(f"{'; '.join(values)} ({device})")
        rows.append([goal.what, goal.reach, "<br>".join(found) or NOT_MEASURED])
    return _table(["what", "to reach", "measured"], rows)


def _cell(figure: dict[str, Any], label: str, of_peak: str) -> str:
    share = f", {100 * figure['of_peak'][of_peak]:.0f} % of peak" if of_peak else ""
    return f"{_value(figure)} {label}".strip() + share


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _value(figure: dict[str, Any]) -> str:
    number, unit = _number(figure["value"]), figure["unit"]
    return f"{number}x" if unit == "x" else f"{number} {unit}"


def _seconds(figure: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_number(took)}" for name, took in figure["seconds"].items())


def _of_peak(figure: dict[str, Any]) -> str:
    shares = figure["of_peak"].items()
    return ", ".join(f"{100 * share:.0f} % {name.replace('_', ' ')}" for name, share in shares)


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):.10g}"
