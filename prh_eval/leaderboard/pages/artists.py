"""Figures of a board as matplotlib's artists; the one module that imports matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.dates import AutoDateFormatter, AutoDateLocator
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from prh_eval.leaderboard.board import Board, BoardColumn, Row
from prh_eval.leaderboard.correlation import Floats
from prh_eval.leaderboard.pages.escaping import one_line
from prh_eval.leaderboard.pages.formats import amount, coefficient, interval
from prh_eval.leaderboard.pages.plots import Figure, best_layer, panels, profiles
from prh_eval.leaderboard.pages.points import Axis, Panel, Point, association
from prh_eval.leaderboard.pages.wording import heading, model_label, shortened

WIDTH = 8.0  # inches: at 800 pixels, type of 9 points is 12.5 pixels high
DPI = 200
# Okabe and Ito 2008, without their yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
GREY = "#6b6b6b"
_BAND = "#e9e9e9"
_HATCH = "#8a8a8a"
MOST_STYLES = 28
"""Families beyond it, those of the fewest models, are grey together."""
MOST_FAMILY_PANELS = 24
_PROFILES_LABELLED = 10  # models of a panel; more names would not fit beside it
_ALL_LABELLED = 10
_MOST_JOINED = 12  # looks; more lines would be a thicket
_AREAS = 22.0, 90.0  # of markers, in square points
_FACE = 0.4  # opacity of markers, on which bars of their colour are seen
_PIXELS = DPI / 72  # a point
_STEPS = 1, 2, 2.5, 5, 10  # between ticks
_LEADER = 9.0  # from a panel's edge to a line's label, points
_LINE_TYPE = 7.0  # of lines' labels, points


@dataclass(frozen=True)
class Style:
    """How a family looks."""

    colour: str
    marker: str


_OTHERS = Style(GREY, "*")


def compose(board: Board, figure: Figure) -> Canvas:
    """A figure, laid out.

    Args:
        board: The board.
        figure: One of its figures.
    """
    if figure.kind == "correlations":
        return _correlations(board, figure)
    if figure.kind == "layers":
        return _layers(board, figure)
    return _scatter(board, figure)


def styles(board: Board) -> dict[str | None, Style]:
    """A colour and a marker for each family, the same in all figures of a board.

    No two families have both in common; the first seven differ in both.
    """
    sizes = Counter(row.family for row in board.rows if row.family is not None)
    largest = sorted(sizes, key=lambda family: (-sizes[family], family))[:MOST_STYLES]
    found: dict[str | None, Style] = {
        family: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, family in enumerate(sorted(largest))
    }
    return found | {family: _OTHERS for family in [*sizes, None] if family not in found}


# ---------------------------------------------------------------- scatter plots


def _scatter(board: Board, figure: Figure) -> Canvas:
    drawn = panels(board, figure)
    of_family, area = styles(board), _areas(board)
    alone = len(drawn) == 1
    joined = len(of_family) <= _MOST_JOINED and figure.kind != "given parameters"
    legend = [_legend(drawn, of_family), _sizes_legend(board, area) if alone else []]
    columns = min(len(drawn), 2 if len(drawn) in (2, 4) else 3)
    lines = math.ceil(len(drawn) / columns)
    canvas = _canvas(figure.title, lines * (4.6 if alone else 7.2 / columns), legend)
    for number, panel in enumerate(drawn):
        axes = canvas.add_subplot(lines, columns, number + 1)
        _panel(axes, panel, of_family, area, alone, joined)
    _settle(canvas)
    if alone:
        _label_models(canvas.axes[0], drawn[0])
    return canvas


def _panel(
    axes: Axes,
    panel: Panel,
    of_family: dict[str | None, Style],
    area: Callable[[Row], float],
    alone: bool,
    joined: bool,
) -> None:
    statistics = "\n".join(panel.statistics) if alone else panel.short
    axes.set_title(_text(statistics), loc="left", fontsize=9 if alone else 8, color="#333333")
    _set_axis(axes, "x", panel.x, [(p.x, p.x_error) for p in panel.points + panel.controls], alone)
    _set_axis(axes, "y", panel.y, [(p.y, p.y_error) for p in panel.points + panel.controls], alone)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    for family, style in of_family.items() if joined else ():
        of_it = [p for p in panel.points if p.row.family == family and p.row.parameters]
        of_it = [] if family is None else sorted(of_it, key=_training)
        axes.plot(
            [p.x for p in of_it],
            [p.y for p in of_it],
            color=style.colour,
            linewidth=0.8,
            alpha=0.45,
            zorder=1.5,
        )
    for family, style in of_family.items():
        of_it = [p for p in panel.points if p.row.family == family]
        _marks(axes, [p for p in of_it if p.row.parameters], style, area, alone)
        _marks(axes, [p for p in of_it if not p.row.parameters], style, area, alone, hollow=True)
    _marks(axes, panel.controls, Style(GREY, "o"), area, alone, hollow=True)


def _marks(
    axes: Axes,
    points: Sequence[Point],
    style: Style,
    area: Callable[[Row], float],
    alone: bool,
    *,
    hollow: bool = False,
) -> None:
    """Points of one look, each with one standard error to either side."""
    if not points:
        return
    # Small models come after large ones, which would hide them.
    points = sorted(points, key=lambda p: (-(p.row.parameters or 0), p.row.name))
    x, y = [p.x for p in points], [p.y for p in points]
    axes.errorbar(
        x,
        y,
        xerr=[p.x_error or 0.0 for p in points],
        yerr=[p.y_error or 0.0 for p in points],
        fmt="none",
        ecolor=style.colour,
        elinewidth=1.0 if alone else 0.7,
        zorder=3.5,  # above the marks, which would hide the short ones
    )
    axes.scatter(
        x,
        y,
        s=[area(p.row) * (1.0 if alone else 0.5) for p in points],
        marker=style.marker,
        facecolors="white" if hollow else to_rgba(style.colour, _FACE),
        edgecolors=style.colour,
        linewidths=0.8,
        zorder=3,
    )


def _set_axis(
    axes: Axes, which: str, axis: Axis, values: Sequence[tuple[float, float | None]], alone: bool
) -> None:
    """Label, limits, ticks and level lines of one axis."""
    label = _text(shortened(axis.name, 60 if alone else 34))
    if alone and axis.detail:
        label += ("\n" if which == "y" else " ") + _text(f"({axis.detail})")
    getattr(axes, f"set_{which}label")(label, fontsize=9 if alone else 8)
    along = getattr(axes, f"{which}axis")
    low = min(value - (error or 0) for value, error in values)
    high = max(value + (error or 0) for value, error in values)
    if axis.scale == "log":
        getattr(axes, f"set_{which}scale")("log")
        margin = (high / low) ** 0.06 if high > low else 2.0
        limits = low / margin, high * margin
        decades = math.log10(limits[1] / limits[0])
        subs = (1.0,) if decades > 3.2 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
        along.set_major_locator(LogLocator(subs=subs, numticks=100))
        along.set_minor_locator(NullLocator())
        along.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    else:
        spread = high - low
        near = [v for _, v in axis.levels if low - 0.3 * spread <= v <= high + 0.3 * spread]
        low, high = min([low, *near]), max([high, *near])
        # One value only still needs an axis around it.
        margin = 0.06 * (high - low) or max(
            0.05 * abs(high), 30.0 if axis.scale == "date" else 1e-3
        )
        limits = low - margin, high + margin
        if axis.scale == "date":
            locator = AutoDateLocator(minticks=2, maxticks=8)  # type: ignore[no-untyped-call]
            along.set_major_locator(locator)
            along.set_major_formatter(
                AutoDateFormatter(locator)  # type: ignore[no-untyped-call]
            )
        else:
            along.set_major_locator(MaxNLocator(8 if alone else 5, steps=_STEPS))
        _levels(axes, which, [(name, v) for name, v in axis.levels if low <= v <= high])
    getattr(axes, f"set_{which}lim")(*limits)


def _levels(axes: Axes, which: str, levels: Sequence[tuple[str, float]]) -> None:
    for name, value in levels:
        line, place = (
            (axes.axvline, (value, 0.99)) if which == "x" else (axes.axhline, (0.995, value))
        )
        line(value, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        transform = axes.get_xaxis_transform() if which == "x" else axes.get_yaxis_transform()
        axes.annotate(
            f"{name} {value:.3g}",
            place,
            xycoords=transform,
            xytext=(3, 0) if which == "x" else (0, 2),
            textcoords="offset points",
            rotation=90 if which == "x" else 0,
            ha="left" if which == "x" else "right",
            va="top" if which == "x" else "bottom",
            color=GREY,
            fontsize=8,
        )


def _areas(board: Board) -> Callable[[Row], float]:
    """The area of a model's marker: linear in log parameters, from the least to the most."""
    known = [math.log(row.parameters) for row in board.rows if row.parameters]
    least, most = (min(known), max(known)) if known else (0.0, 0.0)

    def area(row: Row) -> float:
        if not row.parameters or most == least:
            return 45.0
        share = (math.log(row.parameters) - least) / (most - least)
        # A control may be smaller, or larger, than every model.
        return _AREAS[0] + (_AREAS[1] - _AREAS[0]) * min(1.0, max(0.0, share))

    return area


