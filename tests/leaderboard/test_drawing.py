"""Drawn figures: read by other programs, compared with the board, and looked at for overlaps."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sample_board import sample_board as make_board

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.associations import associations
from prh_eval.leaderboard.pages.drawing import composed, draw, drawn_from
from prh_eval.leaderboard.pages.plots import best_layer, figures, panels

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.collections import LineCollection, PathCollection  # noqa: E402
from matplotlib.text import Annotation  # noqa: E402

from prh_eval.leaderboard.pages import artists  # noqa: E402

# Deprecation of what matplotlib itself calls is not ours.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib"),
]
sample_board = functools.cache(make_board)
NAMES = [figure.name for figure in figures(sample_board())]
HOSTILE_FAMILIES = ("_hidden", "$x$ \\frac 😀", "<b>&\nname", "日本語", "long " * 30)


def named(board, name):
    return next(figure for figure in figures(board) if figure.name == name)


def with_rows(board, rows):
    found = associations(board.columns, rows, ("prh_align", "hellaswag"))
    return board.model_copy(update={"rows": tuple(rows), "associations": found})


@functools.cache
def hostile_board():
    rows = [
        row.model_copy(update={"family": HOSTILE_FAMILIES[i % 5]})
        for i, row in enumerate(sample_board(hostile=True).rows)
    ]
    evil = "<script>\n$\\alpha$ \x00 😀"
    board = with_rows(sample_board(hostile=True), rows)
    columns = tuple(c.model_copy(update={"label": f"{evil} {c.key}"}) for c in board.columns)
    return board.model_copy(update={"columns": columns})


@functools.cache
def sample_drawing(name):
    return draw(sample_board(), named(sample_board(), name))


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("name", NAMES)
def test_both_files_are_what_other_programs_read(name):
    drawn, figure = sample_drawing(name), named(sample_board(), name)
    with Image.open(io.BytesIO(drawn.png)) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == 1600
        assert 400 < image.height < 4000
        assert image.info["Title"] == figure.title
        assert image.info["Description"] == figure.alt
        corner = image.convert("RGBA").getpixel((0, 0))
    assert corner == (255, 255, 255, 255)  # in dark mode too
    root = ElementTree.fromstring(drawn.svg)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    assert root.get("role") == "img"
    assert root.findtext(f"{svg}title") == figure.title
    assert not list(root.iter(f"{svg}image")), "a picture within the picture"
    width, height = (float(root.get(side).removesuffix("pt")) for side in ("width", "height"))
    assert width / height == pytest.approx(image.width / image.height, rel=0.01)


@pytest.mark.parametrize("name", ["task-hellaswag", "correlations"])
def test_bytes_are_the_same_in_another_process_and_under_other_settings(name, tmp_path):
    rc = tmp_path / "matplotlibrc"
    rc.write_text(
        "font.family: DejaVu Serif\nfont.size: 20\nsvg.fonttype: none\nsavefig.bbox: tight\n"
        "savefig.dpi: 50\nfigure.facecolor: black\naxes.grid: True\nlines.linewidth: 9\n"
        "axes.unicode_minus: False\nsavefig.transparent: True\nfigure.autolayout: True\n"
        "svg.hashsalt: other\ntimezone: Asia/Tokyo\nhatch.linewidth: 7\naxes.titlepad: 40\n"
    )
    code = (
        "import hashlib, sys\nfrom sample_board import sample_board\n"
        "from prh_eval.leaderboard.pages.drawing import draw\n"
        "from prh_eval.leaderboard.pages.plots import figures\n"
        "board = sample_board()\n"
        "figure = next(f for f in figures(board) if f.name == sys.argv[1])\n"
        "drawn = draw(board, figure)\n"
        "print(*(hashlib.sha256(x).hexdigest() for x in (drawn.svg, drawn.png)))\n"
    )
    environment = os.environ | {
        "MATPLOTLIBRC": str(rc),
        "MPLBACKEND": "svg",
        "PYTHONHASHSEED": "77",
        "SOURCE_DATE_EPOCH": "1",
        "TZ": "Asia/Tokyo",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    drawn = sample_drawing(name)
    expected = [hashlib.sha256(content).hexdigest() for content in (drawn.svg, drawn.png)]
    assert done.stdout.split() == expected
    assert draw(sample_board(), named(sample_board(), name)) == drawn


def test_no_setting_is_left_changed():
    with matplotlib.rc_context({"font.size": 17, "svg.fonttype": "none"}):
        before = dict(matplotlib.rcParams)
        drawn = draw(sample_board(), named(sample_board(), "correlations"))
        assert dict(matplotlib.rcParams) == before
    assert drawn == sample_drawing("correlations")
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


def test_the_font_is_the_one_that_comes_with_matplotlib():
    found = Path(matplotlib.font_manager.findfont("DejaVu Sans"))
    assert found.is_relative_to(matplotlib.get_data_path())


def test_without_matplotlib_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PrhEvalError, match=r"pip install 'prh_eval\[plots\]'.*--no-figures"):
        draw(sample_board(), named(sample_board(), "layers"))


def test_what_a_file_was_drawn_from_is_read_back():
    drawn = sample_drawing("parameters")
    digest = hashlib.sha256(sample_board().model_dump_json().encode()).hexdigest()
    expected = (matplotlib.__version__, digest)
    assert drawn_from(drawn.png) == drawn_from(drawn.svg) == expected
    board = sample_board().model_copy(update={"about": "another"})
    other = draw(board, named(board, "parameters"))
    assert drawn_from(other.png) == drawn_from(other.svg) != expected


def test_what_is_no_file_of_ours_was_drawn_from_nothing():
    drawn = sample_drawing("correlations")
    picture = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "Matplotlib 3.0")
    Image.new("RGB", (2, 2)).save(picture, "PNG", pnginfo=text)
    foreign = [
        b"",
        b"\xff\xfe\x00",
        b"not a picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0' encoding='nobody-knows'?><svg/>",
        b"<svg>",
        picture.getvalue(),
        drawn.png[:20],
        drawn.svg[:5000],
        drawn.png[8:],
    ]
    assert [drawn_from(content) for content in foreign] == [None] * len(foreign)


# ---------------------------------------------------------------- what is in them


def points_of(axes):
    """All points of an axes' markers."""
    found = [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)]
    return sorted(map(tuple, np.concatenate(found).tolist()))


