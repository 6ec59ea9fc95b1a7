"""The page, read by another program's Markdown parser."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sample_board import HOSTILE, by_other_metrics, sample_board

from prh_eval.leaderboard.associations import associations
from prh_eval.leaderboard.board import Board, LeftOut
from prh_eval.leaderboard.config import BoardConfig
from prh_eval.leaderboard.pages import formats
from prh_eval.leaderboard.pages.escaping import (
    code_block,
    markdown,
    markdown_alternative,
    markdown_link,
)
from prh_eval.leaderboard.pages.markdown import MARKER, readme
from prh_eval.leaderboard.pages.plots import figures

BOARD = sample_board()
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# What GitHub makes links, mentions and formulas of once Markdown is done.
FOUND_LATER = re.compile(r"@|\$|https?://|www\.|:[\w+-]+:", re.IGNORECASE)
OWN_TAGS = r"<!--[^<]*-->|</?details>|<summary>[^<]*</summary>"


@dataclass
class Page:
    """What a reader of the page sees."""

    text: str

    def __post_init__(self) -> None:
        self.tokens = PARSER.parse(self.text)
        self.tables: list[list[list[str]]] = []
        self.links: list[tuple[str, str]] = []
        self.images: list[tuple[str, str]] = []
        self.pieces: list[str] = []  # of text between tags, as GitHub's filters see it
        self.code: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.items: list[str] = []
        before = ""
        for token in self.tokens:
            if token.type == "table_open":
                self.tables.append([])
            elif token.type == "tr_open":
                self.tables[-1].append([])
            elif token.type == "fence":
                self.code.append((token.info, token.content))
            elif token.type == "html_block":
                left = re.sub(OWN_TAGS, "", token.content)
                assert not left.strip(), f"a tag of a file: {left}"
            elif token.type == "inline":
                shown = self.inline(token)
                if before in ("th_open", "td_open"):
                    self.tables[-1][-1].append(shown)
                elif before == "heading_open":
                    self.headings.append(shown)
                elif before == "paragraph_open":
                    self.items.append(shown)
            before = token.type

    def inline(self, token: Token) -> str:
        shown = ""
        link: tuple[str, int] | None = None
        for child in token.children or []:
            if child.type == "html_inline":
                assert child.content in ("<span>", "</span>"), f"a tag: {child.content}"
            elif child.type == "link_open":
                link = str(child.attrs["href"]), len(shown)
            elif child.type == "link_close":
                assert link
                self.links.append((shown[link[1] :], link[0]))
            elif child.type == "image":
                alt = PARSER.renderer.renderInlineAsText(child.children, PARSER.options, {})
                self.images.append((alt, str(child.attrs["src"])))
            else:
                # One character is nothing by itself: it stands in a span of its own.
                self.pieces += [child.content] * (child.type == "text" and len(child.content) > 1)
                shown += child.content if child.type != "softbreak" else " "
        return shown

    def table(self, *headings: str) -> list[dict[str, str]]:
        """The lines of the one table that has these headings."""
        found = [table for table in self.tables if set(headings) <= set(table[0])]
        assert len(found) == 1, [table[0] for table in self.tables]
        (head, *lines) = found[0]
        assert len(set(head)) == len(head)
        return [dict(zip(head, line, strict=True)) for line in lines]

    def paragraph(self, start: str) -> str:
        (found,) = (item for item in self.items if item.startswith(start))
        return found


def page(board: Board, *, with_figures: bool = False) -> Page:
    return Page(readme(board, with_figures=with_figures))


def with_error(value: float, stderr: float | None) -> str:
    return f"{value:.3f}" + ("" if stderr is None else f"\u00a0±\u00a0{stderr:.3f}")


def visible(text: str) -> str:
    """A text as it should be seen: on one line, without what cannot be seen."""
    kept = "".join(c for c in text if c not in DIRECTIONS)
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", kept).split()) or "—"


def smaller(**changes: object) -> Board:
    """A board of fewer rows or columns, with the statistics that it then has."""
    board = BOARD.model_copy(update=changes)
    primary = ("prh_align", "hellaswag")
    if "associations" in changes:
        return board
    found = associations(board.columns, board.rows, primary)
    return board.model_copy(update={"associations": found})


# ---------------------------------------------------------------- what it shows


def test_begins_with_what_it_is():
    text = readme(BOARD, with_figures=False)
    assert text.splitlines()[:5] == [MARKER, "", "# Sample board", "", BOARD.about]
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert "\n\n\n" not in text


def test_the_models_with_all_that_is_known_in_their_order():
    lines = page(BOARD).table("Tier", "dtype")
    for row, line in zip(BOARD.rows, lines, strict=False):
        alignment, hellaswag = row.cells["prh_align"], row.cells["hellaswag"]
        gsm8k, bits = row.cells.get("gsm8k"), row.cells.get("prh_align:bits_per_byte")
        assert list(line.values()) == [
            str(alignment.tier),
            row.name,
            row.family,
            line["Parameters"],
            with_error(alignment.value, alignment.stderr),
            f"{alignment.layer}/{alignment.reference_layer}",
            with_error(hellaswag.value, hellaswag.stderr),
            with_error(gsm8k.value, gsm8k.stderr) if gsm8k else "—",
            f"{bits.value:.3f}" if bits else "—",
            row.dtype,
        ]
        number, unit = float(line["Parameters"][:-1]), {"M": 1e6, "B": 1e9}[line["Parameters"][-1]]
        assert number * unit == pytest.approx(row.parameters, rel=0.005)
    assert any(line["GSM8K, 5-shot"] == "—" for line in lines[: len(BOARD.rows)])


def test_controls_and_baselines_stand_below_the_models():
    lines = page(BOARD).table("Tier", "dtype")[len(BOARD.rows) :]
    column = "Alignment with DINOv2-giant"
    shown = [
        (line["Model"], line["Tier"], line[column], line["HellaSwag, 10-shot"]) for line in lines
    ]
    control = BOARD.controls[0].cells["prh_align"]
    assert shown == [
        (
            "model-0, untrained (untrained weights)",
            "",
            with_error(control.value, control.stderr),
            "—",
        ),
        ("shared words", "", "0.070", ""),
        ("chance", "", f"{10 / 1023:.3f}", "0.250"),
    ]


def test_the_other_references_have_a_table_of_their_own():
    lines = page(BOARD).table("Model", "CLIP ViT-H")
    for row, line in zip(BOARD.rows, lines, strict=False):
        cell = row.cells["prh_align_clip"]
        assert line == {"Model": row.name, "CLIP ViT-H": with_error(cell.value, cell.stderr)}
    assert [line["CLIP ViT-H"] for line in lines[-2:]] == ["0.070", "0.010"]
    alone = smaller(columns=tuple(c for c in BOARD.columns if c.key != "prh_align_clip"))
    assert "other references" not in readme(alone, with_figures=False)


def test_calibrated_alignment_has_a_column_where_it_was_given():
    first = BOARD.rows[0]
    cells = {**first.cells, "prh_align": first.cells["prh_align"].model_copy()}
    cells["prh_align"] = cells["prh_align"].model_copy(update={"calibrated": 0.0625})
    rows = (first.model_copy(update={"cells": cells}), *BOARD.rows[1:])
    shown = page(smaller(rows=rows)).table("Tier", "DINOv2-giant, calibrated")
    assert [line["DINOv2-giant, calibrated"] for line in shown[:2]] == ["0.062", "—"]
    assert not any("calibrated" in str(table[0]) for table in page(BOARD).tables)
    without = "Calibrated alignment (corrected for chance) is not reported by these runs."
    assert without in page(BOARD).items and without not in page(smaller(rows=rows)).items


def test_headings_of_scores_tell_where_lower_is_better():
    columns = [
        column.model_copy(update={"higher_is_better": False}) if column.key == "gsm8k" else column
        for column in BOARD.columns
    ]
    (line, *_) = page(smaller(columns=tuple(columns))).table("Tier", "dtype")
    assert [heading for heading in line if "lower" in heading] == [
        "GSM8K, 5-shot (lower is better)",
        "bits per byte (lower is better)",
    ]


def test_columns_tell_few_shot_version_and_what_alignment_was_measured_on():
    lines = page(BOARD).table("Column", "Few-shot", "Version")
    for column, line in zip(BOARD.columns, lines, strict=True):
        assert line["Column"] == column.label and line["lm-eval task"] == column.task
        assert line["Few-shot"] == ("—" if column.n_shot is None else str(column.n_shot))
        assert (line["Version"], line["Models"]) == (column.version, str(column.models))
        assert line["Better"] == ("higher" if column.higher_is_better else "lower")
    assert lines[3]["Metric"] == "exact_match,strict-match" and lines[2]["Metric"] == "acc_norm"
    line = page(BOARD).table("Fingerprint", "n", "k")[1]
    assert list(line.values()) == [
        *("CLIP ViT-H", "clip_huge", "minhuh/prh", "f" * 12, "1,024", "10", "paper", "mean"),
    ]
    assert "n = 1,024 items of minhuh/prh with k = 10" in page(BOARD).paragraph("What is measured.")


@pytest.mark.parametrize(
    ("metrics", "said", "not_said"),
    [
        ({}, ["overlap", "representations score k / (n - 1) = 0.010"], ["metric in brackets"]),
        (
            {"prh_align_clip": ("cka", None)},
            ["overlap", "with CLIP ViT-H (cka) is by the metric in brackets instead."],
            ["unrelated", "(mnn)"],
        ),
        (
            {"prh_align": ("cka", None), "prh_align_clip": ("procrustes", None)},
            ["by the metric in brackets: DINOv2-giant (cka) and CLIP ViT-H (procrustes)."],
            ["overlap", "unrelated", "None"],
        ),
        (
            {"prh_align": ("triplets", 0.5), "prh_align_clip": ("triplets", 0.5)},
            ["where unrelated representations score 0.500, and set beside"],
            ["overlap", "k / (n - 1)"],
        ),
    ],
)
def test_each_metric_is_called_by_its_name(metrics, said, not_said):
    text = page(by_other_metrics(BOARD, **metrics)).paragraph("What is measured.")
    assert all(each in text for each in said), text
    assert not any(each in text for each in not_said), text


def test_the_row_of_chance_has_none_where_the_metric_has_none():
    (line,) = (
        line
        for line in page(by_other_metrics(BOARD, prh_align=("cka", None))).table("Tier", "Family")
        if "chance" in line.values()
    )
    assert f"{10 / 1023:.3f}" not in line.values() and "0.250" in line.values()


def test_references_measured_on_different_data_are_not_said_to_be_alike():
    first, second, *others = BOARD.columns
    facts = second.alignment.model_copy(update={"n": 512})
    columns = (first, second.model_copy(update={"alignment": facts}), *others)
    said = page(smaller(columns=columns)).paragraph("What is measured.")
    assert "1,024" not in said and "listed below" in said


def test_correlations_line_by_line():
    shown = page(BOARD).table("Line", "Spearman")
    more = page(BOARD).table("Line", "Given size")
    names = {column.key: column.label for column in BOARD.columns}
    for number, each in enumerate(BOARD.associations, 1):
        line = shown[number - 1]
        within, left = each.over_families, each.leave_one_family_out
        assert list(line.values()) == [
            f"{number}, primary" if number == 1 else f"{number}, exploratory",
            f"{names[each.x]} and {names[each.y]}",
            str(each.models),
            "7",
            f"{each.spearman.value:.2f}",
            f"{within.low:.2f}\u00a0to\u00a0{within.high:.2f}",
            f"{each.p:.3f}",
            f"{each.p_holm:.3f}",
            f"{each.kendall_b.value:.2f}",
            f"{each.pearson.value:.2f}",
        ]
        assert list(more[number - 1].values()) == [
            str(number),
            f"{names[each.x]} and {names[each.y]}",
            *(
                f"{of.value:.2f}" + ("" if of.n == each.models else f" ({of.n})")
                for of in (each.given_parameters, each.given_compute, each.within_families)
            ),
            f"{left.low:.2f}\u00a0to\u00a0{left.high:.2f} ({left.most_influential})",
            f"{each.base_only.value:.2f} ({each.base_only.n})",
            f"{each.over_models.low:.2f}\u00a0to\u00a0{each.over_models.high:.2f}",
            f"{each.with_noise.low:.2f}\u00a0to\u00a0{each.with_noise.high:.2f}",
        ]
    assert len(shown) == len(more) == len(BOARD.associations)


def test_the_answer_is_the_primary_hypothesis():
    said = page(BOARD).paragraph("What it says.")
    first = BOARD.associations[0]
    for number in (first.spearman.value, first.over_families.low, first.given_parameters.value):
        assert f"{number:.2f}" in said
    assert "21 models of 7 families" in said and "only 7 families: rough" in said
    assert "more than chance (p = 0.016; only 7 families: rough)." in said


def test_the_answer_over_many_families_has_no_warning():
    board = sample_board(families=12)
    assert board.associations[0].p < 0.001 and board.associations[0].p_note is None
    said = page(board).paragraph("What it says.")
    assert said.endswith("By the test over families that is more than chance (p <\u00a00.001).")


@pytest.mark.parametrize("declared", [True, False])
def test_reading_is_told_by_whether_a_hypothesis_is_primary(declared):
    pair = ("prh_align", "hellaswag") if declared else None
    found = associations(BOARD.columns, BOARD.rows, pair)
    whole = page(smaller(associations=found), with_figures=True)
    assert ("One hypothesis is primary" in whole.text) == declared
    assert ("No hypothesis is primary" in whole.text) != declared
    roles = [line["Line"].split(", ")[1] for line in whole.table("Line", "Spearman")]
    assert roles == ["primary" if declared else "exploratory", *["exploratory"] * 7]
    said = whole.paragraph("What it says.")
    assert ("exploratory and is read at p (Holm)." in said) != declared


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"p": 0.2}, "that is no more than chance may give (p = 0.200"),
        ({"p": 0.0004}, "that is more than chance (p <\u00a00.001; only 7 families: rough)."),
        ({"p": 0.0004, "p_note": None}, "that is more than chance (p <\u00a00.001)."),
        ({"p": None, "p_note": None}, "Whether that is more than chance is not testable."),
        ({"p": None, "p_note": "not testable: 3 of the at least 6 families needed"},
         "Whether that is more than chance is not testable: 3 of the at least 6 families needed."),
        ({"primary": False}, "No hypothesis is declared as the primary one"),
    ],
)  # fmt: skip
def test_the_answer_claims_no_more_than_the_test(changes, said):
    first, *others = BOARD.associations
    board = smaller(associations=(first.model_copy(update=changes), *others))
    assert said in page(board).paragraph("What it says.")


def test_a_note_is_said_once_with_the_lines_it_is_on():
    text = readme(BOARD, with_figures=False).split("## Does alignment")[1]
    assert text.count("only 7 families: rough.") == 1
    assert "- 95 % over families, p, 95 % with noise of lines 1, 2, 4, 5; 95 % over" in text
    # Bits per byte have no errors, of which lines 3 and 6 to 8 tell.
    assert "over families, p of lines 3, 6-8: only 7 families: rough." in text
    first, *others = BOARD.associations
    noted = first.given_compute.model_copy(update={"value": None, "note": "odd"})
    changed = first.model_copy(update={"given_compute": noted})
    board = smaller(associations=(changed, *others))
    assert "given compute of line 1: odd." in page(board).items
    assert page(board).table("Line", "Given size")[0]["Given compute"] == "—"


def test_a_card_that_the_page_shows_is_a_card():
    (card,) = (code for info, code in page(BOARD).code if info == "yaml")
    config = BoardConfig.model_validate(
        {"references": [{"task": "prh_align"}], **yaml.safe_load(card)}
    )
    assert config.models[0].parameters == 160e6 and config.models[0].kind == "base"


def test_commands_that_add_a_model_run_every_task_with_its_few_shot_count():
    (block,) = (code for info, code in page(BOARD).code if "--output_path" in code)
    found = {}
    for line in block.splitlines():
        words = shlex.split(line)
        shots = words[words.index("--num_fewshot") + 1] if "--num_fewshot" in words else None
        found[words[words.index("--tasks") + 1]] = shots
    assert found == {"prh_align,prh_align_clip": None, "hellaswag": "10", "gsm8k": "5"}


def test_commands_name_no_folder_but_the_page_s_own():
    text = readme(BOARD, with_figures=True)
    assert "leaderboard/" not in text
    assert text.count("--output_path results") == 4
    assert text.count("prh-eval leaderboard results --output .") == 2
    assert "prh-eval leaderboard validate results/org__model" in text


def test_every_row_has_its_commands():
    whole = page(BOARD)
    shown = [code for info, code in whole.code if info == "bash"]
    for row in (*BOARD.rows, *BOARD.controls):
        assert row.reproduce[0] + "\n" in shown


def test_what_was_left_out_and_chosen():
    whole = page(BOARD)
    (left,) = BOARD.left_out
    assert f"{left.reason} (limited/results.json)" in whole.items
    path = "a/b.json"
    for what, reason in ((path, "it is no JSON"), ("m", f"m is refused: {path} has no score")):
        once = LeftOut(what=what, reason=reason, files=(path,))
        assert readme(smaller(left_out=(once,)), with_figures=False).count(path) == 1
    assert BOARD.remarks[0] in whole.items
    many = tuple(
        LeftOut(what=f"m{i}", reason="It was cut.", files=("a", "b", "c", "d")) for i in range(30)
    )
    text = readme(smaller(left_out=many), with_figures=False)
    assert "<summary>30 runs, scores and files</summary>" in text
    assert "m7: It was cut. (a, b, c and 1 more)" in Page(text).items


def test_figures_with_their_alternative_texts_the_primary_first():
    whole = page(BOARD, with_figures=True)
    drawn = figures(BOARD)
    assert len(drawn) > 3
    assert sorted(whole.images) == sorted(
        (visible(figure.alt), f"figures/{figure.name}.svg") for figure in drawn
    )
    assert whole.images[0][1] == "figures/task-hellaswag.svg"
    emphasised = BOARD.columns[0].model_copy(update={"label": "_x_"})
    marked = page(smaller(columns=(emphasised, *BOARD.columns[1:])), with_figures=True)
    assert marked.images[0][0].startswith("Scatter plot of HellaSwag against alignment with _x_:")
    linked = {address for _, address in whole.links}
    assert {f"figures/{f.name}.png" for f in drawn} <= linked
    text = readme(BOARD, with_figures=True)
    assert text.index("figures/task-hellaswag.svg") < text.index("## Models")
    assert text.index("## Figures") < text.index("figures/task-gsm8k.svg")
    assert not page(BOARD).images and "figures/" not in readme(BOARD, with_figures=False)


# ---------------------------------------------------------------- boards with little on them


OF_ALIGNMENT = tuple(column for column in BOARD.columns if column.kind == "alignment")
OF_TASKS = tuple(column for column in BOARD.columns if column.kind == "task")
FEW = {
    "no model": {"rows": ()},
    "nothing": {"rows": (), "controls": (), "columns": (), "left_out": (), "remarks": ()},
    "one model": {"rows": BOARD.rows[:1]},
    "three models": {"rows": BOARD.rows[:3]},
    "one family": {"rows": tuple(row for row in BOARD.rows if row.family == "Family 3")},
    "no family": {"rows": tuple(r.model_copy(update={"family": None}) for r in BOARD.rows)},
    "no task": {"columns": OF_ALIGNMENT},
    "no alignment": {"columns": OF_TASKS},
    "no score of the first": {
        "columns": (BOARD.columns[0].model_copy(update={"alignment": None}), *BOARD.columns[1:]),
        "rows": tuple(
            row.model_copy(
                update={"cells": {k: c for k, c in row.cells.items() if k != "prh_align"}}
            )
            for row in BOARD.rows
        ),
    },
    "no control": {"controls": ()},
    "no association": {"associations": ()},
    "bare models": {
        "rows": tuple(
            row.model_copy(
                update=dict.fromkeys(
                    ("dtype", "commit", "family", "parameters", "training_tokens", "release_date",
                     "kind", "licence", "link"),
                )
                | {"reproduce": (), "revision": "", "backend": ""}
            )
            for row in BOARD.rows
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", FEW.values(), ids=FEW.keys())
@pytest.mark.parametrize("with_figures", [False, True])
def test_little_is_shown_as_little(changes, with_figures):
    # Figures are of associations.
    whole = page(smaller(**changes), with_figures=with_figures and "associations" not in changes)
    text = whole.text
    assert "None" not in text and "nan" not in re.sub(r"\w*nan\w+", "", text)
    assert all(len(table) > 1 for table in whole.tables)
    # No heading stands over nothing: of its own rank or above.
    ranks = [
        int(token.tag[1])
        if token.type == "heading_open"
        else 9
        for token in whole.tokens
        if token.level == 0 and token.type != "heading_close" and token.content == ""
    ]  # fmt: skip
    assert all(after > before for before, after in itertools.pairwise(ranks) if before < 9)
    assert ranks[-1] == 9
    wrong_width(text)


def wrong_width(text: str) -> None:
    """Every line of a table has the pipes of its head: no cell too many or too few."""
    lines = re.findall(r"(?m)^(?:\|.*\|\n)+", text)
    for table in lines:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_what_little_says():
    said = {
        name: page(smaller(**changes)).paragraph("What it says.") for name, changes in FEW.items()
    }
    assert "no model is on the board" in said["no model"]
    assert "cannot be told yet: 1 model is too few" in said["one model"]
    assert "not testable: 1 of the at least 6 families" in said["one family"]
    assert "the family of 21 of 21 models is not stated" in said["no family"]
    assert "has no task" in said["no task"]
    assert "cannot be told yet" in said["no score of the first"]


# ---------------------------------------------------------------- what files may hold


def test_hostile_names_are_text():
    board = sample_board(hostile=True)
    whole = page(board, with_figures=True)
    wrong_width(whole.text)
    lines = whole.table("Tier", "dtype")
    assert [line["Model"] for line in lines[: len(board.rows)]] == [
        visible(row.name) for row in board.rows
    ]
    assert not [piece for piece in whole.pieces if FOUND_LATER.search(piece)]
    known = {row.link for row in board.rows} | {
        "https://arxiv.org/abs/2405.07987", "leaderboard.csv", "leaderboard.json",
        "leaderboard.html", "leaderboard.schema.json",
    }  # fmt: skip
    assert {a for _, a in whole.links if not a.startswith("figures/")} == known


def named(name: str) -> Board:
    """A board on which a text stands wherever a file's text can."""
    row, *others = BOARD.rows[:3]
    card = dict.fromkeys(
        ("name", "model", "revision", "dtype", "adapter", "commit", "backend", "family", "licence",
         "notes"), name,
    )  # fmt: skip
    rows = (row.model_copy(update=card), *others)
    first, *more = BOARD.columns
    facts = {key: name for key in ("reference", "data", "captions", "protocol", "pooling")}
    columns = (
        first.model_copy(
            update={
                "label": name, "task": name, "metric": name, "filter": name, "version": name,
                "alignment": first.alignment.model_copy(update=facts),
            }
        ),
        *more,
    )  # fmt: skip
    control = BOARD.controls[0].model_copy(update={"name": name, "control": name})
    return BOARD.model_copy(
        update={
            "title": name, "rows": rows, "columns": columns, "controls": (control,),
            "left_out": (LeftOut(what=name, reason="It was cut.", files=(name, name)),),
            "remarks": (name,),
            "associations": tuple(
                each.model_copy(
                    update={
                        "p_note": name,
                        "leave_one_family_out": each.leave_one_family_out.model_copy(
                            update={"most_influential": name, "note": name}
                        ),
                    }
                )
                for each in BOARD.associations
            ),
        }
    )  # fmt: skip