# ---------------------------------------------------------------- labels


_NEAR, _FAR = 7, 5
_DIRECTIONS = (
    (_NEAR, 0, "left", "center"),
    (-_NEAR, 0, "right", "center"),
    (0, _NEAR, "center", "bottom"),
    (0, -_NEAR, "center", "top"),
    (_FAR, _FAR, "left", "bottom"),
    (-_FAR, _FAR, "right", "bottom"),
    (_FAR, -_FAR, "left", "top"),
    (-_FAR, -_FAR, "right", "top"),
)


def _label_models(axes: Axes, panel: Panel) -> None:
    """Name models where there is room: all of few, the outermost of many."""
    to_pixels = axes.transData.transform
    taken = [text.get_window_extent() for text in axes.texts]
    for p in panel.points + panel.controls:
        ends = (p.x + (p.x_error or 0), p.y + (p.y_error or 0))
        (x, y), (right, top) = to_pixels([(p.x, p.y), ends])
        taken.append(_around(x, y, 4 * _PIXELS, 4 * _PIXELS))
        taken.append(_around(x, y, right - x, _PIXELS))
        taken.append(_around(x, y, _PIXELS, top - y))
    for p in (*_named(panel.points), *panel.controls):
        _place(axes, model_label(p.row.name), p.x, p.y, taken)


