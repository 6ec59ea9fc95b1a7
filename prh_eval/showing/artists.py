"""The panels of an alignment's figure as matplotlib's artists."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from prh_eval.findings import Findings
from prh_eval.leaderboard.correlation import Floats
from prh_eval.leaderboard.pages.artists import COLOURS, DPI, GREY, WIDTH
from prh_eval.leaderboard.pages.formats import amount
from prh_eval.leaderboard.pages.wording import shortened
from prh_eval.showing.read import Shown
from prh_eval.showing.wording import (
    CONFIDENCE,
    control,
    has_threshold,
    neighbourhood,
    number,
)

_BLUE, _VERMILION, _GREEN, _PINK, _ORANGE, _SKY, _BLACK = COLOURS
_CONTROL_COLOURS = {
    "shared_words": _GREEN,
    "shared_tokens": _GREEN,
    "reinitialized": _PINK,
    "shuffled": _PINK,
    "ceiling": _BLACK,
}
_Dash = tuple[float, tuple[float, ...]]
_DASHED: _Dash = (0, (4, 2))
_DOTTED: _Dash = (0, (1, 1.5))
_MAP = "cividis"  # Nunez et al. 2018: even in lightness, alike for the colour-blind
_MOST_WRITTEN = 8  # layers on either side of a heat map whose cells have their numbers in them
_SMALL = 7.0  # points
_LEADER = 8.0  # from a panel's edge to a line's label, points
_PIXELS = DPI / 72  # a point
_TICKS_APART = 0.16  # of an axis
_BINS = 25
_RING: dict[str, Any] = {
    "marker": "s",
    "markersize": 8,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "markeredgewidth": 1.3,
    "linestyle": "none",
    "zorder": 4,
}
_MAP_SIDE = 200.0  # of a heat map, about, points
_FAR = 4.0  # beyond all draws, in units of their range: they are shown close up too


@dataclass(frozen=True)
class _Level:
    """A score that layers are held against: a line across their panel."""

    label: str
    value: float
    colour: str
    dashes: _Dash
    is_ceiling: bool = False


def compose(shown: Shown) -> Canvas:
    """The figure, laid out; what the record does not have is left out.

    Args:
        shown: The alignment.
    """
    findings = shown.findings
    parts = (
        (findings.null, _null),
        (findings.k_curve, _k_curve),
        (findings.n_curve, _n_curve),
    )
    below = [panel for part, panel in parts if part]
    canvas = Canvas(
        figsize=(WIDTH, 6.6 if below else 4.2), dpi=DPI, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(canvas)
    canvas.get_layout_engine().set(h_pad=0.07, w_pad=0.07)  # type: ignore[union-attr, call-arg]
    lines = textwrap.wrap(_headline(shown), 86)
    # The last line is room for what it was measured on, in smaller type.
    title = canvas.suptitle(
        "\n".join([*lines, " "]), x=0.01, ha="left", fontsize=10, fontweight="bold"
    )
    rows = canvas.add_gridspec(2 if below else 1, 1, height_ratios=[1.3, 1] if below else None)
    # Nested, so that the labels beside the profile take no room from the panels below it.
    above = rows[0].subgridspec(1, 2)
    _heat_map(canvas, canvas.add_subplot(above[0]), findings)
    profile = canvas.add_subplot(above[1])
    labels = _profile(profile, findings)
    if below:
        places = rows[1].subgridspec(1, len(below))
        for place, panel in enumerate(below):
            panel(canvas.add_subplot(places[place]), findings)
    canvas.legend(handles=_legend(findings), loc="outside lower left", ncols=4, frameon=False)
    # Laid out once: files of all formats are then alike, and labels stay where they fit.
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")
    bottom = title.get_window_extent().y0 / canvas.bbox.height
    canvas.text(0.01, bottom, _measured_on(shown), va="bottom", fontsize=8, color="#333333")
    _part(profile, labels)
    return canvas


def _headline(shown: Shown) -> str:
    findings = shown.findings
    assert findings.score is not None  # `read` refuses what has none
    score = number(findings.score)
    if findings.stderr is not None:
        score += f" ± {number(findings.stderr)}"
    if findings.interval is not None:
        # Not to be broken within.
        confidence, low, high = CONFIDENCE.replace(" ", "\u00a0"), *map(number, findings.interval)
        score += f" ({confidence}: {low} to {high})"
    return _text(f"{shortened(shown.model, 48)} with {shortened(shown.reference, 32)}: {score}")


def _measured_on(shown: Shown) -> str:
    findings = shown.findings
    facts = [shortened(findings.metric, 32), *neighbourhood(findings), f"n = {findings.n:,}"]
    facts.append(shortened(shown.data, 32))
    if findings.protocol:
        facts.append(f"protocol {shortened(findings.protocol, 20)}")
    if findings.null is not None:
        facts.append(f"p = {findings.null.p:.2g}")
    if findings.z is not None:
        facts.append(f"z = {findings.z:.1f}")
    return _text(", ".join(facts))


# ---------------------------------------------------------------- layers


def _heat_map(canvas: Canvas, axes: Axes, findings: Findings) -> None:
    """Every layer pair, the model's layers upwards."""
    grid = np.array(findings.layer_grid)
    low = min(grid.min(), grid.max() if findings.chance is None else findings.chance)
    high = grid.max() if grid.max() > low else low + 1e-3
    image = axes.imshow(grid, cmap=_MAP, origin="lower", aspect="auto", vmin=low, vmax=high)
    canvas.colorbar(image, ax=axes, pad=0.02, aspect=30).ax.tick_params(labelsize=_SMALL)
    _panel_title(axes, "Score of every layer pair")
    axes.set_xlabel(f"Layer of the reference (of {grid.shape[1]}, from 0)")
    axes.set_ylabel(f"Layer of the model (of {grid.shape[0]}, from 0)")
    for axis, count in ((axes.xaxis, grid.shape[1]), (axes.yaxis, grid.shape[0])):
        axis.set_major_locator(_layer_ticks(count))
    if max(grid.shape) <= _MOST_WRITTEN:
        for place, value in np.ndenumerate(grid):
            red, green, blue, _ = colormaps[_MAP]((value - low) / (high - low))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            axes.text(
                place[1],
                place[0] + 0.32,  # above the marks
                f"{value:.3f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="black" if bright else "white",
            )
    _mark(axes, findings.layers, "s", grid)
    for pair in dict.fromkeys(findings.cross_fitted.layers if findings.cross_fitted else ()):
        _mark(axes, pair, "x", grid)