nasty = st.text(
    st.sampled_from("ab1 |\\`*_[]()<>&!~#$@:/.-+=\"'{}^\n\r\t\x00\u2028\u202e\ud800é"), max_size=12
)
hostile = st.one_of(
    nasty, st.text(max_size=12), st.sampled_from([*HOSTILE, "https://a.b", "www.a.b", ":cat:"])
)


@functools.cache
def of_a_plain_name() -> list[str]:
    """The blocks of a page on which nothing is hostile."""
    return [t.type for t in page(named("x"), with_figures=True).tokens if t.level == 0]


@settings(max_examples=40)
@given(hostile)
@example("\\|")
@example("`|`")
@example("1. - + # a")
@example("</details>\n\n# x")
@example("---")
@example("a--b----c")
@example("a\rb")
@example("&amp; &#124; &copy;")
@example("\n")
@example("@a $b$ :c_d: HTTP://x WWW.x")
def test_any_text_anywhere(name):
    whole = page(named(name), with_figures=True)
    wrong_width(whole.text)
    seen = visible(name.encode("utf-8", "replace").decode())
    line = whole.table("Tier", "Model")[0]
    assert [line["Model"], line["Family"], line["dtype"]] == [seen] * 3
    assert whole.headings[0] == seen
    assert not [piece for piece in whole.pieces if FOUND_LATER.search(piece)]
    allowed = {row.link for row in BOARD.rows} | {"https://arxiv.org/abs/2405.07987"}
    for _, address in whole.links:
        assert address in allowed or re.fullmatch(r"leaderboard\.\S+|figures/\S+|#columns", address)
    assert [t.type for t in whole.tokens if t.level == 0] == of_a_plain_name()