def bars_of(axes):
    """All error bars, as pairs of ends."""
    found = [c.get_segments() for c in axes.collections if isinstance(c, LineCollection)]
    return {
        tuple(np.round(bar, 9).ravel().tolist()) for bars in found for bar in bars if len(bar) == 2
    }


@pytest.mark.parametrize(
    "name",
    ["task-gsm8k", "references", "given-parameters", "parameters", "release-date", "bits-per-byte"],
)
def test_points_and_bars_are_the_panels(name):
    board = sample_board()
    with composed(board, named(board, name)) as canvas:
        drawn = panels(board, named(board, name))
        assert len(canvas.axes) == len(drawn)
        for axes, panel in zip(canvas.axes, drawn, strict=True):
            both = (*panel.points, *panel.controls)
            assert points_of(axes) == sorted((p.x, p.y) for p in both)
            bars = bars_of(axes)
            for p in both:
                if p.y_error:
                    ends = (p.x, p.y - p.y_error, p.x, p.y + p.y_error)
                    assert tuple(np.round(ends, 9).tolist()) in bars
                if p.x_error:
                    ends = (p.x - p.x_error, p.y, p.x + p.x_error, p.y)
                    assert tuple(np.round(ends, 9).tolist()) in bars
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            for p in both:
                assert left < p.x - (p.x_error or 0) <= p.x + (p.x_error or 0) < right
                assert bottom < p.y - (p.y_error or 0) <= p.y + (p.y_error or 0) < top


@pytest.mark.parametrize(("name", "there"), [("task-gsm8k", True), ("given-parameters", False)])
def test_bars_lie_above_marks_and_are_explained_where_there_are_any(name, there):
    board = sample_board()
    with composed(board, named(board, name)) as canvas:
        (legend,) = canvas.legends
        written = [text.get_text() for text in legend.get_texts()]
        assert ("bars: ± 1 standard error" in written) == there
        for axes in canvas.axes:
            marks = [c for c in axes.collections if isinstance(c, PathCollection)]
            bars = [c for c in axes.collections if isinstance(c, LineCollection)]
            assert min(c.get_zorder() for c in bars) > max(c.get_zorder() for c in marks)
            for each in marks:  # a bar of a mark's colour is seen on its paler face
                white = set(each.get_facecolor()[:, :3].ravel()) == {1.0}
                assert white or each.get_facecolor()[:, 3].max() <= 0.5


