"""The statistics of a board: each alignment column with each task, with size and with time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date
from itertools import product
from typing import Literal, TypedDict

from prh_eval.leaderboard import correlation, inference
from prh_eval.leaderboard.board import (
    Association,
    BoardColumn,
    Coefficient,
    CoefficientInterval,
    Omission,
    Row,
    Trend,
    known,
)

DRAWS = 2000
SEED = 0


class _Drawn(TypedDict):
    draws: int
    seed: int


def associations(
    columns: Sequence[BoardColumn], rows: Sequence[Row], primary: tuple[str, str] | None
) -> tuple[Association, ...]:
    """Every association of a board, the primary one first.

    They are those of each alignment column with each task and with bits per byte, and of bits per
    byte with each task.

    Args:
        columns: The board's columns.
        rows: Its models, without controls.
        primary: Keys of the alignment column and the task of the primary hypothesis.
    """
    alignment, tasks, bits = (
        [column.key for column in columns if column.kind == kind]
        for kind in ("alignment", "task", "bits per byte")
    )
    pairs = [*product(alignment, [*tasks, *bits]), *product(bits, tasks)]
    pairs.sort(key=lambda pair: pair != primary)
    found = [_association(x, y, rows, (x, y) == primary) for x, y in pairs]
    adjusted = inference.holm([each.p for each in found])
    return tuple(
        each.model_copy(update={"p_holm": known(p)})
        for each, p in zip(found, adjusted, strict=True)
    )


def trends(columns: Sequence[BoardColumn], rows: Sequence[Row]) -> tuple[Trend, ...]:
    """Each alignment column against the number of parameters and the release date.

    Args:
        columns: The board's columns.
        rows: Its models, without controls.
    """
    aligned = [column.key for column in columns if column.kind == "alignment"]
    return tuple(_trend(of, key, rows) for key in aligned for of in _KNOWN)


def _trend(of: Literal["parameters", "release date"], key: str, rows: Sequence[Row]) -> Trend:
    models = [row for row in common(key, key, rows) if _KNOWN[of](row) is not None]
    x = [float(_KNOWN[of](row) or 0) for row in models]
    y = [row.cells[key].value for row in models]
    whole = correlation.correlations(x, y)
    unstated = [row.name for row in models if row.family is None]
    if unstated:
        note = _unstated(unstated, len(models))
        interval = CoefficientInterval(low=None, high=None, note=note)
    else:
        families = [str(row.family) for row in models]
        interval = _interval(inference.family_bootstrap(x, y, families, draws=DRAWS, seed=SEED))
    return Trend(
        of=of,
        column=key,
        models=len(models),
        spearman=Coefficient(value=known(whole.spearman), n=whole.n, note=whole.note),
        over_families=interval,
    )


def release_day(row: Row) -> int | None:
    """Days from 1970-01-01 to a model's release; None where that is not known."""
    if row.release_date is None:
        return None
    return (date.fromisoformat(row.release_date) - date(1970, 1, 1)).days


_KNOWN: dict[Literal["parameters", "release date"], Callable[[Row], float | None]] = {
    "parameters": lambda row: row.parameters,
    "release date": release_day,
}


def common(x: str, y: str, rows: Sequence[Row]) -> list[Row]:
    """The models that have both scores, in the order of their names.

    The draws of a bootstrap depend on the order, which should not depend on the scores.
    """
    both = [row for row in rows if x in row.cells and y in row.cells]
    return sorted(both, key=lambda row: row.name)