def _place(axes: Axes, label: str, x: float, y: float, taken: list[Bbox]) -> None:
    """Write a label beside a point where it hides nothing; nowhere if there is no such place."""
    inside = axes.get_window_extent()
    for dx, dy, across, up in _DIRECTIONS:
        text = axes.annotate(
            _text(label),
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=across,
            va=up,
            fontsize=8,
            color="#222222",
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
        box = text.get_window_extent()
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1
        within = within and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if within and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return
        text.remove()


def _around(x: float, y: float, across: float, up: float) -> Bbox:
    return Bbox.from_extents(x - across, y - up, x + across, y + up)


def _named(points: Sequence[Point]) -> list[Point]:
    """The points that deserve a label, the most telling first."""
    if len(points) <= _ALL_LABELLED:
        return list(points)
    order = sorted(points, key=lambda p: p.row.name)
    ends = [pick(order, key=key) for key in (_x, _y) for pick in (max, min)]
    # Far from the others' line: ranks on the two sides that differ most.
    ranks = [{id(p): i for i, p in enumerate(sorted(order, key=key))} for key in (_x, _y)]
    off = sorted(order, key=lambda p: -abs(ranks[0][id(p)] - ranks[1][id(p)]))
    return list({id(p): p for p in (*ends, *off[:3])}.values())


def _training(p: Point) -> tuple[float, float, str]:
    return p.row.parameters or 0, p.row.training_tokens or 0, p.row.name


def _x(p: Point) -> float:
    return p.x


def _y(p: Point) -> float:
    return p.y


# ---------------------------------------------------------------- layers


def _layers(board: Board, figure: Figure) -> Canvas:
    """A panel for each family: its models in colour, before the range of all models in grey."""
    (reference,) = figure.references
    rows, controls = profiles(board, reference)
    of_family = styles(board)
    counts = Counter(row.family for row in rows)
    most = sorted(counts, key=lambda family: (family is None, -counts[family], family or ""))
    families = sorted(most[:MOST_FAMILY_PANELS], key=lambda family: (family is None, family or ""))
    columns = min(len(families), 3 if len(families) <= 9 else 4)
    lines = math.ceil(len(families) / columns)
    handles: list[Artist] = [
        Patch(facecolor=_BAND, label="range of all models"),
        Line2D([], [], color=GREY, marker="o", linewidth=1.2, label="best layer"),
    ]
    if controls:
        handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.2, label="control"))
    canvas = _canvas(figure.title, lines * (4.4 if columns == 1 else 6.4 / columns), [handles])
    grid = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    depths, low, high = _range(rows, reference)
    labelled = []
    for number, axes in enumerate(grid.flat):
        if number >= len(families):
            axes.set_visible(False)
            continue
        family = families[number]
        axes.fill_between(depths, low, high, color=_BAND, linewidth=0, zorder=1)
        for row in controls:
            x, y = _profile(row, reference)
            axes.plot(x, y, color=GREY, linewidth=1.2, linestyle=":", zorder=2)
        own = [row for row in rows if row.family == family]
        _own(axes, own, reference, of_family[family])
        labelled.append((axes, _label_lines(axes, own, reference), of_family[family]))
        axes.set_title(_text(_family_name(family)), loc="left", fontsize=9)
        axes.grid(True, color="#eeeeee", linewidth=0.6)
        axes.margins(x=0.03, y=0.12)
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.tick_params(labelbottom=number + columns >= len(families))
        if number + columns >= len(families):
            axes.set_xlabel("Relative depth", fontsize=8)
        if number % columns == 0:
            axes.set_ylabel("Alignment", fontsize=8)
    _settle(canvas)
    for axes, labels, style in labelled:
        _part(axes, labels, style)
    return canvas


