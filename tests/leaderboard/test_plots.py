"""Which figures a board has, and what is said and plotted in them, against the board's numbers."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pytest
from sample_board import by_other_metrics
from sample_board import sample_board as make_board
from scipy import stats

from prh_eval.leaderboard.associations import associations
from prh_eval.leaderboard.pages.plots import MOST_PANELS, best_layer, figures, panels

sample_board = functools.cache(make_board)

ALL = [
    "task-hellaswag",
    "task-gsm8k",
    "references",
    "given-parameters",
    "parameters",
    "release-date",
    "bits-per-byte",
    "layers",
    "correlations",
]


def with_rows(board, change, columns=None):
    """A board whose rows are changed, or left out where the change is None, with its statistics."""
    rows = tuple(row for row in map(change, board.rows) if row is not None)
    columns = board.columns if columns is None else tuple(columns)
    primary = next(((a.x, a.y) for a in board.associations if a.primary), None)
    found = associations(columns, rows, primary)
    return board.model_copy(update={"rows": rows, "columns": columns, "associations": found})


def without(board, **values):
    return with_rows(board, lambda row: row.model_copy(update=values))


def with_columns(board, kept):
    return with_rows(board, lambda row: row, [c for c in board.columns if kept(c)])


def names(board):
    return [figure.name for figure in figures(board)]


def named(board, name):
    return next(figure for figure in figures(board) if figure.name == name)


def pairs(board, x, y):
    """Values of both columns by the model's name."""
    both = [row for row in board.rows if x in row.cells and y in row.cells]
    return {row.name: (row.cells[x].value, row.cells[y].value) for row in both}


def spearman(values):
    return stats.spearmanr(*zip(*values.values(), strict=True)).statistic


def test_nothing_that_draws_is_imported():
    code = (
        "import sys, prh_eval.leaderboard.pages.plots, prh_eval.leaderboard.pages.drawing\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('matplotlib', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_figures_of_a_full_board_in_the_order_of_a_page():
    assert names(sample_board()) == ALL


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        (lambda b: without(b, parameters=None), {"parameters", "given-parameters"}),
        (lambda b: without(b, parameters=7e7), {"parameters"}),
        (lambda b: without(b, release_date=None), {"release-date"}),
        (lambda b: without(b, release_date="2024-02-29"), {"release-date"}),
        (lambda b: with_columns(b, lambda c: c.kind != "bits per byte"), {"bits-per-byte"}),
        (
            lambda b: with_columns(b, lambda c: c.kind != "task"),
            {"task-hellaswag", "task-gsm8k", "references", "given-parameters"},
        ),
        (lambda b: with_columns(b, lambda c: c.key != "prh_align_clip"), {"references"}),
        (
            lambda b: with_columns(b, lambda c: c.key in ("prh_align", "hellaswag")),
            {"task-gsm8k", "references", "bits-per-byte", "correlations"},
        ),
    ],
)
def test_a_figure_that_would_show_nothing_is_not_there(change, gone):
    assert names(change(sample_board())) == [name for name in ALL if name not in gone]


def test_profiles_and_constant_columns():
    def flat(row):
        cells = {
            key: cell.model_copy(update={"profile": None, "value": 0.25})
            for key, cell in row.cells.items()
        }
        return row.model_copy(update={"cells": cells})

    found = names(with_rows(sample_board(), flat))
    assert not {"layers", "correlations", "given-parameters"} & set(found)
    assert "task-hellaswag" in found


def test_boards_of_no_model_one_model_and_no_reference():
    board = sample_board()
    assert figures(with_rows(board, lambda row: None)) == ()
    best = board.rows[0].name
    assert names(with_rows(board, lambda row: row if row.name == best else None)) == ["layers"]
    assert figures(with_columns(board, lambda c: c.kind != "alignment")) == ()


def test_many_references_are_few_figures():
    board = sample_board(families=2)
    first = board.column("prh_align")
    more = [first.model_copy(update={"key": f"r{i}", "label": f"R{i}"}) for i in range(29)]
    columns = [first, *more, *(c for c in board.columns if c.kind == "task")]

    def add(row):
        cells = {c.key: row.cells["prh_align"] for c in more}
        return row.model_copy(update={"cells": row.cells | cells})

    board = with_rows(board, add, columns)
    assert len(names(board)) == 8
    assert len(panels(board, named(board, "references"))) == MOST_PANELS == 9
    assert "the first 9 of 30 references" in named(board, "references").title
    assert len(named(board, "correlations").references) == 30


