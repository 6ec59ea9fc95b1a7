"""The statistics on the forge's page, and how to read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from prh_eval.leaderboard.board import (
    Association,
    Board,
    Coefficient,
    CoefficientInterval,
    Omission,
)
from prh_eval.leaderboard.pages.escaping import markdown
from prh_eval.leaderboard.pages.formats import MISSING, coefficient, interval, p_value, ranges
from prh_eval.leaderboard.pages.markdown_blocks import table

_WITH_PRIMARY = """\
- **One hypothesis is primary** and is read at its own p. All others are exploratory and are read at
  p (Holm), which is adjusted for the number of all lines."""

_WITHOUT_PRIMARY = """\
- **No hypothesis is primary**, for `board.yaml` declares none. All are exploratory and are read at
  p (Holm), which is adjusted for their number."""

_HOW_TO_READ = """\
- **Models of a family share data and recipe**, so that they are no independent witnesses. The 95 %
  interval therefore redraws whole families, and p is the share of the ways to flip the signs of the
  families' score sums that give a sum as far from 0 (all 2^F ways for up to 20 families, 20,000
  drawn ones above). It cannot be below 2 / 2^F: with fewer than 6 families nothing is testable at
  the 5 % level; with fewer than 10 both are rough.
- **The interval is rather too narrow**: simulated without any link, families being as alike as an
  intra-class correlation of 0.6, it misses 0 in 9 % of cases for 6 families and in 7 % for 8 to 20,
  not in 5 %. It misses 0 in 35 % for 2 families and in 11 % for 3, so that it is of no use there.
  The interval over models, as if they were independent, misses it in 19 to 22 % (6 families or
  more), and is there for contrast only.
- **Larger models are better at most things.** Given size is the partial Spearman correlation given
  log parameters; given compute, given log parameters and log training compute (6 × parameters ×
  tokens). Within families compares models of one family only.
- **Without one family** is the range of Spearman as each family in turn is left out, with the
  family that matters most. Base models alone is over the models that are stated as base; a model
  whose kind is not stated is left out too.
- **With noise** redraws both scores from their standard errors as well as the families. It leans to
  0, for the scores hold their noise once already: it shows what noise can do and corrects nothing.
- Numbers in brackets are models, where a coefficient is over fewer than the line's."""


def correlations(board: Board) -> Iterable[str]:
    """The section on the associations; nothing where there are none."""
    if not board.associations:
        return
    yield "## Does alignment go together with what models can do?"
    yield _main_correlations(board)
    yield (
        "Each coefficient is over the models that have both scores; the interval and both p take "
        "the family as the unit. Whether it is more than size, and how much hangs on one family:"
    )
    yield _more_correlations(board)
    yield _notes(board.associations)
    yield "### How to read this"
    declared = any(each.primary for each in board.associations)
    yield f"{_WITH_PRIMARY if declared else _WITHOUT_PRIMARY}\n{_HOW_TO_READ}"


def _main_correlations(board: Board) -> str:
    headings = ["Line", "Between", "Models", "Families", "Spearman"]
    headings += ["95 % over families", "p", "p (Holm)", "Kendall tau-b", "Pearson"]
    lines = []
    for number, each in enumerate(board.associations, 1):
        spearman = coefficient(each.spearman.value)
        strong = each.primary and each.spearman.value is not None
        line = [
            f"{number}, {'**primary**' if each.primary else 'exploratory'}",
            " and ".join(labels(board, each)),
            str(each.models),
            MISSING if each.families is None else str(each.families),
            f"**{spearman}**" if strong else spearman,
            _interval(each.over_families),
            p_shown(each.p),
            MISSING if each.p_holm is None else p_shown(each.p_holm),
            coefficient(each.kendall_b.value),
            coefficient(each.pearson.value),
        ]
        lines.append(line)
    return table(headings, lines, ["left", "left", *["right"] * 8])


def _more_correlations(board: Board) -> str:
    headings = ["Line", "Between", "Given size", "Given compute", "Within families"]
    headings += ["Without one family", "Base models alone", "95 % over models", "95 % with noise"]
    lines = [
        [
            str(number),
            " and ".join(labels(board, each)),
            _coefficient(each.given_parameters, each.models),
            _coefficient(each.given_compute, each.models),
            _coefficient(each.within_families, each.models),
            _omission(each.leave_one_family_out),
            _coefficient(each.base_only, each.models),
            _interval(each.over_models),
            _interval(each.with_noise),
        ]
        for number, each in enumerate(board.associations, 1)
    ]
    return table(headings, lines, ["right", "left", *["right"] * 7])


def _coefficient(found: Coefficient, models: int) -> str:
    shown = coefficient(found.value)
    return shown if found.value is None or found.n == models else f"{shown} ({found.n})"


def _interval(found: CoefficientInterval) -> str:
    return interval(found.low, found.high)


def _omission(found: Omission) -> str:
    family = f" ({markdown(found.most_influential)})" if found.most_influential else ""
    return interval(found.low, found.high) + family


def _notes(associations: Sequence[Association]) -> str:
    """Why a number is missing or what to hold against it: each note once, and where it holds."""
    places: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for number, each in enumerate(associations, 1):
        of_line: defaultdict[str, list[str]] = defaultdict(list)
        for name, note in _noted(each):
            if note:
                of_line[note].append(name)
        for note, names in of_line.items():
            places.setdefault(note, {}).setdefault(tuple(names), []).append(number)
    items = []
    for note, found in places.items():
        where = "; ".join(
            f"{', '.join(names)} of {_lines(numbers, len(associations))}"
            for names, numbers in found.items()
        )
        items.append(f"- {where}: {markdown(note)}.")
    return "Notes:\n\n" + "\n".join(items) if items else ""


def _noted(each: Association) -> list[tuple[str, str | None]]:
    return [
        ("Spearman", each.spearman.note),
        ("95 % over families", each.over_families.note),
        ("p", each.p_note),
        ("Kendall tau-b", each.kendall_b.note),
        ("Pearson", each.pearson.note),
        ("given size", each.given_parameters.note),
        ("given compute", each.given_compute.note),
        ("within families", each.within_families.note),
        ("without one family", each.leave_one_family_out.note),
        ("base models alone", each.base_only.note),
        ("95 % over models", each.over_models.note),
        ("95 % with noise", each.with_noise.note),
    ]


def _lines(numbers: Sequence[int], total: int) -> str:
    if len(numbers) == total > 1:
        return "all lines"
    return f"line{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def labels(board: Board, each: Association) -> tuple[str, str]:
    """What an association is between."""
    return markdown(board.column(each.x).label), markdown(board.column(each.y).label)


def p_shown(p: float | None) -> str:
    """A p-value in Markdown."""
    return p_value(p).replace("<", "&lt;")