def _mark(axes: Axes, pair: tuple[int, int], marker: str, grid: Floats) -> None:
    """A mark about as large as its cell, seen on dark and on bright ones: black within white."""
    size = min(max(_MAP_SIDE / max(grid.shape), 6.0), 9.0)
    for colour, width in (("white", 0.34 * size), ("black", 0.16 * size)):
        axes.plot(
            pair[1],
            pair[0],
            marker=marker,
            markersize=size if marker == "s" else 0.55 * size,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=width,
            linestyle="none",
            clip_on=False,
        )


def _profile(axes: Axes, findings: Findings) -> list[tuple[_Level, Annotation]]:
    """The model's layers, each with the reference's best for it, and what they are held against.

    Returns:
        The lines' labels at the right margin, the lowest first.
    """
    best = [max(row) for row in findings.layer_grid]
    layers = range(len(best))
    chosen = findings.layers[0]
    axes.plot(layers, best, color=_BLUE, marker="o", markersize=3, linewidth=1.4, zorder=3)
    error = findings.interval
    if error is not None:
        axes.plot([chosen, chosen], error, color=_BLUE, linewidth=3, alpha=0.35, zorder=2.5)
    axes.plot(chosen, best[chosen], **_RING)
    levels = _levels(findings)
    shown = max([*best, *(error or ())])
    # A ceiling far above all would press the layers flat: its label alone says how high it is.
    lower = max([shown, *(level.value for level in levels if not level.is_ceiling)])
    far = [level for level in levels if level.is_ceiling and level.value > 1.7 * lower]
    near = [level for level in levels if level not in far]
    for level in near:
        axes.axhline(
            level.value, color=level.colour, linewidth=1, linestyle=level.dashes, zorder=1.5
        )
    values = [*best, *(error or ()), *(level.value for level in near)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    axes.set_ylim(min(values) - margin, max(values) + margin * (2 if far else 1))
    axes.set_xlim(-0.6, len(best) - 0.4)
    axes.xaxis.set_major_locator(_layer_ticks(len(best)))
    _panel_title(axes, "Best score of each layer of the model")
    axes.set_xlabel("Layer of the model")
    _score_axis(axes)
    labelled = [(level, f"{level.label} {level.value:.3f}", level.value) for level in near]
    top = axes.get_ylim()[1]
    labelled += [(level, f"↑ {level.label} {level.value:.3f}", top) for level in far]
    return [
        (level, _label(axes, text, height))
        for level, text, height in sorted(labelled, key=lambda of: (of[2], of[0].value))
    ]


def _label(axes: Axes, text: str, height: float) -> Annotation:
    """A line's label right of its panel."""
    return axes.annotate(
        _text(text),
        (1, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(_LEADER, 0),
        textcoords="offset points",
        annotation_clip=False,
        va="center",
        fontsize=_SMALL,
        color="#222222",
    )


def _levels(findings: Findings) -> list[_Level]:
    levels = []
    if findings.chance is not None:
        levels.append(_Level("chance", findings.chance, GREY, _DASHED))
    if findings.null is not None and has_threshold(findings.null):
        levels.append(_Level("threshold", findings.null.threshold, _VERMILION, _DASHED))
    for key, found in findings.controls.items():
        colour = _CONTROL_COLOURS.get(key, GREY)
        name = shortened(control(key)[0], 20)
        levels.append(_Level(name, found.score, colour, _DOTTED, key == "ceiling"))
    return levels


def _part(axes: Axes, labels: Sequence[tuple[_Level, Annotation]]) -> None:
    """Move labels apart by as little as they need, and lead each line to its own."""
    if not labels:
        return
    panel = axes.get_window_extent()
    ends = axes.transData.transform([(0, label.xy[1]) for _, label in labels])[:, 1]
    steps = 1.3 * _SMALL * _PIXELS * np.arange(len(labels))
    # Least squares among heights that keep the order and the distances.
    lowest = isotonic_regression(ends - steps).x
    heights = np.clip(lowest, panel.y0, panel.y1 - steps[-1]) + steps
    for (level, label), end, height in zip(labels, ends, heights, strict=True):
        label.xyann = (_LEADER, (height - end) / _PIXELS)
        leader = axes.transData.inverted().transform(
            [(panel.x1, end), (panel.x1 + (_LEADER - 1.5) * _PIXELS, height)]
        )
        axes.add_artist(
            Line2D(*leader.T, color=level.colour, linewidth=0.8, clip_on=False, zorder=2.5)
        )


# ---------------------------------------------------------------- chance and curves


def _null(axes: Axes, findings: Findings) -> None:
    """What the best layer pair scores where items are re-paired, and what it scored."""
    null = findings.null
    assert null is not None and findings.score is not None
    _draws(axes, findings)
    axes.axvline(findings.score, color=_BLUE, linewidth=1.8)
    _panel_title(axes, f"Best scores of {null.draws:,} re-pairings")
    axes.set_xlabel("Score")
    axes.set_ylabel("Re-pairings")
    low, high = min(null.values), max(null.values)
    if findings.score - high > _FAR * (high - low):
        close = axes.inset_axes((0.27, 0.42, 0.55, 0.5))
        close.set_title("close up", fontsize=_SMALL, pad=4)
        close.tick_params(labelsize=6)
        _draws(close, findings)
        close.xaxis.set_major_locator(MaxNLocator(2))
        close.yaxis.set_visible(False)


def _draws(axes: Axes, findings: Findings) -> None:
    null = findings.null
    assert null is not None
    low, high = min(null.values), max(null.values)
    # Scores but for ties are whole numbers of shared neighbours: bins of unlike numbers of them
    # would be a comb.
    unit = 1 / (findings.n * findings.k)
    width = max(1, math.ceil((high - low) / unit / _BINS)) * unit
    edges = low - unit / 2 + width * np.arange(math.floor((high - low + unit / 2) / width) + 2)
    axes.hist(null.values, bins=edges.tolist(), color=GREY, edgecolor=GREY, linewidth=0.3)
    if has_threshold(null):
        axes.axvline(null.threshold, color=_VERMILION, linewidth=1.2, linestyle=_DASHED)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _plain(axes)


def _k_curve(axes: Axes, findings: Findings) -> None:
    points = findings.k_curve or []
    sizes = [point.k for point in points]
    scores = [point.score for point in points]
    _curve(axes, sizes, scores, [point.chance for point in points], findings.k)
    _panel_title(axes, "Best pair at other k")
    axes.set_xlabel("Neighbourhood size k")


def _n_curve(axes: Axes, findings: Findings) -> None:
    points = findings.n_curve or []
    sizes = [point.n for point in points]
    scores = [point.score for point in points]
    spread = [point.spread for point in points]
    axes.errorbar(sizes, scores, yerr=spread, fmt="none", ecolor=_BLUE, elinewidth=1, capsize=2)
    _curve(axes, sizes, scores, [point.chance for point in points], findings.n)
    _panel_title(axes, "Best pair on fewer items")
    axes.set_xlabel("Number of items n (bars: ± 1 s.d.)")


def _curve(
    axes: Axes, sizes: Sequence[int], scores: Sequence[float], chances: Sequence[float], own: int
) -> None:
    axes.plot(sizes, scores, color=_BLUE, marker="o", markersize=3, linewidth=1.4, zorder=3)
    axes.plot(sizes, chances, color=GREY, linewidth=1, linestyle=_DASHED, zorder=2)
    if own in sizes:
        axes.plot(own, scores[sizes.index(own)], **_RING)
    axes.set_xscale("log")
    low, high = min(sizes), max(sizes)
    margin = (high / low) ** 0.07 if high > low else 2.0
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes, own)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda size, _: f"{size:,.0f}" if size < 10_000 else amount(size))
    )
    _score_axis(axes)


