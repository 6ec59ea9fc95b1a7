"""An alignment as text for a terminal of 80 columns, for a reader who has not read the code."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prh_eval.findings import Findings
from prh_eval.leaderboard.pages.escaping import one_line
from prh_eval.showing.read import CACHE, Shown
from prh_eval.showing.wording import (
    CONFIDENCE,
    HEADLINE,
    control,
    has_threshold,
    missing,
    neighbourhood,
    number,
    remake,
)

WIDTH = 80
_BAR = 28
_MOST_PAIRS = 5
_INDENT = "  "
_Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Signs:
    """The signs that not every terminal has. Those of bars are one column wide."""

    plus_minus: str
    times: str
    minus: str
    none: str
    full: str
    shade: str
    parts: str
    """Of a block, eighths by rising width; empty where bars have whole blocks only."""
    chosen: str


UNICODE = Signs("±", "×", "−", "—", "█", "░", "▏▎▍▌▋▊▉", "◀")
ASCII = Signs("+-", "x", "-", "-", "#", ".", "", "<")


def signs_for(encoding: str | None) -> Signs:
    """The signs that an encoding has room for; None is taken as ASCII."""
    every = "".join(str(value) for value in vars(UNICODE).values())
    try:
        every.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def text(shown: Shown, signs: Signs = UNICODE) -> str:
    """An alignment as sections of text; every line is at most 80 columns wide but for long names.

    Args:
        shown: The alignment.
        signs: Signs beyond ASCII that may be used; names keep theirs.
    """
    findings = shown.findings
    sections = [
        _heading(shown, signs),
        _score(findings, signs),
        _controls(findings, signs),
        _layers(findings, signs),
        _k_curve(findings, signs),
        _n_curve(findings, signs),
        _hubs(findings, signs),
        _missing(shown),
    ]
    return "\n\n".join(section for section in sections if section)


# ---------------------------------------------------------------- what and how


def _heading(shown: Shown, signs: Signs) -> str:
    findings, header = shown.findings, shown.findings.model
    about = [
        one_line(str(header[field])) for field in ("revision", "dtype", "peft") if header.get(field)
    ]
    if isinstance(header.get("parameters"), int):
        about.append(f"{header['parameters']:,} parameters")
    rows = [
        ("model", shown.model + (f" ({', '.join(about)})" if about else "")),
        ("reference", shown.reference),
        ("data", f"{shown.data}, n = {findings.n:,} items"),
        ("metric", ", ".join(_measured(findings))),
        (
            "source",
            one_line(shown.source) + (f", task {one_line(shown.task)}" if shown.task else ""),
        ),
    ]
    title = f"{shown.model} {signs.times} {shown.reference}: {_with_error(findings, signs)}"
    return f"{title}\n{'=' * min(len(title), WIDTH)}\n{_table(rows)}"


def _measured(findings: Findings) -> Iterable[str]:
    yield one_line(findings.metric)
    yield from neighbourhood(findings)
    for name in ("protocol", "pooling"):
        value = getattr(findings, name)
        if value:
            yield f"{name} {one_line(value)}"


def _with_error(findings: Findings, signs: Signs) -> str:
    return _measure(findings.score, findings.stderr, signs)


def _measure(score: float | None, stderr: float | None, signs: Signs) -> str:
    if score is None:
        return signs.none
    error = f" {signs.plus_minus} {number(stderr)}" if stderr is not None else ""
    return _signed(number(score), signs) + error


def _signed(shown: str, signs: Signs) -> str:
    return shown.replace("-", signs.minus, 1) if shown.startswith("-") else shown


# ---------------------------------------------------------------- score and chance


def _score(findings: Findings, signs: Signs) -> str:
    minus = signs.minus
    is_headline = findings.metric == HEADLINE
    of_k = f"share of the {findings.k} nearest items in both"
    label = "score" if findings.stderr is None else f"score {signs.plus_minus} s.e."
    rows = [
        (label, _with_error(findings, signs), of_k if is_headline else "of the best layer pair")
    ]
    if findings.interval is not None:
        low, high = (_signed(number(end), signs) for end in findings.interval)
        crossed = findings.cross_fitted
        flattery = crossed.flattery if crossed else None
        meaning = "of the score over other such items"
        if flattery:
            meaning = f"of the score less {number(flattery)}, by which choosing flatters"
        rows.append((f"{CONFIDENCE} interval", f"{low} to {high}", meaning))
    if findings.chance is not None:
        meaning = "mean where items are re-paired at random"
        rows.append(("chance", number(findings.chance), meaning))
    if findings.corrected is not None:
        corrected = _signed(number(findings.corrected), signs)
        rows.append(("above chance", corrected, f"(score {minus} chance) / (1 {minus} chance)"))
    null = findings.null
    if null is not None and has_threshold(null):
        rows += [
            (
                "threshold",
                _signed(number(null.threshold), signs),
                f"at most {100 * null.alpha:g} % of re-pairings score higher",
            ),
            (
                "calibrated",
                number(null.calibrated),
                f"(score {minus} threshold) / (1 {minus} threshold), or 0",
            ),
        ]
    if null is not None:
        rows.append(("p", f"{null.p:.2g}", f"(1 + re-pairings as high) / (1 + {null.draws:,})"))
    if findings.z is not None:
        z = _signed(f"{findings.z:.1f}", signs)
        rows.append(("z", z, "this pair's standard deviations over chance"))
    return "Score\n" + _table(rows)


# ---------------------------------------------------------------- layers and controls


def _controls(findings: Findings, signs: Signs) -> str:
    score = findings.score
    assert score is not None  # `read` refuses what has none

    def row(name: str, value: float, stderr: float | None, what: str) -> _Row:
        difference = number(abs(score - value))
        sign = "+" if score >= value else signs.minus
        return name, _measure(value, stderr, signs), sign + difference, what

    layers, reference_layers = len(findings.layer_grid), len(findings.layer_grid[0])
    pair = _pair(findings.layers)
    rows = [
        (
            "best layer pair",
            _with_error(findings, signs),
            "",
            f"{pair}, best of {layers} {signs.times} {reference_layers}",
        )
    ]
    crossed = findings.cross_fitted
    if crossed is not None:
        what = "chosen on one half of the items, scored on the other"
        rows.append(row("cross-fitted", crossed.score, crossed.stderr, what))
    for name, found in (("last layer", findings.last), ("embedding layer", findings.embedding)):
        if found is not None:
            rows.append(row(name, found.score, found.stderr, f"{_pair(found.layers)}"))
    for key, of in findings.controls.items():
        name, what = control(key)
        named = (
            f"{what}: {one_line(of.name)}" if of.name and what else what or one_line(of.name or "")
        )
        rows.append(row(name, of.score, None, named))
    title = "Beside it (layer pairs: model/reference, from 0)"
    headers = ("", "score", f"best {signs.minus} it", "")
    table = _table(rows, [None, None, None, 27], headers)
    return f"{title}\n{table}{_chosen_by_halves(findings)}"


def _chosen_by_halves(findings: Findings) -> str:
    """Which layer pairs halves of the items chose, the most frequent first."""
    crossed = findings.cross_fitted
    if crossed is None:
        return ""
    counts = Counter(crossed.layers).most_common()
    told = [f"{_pair(pair)} ({count})" for pair, count in counts[:_MOST_PAIRS]]
    others = len(counts) - _MOST_PAIRS
    more = [f"{others} other{'s' if others > 1 else ''}"] if others > 0 else []
    said = f"Chosen by {len(crossed.layers)} halves of the items: {', '.join(told + more)}."
    return "\n" + textwrap.indent("\n".join(textwrap.wrap(said, WIDTH - len(_INDENT))), _INDENT)


def _pair(layers: tuple[int, int]) -> str:
    return f"{layers[0]}/{layers[1]}"


def _layers(findings: Findings, signs: Signs) -> str:
    best = [max(row) for row in findings.layer_grid]
    if len(best) < 2:
        return ""
    bars = _bars(best, [findings.chance] * len(best), signs)
    rows = [
        (str(layer), f"{row.index(value)}", _signed(number(value), signs), bar)
        for layer, (row, value, bar) in enumerate(zip(findings.layer_grid, best, bars, strict=True))
    ]
    chosen = findings.layers[0]
    rows[chosen] = (*rows[chosen][:3], f"{rows[chosen][3]} {signs.chosen} best")
    headers = ("layer", "reference", "score", "")
    title = "Layers: each of the model with the reference's best for it"
    return f"{title}\n" + _table(rows, None, headers, "rrrl") + _key(findings.chance, signs)


# ---------------------------------------------------------------- curves and hubs


def _k_curve(findings: Findings, signs: Signs) -> str:
    points = findings.k_curve
    if not points:
        return ""
    bars = _bars([p.score for p in points], [p.chance for p in points], signs)
    rows = [
        (
            f"{p.k}",
            _signed(number(p.score), signs),
            number(p.chance),
            _marked(bar, p.k == findings.k, signs),
        )
        for p, bar in zip(points, bars, strict=True)
    ]
    title = f"Neighbourhood sizes: layer pair {_pair(findings.layers)} at other k"
    return (
        f"{title}\n" + _table(rows, None, ("k", "score", "chance", ""), "rrrl") + _key(0.0, signs)
    )


def _n_curve(findings: Findings, signs: Signs) -> str:
    points = findings.n_curve
    if not points:
        return ""
    bars = _bars([p.score for p in points], [p.chance for p in points], signs)
    rows = [
        (
            f"{p.n:,}",
            _signed(number(p.score), signs),
            number(p.spread) if p.repeats > 1 else signs.none,
            f"{p.repeats}",
            number(p.chance),
            _marked(bar, p.n == findings.n, signs),
        )
        for p, bar in zip(points, bars, strict=True)
    ]
    title = f"Numbers of items: layer pair {_pair(findings.layers)} on drawn subsets"
    headers = ("n", "mean", "spread", "draws", "chance", "")
    return f"{title}\n" + _table(rows, None, headers, "rrrrrl") + _key(0.0, signs)


def _hubs(findings: Findings, signs: Signs) -> str:
    hubs = findings.hubs
    if hubs is None:
        return ""
    rows = [
        (
            "skewness",
            _signed(f"{hubs.model_skewness:.2f}", signs),
            _signed(f"{hubs.reference_skewness:.2f}", signs),
            "of in-degrees: 0 where they are even",
        ),
        (
            "largest",
            f"{hubs.model_largest:.1f}",
            f"{hubs.reference_largest:.1f}",
            "in-degree of the greatest hub, in units of k",
        ),
        (
            "orphans",
            f"{100 * hubs.model_orphans:.1f} %",
            f"{100 * hubs.reference_orphans:.1f} %",
            "share of items that are nobody's neighbour",
        ),
    ]
    title = "Hubs: items that are the neighbours of very many"
    lines = [f"{title}\n" + _table(rows, None, ("", "model", "reference", ""), "lrrl")]
    said = [
        f"The 1 % of the items that carry most of the score carry {100 * hubs.carried:.1f} % of it"
        + ("." if hubs.without is None else f"; the score without them is {number(hubs.without)}.")
    ]
    if hubs.warning is not None:
        said.append(f"Warning: {one_line(hubs.warning)}.")
    lines += [_INDENT + line for each in said for line in textwrap.wrap(each, WIDTH - len(_INDENT))]
    return "\n".join(lines)


def _missing(shown: Shown) -> str:
    lacking = missing(shown.findings)
    if shown.source == CACHE:
        said = (
            "Controls that need the captions or the model itself are in result files only: shared "
            "words, re-initialised, weights shuffled."
        )
        return "\n".join(textwrap.wrap(said, WIDTH))
    if not lacking or shown.findings.metric != HEADLINE:
        return ""
    if shown.findings.hubs is not None:  # which every version makes that makes the rest
        said = f"Not computed, for want of draws or of items: {', '.join(lacking)}."
        return "\n".join(textwrap.wrap(said, WIDTH))
    if shown.task is None:
        return ""
    said = (
        f"Not in this record, which an older version of prh_eval made: {', '.join(lacking)}. "
        "Where the model's graphs are kept, this makes them:"
    )
    return "\n".join([*textwrap.wrap(said, WIDTH), f"{_INDENT}{remake(shown)}"])


# ---------------------------------------------------------------- tables and bars


def _table(
    rows: Sequence[Sequence[str]],
    widths: Sequence[int | None] | None = None,
    headers: Sequence[str] = (),
    align: str = "",
) -> str:
    from tabulate import tabulate

    sides = {"l": "left", "r": "right"}
    table = tabulate(
        rows,
        headers,
        tablefmt="plain" if not headers else "simple",
        maxcolwidths=widths,
        colalign=[sides[side] for side in align] or None,
        disable_numparse=True,
    )
    return textwrap.indent("\n".join(line.rstrip() for line in table.splitlines()), _INDENT)


def _bars(values: Sequence[float], chances: Sequence[float | None], signs: Signs) -> list[str]:
    """A bar for each value, on one scale from 0; what chance alone would reach of it is shaded."""
    largest = max(0.0, *values)
    bars = []
    for value, chance in zip(values, chances, strict=True):
        length = max(value, 0.0) / largest * _BAR if largest else 0.0
        shaded = min(round(max(chance or 0.0, 0.0) / largest * _BAR) if largest else 0, int(length))
        whole = int(length + 1e-9)
        eighths = int((length - whole) * 8) if signs.parts else 0
        end = signs.parts[eighths - 1] if eighths else ""
        bars.append(signs.shade * shaded + signs.full * (whole - shaded) + end)
    return bars


def _marked(bar: str, marked: bool, signs: Signs) -> str:
    return f"{bar} {signs.chosen}" if marked else bar


def _key(chance: float | None, signs: Signs) -> str:
    """What the bars are, where chance is in them."""
    return (
        ""
        if chance is None
        else f"\n{_INDENT}{signs.shade} by chance alone  {signs.full} beyond it"
    )