def test_looks_are_the_familys_and_sizes_grow_with_parameters():
    board = sample_board()
    looks = artists.styles(board)
    with composed(board, named(board, "task-hellaswag")) as canvas:
        (panel,) = panels(board, named(board, "task-hellaswag"))
        rows = {(p.x, p.y): p.row for p in panel.points}
        sizes = {}
        for marks in canvas.axes[0].collections:
            if isinstance(marks, PathCollection):
                of_it = [rows[tuple(place)] for place in marks.get_offsets().tolist()]
                (family,) = {row.family for row in of_it}
                assert matplotlib.colors.to_hex(marks.get_facecolor()[0]).upper() == (
                    looks[family].colour
                )
                sizes |= {
                    row.parameters: s for row, s in zip(of_it, marks.get_sizes(), strict=True)
                }
    areas = [sizes[parameters] for parameters in sorted(sizes)]
    assert areas == sorted(set(areas))


def test_no_two_families_look_alike():
    board = sample_board(families=20, of_each=1)
    looks = artists.styles(board)
    assert len(set(looks.values())) == 21  # and models of no stated family
    first = [looks[family] for family in sorted(family for family in looks if family)][:7]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == 7


def test_families_beyond_what_can_be_told_apart_are_one():
    board = sample_board(families=2, of_each=1)
    row = board.rows[0]
    rows = [
        row.model_copy(update={"name": f"{i}-{j}", "family": f"f{i:03}"})
        for i in range(40)
        for j in range(1 + (i >= 30))
    ]
    board = board.model_copy(update={"rows": tuple(rows)})
    looks = artists.styles(board)
    told = {family for family, look in looks.items() if look != looks[None]}
    assert len(told) == artists.MOST_STYLES == len({looks[family] for family in told})
    assert {f"f{i:03}" for i in range(30, 40)} <= told, "the largest families"


def test_controls_are_hollow_and_grey():
    board = sample_board()
    with composed(board, named(board, "parameters")) as canvas:
        marks = [c for c in canvas.axes[0].collections if isinstance(c, PathCollection)][-1]
        assert matplotlib.colors.to_hex(marks.get_facecolor()[0]) == "#ffffff"
        assert matplotlib.colors.to_hex(marks.get_edgecolor()[0]) == artists.GREY


def test_controls_may_be_smaller_and_larger_than_every_model():
    board = sample_board()
    controls = [board.controls[0].model_copy(update={"parameters": size}) for size in (1, 1e15)]
    board = board.model_copy(update={"controls": tuple(controls)})
    with composed(board, named(board, "parameters")) as canvas:
        marks = [c for c in canvas.axes[0].collections if isinstance(c, PathCollection)]
        of_models = np.concatenate([c.get_sizes() for c in marks[:-1]])
        assert sorted(marks[-1].get_sizes()) == [of_models.min(), of_models.max()]


def test_the_layout_is_the_same_in_both_files():
    with composed(sample_board(), named(sample_board(), "references")) as canvas:
        before = [axes.get_position().bounds for axes in canvas.axes]
        canvas.axes[0].set_ylabel("a\nlabel\nof\nmany\nlines")  # what would move a layout
        canvas.savefig(io.BytesIO(), format="svg")
        assert [axes.get_position().bounds for axes in canvas.axes] == before


def test_statistics_and_levels_are_written():
    board = sample_board()
    with composed(board, named(board, "task-hellaswag")) as canvas:
        (panel,) = panels(board, named(board, "task-hellaswag"))
        (axes,) = canvas.axes
        assert axes.get_title(loc="left") == "\n".join(panel.statistics)
        written = {text.get_text() for text in axes.texts}
        assert {"chance 0.25", "shared words 0.07"} <= written
        assert "chance 0.00978" not in written, "too far off to be in view"
        assert axes.get_xlabel() == (
            "Alignment with DINOv2-giant (mNN, k = 10, n = 1024, chance 0.0098)"
        )
        lines = {tuple(np.unique(line.get_ydata())) for line in axes.lines}
        assert (0.25,) in lines


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("name", ["task-hellaswag", "release-date", "layers", "references"])
def test_labels_hide_nothing_and_no_text_is_cut(name, count):
    board = sample_board(families=count)
    with composed(board, named(board, name)) as canvas:
        canvas.canvas.draw()
        page = canvas.bbox
        (legend,) = canvas.legends
        below = legend.get_window_extent()
        assert page.y0 <= below.y0 and below.x1 <= page.x1
        for axes in canvas.axes:
            if not axes.get_visible():
                continue
            outer = axes.get_tightbbox()
            assert not outer.overlaps(below)
            assert page.x0 - 1 <= outer.x0 and outer.x1 <= page.x1 + 1
            assert outer.y0 >= below.y1 - 1
            assert outer.y1 <= page.y1
            boxes = [t.get_window_extent() for t in axes.texts if isinstance(t, Annotation)]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            for place in (
                p
                for c in axes.collections
                if isinstance(c, PathCollection)
                for p in c.get_offsets()
            ):
                x, y = axes.transData.transform(place)
                assert not any(box.contains(x, y) for box in boxes)


