"""The HTML page as text: parsed by Python's own parser, and by nothing of ours."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from leaderboard.sample_board import HOSTILE, by_other_metrics
from leaderboard.sample_board import sample_board as make_board

from prh_eval.leaderboard.board import Board, Coefficient, Row
from prh_eval.leaderboard.pages.page import GENERATOR, html_page

sample_board = functools.cache(make_board)

VOID = {"meta", "link", "br", "wbr", "input"}
SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str, **wanted: str) -> list[Node]:
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag and wanted.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **wanted)
        return found

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class Tree(HTMLParser):
    """A tree of nodes; a page whose tags do not match is an error."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        assert len(node.attributes) == len(attrs)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def tree(board: Board) -> Node:
    return Tree(html_page(board)).root


def embedded(page: Node) -> dict[str, list[dict[str, object]]]:
    (data,) = page.all("script", id="data")
    return json.loads(data.text)


def table(page: Node) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headings, rows of models, and rows for comparison, as text."""
    (found,) = page.all("table", id="table")
    headings = [
        cell.all("span", **{"class": "label"})[0].text for cell in found.all("th", scope="col")
    ]
    models, controls = found.all("tbody")

    def rows(body: Node) -> list[list[str]]:
        cells = ([c for c in row.children if isinstance(c, Node)] for row in body.all("tr"))
        return [[cell.text.replace("\u00a0", " ") for cell in row] for row in cells]

    return headings, rows(models), rows(controls)


def first_association(**changes: object) -> Board:
    """A board whose first association has other numbers."""
    board = sample_board()
    first = board.associations[0].model_copy(update=changes)
    return board.model_copy(update={"associations": (first, *board.associations[1:])})


def verdict(board: Board) -> str:
    (found,) = tree(board).all("h2", id="answer")
    return found.text


# ---------------------------------------------------------------- the table without a script


def test_every_score_is_in_the_page_itself() -> None:
    board = sample_board()
    headings, models, _ = table(tree(board))
    labels = [column.label for column in board.columns]
    assert headings[:3] == ["Model", "Family", "Parameters"]
    assert headings[3:8] == labels
    assert headings[8:] == [
        "Layer", "Training tokens", "Released", "Kind", "Precision", "Licence",
    ]  # fmt: skip
    assert len(models) == len(board.rows) == 21
    for row, cells in zip(board.rows, models, strict=True):
        assert cells[:2] == [row.name, row.family]
        assert re.fullmatch(r"[\d.]+[KMBT]", cells[2])
        assert float(cells[2][:-1]) * SUFFIXES[cells[2][-1]] == pytest.approx(row.parameters, 5e-3)
        for column, shown in zip(board.columns, cells[3:8], strict=True):
            cell = row.cells.get(column.key)
            if cell is None:
                assert shown == "—"
                continue
            error = "" if cell.stderr is None else f" ± {cell.stderr:.3f}"
            assert shown == f"{cell.value:.3f}{error} tier {cell.tier}"
        layers = row.cells["prh_align"]
        assert layers.profile is not None
        assert cells[8] == f"{layers.layer} of {len(layers.profile) - 1}"
        assert cells[10:] == [row.release_date, row.kind, "bfloat16", "Apache-2.0"]


def test_controls_and_levels_are_below_the_models() -> None:
    board = sample_board()
    _, _, controls = table(tree(board))
    assert [row[0] for row in controls[1:]] == [
        "model-0, untrained" + "untrained weights", "Shared words", "Chance",
    ]  # fmt: skip
    assert controls[2][3:8] == ["0.070", "0.070", "—", "—", "—"]
    assert controls[3][3:8] == ["0.010", "0.010", "0.250", "—", "—"]
    assert len({len(row) for row in controls[1:]}) == 1


def test_columns_say_how_they_were_measured() -> None:
    (found,) = tree(sample_board()).all("table", id="table")
    details = [cell.text for cell in found.all("thead")[0].all("small")]
    assert details[0] == "alignment · mnn · k = 10 · n = 1,024 · v1"
    assert details[2] == "acc_norm · 10-shot · v1"
    assert details[3] == "exact_match, strict-match · 5-shot · v1"
    assert details[4].endswith("lower is better")


@pytest.mark.parametrize(
    ("metrics", "said", "not_said"),
    [
        ({}, "overlap: for each of 1,024 captions", "metric in brackets"),
        ({"prh_align_clip": ("cka", None)}, "Alignment with CLIP ViT-H (cka) is by the", "(mnn)"),
        (
            {"prh_align": ("cka", None)},
            "neighbours by CLIP ViT-H's representation",
            "neighbours by DINOv2-giant's",
        ),
        (
            {"prh_align": ("cka", None), "prh_align_clip": ("rsa", 0.0)},
            "by the metric in brackets: DINOv2-giant (cka) and CLIP ViT-H (rsa).",
            "overlap",
        ),
    ],
)
def test_each_metric_is_called_by_its_name(
    metrics: dict[str, tuple[str, float | None]], said: str, not_said: str
) -> None:
    text = re.sub("<[^>]*>", "", html_page(by_other_metrics(make_board(), **metrics)))
    assert said in text and not_said not in text


def test_calibrated_alignment_has_a_column_where_it_is_known() -> None:
    board = sample_board()
    cell = board.rows[0].cells["prh_align"].model_copy(update={"calibrated": 0.1234})
    cells = board.rows[0].cells | {"prh_align": cell}
    rows = (board.rows[0].model_copy(update={"cells": cells}), *board.rows[1:])
    headings, models, _ = table(tree(board.model_copy(update={"rows": rows})))
    at = headings.index("DINOv2-giant, calibrated")
    assert [row[at] for row in models] == ["0.123"] + ["—"] * 20


def test_models_are_linked() -> None:
    page = tree(sample_board())
    links = {a.text: a.attributes["href"] for a in page.all("table")[0].all("a")}
    assert links == {row.name: row.link for row in sample_board().rows}


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", " javascript:x", "data:text/html,x", ""]
)
def test_only_web_addresses_are_links(address: str) -> None:
    board = sample_board()
    rows = tuple(row.model_copy(update={"link": address}) for row in board.rows)
    page = tree(board.model_copy(update={"rows": rows}))
    assert page.all("table")[0].all("a") == []
    assert table(page)[1][0][0] == board.rows[0].name


# ---------------------------------------------------------------- statistics


def test_the_associations_are_all_there() -> None:
    board = sample_board()
    _, found = tree(board).all("table")
    rows = [[c.text for c in row.children if isinstance(c, Node)] for row in found.all("tr")]
    assert len(rows) == 1 + len(board.associations)
    for each, cells in zip(board.associations, rows[1:], strict=True):
        shown = dict(zip(rows[0], cells, strict=True))
        x, y = board.column(each.x).label, board.column(each.y).label
        status = "primary" if each.primary else "exploratory"
        assert shown["Columns"] == f"{x} → {y}{status}"
        assert shown["Models"] == str(each.models)
        assert shown["Spearman"] == f"{each.spearman.value:.2f}"
        assert shown["Kendall τ-b"] == f"{each.kendall_b.value:.2f}"
        assert shown["p"].startswith(f"{each.p:.3f}")
        assert shown["p after Holm"] == f"{each.p_holm:.3f}"
        low, high = each.over_families.low, each.over_families.high
        # A figure at the end is the note's.
        bounds = f"{low:.2f} to {high:.2f}1".replace("-0.00", "0.00")
        assert shown["95 % over families"].replace("\u00a0", " ") == bounds


def test_notes_are_said_once_and_linked() -> None:
    page = tree(sample_board())
    notes = {f"#{li.attributes['id']}": li.text for li in page.all("li") if "id" in li.attributes}
    marks = {a.attributes["href"] for sup in page.all("sup") for a in sup.all("a")}
    assert marks == set(notes)
    said = list(notes.values())
    assert len(said) == len(set(said)) and "only 7 families: rough" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"p": 0.01}, "Models more aligned with DINOv2-giant score higher on HellaSwag."),
        (
            {"p": 0.01, "spearman": Coefficient(value=-0.5, n=21, note=None)},
            "Models more aligned with DINOv2-giant score lower on HellaSwag.",
        ),
        (
            {"p": 0.01, "y": "prh_align:bits_per_byte"},
            "Models more aligned with DINOv2-giant have higher bits per byte.",
        ),
        (
            {"p": 0.01, "x": "prh_align:bits_per_byte"},
            "Models with higher bits per byte score higher on HellaSwag.",
        ),
        ({"p": 0.05}, "Not shown: 21 models of 7 families do not tell it from chance."),
        ({"p": None, "families": 1}, "Not testable with 21 models of 1 family."),
        ({"p": None, "families": None}, "Not testable with 21 models."),
        (
            {"spearman": Coefficient(value=None, n=2, note="2 models are too few")},
            "Not known: 2 models are too few.",
        ),
        # Exploratory: the adjusted p decides.
        (
            {"primary": False, "p": 0.01, "p_holm": 0.2},
            "Not shown: 21 models of 7 families do not tell it from chance.",
        ),
        (
            {"primary": False, "p": 0.01, "p_holm": 0.02},
            "Exploratory: models more aligned with DINOv2-giant score higher on HellaSwag.",
        ),
        (
            {"primary": False, "p": None, "p_holm": None},
            "Not testable with 21 models of 7 families.",
        ),
    ],
)
def test_the_answer_says_what_the_test_says(changes: dict[str, object], expected: str) -> None:
    assert verdict(first_association(**changes)) == expected


def test_an_exploratory_answer_says_so() -> None:
    exploratory = first_association(primary=False, p=0.0123, p_holm=0.0456)
    text = tree(exploratory).text
    for words in (
        "No primary hypothesis was declared",
        "No row is primary: all are exploratory, and read at p after Holm.",
    ):
        assert words in text
        assert words not in tree(sample_board()).text
    assert "The primary row is read at p" in tree(sample_board()).text
    (facts,) = tree(exploratory).all("dl", **{"class": "facts"})
    assert "p after Holm0.046two-sided, all sign flips of families; 0.012 before" in facts.text
    assert "p after Holm = 0.046; exploratory." in str(embedded(tree(exploratory))["pairs"][0])


def test_facts_behind_the_answer() -> None:
    board = sample_board()
    first = board.associations[0]
    page = tree(board)
    facts = {
        div.all("dt")[0].text: [dd.text.replace("\u00a0", " ") for dd in div.all("dd")]
        for div in page.all("dl", **{"class": "facts"})[0].all("div")
    }
    assert facts["Spearman’s ρ"] == [f"{first.spearman.value:.2f}", "over 21 models of 7 families"]
    low, high = first.over_families.low, first.over_families.high
    assert facts["95 % interval"][0] == f"{low:.2f} to {high:.2f}"
    assert "only 7 families: rough" in facts["95 % interval"][1]
    assert facts["p"][0] == f"{first.p:.3f}"
    assert f"{first.p_holm:.3f} after Holm" in facts["p"][1]
    assert facts["Given parameters"][0] == f"{first.given_parameters.value:.2f}"
    assert facts["Leaving one family out"][1] == (
        f"{first.leave_one_family_out.most_influential} matters most"
    )


# ---------------------------------------------------------------- nothing leaves, nothing runs


def test_the_policy_allows_this_style_and_this_script_and_no_more() -> None:
    page = tree(sample_board(hostile=True))
    (meta,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = dict(
        part.strip().split(" ", 1) for part in (meta.attributes["content"] or "").split(";")
    )

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (style,) = page.all("style")
    data, script = page.all("script")
    assert data.attributes["type"] == "application/json"
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": source(style.text),
        "script-src": source(script.text),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_no_element_fetches_or_runs_anything() -> None:
    def walk(node: Node) -> None:
        for name, value in node.attributes.items():
            assert name not in ("src", "srcset", "style", "action", "ping")
            assert not name.startswith("on")
            if name == "href" and node.tag != "a":
                assert (value or "").startswith("data:")
        for child in node.children:
            if isinstance(child, Node):
                walk(child)

    page = tree(sample_board(hostile=True))
    walk(page)
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text
    script = page.all("script")[1].text
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "fetch(", "eval("):
        assert word not in script


def test_hostile_names_are_text() -> None:
    board = sample_board(hostile=True)
    page = tree(board)
    assert [row[0] for row in table(page)[1]] == [row.name for row in board.rows]
    assert {row[0] for row in table(page)[1]} >= set(HOSTILE)
    assert page.all("b") == [] and page.all("img") == [] and len(page.all("script")) == 2
    assert [row["name"] for row in embedded(page)["rows"]] == [row.name for row in board.rows]


TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("<>&\"'`=\n\u2028"), min_size=1
)


@settings(max_examples=30)
@given(TEXT)
@example("</script><script>alert(1)</script>")
@example("<!--<script>")
@example("]]>")
@example("&lt;&#60;")
@example("$title ${data} $$")
@example("constructor")
@example("__proto__")
def test_any_text_shows_as_it_is(text: str) -> None:
    board = _small(1)
    row = board.rows[0].model_copy(
        update={"name": text, "family": text, "licence": text, "notes": text, "reproduce": (text,)}
    )
    columns = (board.columns[0].model_copy(update={"label": text}), *board.columns[1:])
    about = text.replace("`", "'")  # see the next test
    changed = {"rows": (row,), "columns": columns, "title": text, "about": about}
    changed |= {"remarks": (text,)}
    page = tree(board.model_copy(update=changed))
    headings, models, _ = table(page)
    shown = text.replace("\u00a0", " ")
    assert headings[3] == text and models[0][:2] == [shown, shown]
    assert page.all("h1")[0].text == page.all("title")[0].text == text
    assert page.all("code")[0].text == text
    data = page.all("script")[0].text
    assert not re.search("[<>&\u2028\u2029]", data)
    assert embedded(page)["rows"][0]["name"] == text
    assert embedded(page)["families"] == [text]


def test_code_in_what_the_board_is_about() -> None:
    about = "Made by `prh-eval demo --seed 0`, `<b>` and a lone ` too."
    page = tree(_small(1).model_copy(update={"about": about}))
    assert [code.text for code in page.all("code")][:2] == ["prh-eval demo --seed 0", "<b>"]
    assert any(p.text == about.replace("`", "", 4) for p in page.all("p"))


# ---------------------------------------------------------------- the page as a whole


def test_the_page_is_known_as_ours() -> None:
    page = html_page(sample_board())
    assert f'<meta name="generator" content="{GENERATOR}">' in page
    root = Tree(page).root
    assert root.all("html")[0].attributes["lang"] == "en"
    assert root.all("title")[0].text == root.all("h1")[0].text == "Sample board"
    assert [h.attributes.get("id") for h in root.all("h1")] == [None]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_what_was_left_out_is_said() -> None:
    board = sample_board()
    text = tree(board).text
    assert board.left_out[0].reason in text and "limited/results.json" in text
    assert board.remarks[0] in text
    assert all(command in text for row in board.rows for command in row.reproduce)
    assert "from 22 result files" in text


def test_empty_parts_are_not_there() -> None:
    board = sample_board(left_out=(), remarks=(), associations=(), about=None)
    headings = [h.text for h in tree(board).all("h2")]
    assert headings == [
        "Nothing to compare yet.", "Model by model", "Models", "How to reproduce each row",
    ]  # fmt: skip


@pytest.mark.parametrize("models", [0, 1])
def test_few_models(models: int) -> None:
    page = tree(_small(models))
    assert len(table(page)[1]) == models == len(embedded(page)["rows"])
    assert page.all("dl", **{"class": "facts"}) == []


def test_a_board_of_nothing() -> None:
    board = sample_board(columns=(), rows=(), controls=(), associations=(), files=0, config=False)
    page = tree(board)
    assert table(page)[0] == ["Model", "Family", "Parameters"]
    assert "This board has no models yet." in page.text


def test_what_is_not_known_is_a_dash() -> None:
    board = sample_board()
    unknown = {
        "family": None, "parameters": None, "training_tokens": None, "release_date": None,
        "kind": None, "licence": None, "dtype": None, "link": None, "cells": {},
    }  # fmt: skip
    rows = tuple(row.model_copy(update=unknown) for row in board.rows[:2])
    page = tree(board.model_copy(update={"rows": rows, "controls": ()}))
    headings, models, _ = table(page)
    assert headings == ["Model", "Family", "Parameters", *(c.label for c in board.columns)]
    assert all(cell == "—" for row in models for cell in row[1:])
    assert [row["family"] for row in embedded(page)["rows"]] == [-1, -1]


def test_the_same_board_is_the_same_page_in_another_process() -> None:
    code = (
        "import hashlib; from leaderboard.sample_board import sample_board\n"
        "from prh_eval.leaderboard.pages.page import html_page\n"
        "print(hashlib.sha256(html_page(sample_board(hostile=True)).encode()).hexdigest())"
    )
    tests = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONHASHSEED": "7", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    page = html_page(sample_board(hostile=True))
    assert found.stdout.strip() == hashlib.sha256(page.encode()).hexdigest()


@pytest.mark.parametrize("dark", [False, True])
def test_marks_stand_out_from_the_background(dark: bool) -> None:
    # WCAG 2.2, criterion 1.4.11: 3:1 for what must be seen to understand a graphic.
    css = tree(sample_board()).all("style")[0].text
    pairs = re.findall(r"(--card|--paper|\.c\d \{ color): light-dark\((#\w+), (#\w+)\)", css)
    colours = {name: both[dark] for name, *both in pairs}
    grounds = [colours.pop("--card"), colours.pop("--paper")]
    assert len(colours) == 7
    for colour in colours.values():
        for ground in grounds:
            assert _contrast(colour, ground) >= 3, (colour, ground)


def _contrast(one: str, other: str) -> float:
    """Contrast of two colours by WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def _small(models: int) -> Board:
    """The first models of a board, and the statistics that are left of them."""
    board = sample_board(families=1, of_each=1)
    rows: tuple[Row, ...] = board.rows[:models]
    return board.model_copy(update={"rows": rows})
