"""A board as one self-contained HTML page, which asks the network for nothing.

All of it is static: page.js only makes the table sort and filter, and draws the plot. Elements are
built by ElementTree, which escapes every text; what the script needs is JSON beside it.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from string import Template
from xml.etree.ElementTree import Element

from prh_eval.leaderboard.board import Board, BoardColumn, Row
from prh_eval.leaderboard.pages.elements import (
    Child,
    element,
    is_web,
    link,
    markup,
    scrolling,
    section,
)
from prh_eval.leaderboard.pages.formats import counted, score
from prh_eval.leaderboard.pages.page_fields import Field, Shown, table_fields
from prh_eval.leaderboard.pages.page_statistics import answer, in_words, statistics_table
from prh_eval.leaderboard.pages.tabular import baselines
from prh_eval.leaderboard.pages.wording import SIMILARITY, by_metric, is_mnn

GENERATOR = "prh-eval leaderboard"
"""Content of the meta tag by which a page is known as one of ours."""


def html_page(board: Board) -> str:
    """The page of a board: question, answer, plot, table, all statistics, and what was left out.

    Only links that begin with http:// or https:// are links on the page.
    """
    fields = table_fields(board)
    sections = (
        statistics_table(board),
        _reproduce(board.rows + board.controls),
        _left_out(board),
        _remarks(board),
    )
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src "
    return Template(_part("page.html")).substitute(
        policy=policy + f"{_hash(script)}; base-uri 'none'; form-action 'none'",
        generator=GENERATOR,
        title=html.escape(board.title),
        style=style,
        header=markup(_header(board)),
        answer=markup([answer(board)]),
        table_note=markup([_table_note(board)]),
        models=markup([_models(board, fields)]),
        sections=markup(part for part in sections if part is not None),
        footer=markup([_footer(board)]),
        data=_script_data(_data(board, fields)),
        script=script,
    )


# ---------------------------------------------------------------- the page's parts


def _header(board: Board) -> Iterator[Element]:
    yield element("h1", board.title)
    if board.about:
        # Of its Markdown, only code is more than text here.
        parts = re.split(r"`([^`]+)`", board.about)
        yield element("p", *(element("code", t) if n % 2 else t for n, t in enumerate(parts)))
    alignment = [column for column in board.of_kind("alignment") if column.alignment]
    if alignment:
        yield element(
            "p",
            *_defined(alignment),
            " Tasks are run by ",
            link("https://github.com/EleutherAI/lm-evaluation-harness", "lm-evaluation-harness"),
            ".",
        )


def _defined(columns: Sequence[BoardColumn]) -> Iterator[Child]:
    """What alignment is by the metrics of these columns, in sentences."""
    first = next(filter(is_mnn, columns), None)
    if first and (facts := first.alignment):
        yield (
            f"Alignment is mutual k-nearest-neighbour overlap: for each of {facts.n:,} captions, "
            f"the share of its {facts.k} nearest neighbours by a language model's representation "
            f"that are also neighbours by {first.label}'s representation of the items that "
            "the captions describe ("
        )
        yield link("https://arxiv.org/abs/2405.07987", "Huh et al. 2024")
        yield ")."
    others = [column for column in columns if not is_mnn(column)]
    if others and first:
        yield f" Alignment with {by_metric(others)} is by the metric in brackets instead."
    elif others:
        yield f"{SIMILARITY}, by the metric in brackets: {by_metric(others)}."


def _breakable(name: str) -> Iterator[Child]:
    """A name that may be broken into lines after its slashes."""
    first, *rest = name.split("/")
    yield first
    for part in rest:
        yield "/"
        yield element("wbr")
        yield part


def _table_note(board: Board) -> Element:
    tiers = any(cell.tier for row in board.rows for cell in row.cells.values())
    note = "Scores are given with one standard error. "
    if tiers:
        note += (
            "The badge is a tier: models of one tier are not told apart from its best by their "
            "errors (5 % level). "
        )
    return element("span", note + "A dash is a score that was not measured.")


def _models(board: Board, fields: Sequence[Field]) -> Element:
    sorted_by = next((f for f in fields if f.column and f.column.kind == "alignment"), None)
    head = element("tr", *(_heading(field, field is sorted_by) for field in fields))
    body = element("tbody")
    for number, row in enumerate(board.rows):
        line = element("tr", *_cells(row, fields), data_row=str(number))
        line.tail = "\n"
        body.append(line)
    table = element(
        "table",
        element("caption", "Models and their scores", class_="hidden"),
        element("thead", head),
        body,
        _controls(board, fields),
        id="table",
        class_="models",
    )
    return scrolling(table, "Models and their scores")


def _heading(field: Field, sorted_by: bool) -> Element:
    return element(
        "th",
        element("span", field.label, class_="label"),
        element("small", field.detail) if field.detail else None,
        scope="col",
        class_=_alignment(field),
        aria_sort=("ascending" if field.rising else "descending") if sorted_by else None,
    )


def _cells(row: Row, fields: Sequence[Field]) -> Iterator[Element]:
    words = _breakable(row.name)
    name = element("bdi", *words)  # so that letters from right to left turn nothing but themselves
    if row.link and is_web(row.link):
        name = link(row.link, name)
    lines = element("span", name, element("small", row.control) if row.control else None)
    yield element("th", element("div", lines, class_="named"), scope="row")
    for field in fields[1:]:
        yield _cell(field.read(row), field)


def _alignment(field: Field) -> str:
    """The class by which a column's text is aligned."""
    if field.column:
        return "score"
    return "number" if field.kind == "number" else "plain"


