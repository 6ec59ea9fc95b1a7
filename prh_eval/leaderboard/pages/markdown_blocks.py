"""Blocks of Markdown that the forge's page is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate


def table(headings: Sequence[str], lines: Sequence[Sequence[str]], aligned: Sequence[str]) -> str:
    """A table without padding, so that a changed row is one changed line.

    The padding would also depend on whether a library that knows how wide characters are is
    installed.
    """
    padded = tabulate(
        lines, headers=headings, tablefmt="pipe", colalign=aligned, disable_numparse=True
    )
    head, rule, *others = re.sub(" {2,}", " ", padded).split("\n")
    return "\n".join([head, re.sub("-+", "---", rule), *others])


def folded(summary: str, *blocks: str) -> Iterable[str]:
    """Blocks that a reader unfolds; `summary` is HTML."""
    return [f"<details>\n<summary>{summary}</summary>", *blocks, "</details>"]


def indented(block: str) -> str:
    """A block as a part of a numbered item."""
    return "\n".join(f"   {line}" for line in block.split("\n"))