@given(hostile)
def test_text_in_every_place_of_markdown(text):
    seen = visible(text.encode("utf-8", "replace").decode())
    places = {
        "{}": ["paragraph_open"],
        "# {}": ["heading_open"],
        "- {}": ["bullet_list_open", "list_item_open", "paragraph_open"],
        "- **{}**": ["bullet_list_open", "list_item_open", "paragraph_open"],
        "[{}](https://a.b)": ["paragraph_open"],
    }
    for place, opened in places.items():
        source = place.format(markdown(text))
        tokens = PARSER.parse(source)
        assert [t.type for t in tokens if t.nesting == 1] == opened, source
        assert Page(source).headings + Page(source).items == [seen]
    (paragraph,) = (t for t in PARSER.parse(f"![{markdown_alternative(text)}](a)") if t.children)
    (image,) = paragraph.children
    assert PARSER.renderer.renderInlineAsText(image.children, PARSER.options, {}) == seen


@given(st.text(st.sampled_from("a`~\n <>/"), max_size=20))
@example("```\n````\n~~~")
def test_code_ends_where_it_should(text):
    tokens = PARSER.parse(code_block(text, "bash") + "\n\nafter")
    assert [token.type for token in tokens] == [
        "fence", "paragraph_open", "inline", "paragraph_close",
    ]  # fmt: skip
    assert tokens[0].content == text + "\n"


