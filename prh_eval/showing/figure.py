"""An alignment as one figure with matplotlib: the same bytes from the same findings."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prh_eval import __version__
from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.pages.drawing import SETTINGS
from prh_eval.showing.read import Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# What each format calls the title, the maker and the date; a date would make other bytes.
_METADATA = {
    ".png": ("Title", "Software", None),
    ".svg": ("Title", "Creator", "Date"),
    ".pdf": ("Title", "Creator", "CreationDate"),
}


def check_format(path: Path) -> None:
    """Refuse a file whose format cannot be drawn, before anything is computed for it.

    Raises:
        PrhEvalError: If its name does not end in .png, .svg or .pdf.
    """
    if path.suffix.lower() not in _METADATA:
        raise PrhEvalError(f"--plot {path} should end in .png, .svg or .pdf")


def draw(shown: Shown, path: Path) -> None:
    """Draw an alignment into a file: PNG of 1,600 pixels' width, SVG or PDF, by its name.

    Args:
        shown: The alignment.
        path: The file, which may be there already.

    Raises:
        PrhEvalError: If the format is unknown, matplotlib is not installed, or the file cannot be
            written.
    """
    check_format(path)
    suffix = path.suffix.lower()
    title, maker, date = _METADATA[suffix]
    about = {title: f"{shown.model} and {shown.reference}", maker: f"prh_eval {__version__}"}
    picture = io.BytesIO()
    with composed(shown) as canvas:
        canvas.savefig(
            picture,
            format=suffix.removeprefix("."),
            metadata={**about, date: None} if date else about,
        )
    try:
        path.write_bytes(picture.getvalue())
    except OSError as error:
        raise PrhEvalError(f"--plot {path} cannot be written: {error.strerror or error}") from error


@contextmanager
def composed(shown: Shown) -> Iterator[Canvas]:
    """The figure as matplotlib has it, laid out, under the settings that it is to be saved with.

    Whatever a person's matplotlibrc says does not matter, and no setting is left changed.

    Raises:
        PrhEvalError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise PrhEvalError(
            "the figure needs matplotlib: pip install 'prh_eval[plots]', or leave out --plot"
        ) from error
    from prh_eval.showing import artists

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)  # type: ignore[arg-type]
        matplotlib.rcParams["font.size"] = 8
        yield artists.compose(shown)