def _profile(row: Row, reference: str) -> tuple[list[float], tuple[float, ...]]:
    """Relative depths and alignments of a model's layers."""
    profile = row.cells[reference].profile or ()
    return [layer / (len(profile) - 1) for layer in range(len(profile))], profile


def _range(rows: Sequence[Row], reference: str) -> tuple[Floats, Floats, Floats]:
    """Relative depths, and the least and the greatest alignment of models there."""
    depths = np.linspace(0, 1, 101)
    between = [np.interp(depths, *_profile(row, reference)) for row in rows]
    return depths, np.min(between, axis=0), np.max(between, axis=0)


def _own(axes: Axes, rows: Sequence[Row], reference: str, style: Style) -> None:
    """The models of a panel's family, the larger the thicker."""
    ordered = sorted(rows, key=lambda row: (row.parameters or 0, row.name))
    for number, row in enumerate(ordered):
        x, y = _profile(row, reference)
        best = best_layer(row, reference)
        axes.plot(
            x,
            y,
            color=style.colour,
            linewidth=0.9 + 1.3 * (number + 1) / len(ordered),
            marker=style.marker,
            markevery=[best],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=3,
        )


def _label_lines(axes: Axes, rows: Sequence[Row], reference: str) -> list[Annotation]:
    """Labels in the margin at the right, each at the height of its line's end, the lowest first."""
    if len(rows) > _PROFILES_LABELLED:
        return []
    ends = {row.name: (row.cells[reference].profile or ())[-1] for row in rows}
    return [
        axes.annotate(
            _text(label),
            (1, ends[name]),
            xycoords=axes.get_yaxis_transform(),
            xytext=(_LEADER, 0),
            textcoords="offset points",
            annotation_clip=False,
            va="center_baseline",
            fontsize=_LINE_TYPE,
            color="#222222",
        )
        for name, label in sorted(_line_labels(rows).items(), key=lambda of: (ends[of[0]], of[0]))
    ]


def _line_labels(rows: Sequence[Row]) -> dict[str, str]:
    """What tells the models of one family apart, by name: their sizes, or else their names."""
    sizes = {row.name: amount(row.parameters) for row in rows if row.parameters}
    if len(set(sizes.values())) == len(rows):
        return sizes
    labels = {}
    for row in rows:
        name, family = model_label(row.name, 80), one_line(row.family or "")
        if family and name.lower().startswith(family.lower()):  # which the panel's title says
            name = name[len(family) :].lstrip(" -_") or name
        labels[row.name] = shortened(name, 18)
    return labels