def test_links_lead_where_they_say_or_are_none():
    addresses = [
        "https://a.b/c_(d)_[e]?x=1&copy=2#f",
        "https://a.b/x|y",
        "https://a.b/?x&amp;y&copy;z",
        "https://a.b/\\*`*`$z$",
        "http://a.b/%20c",
    ]
    for address in addresses:
        source = markdown_link("m", address)
        assert "|" not in source and "$" not in source
        ((text, found),) = Page(source).links
        # Browsers read both alike: what is encoded stands for itself.
        assert (
            text == "m" and re.sub(r"%(?!20)(..)", lambda m: chr(int(m[1], 16)), found) == address
        )
    for address in ("javascript:alert(1)", "data:text/html,x", "//a.b", "", None):
        assert markdown_link("m", address) == "m"


def test_a_row_is_a_line_without_padding():
    wide = sample_board()
    rows = (wide.rows[0].model_copy(update={"name": "模型" * 20}), *wide.rows[1:])
    before = readme(wide, with_figures=False).splitlines()
    after = readme(wide.model_copy(update={"rows": rows}), with_figures=False).splitlines()
    changed = [line for line, other in zip(before, after, strict=True) if line != other]
    assert all(wide.rows[0].name in line for line in changed)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [(93504, "93.5K"), (162322944, "162M"), (6.9e9, "6.9B"), (999.96e6, "1B"), (15e12, "15T"),
     (512, "512"), (None, "—"), (70e6, "70M"), (1.4e9, "1.4B")],
)  # fmt: skip
def test_amounts(value, shown):
    assert formats.amount(value) == shown


def test_numbers():
    assert formats.score(12345678.0) == "1.23e+07" and formats.score(0.0) == "0.000"
    assert formats.coefficient(-0.0001) == "0.00" and formats.coefficient(None) == "—"
    assert formats.p_stated(0.016) == "p = 0.016" and formats.p_stated(1e-4) == "p <\u00a00.001"
    assert formats.p_value(None) == "not testable" and formats.p_value(0.0042) == "0.004"
    assert formats.ranges([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7, 8"
    assert formats.counted(1, "family", "families") == "1 family"
    assert formats.counted(1200, "model") == "1,200 models"