def _association(x: str, y: str, rows: Sequence[Row], primary: bool) -> Association:
    models = common(x, y, rows)
    a, b = ([row.cells[key].value for row in models] for key in (x, y))
    errors = [[_or_nan(row.cells[key].stderr) for row in models] for key in (x, y)]
    whole = correlation.correlations(a, b)
    unstated = [row.name for row in models if row.family is None]
    families = [row.family or "" for row in models]
    drawn: _Drawn = {"draws": DRAWS, "seed": SEED}
    if unstated:
        note = _unstated(unstated, len(models))
        by_family = CoefficientInterval(low=None, high=None, note=note)
        noise = _interval(inference.noise_interval(a, errors[0], b, errors[1], **drawn))
        noise = noise.model_copy(update={"note": "of the scores' errors alone: " + note})
        test = inference.FamilyTest(None, 0, False, f"not testable: {note}")
        within = Coefficient(value=None, n=0, note=note)
        omission = Omission(low=None, high=None, most_influential=None, note=note)
    else:
        by_family = _interval(inference.family_bootstrap(a, b, families, **drawn))
        noise = _interval(inference.noise_interval(a, errors[0], b, errors[1], families, **drawn))
        test = inference.family_sign_flip_test(a, b, families, seed=SEED)
        within = _coefficient(correlation.within_family_correlation(a, b, families))
        left = correlation.leave_one_family_out(a, b, families)
        omission = Omission(
            low=known(left.low),
            high=known(left.high),
            most_influential=left.most_influential,
            note=left.note,
        )
    noise = _with_unknown(noise, sum(map(math.isnan, (*errors[0], *errors[1]))), 2 * len(models))
    sized = [row for row in models if row.parameters]
    trained = [row for row in sized if row.training_tokens]
    base = [row for row in models if row.kind == "base"]
    base_only = correlation.correlations(*_scores(x, y, base))
    base_note = base_only.note if base else "no model is stated as base"
    return Association(
        x=x,
        y=y,
        primary=primary,
        models=len(models),
        families=None if unstated else len(set(families)),
        spearman=Coefficient(value=known(whole.spearman), n=whole.n, note=whole.note),
        kendall_b=Coefficient(value=known(whole.kendall_b), n=whole.n, note=whole.note),
        pearson=Coefficient(value=known(whole.pearson), n=whole.n, note=whole.note),
        over_families=by_family,
        over_models=_interval(inference.model_bootstrap(a, b, **drawn)),
        with_noise=noise,
        p=known(test.p),
        p_holm=None,
        p_exact=test.exact,
        p_note=test.note,
        given_parameters=_partial(x, y, sized, compute=False),
        given_compute=_partial(x, y, trained, compute=True),
        within_families=within,
        leave_one_family_out=omission,
        base_only=Coefficient(value=known(base_only.spearman), n=len(base), note=base_note),
    )


def _with_unknown(noise: CoefficientInterval, unknown: int, scores: int) -> CoefficientInterval:
    """The interval, with a word on scores whose errors are not known; none if that is all."""
    if not unknown:
        return noise
    if unknown == scores:
        return CoefficientInterval(low=None, high=None, note="no score's error is known")
    note = f"{unknown} of {scores} scores have no known error, which counts as 0"
    return noise.model_copy(update={"note": f"{noise.note}; {note}" if noise.note else note})


def covariates(rows: Sequence[Row], *, compute: bool) -> list[list[float]]:
    """Log parameters of models that have them; with `compute` also log 6 N D (Kaplan 2020)."""
    sizes = [math.log(row.parameters or math.nan) for row in rows]
    if not compute:
        return [[size] for size in sizes]
    tokens = [math.log(row.training_tokens or math.nan) for row in rows]
    return [[size, math.log(6) + size + d] for size, d in zip(sizes, tokens, strict=True)]


def _partial(x: str, y: str, rows: Sequence[Row], *, compute: bool) -> Coefficient:
    if not rows:
        what = "training tokens" if compute else "number of parameters"
        return Coefficient(value=None, n=0, note=f"no model's {what} is known")
    a, b = _scores(x, y, rows)
    return _coefficient(correlation.partial_spearman(a, b, covariates(rows, compute=compute)))


def _scores(x: str, y: str, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row.cells[x].value for row in rows], [row.cells[y].value for row in rows]


def _unstated(names: Sequence[str], models: int) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"the family of {len(names)} of {models} models is not stated ({shown})"


def _coefficient(found: correlation.Association) -> Coefficient:
    return Coefficient(value=known(found.value), n=found.n, note=found.note)


def _interval(found: inference.Interval) -> CoefficientInterval:
    return CoefficientInterval(low=known(found.low), high=known(found.high), note=found.note)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
