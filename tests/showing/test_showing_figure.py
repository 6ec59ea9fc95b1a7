"""The figure: its artists carry the record's numbers, nothing overlaps, and bytes are the same."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sample_findings import record

from prh_eval.errors import PrhEvalError
from prh_eval.findings import Findings
from prh_eval.showing.figure import check_format, composed, draw
from prh_eval.showing.read import Shown

OPTIONAL = ("null", "cross_fitted", "interval", "k_curve", "n_curve", "controls", "chance")

LONG = {"model": {"model": "organisation/" + "A-RATHER-WIDE-NAME-" * 6}}
BARE: dict[str, Any] = {**dict.fromkeys(OPTIONAL), "controls": {}}


def shown(of: dict[str, Any]) -> Shown:
    return Shown(Findings.model_validate(of), "results_a.json", "prh_align")


@pytest.fixture(scope="module")
def usual() -> Iterator[tuple[dict[str, Any], Figure]]:
    """A record and its figure."""
    of = record(6, 4)
    with composed(shown(of)) as canvas:
        yield of, canvas


def panel(canvas: Figure, title: str) -> Axes:
    return next(axes for axes in canvas.axes if axes.get_title(loc="left").startswith(title))


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [tuple(np.asarray(data).tolist() for data in line.get_data()) for line in axes.lines]


def test_the_heat_map_and_its_marks(usual: tuple[dict[str, Any], Figure]) -> None:
    of, canvas = usual
    axes = panel(canvas, "Score of every layer pair")
    (image,) = axes.images
    assert image.get_array().tolist() == of["layer_grid"]
    assert image.origin == "lower"
    assert image.get_clim() == (of["chance"], np.max(of["layer_grid"]))
    marked = {
        marker: {(y[0], x[0]) for line, (x, y) in zip(axes.lines, lines(axes), strict=True)
                 if line.get_marker() == marker}
        for marker in "sx"
    }  # fmt: skip
    assert marked["s"] == {tuple(of["layers"])}
    assert marked["x"] == {tuple(pair) for pair in of["cross_fitted"]["layers"]}
    written = {
        (round(text.get_position()[1] - 0.32), text.get_position()[0]): text.get_text()
        for text in axes.texts
    }
    assert written == {
        (layer, reference): f"{value:.3f}"
        for layer, values in enumerate(of["layer_grid"])
        for reference, value in enumerate(values)
    }


def test_the_profile_and_what_it_is_held_against() -> None:
    of = record(6, 4) | {"null": None, "k_curve": None, "n_curve": None}
    of["controls"]["ceiling"]["score"] = 0.15
    with composed(shown(of)) as canvas:
        axes = panel(canvas, "Best score of each layer")
        found = lines(axes)
        best = [max(values) for values in of["layer_grid"]]
        assert ([0, 1, 2, 3, 4, 5], best) in found
        assert ([of["layers"][0]] * 2, of["interval"]) in found
        across = {y[0] for x, y in found if x == [0, 1] and y[0] == y[1]}
        levels = [of["chance"], *(control["score"] for control in of["controls"].values())]
        assert across == set(levels)
        low, high = axes.get_ylim()
        assert all(low < value < high for value in (*levels, *best, *of["interval"]))
        assert {text.get_text() for text in axes.texts} == {
            f"chance {of['chance']:.3f}",
            "shared words 0.074",
            "shared tokens 0.069",
            "re-initialised 0.098",
            "weights shuffled 0.091",
            "ceiling 0.150",
        }


def test_a_ceiling_far_above_does_not_press_the_profile_flat(
    usual: tuple[dict[str, Any], Figure],
) -> None:
    of, canvas = usual
    axes = panel(canvas, "Best score of each layer")
    assert axes.get_ylim()[1] < 0.2
    labels = {text.get_text() for text in axes.texts}
    assert {"↑ ceiling 0.313", f"threshold {of['null']['threshold']:.3f}"} < labels


def test_the_null_and_the_score(usual: tuple[dict[str, Any], Figure]) -> None:
    of, canvas = usual
    axes = panel(canvas, "Best scores of 1,000 re-pairings")
    (close,) = axes.child_axes
    values = of["null"]["values"]
    shared = 1 / (of["n"] * of["k"])  # of one neighbour more
    for drawn in (axes, close):
        bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in drawn.patches]
        for left, width, height in bars:
            assert height == sum(left <= value < left + width for value in values)
            assert width / shared == pytest.approx(round(width / shared)) and width > 0.9 * shared
        assert sum(height for _, _, height in bars) == len(values)
        assert 15 < len(bars) < 30
    assert {x[0] for x, y in lines(axes) if y == [0, 1]} == {of["score"], of["null"]["threshold"]}
    assert axes.get_xlim()[0] < min(values) and axes.get_xlim()[1] > of["score"]
    assert max(values) < close.get_xlim()[1] < of["score"]
    near = {**of, **BARE, "null": of["null"] | {"values": [*values[:-1], 0.09]}}
    with composed(shown(near)) as other:
        assert not panel(other, "Best scores").child_axes


def test_too_few_draws_have_no_threshold() -> None:
    of = record() | {"k_curve": None, "n_curve": None}
    of["null"] |= {"draws": 18, "values": of["null"]["values"][:18]}
    with composed(shown(of)) as canvas:
        axes = panel(canvas, "Best scores of 18 re-pairings")
        assert [x[0] for x, y in lines(axes) if y == [0, 1]] == [of["score"]]
        (legend,) = canvas.legends
        said = [each.get_text() for each in (*legend.get_texts(), *canvas.findobj(Text))]
        assert not any("threshold" in each for each in said)


def test_the_curves(usual: tuple[dict[str, Any], Figure]) -> None:
    of, canvas = usual
    for title, key, size in (("Best pair at", "k_curve", "k"), ("Best pair on", "n_curve", "n")):
        axes = panel(canvas, title)
        sizes = [point[size] for point in of[key]]
        found = lines(axes)
        assert axes.get_xscale() == "log"
        for field in ("score", "chance"):
            assert (sizes, [point[field] for point in of[key]]) in found
        assert ([of[size]], [of["score"]]) in found
    bars = panel(canvas, "Best pair on").collections[0].get_segments()
    assert [(bar[0][0], bar[1][1] - bar[0][1]) for bar in bars] == [
        (point["n"], pytest.approx(2 * point["spread"])) for point in of["n_curve"]
    ]


def test_the_title_says_whose_score_it_is(usual: tuple[dict[str, Any], Figure]) -> None:
    of, canvas = usual
    low, high = of["interval"]
    assert canvas.get_suptitle().strip() == (
        f"EleutherAI/pythia-160m with dinov2_giant: {of['score']:.4f} ± 0.0062 "
        f"(95\u00a0%: {low:.4f} to {high:.4f})"
    )
    assert [text.get_text() for text in canvas.texts if "mutual_knn" in text.get_text()] == [
        "mutual_knn, k = 10 neighbours, n = 1,024, wit_1024, protocol paper, p = 0.001, z = 41.3"
    ]


def overlaps(canvas: Figure) -> list[tuple[str, str]]:
    """Texts that cover each other, and those that leave the figure."""
    canvas.draw_without_rendering()
    texts = {id(text): text for text in canvas.findobj(Text)}.values()
    # The figure's title keeps a line free for what stands there.
    every = [
        text
        for text in texts
        if text.get_visible() and text.get_text().strip() and text is not canvas._suptitle
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in every]
    # Ticks outside an axis' limits are kept by matplotlib, and not drawn.
    hidden = set()
    for axes in [*canvas.axes, *(child for a in canvas.axes for child in a.child_axes)]:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = set(axis._update_ticks()) if axes.axison and axis.get_visible() else set()
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if tick not in drawn:
                    hidden |= {id(tick.label1), id(tick.label2)}
    boxes = [box for text, box in zip(every, boxes, strict=True) if id(text) not in hidden]
    found = [
        (a, b)
        for (a, x), (b, y) in itertools.combinations(boxes, 2)
        if min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 1
    ]
    width, height = canvas.bbox.width, canvas.bbox.height
    outside = [
        (a, "outside") for a, x in boxes if x.x0 < 0 or x.y0 < 0 or x.x1 > width or x.y1 > height
    ]
    title = canvas._suptitle.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= width
    return found + outside


@pytest.mark.parametrize(
    ("of", "panels"),
    [
        (record(1, 1), 5),
        (record(33, 40) | LONG | {"interval": None, "chance": None}, 5),
        (record(2, 30) | BARE, 2),
        (record(13, 12) | {"null": None, "cross_fitted": None}, 4),
        (
            record(8, 8, n=12) | {"controls": {f"control_{i}": {"score": 0.05} for i in range(12)}},
            5,
        ),
    ],
    ids=["1x1", "33x40 and long", "bare", "no null", "many controls"],
)
def test_no_label_covers_another_whatever_is_missing(of: dict[str, Any], panels: int) -> None:
    with composed(shown(of)) as canvas:
        assert len({axes.get_title(loc="left") for axes in canvas.axes} - {""}) == panels
        assert overlaps(canvas) == []


@pytest.mark.parametrize("grid", [[[0.0]], [[-0.3, -0.1]]])
def test_even_and_negative_grids(grid: list[list[float]]) -> None:
    of = record(1, len(grid[0])) | {"layer_grid": grid, "layers": [0, 0], "score": grid[0][0]}
    with composed(shown({**of, **BARE})) as canvas:
        low, high = panel(canvas, "Score of every").images[0].get_clim()
        assert low <= np.min(grid) and high >= np.max(grid) and low < high


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_files(suffix: str, tmp_path: Path) -> None:
    of = shown(record(1, 1) | BARE)
    written = []
    for name in ("a", "b"):
        # Another's settings do not matter.
        with rc_context({"axes.labelsize": 30 if name == "b" else 10}):
            draw(of, tmp_path / f"{name}{suffix}")
        written.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".PDF": b"%PDF"}[suffix])
    if suffix == ".png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.width == 1600


def test_wrong_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "a", ".png"):
        with pytest.raises(PrhEvalError, match=r"should end in \.png, \.svg or \.pdf"):
            check_format(Path(name))
    with pytest.raises(PrhEvalError, match=r"--plot .*a\.png cannot be written: No such file"):
        draw(shown(record(1, 1)), tmp_path / "none" / "a.png")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PrhEvalError, match=r"needs matplotlib: pip install 'prh_eval\[plots\]'"):
        draw(shown(record(1, 1)), tmp_path / "a.png")


def test_dollars_and_missing_letters_in_names(tmp_path: Path) -> None:
    with composed(shown(record() | BARE | {"model": {"model": "a$x_1$ 漢"}})) as canvas:
        assert canvas.get_suptitle().startswith("a$x_1$ \ufffd with")