def test_few_models_all_have_their_names():
    board = sample_board(families=2)
    with composed(board, named(board, "task-hellaswag")) as canvas:
        written = [text.get_text() for text in canvas.axes[0].texts]
    assert sum(text.startswith("model-") for text in written) == 6


def test_layers_are_the_profiles():
    board = sample_board()
    figure = named(board, "layers")
    with composed(board, figure) as canvas:
        shown = {axes.get_title(loc="left"): axes for axes in canvas.axes if axes.get_visible()}
        assert set(shown) == {row.family for row in board.rows}
        for row in board.rows:
            profile = row.cells["prh_align"].profile
            lines = [
                line
                for line in shown[row.family].lines
                if tuple(line.get_ydata()) == profile and line.get_markevery() is not None
            ]
            (line,) = lines
            np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 1, len(profile)))
            assert line.get_markevery() == [best_layer(row, "prh_align")]
            assert profile[line.get_markevery()[0]] == max(profile)
            assert line.get_color() == artists.styles(board)[row.family].colour


def line_labels(canvas):
    """What is written beside each panel of profiles, from above, with its box in pixels."""
    canvas.canvas.draw()
    found = {}
    for axes in (axes for axes in canvas.axes if axes.get_visible()):
        boxes = [(t.get_window_extent(), t) for t in axes.texts if isinstance(t, Annotation)]
        boxes.sort(key=lambda of: -of[0].y0)
        for (above, _), (below, _) in itertools.pairwise(boxes):
            assert below.y1 <= above.y0, "written over one another"
        panel = axes.get_window_extent()
        assert all(panel.x1 < box.x0 and box.x1 < canvas.bbox.x1 for box, _ in boxes)
        height = panel.height / 20
        assert all(panel.y0 - height < b.y0 and b.y1 < panel.y1 + height for b, _ in boxes)
        found[axes.get_title(loc="left")] = [text.get_text() for _, text in boxes]
    return found


def of_one_family(names, *, parameters):
    """A board of four families, the first of which has models of these names."""
    board = sample_board()
    first, *rest = sorted(board.rows, key=lambda row: row.family)
    rows = []
    for i, (name, size) in enumerate(zip(names, parameters, strict=True)):
        cell = first.cells["prh_align"]
        # All end within a line's height.
        profile = (*cell.profile[:-1], cell.profile[-1] - 1e-5 * i)
        cells = first.cells | {"prh_align": cell.model_copy(update={"profile": profile})}
        update = {"name": name, "family": "Ladder", "parameters": size, "cells": cells}
        rows.append(first.model_copy(update=update))
    others = [row for row in rest if row.family in ("Family 4", "Family 5", "Family 6")]
    return with_rows(board, [*rows, *others])


@pytest.mark.parametrize(
    ("names", "parameters", "expected"),
    [
        (["a", "b", "c"], [3e6, 1e6, 2e6], ["3M", "1M", "2M"]),
        (
            ["org/ladder-1m-step9", "org/Ladder 1m, step 8", "x", "Ladder"],
            [1e6, 1e6, 2e6, 3e6],
            ["1m-step9", "1m, step 8", "x", "Ladder"],
        ),
        (["a", "b"], [1e6, None], ["a", "b"]),
        ([f"m{i}" for i in range(10)], [1e6] * 10, [f"m{i}" for i in range(10)]),
        ([f"m{i}" for i in range(11)], [1e6] * 11, []),
    ],
)
def test_lines_of_profiles_are_named_in_the_order_of_their_ends(names, parameters, expected):
    board = of_one_family(names, parameters=parameters)
    with composed(board, named(board, "layers")) as canvas:
        assert line_labels(canvas)["Ladder"] == expected