def _cell(shown: Shown, field: Field) -> Element:
    kind = _alignment(field)
    if shown.value is None:
        return element("td", shown.text, class_=f"{kind} missing")
    value, sign, error = shown.text.partition("\u00a0±")
    tier = None
    if shown.tier is not None:
        first = " first" if shown.tier == 1 else ""
        word = element("span", " tier ", class_="hidden")
        tier = element("span", word, str(shown.tier), class_=f"tier{first}")
    about = element("span", sign + error, class_="error") if error else None
    return element("td", value, about, tier, class_=kind)


def _controls(board: Board, fields: Sequence[Field]) -> Element:
    """Rows to hold a score against: models that are controls, shared words, chance."""
    body = element("tbody", class_="controls")
    rows = [element("tr", *_cells(row, fields)) for row in board.controls]
    for name, values in baselines(board).items():
        found = [values.get(field.column.key) if field.column else None for field in fields]
        cells = [_cell(Shown(v, score(v)), f) for v, f in zip(found, fields, strict=True)]
        rows.append(element("tr", element("th", name.capitalize(), scope="row"), *cells[1:]))
    if rows:
        title = element("span", "For comparison")
        group = element("th", title, class_="group", scope="rowgroup", colspan=str(len(fields)))
        body.extend([element("tr", group), *rows])
    return body


def _reproduce(rows: Sequence[Row]) -> Element | None:
    if not rows:
        return None
    parts: list[Element] = []
    for row in rows:
        facts = [
            row.model,
            f"revision {row.revision}" if row.revision else None,
            f"commit {row.commit}" if row.commit else None,
            row.dtype,
            row.adapter,
            row.backend,
            row.notes,
        ]
        parts.append(element("h3", row.name))
        parts.append(element("p", " · ".join(fact for fact in facts if fact), class_="note"))
        parts.extend(element("pre", element("code", command)) for command in row.reproduce)
    summary = element("summary", f"Commands for {counted(len(rows), 'row', 'rows')}")
    return section("How to reproduce each row", element("details", summary, *parts))


def _left_out(board: Board) -> Element | None:
    if not board.left_out:
        return None
    items: list[Element] = []
    for (what, reason), group in groupby(board.left_out, lambda each: (each.what, each.reason)):
        names = ", ".join(name for each in group for name in each.files)
        found = element("small", names)
        items.append(element("li", element("strong", what), f": {reason}", element("br"), found))
    return section("Left out", element("ul", *items))


def _remarks(board: Board) -> Element | None:
    if not board.remarks:
        return None
    return section("Remarks", element("ul", *(element("li", remark) for remark in board.remarks)))


def _footer(board: Board) -> Element:
    read = counted(board.files, "result file")
    return element("p", f"Made by {GENERATOR} from {read}. This page asks the network for nothing.")


# ---------------------------------------------------------------- data for the script


def _data(board: Board, fields: Sequence[Field]) -> dict[str, object]:
    """What page.js needs: columns and families by their number, so that no name is ever a key."""
    families = sorted({row.family for row in board.rows if row.family is not None})
    place = {field.column.key: at for at, field in enumerate(fields) if field.column}
    parameters = next(at for at, field in enumerate(fields) if field.axis)
    first = next(iter(board.associations), None)
    levels = baselines(board)
    return {
        "fields": [
            {
                "label": field.axis_label,
                "kind": field.kind,
                "log": field.log,
                "axis": field.axis,
                "first": "ascending" if field.rising else "descending",
                "levels": [
                    [values[field.column.key], name]
                    for name, values in levels.items()
                    if field.column and field.column.key in values
                ],
            }
            for field in fields
        ],
        "families": families,
        "rows": [_row_data(row, fields, families) for row in board.rows],
        "controls": [_control_data(row, fields) for row in board.controls],
        "pairs": [[place[each.x], place[each.y], in_words(each)] for each in board.associations],
        "parameters": parameters,
        "x": place[first.x] if first else next(iter(place.values()), parameters),
        "y": place[first.y] if first else parameters,
    }


def _row_data(row: Row, fields: Sequence[Field], families: Sequence[str]) -> dict[str, object]:
    shown = [field.read(row) for field in fields]
    words = (row.name, row.model, row.family, row.licence, row.dtype)
    return {
        "name": row.name,
        "family": -1 if row.family is None else families.index(row.family),
        "kind": row.kind,
        "parameters": row.parameters,
        "search": "\n".join(word for word in words if word).lower(),
        "values": [each.value for each in shown],
        "errors": [each.error for each in shown],
        "shown": [each.text for each in shown],
    }


def _control_data(row: Row, fields: Sequence[Field]) -> dict[str, object]:
    """A control in the plot: it is of no family there."""
    return _row_data(row.model_copy(update={"family": None}), fields, ()) | {"control": row.control}


def _script_data(data: object) -> str:
    """JSON that ends no script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source in a Content-Security-Policy: this very text and no other."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