def test_the_declared_task_is_that_of_all_references():
    board = sample_board()
    found = associations(board.columns, board.rows, ("prh_align", "gsm8k"))
    board = board.model_copy(update={"associations": found})
    assert named(board, "references").others == ("gsm8k",)


def test_file_names_are_safe_and_of_one_figure_each():
    board = sample_board()
    keys = ["A/b", "a_b", "../../etc/passwd", "日本", "语言", "x" * 300]
    task = board.column("hellaswag")
    columns = [board.column("prh_align"), *(task.model_copy(update={"key": k}) for k in keys)]

    def add(row):
        cells = {"prh_align": row.cells["prh_align"]} | dict.fromkeys(keys, row.cells["hellaswag"])
        return row.model_copy(update={"cells": cells})

    found = names(with_rows(board, add, columns))
    assert len(set(found)) == len(found) == 6 + 5
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) and len(name) < 80 for name in found)


# ---------------------------------------------------------------- what is said


def test_the_alternative_text_of_a_task_has_the_numbers():
    board = sample_board()
    alt = named(board, "task-gsm8k").alt
    values = pairs(board, "prh_align", "gsm8k")
    found = next(a for a in board.associations if (a.x, a.y) == ("prh_align", "gsm8k"))
    low, high = found.over_families.low, found.over_families.high
    assert f"{len(values)} models of 7 families" in alt
    assert f"Spearman {spearman(values):.2f}, 95 % interval over families {low:.2f} to" in alt
    assert f"to {high:.2f}." in alt
    assert f"{found.leave_one_family_out.most_influential} matters most" in alt
    assert (
        f"Best aligned: {board.rows[0].name} ({board.rows[0].cells['prh_align'].value:.3f})" in alt
    )


def test_the_other_alternative_texts_have_theirs():
    board = sample_board()
    alts = {figure.name: figure.alt for figure in figures(board)}
    bits = pairs(board, "prh_align:bits_per_byte", "prh_align")
    assert f"{len(bits)} models" in alts["bits-per-byte"]
    assert f"Spearman {spearman(bits):.2f}" in alts["bits-per-byte"]
    size = {row.name: (row.parameters, row.cells["prh_align"].value) for row in board.rows}
    assert f"Spearman {spearman(size):.2f}" in alts["parameters"]
    assert "2020-01-15 to 2025-03-15" in alts["release-date"]
    clip = spearman(pairs(board, "prh_align_clip", "hellaswag"))
    assert f"CLIP ViT-H {clip:.2f} (" in alts["references"]
    partial = next(a for a in board.associations if a.primary).given_parameters.value
    assert f"HellaSwag {partial:.2f} (plain Spearman " in alts["given-parameters"]
    assert "DINOv2-giant and HellaSwag 0.96 (primary)" in alts["correlations"]
    assert "0 of 6 cells not testable" in alts["correlations"]
    depths = [
        row.cells["prh_align"].layer / (len(row.cells["prh_align"].profile) - 1)
        for row in board.rows
    ]
    assert f"{min(depths):.2f} to {max(depths):.2f}" in alts["layers"]
    assert f"at the median {np.median(depths):.2f}" in alts["layers"]


def test_hostile_names_break_no_text():
    board = with_rows(
        sample_board(hostile=True),
        lambda row: row.model_copy(update={"family": f'<b>\n"{row.family}"](x)|$`\\'}),
    )
    evil = "<script>\n\x00[x](y) 😀 \ufffe"
    columns = tuple(c.model_copy(update={"label": f"{evil} {c.key}"}) for c in board.columns)
    for figure in figures(board.model_copy(update={"columns": columns})):
        assert not set(figure.alt) & set("<>[]|`\"'*$\\\n\r\t\x00\ufffe") - set("'"), figure.alt
        assert figure.alt.isprintable()
        assert figure.title.isprintable()


