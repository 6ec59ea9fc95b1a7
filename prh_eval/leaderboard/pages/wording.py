"""Names and headings as figures and their descriptions show them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prh_eval.leaderboard.board import BoardColumn
from prh_eval.leaderboard.pages.escaping import one_line
from prh_eval.leaderboard.scores import MNN

SIMILARITY = (
    "Alignment is how alike a language model's representation of captions and a reference "
    "encoder's representation of the items that they describe are"
)
"""What every metric of alignment tells."""

_MARKS = frozenset(" .,:;+-_/()%=@")


def shortened(text: str, most: int) -> str:
    """One line of at most `most` characters, the middle left out where there are more."""
    text = one_line(text)
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    return f"{text[: most - 1 - end].rstrip()}…{text[len(text) - end :].lstrip()}"


def model_label(name: str, most: int = 26) -> str:
    """A model's name without its organisation, short."""
    return shortened(re.sub(r"^[\w.-]+/(?=\w)", "", one_line(name)), most)


def plain(text: str, most: int = 40) -> str:
    """A name within a sentence of plain text: letters, digits and marks that no format knows."""
    kept = (c if c.isalnum() or c in _MARKS else " " for c in one_line(text))
    return shortened("".join(kept), most) or "unnamed"


def is_mnn(column: BoardColumn) -> bool:
    """Whether a column's scores are the mutual k-nearest-neighbour overlap itself."""
    return column.metric == MNN


def listing(names: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def by_metric(columns: Sequence[BoardColumn]) -> str:
    """What columns are called, each with its metric."""
    return listing([f"{column.label} ({column.metric})" for column in columns])


def heading(column: BoardColumn) -> str:
    """A column's label, short."""
    return shortened(column.label, 40)


def axis_label(column: BoardColumn) -> tuple[str, str]:
    """What a column's numbers are, and how they were measured."""
    if column.alignment:
        facts = column.alignment
        metric = "mNN" if is_mnn(column) else shortened(column.metric, 24)
        how = [metric, f"k = {facts.k}", f"n = {facts.n}"]
        if facts.chance is not None:
            how.append(f"chance {facts.chance:.2g}")
        return f"Alignment with {heading(column)}", ", ".join(how)
    if column.kind == "bits per byte":
        return heading(column), "lower is better"
    how = [shortened(column.metric, 24)]
    if column.n_shot is not None:
        how.append(f"{column.n_shot}-shot")
    if not column.higher_is_better:
        how.append("lower is better")
    return heading(column), ", ".join(how)