def _part(axes: Axes, labels: Sequence[Annotation], style: Style) -> None:
    """Move labels apart by as little as they need, and lead each line to its own."""
    if not labels:
        return
    panel = axes.get_window_extent()
    ends = axes.transData.transform([(1, label.xy[1]) for label in labels])
    steps = 1.25 * _LINE_TYPE * _PIXELS * np.arange(len(labels))
    # Least squares among heights that keep the order and the distances.
    lowest = isotonic_regression(ends[:, 1] - steps).x
    heights = np.clip(lowest, panel.y0, panel.y1 - steps[-1]) + steps
    for label, (x, y), height in zip(labels, ends, heights, strict=True):
        label.xyann = (_LEADER, (height - y) / _PIXELS)
        leader = axes.transData.inverted().transform(
            [(x, y), (panel.x1 + (_LEADER - 1) * _PIXELS, height)]
        )
        axes.add_artist(
            Line2D(*leader.T, color=style.colour, linewidth=0.5, clip_on=False, zorder=2.5)
        )


# ---------------------------------------------------------------- correlations


def _correlations(board: Board, figure: Figure) -> Canvas:
    """References by tasks: Spearman's correlation with its interval."""
    rows, columns = figure.references, figure.others
    names = [_text(shortened(heading(board.column(key)), 28)) for key in rows]
    tasks = [_task_name(board.column(key)) for key in columns]
    colours = colormaps["RdBu_r"]
    handles = [
        *(Patch(facecolor=colours((v + 1) / 2), label=f"{v:g}") for v in (-1, -0.5, 0, 0.5, 1)),
        Patch(fill=False, edgecolor="black", linewidth=2, label="primary hypothesis"),
        Patch(facecolor="white", edgecolor=GREY, hatch="////", linewidth=0, label="not testable"),
    ]
    wide = max(WIDTH, 3.2 + 0.62 * len(columns))
    canvas = _canvas(figure.title, 1.0 + 0.5 * len(rows), [handles], wide)
    axes = canvas.add_subplot()
    for (i, x), (j, y) in product(enumerate(rows), enumerate(columns)):
        found = association(board, x, y)
        value, range_ = found.spearman.value, found.over_families
        face = "white" if value is None else colours((value + 1) / 2)
        # The white around a cell is room for the frame of the primary one.
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=face, edgecolor="white", linewidth=6))
        if found.p is None:
            within = Rectangle((j + 0.015, i + 0.05), 0.97, 0.9, fill=False, hatch="///")
            within.set(edgecolor=_HATCH, linewidth=0)
            axes.add_patch(within)
        if found.primary:
            frame = Rectangle((j, i), 1, 1, fill=False, edgecolor="black", linewidth=2.2, zorder=3)
            frame.set_clip_on(False)
            axes.add_patch(frame)
        text = coefficient(value) if value is not None else "none"
        if range_.low is not None and len(columns) <= 6:
            text += f"\n{interval(range_.low, range_.high)}"
        axes.text(
            j + 0.5,
            i + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if value is not None and abs(value) > 0.6 else "black",
            bbox={"facecolor": face, "edgecolor": "none", "pad": 1.5},
            zorder=4,
        )
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([j + 0.5 for j in range(len(columns))], tasks)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], names)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    if len(columns) > 6:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="left", va="bottom", rotation_mode="anchor")
        # The layout knows nothing of how far the last one leans out.
        canvas.get_layout_engine().set(rect=(0, 0, 1 - 0.4 / wide, 1))  # type: ignore[union-attr, call-arg]
    for spine in axes.spines.values():
        spine.set_visible(False)
    _settle(canvas)
    return canvas


def _task_name(column: BoardColumn) -> str:
    lower = "" if column.higher_is_better else "\n(lower is better)"
    return _text(shortened(heading(column), 18)) + lower


# ---------------------------------------------------------------- the page


