"""The one error a person sees: a sentence on what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from types import TracebackType


class PrhEvalError(Exception):
    """Something a person can mend; the message is one sentence and needs no traceback."""


_MOST_LISTED = 60
_LISTED_OF_MORE = 20


def suggestion(name: str, valid: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name.

    Args:
        name: What the person wrote.
        valid: The names that exist.

    Returns:
        ``"did you mean 'x'? (valid: x, y, z)"``, or ``"valid: x, y, z"`` where none is near. Of
        more than 60 names, those that are least like it are counted, not listed.
    """
    names = sorted(valid)
    lower = {each.lower(): each for each in names}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, 1, 0.5)]
    shown = names
    if len(names) > _MOST_LISTED:
        shown = sorted(difflib.get_close_matches(name, names, n=_LISTED_OF_MORE, cutoff=0))
    more = f" and {len(names) - len(shown)} more" if shown is not names else ""
    listing = f"valid: {', '.join(shown)}{more}"
    return f"did you mean {near[0]!r}? ({listing})" if near else listing


def show_error(error: object, program: str = "prh-eval") -> None:
    """Print the sentence of an error on stderr, whole where several processes write there."""
    sys.stderr.write(f"{program}: error: {error}\n")
    sys.stderr.flush()


def show_without_traceback() -> None:
    """Let a program that ends with a :class:`PrhEvalError` print its sentence only.

    lm-eval's command line catches no errors, so that a wrong name would otherwise end in a page of
    traceback. Other errors are shown as before; nothing changes for code that catches ours.
    """
    if getattr(sys.excepthook, "_of_prh_eval", False):
        return
    others = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, PrhEvalError):
            show_error(error, "prh_eval")
        else:
            others(kind, error, traceback)

    hook._of_prh_eval = True  # type: ignore[attr-defined]
    sys.excepthook = hook