def _apart(sizes: Sequence[int], own: int) -> list[int]:
    """Sizes whose labels fit beside each other on a log axis; its own and the ends come first."""
    low, high = min(sizes), max(sizes)
    kept: list[int] = []
    first = [size for size in (own, high, low) if size in sizes]
    for size in [*first, *sizes]:
        apart = [abs(np.log(size / other)) >= _TICKS_APART * np.log(high / low) for other in kept]
        if size not in kept and all(apart):
            kept.append(size)
    return sorted(kept)


# ---------------------------------------------------------------- what panels share


def _legend(findings: Findings) -> list[Artist]:
    """What marks and lines mean, of those that are there."""
    handles: list[Artist] = [
        Line2D([], [], label="best layer pair, as reported", **_RING),
        Line2D([], [], color=_BLUE, marker="o", markersize=3, linewidth=1.4, label="score"),
    ]
    if findings.interval is not None:
        crossed = findings.cross_fitted
        less = ", less what choosing adds" if crossed and crossed.flattery else ""
        label = f"{CONFIDENCE} interval{less}"
        handles.append(Line2D([], [], color=_BLUE, linewidth=3, alpha=0.35, label=label))
    if findings.cross_fitted is not None:
        cross: dict[str, Any] = {
            "marker": "x",
            "markersize": 5,
            "markeredgewidth": 1.4,
            "linestyle": "none",
        }
        handles.append(
            Line2D([], [], color="black", label="chosen by halves of the items", **cross)
        )
    if findings.chance is not None:
        handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=_DASHED, label="chance"))
    if findings.null is not None and has_threshold(findings.null):
        label = f"threshold, passed by at most {100 * findings.null.alpha:g} %"
        handles.append(
            Line2D([], [], color=_VERMILION, linewidth=1.2, linestyle=_DASHED, label=label)
        )
    if findings.null is not None:
        handles.append(Patch(color=GREY, label="re-pairings"))
    if findings.controls:
        handles.append(
            Line2D([], [], color=_BLACK, linewidth=1, linestyle=_DOTTED, label="controls")
        )
    return handles


def _layer_ticks(count: int) -> FixedLocator:
    """Ticks at whole layers, about eight."""
    step = next(step for step in (1, 2, 3, 4, 5, 10, 20, 50, count) if count / step <= 9)
    return FixedLocator(range(0, count, step))


def _panel_title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=8.5)


def _score_axis(axes: Axes) -> None:
    axes.set_ylabel("Score")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    _plain(axes)


def _plain(axes: Axes) -> None:
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _text(text: str) -> str:
    """Text that the font has signs for; others are shown as missing."""
    return "".join(c if ord(c) in _glyphs() else "\ufffd" for c in text)
