"""Text that came from a file, made harmless where a program would take it for more than text."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

from prh_eval.leaderboard.pages.formats import MISSING

# What Markdown may take for structure, wherever in a line it stands. Pipes and backslashes are
# entities, because table cells are split before backslashes are read.
_MARKDOWN = str.maketrans(
    {character: f"\\{character}" for character in "`*_[]~#"}
    | {"|": "&#124;", "\\": "&#92;", "<": "&lt;", ">": "&gt;", "&": "&amp;"}
)
# At the start only: a list, numbered or not.
_BULLET = re.compile(r"^(\d+(?=[.)])|(?=[-+]))")
# What GitHub finds in text after Markdown is done: mentions, formulas, addresses, emoji codes.
_FOUND_LATER = re.compile(r"[@$]|:(?=//|[\w+\\-]+:)|(?<=www)\.", re.IGNORECASE)
_WEB = re.compile(r"^https?://", re.IGNORECASE)
# Excel and others compute a cell that begins so; the last four are full-width forms.
_FORMULA = tuple("=+-@＝＋－＠")
# They would turn the rest of a line around.
_DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def one_line(text: str) -> str:
    """Text on one line: control characters and runs of whitespace become one space.

    So do U+FFFE and its like, which are no characters and have no place in XML. Half characters
    (lone surrogates, which JSON can hold and UTF-8 cannot) become question marks.
    """
    visible = text.translate(_DIRECTIONS).encode("utf-8", "replace").decode("utf-8")
    gone = (unicodedata.category(c) == "Cc" or ord(c) & 0xFFFE == 0xFFFE for c in visible)
    kept = (" " if leave else c for leave, c in zip(gone, visible, strict=True))
    return " ".join("".join(kept).split())


def markdown(text: str) -> str:
    """Text for a paragraph, heading, link or table cell of GitHub's Markdown that shows as it is.

    It holds no markup, link, mention, formula, table column or line break; where GitHub would find
    one after parsing, a ``<span>`` around one character parts the text, as its documentation
    advises for the dollar sign. Text with nothing to see becomes a dash.
    """
    return _FOUND_LATER.sub(lambda found: f"<span>{found[0]}</span>", markdown_alternative(text))


def markdown_alternative(text: str) -> str:
    """Text for the alternative text of an image, in which GitHub shows tags and finds nothing."""
    # Nothing at all would be markup in some places: **** is a line across the page.
    return _BULLET.sub(r"\1\\", (one_line(text) or MISSING).translate(_MARKDOWN))


def markdown_link(text: str, address: str | None) -> str:
    """A Markdown link to a web address; the text alone where there is none."""
    shown = markdown(text)
    if not address or not _WEB.match(address):
        return shown
    # Percent signs stay: the address may be encoded already.
    target = quote(one_line(address), safe="/:?#@!,;=+%&~'").replace("&", "&amp;")
    return f"[{shown}]({target})"


def code_block(text: str, language: str) -> str:
    """A fenced block of code that nothing in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    # A lone carriage return ends a line of Markdown too, and with it the indent of a list.
    code = re.sub(r"\r\n?", "\n", text).encode("utf-8", "replace").decode("utf-8")
    return f"{fence}{language}\n{code}\n{fence}"


def spreadsheet(text: str) -> str:
    """Text for a cell that no spreadsheet computes: an apostrophe before what begins a formula.

    Source: OWASP, CSV Injection. A leading tab or carriage return is gone with `one_line`.
    """
    line = one_line(text)
    return f"'{line}" if line.startswith(_FORMULA) else line
