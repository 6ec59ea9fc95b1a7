"""What the statistics of a board say, as parts of the HTML page: its answer, and their table."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from prh_eval.leaderboard.board import (
    LEVEL,
    Association,
    Board,
    BoardColumn,
    Coefficient,
    CoefficientInterval,
)
from prh_eval.leaderboard.pages.elements import element, scrolling, section
from prh_eval.leaderboard.pages.formats import (
    MISSING,
    coefficient,
    counted,
    interval,
    models_of,
    p_stated,
    p_value,
)


def answer(board: Board) -> Element:
    """The question, the answer by the first association, and the numbers behind it."""
    found = next(iter(board.associations), None)
    section = element("section", class_="answer", aria_labelledby="answer")
    if found is None or not board.rows:
        verdict = "This board has no models yet." if not board.rows else "Nothing to compare yet."
        section.append(element("h2", verdict, class_="verdict", id="answer"))
        return section
    x, y = board.column(found.x), board.column(found.y)
    section.extend(
        [
            element("p", f"Does {_subject(x)} predict {y.label}?", class_="question"),
            element("h2", _verdict(found, x, y), class_="verdict", id="answer"),
        ]
    )
    given = found.given_parameters
    if given.value is not None:
        size = f"Given the models' size, the correlation is {coefficient(given.value)}."
        section.append(element("p", size))
    if not found.primary:
        exploratory = (
            "No primary hypothesis was declared: everything here is exploratory, and read at p "
            "after Holm’s adjustment for the number of pairs."
        )
        section.append(element("p", exploratory, class_="note"))
    if found.spearman.value is not None:
        section.append(element("dl", *(_fact(*fact) for fact in _facts(found)), class_="facts"))
    return section


def _subject(column: BoardColumn) -> str:
    return f"alignment with {column.label}" if column.kind == "alignment" else column.label


def _verdict(found: Association, x: BoardColumn, y: BoardColumn) -> str:
    value, p = found.spearman.value, found.p if found.primary else found.p_holm
    if value is None:
        return f"Not known: {found.spearman.note}."
    if p is None:
        return f"Not testable with {_models_of(found)}."
    if p >= LEVEL:
        return f"Not shown: {_models_of(found)} do not tell it from chance."
    more = "more aligned with" if x.kind == "alignment" else "with higher"
    scored = y.kind == "task" and y.higher_is_better
    less = "higher" if value > 0 else "lower"
    does = f"score {less} on" if scored else f"have {less}"
    who = "Models" if found.primary else "Exploratory: models"
    return f"{who} {more} {x.label} {does} {y.label}."


def _facts(found: Association) -> Iterator[tuple[str, str, str]]:
    """Name, value and explanation of the numbers behind the answer."""
    yield "Spearman’s ρ", coefficient(found.spearman.value), f"over {_models_of(found)}"
    by_family, by_model = found.over_families, found.over_models
    yield (
        "95 % interval",
        interval(by_family.low, by_family.high),
        _joined(
            "bootstrap over families",
            by_family.note,
            f"over models as if independent: {interval(by_model.low, by_model.high)}",
        ),
    )
    how = "all sign flips of families" if found.p_exact else "sign flips of families"
    tested = f"two-sided, {how}" if found.p is not None else None
    if found.primary:
        other = f"{p_value(found.p_holm)} after Holm" if found.p_holm is not None else None
        yield "p", p_value(found.p), _joined(tested, other, found.p_note)
    else:
        other = f"{p_value(found.p)} before" if found.p is not None else None
        yield "p after Holm", p_value(found.p_holm), _joined(tested, other, found.p_note)
    noise = found.with_noise
    yield (
        "With noise",
        interval(noise.low, noise.high),
        _joined("95 % as scores are redrawn from their errors", noise.note),
    )
    yield "Given parameters", *_explained(found.given_parameters, "partial Spearman")
    yield "Within families", *_explained(found.within_families, "pooled over families")
    left = found.leave_one_family_out
    most = f"{left.most_influential} matters most" if left.most_influential else None
    yield (
        "Leaving one family out",
        interval(left.low, left.high),
        _joined(most, left.note),
    )
    yield "Base models alone", *_explained(found.base_only, "Spearman")


def _explained(found: Coefficient, what: str) -> tuple[str, str]:
    models = counted(found.n, "model")
    return coefficient(found.value), _joined(f"{what}, {models}", found.note)


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)


def _fact(name: str, value: str, detail: str) -> Element:
    number = element("dd", value, class_="value")
    explanation = element("dd", detail, class_="detail")
    return element("div", element("dt", name), number, explanation)


def in_words(found: Association) -> str:
    """The statistics line of a plot."""
    if found.spearman.value is None:
        return f"No correlation: {found.spearman.note}."
    low, high = found.over_families.low, found.over_families.high
    bounds = f" (95 % {interval(low, high)})" if low is not None else ""
    parts = [
        f"Spearman {coefficient(found.spearman.value)}{bounds} over {_models_of(found)}",
        _p_read(found) or found.p_note,
        "the primary hypothesis" if found.primary else "exploratory",
    ]
    return _joined(*parts) + "."


def statistics_table(board: Board) -> Element | None:
    """The section with the table of all associations; None where there are none."""
    footnotes = _Footnotes()
    if not board.associations:
        return None
    headings = (
        "Columns", "Models", "Families", "Spearman", "95 % over families", "95 % over models",
        "95 % with noise", "p", "p after Holm", "Kendall τ-b", "Pearson", "Given parameters",
        "Given compute", "Within families", "Leaving one family out", "Base models",
    )  # fmt: skip
    head = element("tr")
    for name in headings:
        label = element("span", name, class_="label")
        head.append(element("th", label, scope="col", class_="number" if len(head) else None))

    def line(found: Association) -> Element:
        def value(of: Coefficient) -> Element:
            return _number(coefficient(of.value), footnotes.mark(of.note))

        def limits(of: CoefficientInterval) -> Element:
            return _number(interval(of.low, of.high), footnotes.mark(of.note))

        left = found.leave_one_family_out
        most = f" ({left.most_influential})" if left.most_influential else ""
        badge = element("span", "exploratory", class_="badge")
        if found.primary:
            badge = element("span", "primary", class_="badge primary")
        pair = f"{board.column(found.x).label} → {board.column(found.y).label}"
        return element(
            "tr",
            element("th", pair, element("br"), badge, scope="row"),
            _number(str(found.models)),
            _number(MISSING if found.families is None else str(found.families)),
            value(found.spearman),
            limits(found.over_families),
            limits(found.over_models),
            limits(found.with_noise),
            _number(p_value(found.p), footnotes.mark(found.p_note)),
            _number(p_value(found.p_holm)),
            *map(value, (found.kendall_b, found.pearson, found.given_parameters)),
            *map(value, (found.given_compute, found.within_families)),
            _number(interval(left.low, left.high) + most, footnotes.mark(left.note)),
            value(found.base_only),
        )

    body = element("tbody", *map(line, board.associations))
    read_at = "No row is primary: all are exploratory, and read at p after Holm."
    if any(each.primary for each in board.associations):
        read_at = "The primary row is read at p, the exploratory ones at p after Holm."
    title = "How columns go together"
    caption = element("caption", title, class_="hidden")
    return section(
        title,
        element(
            "p",
            "Models of a family share data and recipe and are not independent: the interval over "
            "families redraws whole families, and p is from flipping the signs of whole families. "
            "Leaving one family out gives a range, and the family that matters most. Holm’s "
            f"adjustment is over all rows. {read_at}",
            class_="note",
        ),
        scrolling(element("table", caption, element("thead", head), body), title),
        footnotes.listed(),
    )


def _number(text: str, mark: Element | None = None) -> Element:
    return element("td", text, mark, class_="number")


def _p_read(found: Association) -> str | None:
    """The p that an association is read at: its own if it is primary, else that after Holm."""
    p = found.p if found.primary else found.p_holm
    if p is None:
        return None
    return p_stated(p, "p" if found.primary else "p after Holm")


def _models_of(association: Association) -> str:
    return models_of(association.models, association.families)


class _Footnotes:
    """Notes under a table, each said once."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def mark(self, note: str | None) -> Element | None:
        """A link to a note, which is added where it is new."""
        if note is None:
            return None
        if note not in self.notes:
            self.notes.append(note)
        number = self.notes.index(note) + 1
        return element("sup", element("a", str(number), href=f"#note-{number}"))

    def listed(self) -> Element | None:
        """The notes as a list."""
        notes = [element("li", note, id=f"note-{at}") for at, note in enumerate(self.notes, 1)]
        return element("ol", *notes, class_="notes") if notes else None