def test_without_families_there_is_no_interval_and_no_family():
    board = without(sample_board(), family=None)
    alt = named(board, "task-hellaswag").alt
    assert "21 models. Spearman 0.96; no interval over families." in alt
    assert "matters" not in alt
    (panel,) = panels(board, named(board, "task-hellaswag"))
    assert "no interval (the family of 21 of 21 models is not stated)" in panel.statistics[0]
    assert "not testable" in panel.statistics[1]


# ---------------------------------------------------------------- what is plotted


@pytest.mark.parametrize("task", ["hellaswag", "gsm8k"])
def test_points_are_the_cells(task):
    board = sample_board()
    (panel,) = panels(board, named(board, f"task-{task}"))
    cells = {row.name: row.cells for row in board.rows}
    assert {p.row.name: (p.x, p.y) for p in panel.points} == pairs(board, "prh_align", task)
    for p in panel.points:
        assert p.x_error == cells[p.row.name]["prh_align"].stderr
        assert p.y_error == cells[p.row.name][task].stderr
    assert panel.x.levels == (("chance", 10 / 1023), ("shared words", 0.07))


def test_a_metric_without_a_chance_level_has_none_on_its_axis():
    board = by_other_metrics(sample_board(), prh_align=("cka", None))
    (panel,) = panels(board, named(board, "task-hellaswag"))
    assert panel.x.levels == (("shared words", 0.07),)
    assert panel.x.detail == "cka, k = 10, n = 1024"


def test_alignment_is_above_bits_per_byte():
    board = sample_board()
    (panel,) = panels(board, named(board, "bits-per-byte"))
    expected = pairs(board, "prh_align:bits_per_byte", "prh_align")
    assert {p.row.name: (p.x, p.y) for p in panel.points} == expected
    assert "lower is better" in panel.x.detail


def test_sizes_and_dates():
    board = sample_board()
    (panel,) = panels(board, named(board, "parameters"))
    assert all(p.x == p.row.parameters for p in panel.points)
    assert [p.row.control for p in panel.controls] == ["untrained weights"]
    (panel,) = panels(board, named(board, "release-date"))
    for p in panel.points:
        assert date(1970, 1, 1) + timedelta(days=p.x) == date.fromisoformat(p.row.release_date)
        assert p.y == p.row.cells["prh_align"].value


def test_size_partialled_out():
    board = sample_board()
    for task, panel in zip(
        ("hellaswag", "gsm8k"), panels(board, named(board, "given-parameters")), strict=True
    ):
        rows = [p.row for p in panel.points]
        sizes = stats.rankdata([row.parameters for row in rows])
        for key, got in (
            ("prh_align", [p.x for p in panel.points]),
            (task, [p.y for p in panel.points]),
        ):
            ranks = stats.rankdata([row.cells[key].value for row in rows])
            line = np.polynomial.Polynomial.fit(sizes, ranks, 1)
            np.testing.assert_allclose(got, ranks - line(sizes), atol=1e-9)
        partial = stats.pearsonr([p.x for p in panel.points], [p.y for p in panel.points])
        assert f"log parameters {partial.statistic:.2f} (" in panel.statistics[0]


def test_the_statistics_of_a_panel_are_the_boards():
    board = sample_board()
    found = next(a for a in board.associations if a.primary)
    (panel,) = panels(board, named(board, "task-hellaswag"))
    text = "\n".join(panel.statistics).replace("\u00a0", " ")
    low, high = found.over_families.low, found.over_families.high
    assert f"Spearman {found.spearman.value:.2f}, 95 % interval over families {low:.2f} to" in text
    assert f"to {high:.2f} (only 7 families: rough)" in text
    assert f"p = {found.p:.3f} by sign flips of families ({found.p_holm:.3f} after Holm)" in text
    assert "primary hypothesis" in text
    (other,) = panels(board, named(board, "task-gsm8k"))
    assert "exploratory" in other.statistics[1]


@pytest.mark.parametrize(("layer", "expected"), [(2, 2), (None, 3), (9, 3)])
def test_the_best_layer_is_the_boards_or_where_the_profile_is_highest(layer, expected):
    row = sample_board().rows[0]
    cell = row.cells["prh_align"].model_copy(
        update={"profile": (0.1, 0.2, 0.3, 0.4, 0.4), "layer": layer}
    )
    row = row.model_copy(update={"cells": {"prh_align": cell}})
    assert best_layer(row, "prh_align") == expected
