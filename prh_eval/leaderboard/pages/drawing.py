"""Draw a board's figures with matplotlib: the same bytes from the same board."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from PIL import Image

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.board import Board
from prh_eval.leaderboard.pages.escaping import one_line
from prh_eval.leaderboard.pages.plots import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SETTINGS = {
    "font.family": "DejaVu Sans",  # which comes with matplotlib
    "font.size": 9,
    "svg.fonttype": "path",  # a reader's fonts would have other widths
    "svg.hashsalt": "prh_eval",  # ids are otherwise drawn
    "text.parse_math": False,  # a $ in a name is a dollar
    "axes.axisbelow": True,
}
_BOARD = "prh_eval-board"
_DC = "{http://purl.org/dc/elements/1.1/}"


@dataclass(frozen=True)
class Drawn:
    """A figure as files.

    Attributes:
        svg: An SVG picture, text as outlines.
        png: The same as PNG, 1600 pixels wide or more.
    """

    svg: bytes
    png: bytes


def draw(board: Board, figure: Figure) -> Drawn:
    """A figure as SVG and PNG, on white, 8 inches wide or more.

    Both hold the version of matplotlib and the board's digest (see :func:`drawn_from`).

    Args:
        board: The board.
        figure: One of its figures (:func:`prh_eval.leaderboard.pages.plots.figures`).

    Raises:
        PrhEvalError: If matplotlib is not installed.
    """
    with composed(board, figure) as canvas:
        import matplotlib

        digest = hashlib.sha256(board.model_dump_json().encode()).hexdigest()
        title, alt = one_line(figure.title), one_line(figure.alt)
        version = f"Matplotlib {matplotlib.__version__}"
        svg, png = io.BytesIO(), io.BytesIO()
        canvas.savefig(
            svg,
            format="svg",
            metadata={
                "Title": title,
                "Description": alt,
                "Creator": version,
                "Identifier": f"{_BOARD}:{digest}",
                "Date": None,
            },
        )
        canvas.savefig(
            png,
            format="png",
            metadata={"Title": title, "Description": alt, "Software": version, _BOARD: digest},
        )
    # For readers of a screen, where the picture stands in a page.
    picture = svg.getvalue().replace(b"<svg ", b'<svg role="img" ', 1)
    return Drawn(svg=picture, png=png.getvalue())


@contextmanager
def composed(board: Board, figure: Figure) -> Iterator[Canvas]:
    """A figure as matplotlib has it, laid out, under the settings that it is to be saved with.

    Whatever a person's matplotlibrc says does not matter, and no setting is left changed.

    Args:
        board: The board.
        figure: One of its figures.

    Raises:
        PrhEvalError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise PrhEvalError(
            "the figures need matplotlib: pip install 'prh_eval[plots]', or leave them out "
            "with --no-figures"
        ) from error
    from prh_eval.leaderboard.pages import artists

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)  # type: ignore[arg-type]
        yield artists.compose(board, figure)


def drawn_from(content: bytes) -> tuple[str, str] | None:
    """What a file of :func:`draw` was drawn with, and from.

    Args:
        content: Of an SVG or PNG file.

    Returns:
        Matplotlib's version, and the SHA-256 of the board's JSON (``board.model_dump_json()``) in
        hexadecimal; None if it is no file of this module.
    """
    is_png = content.startswith(b"\x89PNG")
    software, digest = _of_png(content) if is_png else _of_svg(content)
    version = re.fullmatch(r"Matplotlib (\S+)", software)
    if not version or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    return version[1], digest


def _of_png(content: bytes) -> tuple[str, str]:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return str(image.info.get("Software", "")), str(image.info.get(_BOARD, ""))
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for a broken file
        return "", ""


def _of_svg(content: bytes) -> tuple[str, str]:
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):  # an encoding nobody knows
        return "", ""
    creator = root.findtext(f".//{_DC}creator//{_DC}title", "")
    return creator, root.findtext(f".//{_DC}identifier", "").removeprefix(f"{_BOARD}:")