@pytest.mark.parametrize("count", [2, 20])
def test_every_line_of_profiles_has_its_label_and_is_led_to_it(count):
    board = sample_board(families=count)
    with composed(board, named(board, "layers")) as canvas:
        assert {len(written) for written in line_labels(canvas).values()} == {3}
        for axes in (axes for axes in canvas.axes if axes.get_visible()):
            leaders = [line for line in axes.lines if not line.get_clip_on()]
            ends = sorted(
                line.get_ydata()[-1] for line in axes.lines if line.get_markevery() is not None
            )
            assert sorted(line.get_ydata()[0] for line in leaders) == pytest.approx(ends)
            for leader, text in zip(leaders, axes.texts, strict=True):
                box = text.get_window_extent()
                x, y = axes.transData.transform(leader.get_xydata()[-1])
                assert x < box.x0 and box.y0 < y < box.y1


@pytest.mark.parametrize("count", [3, 7])
def test_the_heat_map_has_every_correlation(count):
    board = sample_board(families=count)
    figure = named(board, "correlations")
    with composed(board, figure) as canvas:
        axes = canvas.axes[0]
        written = {text.get_position(): text.get_text().split("\n")[0] for text in axes.texts}
        for (i, x), (j, y) in itertools.product(
            enumerate(figure.references), enumerate(figure.others)
        ):
            found = next(a for a in board.associations if (a.x, a.y) == (x, y))
            assert written[j + 0.5, i + 0.5] == f"{found.spearman.value:.2f}"
        assert len(written) == 6
        assert [t.get_text() for t in axes.get_xticklabels()] == [
            "HellaSwag",
            "GSM8K",
            "bits per byte\n(lower is better)",
        ]
        assert [t.get_text() for t in axes.get_yticklabels()] == ["DINOv2-giant", "CLIP ViT-H"]
        hatched = [patch for patch in axes.patches if patch.get_hatch()]
        assert len(hatched) == (6 if count == 3 else 0), "not testable below six families"
        (frame,) = (p for p in axes.patches if p.get_linewidth() == 2.2)
        assert frame.get_xy() == (0, 0), "the primary cell"


def test_colours_of_the_heat_map_part_at_zero():
    board = sample_board()
    found = tuple(
        each.model_copy(update={"spearman": each.spearman.model_copy(update={"value": value})})
        for each, value in zip(board.associations, (0.5, -0.5, 0.0, 1, -1, 0.2, 0, 0), strict=True)
    )
    board = board.model_copy(update={"associations": found})
    with composed(board, named(board, "correlations")) as canvas:
        cells = [p.get_facecolor()[:3] for p in canvas.axes[0].patches if p.get_fill()]
    (red, _, blue), (red2, _, blue2), grey = cells[:3]
    assert red > blue and blue2 > red2
    assert np.ptp(grey) < 0.02


# ---------------------------------------------------------------- anything


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_drawn_as_they_are(name):
    figure = named(hostile_board(), name)
    drawn = draw(hostile_board(), figure)
    ElementTree.fromstring(drawn.svg)
    assert b"<script" not in drawn.svg
    with composed(hostile_board(), figure) as canvas:
        texts = [text for text in canvas.findobj(matplotlib.text.Text) if text.get_text()]
        assert not any(text.get_parse_math() for text in texts)
        if name != "correlations":
            written = " ".join(text.get_text() for text in texts)
            assert "_hidden" in written and "$x$" in written and "<b>& name" in written


maybe = st.booleans()


@st.composite
def boards(draw):
    board = sample_board(
        families=draw(st.integers(1, 4)), of_each=draw(st.integers(1, 3)), hostile=draw(maybe)
    )
    flat = draw(st.sampled_from([None, 0.0, 0.5]))
    rows = []
    for row in board.rows:
        cells = {}
        for key, cell in row.cells.items():
            if draw(st.integers(0, 5)):
                update = {} if flat is None else {"value": flat}
                update |= {} if draw(maybe) else {"stderr": None}
                profile = draw(st.sampled_from([cell.profile, None, (0.1,), (0.2, 0.1)]))
                cells[key] = cell.model_copy(update=update | {"profile": profile})
        update = {
            "parameters": draw(st.sampled_from([row.parameters, None, 1.0, 1e29])),
            "family": draw(st.sampled_from([row.family, row.family, None, "_x", "$", "\n"])),
            "release_date": draw(st.sampled_from([row.release_date, None, "1900-01-01"])),
            "cells": cells,
        }
        rows.append(row.model_copy(update=update))
    return with_rows(board, rows)


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(boards())
def test_whatever_a_board_is_it_is_drawn_without_a_warning(board):
    found = figures(board)
    assert len({figure.name for figure in found}) == len(found)
    for figure in found:
        with composed(board, figure) as canvas:
            canvas.canvas.draw()
            assert canvas.axes