def _canvas(
    title: str, height: float, legend: Sequence[Sequence[Artist]], width: float = WIDTH
) -> Canvas:
    """An empty figure with title and legend, which take room of their own.

    Args:
        title: Of the figure.
        height: Of what is to be drawn in it, inches.
        legend: Groups of handles with labels; each begins a column.
        width: Of the figure, inches.
    """
    most = max((len(group) for group in legend), default=0)
    rows = next((n for n in range(1, most) if _legend_width(legend, n) <= width), max(most, 1))
    filled = [_filled(group, rows) for group in legend]
    lines = textwrap.wrap(_text(one_line(title)), int(width * 10.5))
    height += 0.22 * len(lines) + 0.19 * rows
    canvas = Canvas(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles = [handle for group in filled for handle in group]
    shown = canvas.legend(
        handles=handles,
        labels=["."] * len(handles),  # one that begins with _ would be left out
        loc="outside lower left",
        ncols=len(handles) // rows,
        frameon=False,
        fontsize=8,
    )
    for text, handle in zip(shown.get_texts(), handles, strict=True):
        text.set_text(_text(str(handle.get_label())))
    return canvas


def _legend_width(legend: Sequence[Sequence[Artist]], rows: int) -> float:
    """About how wide a legend of so many rows is, in inches."""
    columns = [group[i : i + rows] for group in legend for i in range(0, len(group), rows)]
    longest = (max(len(str(handle.get_label())) for handle in column) for column in columns)
    return sum(0.066 * length + 0.55 for length in longest)


def _filled(group: Sequence[Artist], rows: int) -> list[Artist]:
    """A group of handles with empty ones after it, so that its columns are full."""
    return [
        *group,
        *(Line2D([], [], linestyle="none", label="") for _ in range(-len(group) % rows)),
    ]


def _settle(canvas: Canvas) -> None:
    """Lay the figure out, once: SVG and PNG are then alike, and labels stay where they fit."""
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")


def _legend(drawn: Sequence[Panel], of_family: dict[str | None, Style]) -> list[Artist]:
    """What looks are of: families, and controls."""
    rows = [p.row for panel in drawn for p in panel.points]
    there = {row.family for row in rows}
    named = sorted(family for family in there if family is not None)
    handles = [
        _handle(_family_name(family), of_family[family])
        for family in named
        if of_family[family] != _OTHERS
    ]
    others = [family for family in named if of_family[family] == _OTHERS]
    if others:
        handles.append(_handle(f"{len(others)} smaller families", _OTHERS))
    if None in there:
        handles.append(_handle(_family_name(None), of_family[None]))
    if any(not row.parameters for row in rows):
        handles.append(_handle("size not known", Style(COLOURS[0], "o"), hollow=True))
    if any(panel.controls for panel in drawn):
        handles.append(_handle("control", Style(GREY, "o"), hollow=True))
    if any(p.x_error or p.y_error for panel in drawn for p in panel.points + panel.controls):
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, label="bars: ± 1 standard error"))
    return handles


def _sizes_legend(board: Board, area: Callable[[Row], float]) -> list[Artist]:
    """What sizes are of: the smallest and the largest model."""
    rows = sorted(
        (row for row in board.rows if row.parameters), key=lambda row: row.parameters or 0
    )
    if not rows or rows[0].parameters == rows[-1].parameters:
        return []
    return [
        _handle(f"{amount(row.parameters)} parameters", Style(GREY, "o"), area(row))
        for row in (rows[0], rows[-1])
    ]


def _handle(label: str, style: Style, area: float = 45, *, hollow: bool = False) -> Artist:
    return Line2D(
        [],
        [],
        linestyle="none",
        marker=style.marker,
        markersize=math.sqrt(area),
        markerfacecolor="white" if hollow else to_rgba(style.colour, _FACE),
        markeredgecolor=style.colour,
        markeredgewidth=0.8,
        label=label,
    )


def _family_name(family: str | None) -> str:
    return "family not stated" if family is None else shortened(family, 28)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _text(text: str) -> str:
    """Text that the font has signs for; others are shown as missing."""
    return "".join(c if ord(c) in _glyphs() or c == "\n" else "\ufffd" for c in text)
