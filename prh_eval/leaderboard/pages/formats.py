"""Numbers as a reader of the field expects them."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "—"

_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_SPACE = "\u00a0"  # keeps a number and what belongs to it on one line


def amount(value: float | None) -> str:
    """Parameters or tokens to three digits: 93.5K, 160M, 1.4B, 15T."""
    if value is None:
        return MISSING
    rounded = float(f"{value:.3g}")
    for factor, suffix in _SUFFIXES:
        if rounded >= factor:
            return f"{rounded / factor:.3g}{suffix}"
    return f"{rounded:.3g}"


def score(value: float | None, stderr: float | None = None) -> str:
    """A score to three decimals, with one standard error where it is known: 0.101 ± 0.005."""
    if value is None:
        return MISSING
    shown = _plain(value)
    return shown if stderr is None else f"{shown}{_SPACE}±{_SPACE}{_plain(stderr)}"


def coefficient(value: float | None) -> str:
    """A correlation to two decimals."""
    return MISSING if value is None else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def interval(low: float | None, high: float | None) -> str:
    """The ends of an interval of correlations: 0.60 to 0.90."""
    if low is None or high is None:
        return MISSING
    return f"{coefficient(low)}{_SPACE}to{_SPACE}{coefficient(high)}"


def p_value(p: float | None) -> str:
    """A p-value to three decimals; below them, that it is."""
    if p is None:
        return "not testable"
    return f"<{_SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def p_stated(p: float, name: str = "p") -> str:
    """A p-value within a sentence: p = 0.016, p < 0.001."""
    shown = p_value(p)
    return f"{name} {shown}" if shown.startswith("<") else f"{name} = {shown}"


def models_of(models: int, families: int | None) -> str:
    """How many models, and of how many families where these are stated."""
    of = "" if families is None else f" of {counted(families, 'family', 'families')}"
    return f"{counted(models, 'model')}{of}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number of things: 1 family, 1,024 models."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers, runs of three or more drawn together: 1-4, 6, 9, 10."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(str(number) for number in run)
        for run in runs
    ]
    return ", ".join(parts)


def _plain(value: float) -> str:
    # A perplexity may have any size.
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3g}"
