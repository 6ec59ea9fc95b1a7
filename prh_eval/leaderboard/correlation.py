"""How two columns of scores go together over models: correlations, as they are and conditional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

FEWEST_MODELS = 3
"""Below it every correlation is -1, 1 or undefined, whatever the scores are."""


@dataclass(frozen=True)
class Correlations:
    """Three correlation coefficients of the same two columns, each in [-1, 1] or NaN.

    Attributes:
        spearman: Pearson's coefficient of the mid-ranks.
        kendall_b: Kendall's tau-b, which corrects for ties on both sides.
        pearson: Of the scores themselves.
        n: Number of models.
        note: Why the coefficients are NaN; None where they are not.
    """

    spearman: float
    kendall_b: float
    pearson: float
    n: int
    note: str | None = None


@dataclass(frozen=True)
class Association:
    """One correlation coefficient.

    Attributes:
        value: In [-1, 1], or NaN.
        n: Number of models that it is over.
        note: Why it is NaN; None where it is not.
    """

    value: float
    n: int
    note: str | None = None


@dataclass(frozen=True)
class ResidualRanks:
    """What covariates leave of the ranks of two columns.

    Attributes:
        x: Residuals of the ranks of the first column, shape (n,), of mean 0; NaN where there are
            none.
        y: Those of the second, shape (n,).
        note: Why they are NaN; None where they are not.
    """

    x: Floats
    y: Floats
    note: str | None = None


@dataclass(frozen=True)
class LeaveOneFamilyOut:
    """The range of Spearman's correlation when each family in turn is left out.

    Attributes:
        low: The least of these correlations, in [-1, 1], or NaN.
        high: The greatest.
        most_influential: The family without which the correlation differs most from that of all
            models; the first by name among equals. None where `low` is NaN.
        note: Families without which there is no correlation, or why there is none at all.
    """

    low: float
    high: float
    most_influential: str | None
    note: str | None = None


def columns(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Two columns of scores as float64 arrays of one shape (n,).

    Raises:
        ValueError: If they are not vectors of one length, or have NaN or infinite values: pairs
            with a missing score are for the caller to leave out.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"two vectors of one length are needed, not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is NaN or infinite; leave out models with a missing score")
    return a, b


def family_numbers(families: Sequence[str], n: int) -> tuple[list[str], NDArray[np.intp]]:
    """The families' names, sorted, and for each of the n models the number of its family.

    Raises:
        ValueError: If there is not one family a model.
    """
    if len(families) != n:
        raise ValueError(f"{len(families)} families for {n} models")
    names = sorted(set(families))
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[family] for family in families], dtype=np.intp)


def undefined(x: Floats, y: Floats) -> str | None:
    """Why two columns have no correlation, or None if they have one."""
    if len(x) < FEWEST_MODELS:
        return f"{_models(len(x))} too few for a correlation"
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "all models have the same score on one side"
    return None


def centred_ranks(x: Floats) -> Floats:
    """Mid-ranks less their mean: multiples of 1/2, exact in float64."""
    return np.asarray(stats.rankdata(x) - (len(x) + 1) / 2, dtype=np.float64)


def correlations(x: ArrayLike, y: ArrayLike) -> Correlations:
    """Spearman, Kendall's tau-b and Pearson, by SciPy.

    Args:
        x: Scores, shape (n,), finite.
        y: Scores of the same models, shape (n,), finite.

    Raises:
        ValueError: See :func:`columns`.
    """
    x, y = columns(x, y)
    if note := undefined(x, y):
        return Correlations(math.nan, math.nan, math.nan, len(x), note)
    return Correlations(
        spearman=float(stats.spearmanr(x, y).statistic),
        kendall_b=float(stats.kendalltau(x, y, variant="b").statistic),
        pearson=float(stats.pearsonr(x, y).statistic),
        n=len(x),
    )


def residual_ranks(x: ArrayLike, y: ArrayLike, covariates: ArrayLike) -> ResidualRanks:
    """What covariates, such as log parameters, leave of the ranks of two columns.

    All columns are ranked; the ranks of x and y are regressed on those of the covariates and a
    constant by least squares.

    Args:
        x: Scores, shape (n,).
        y: Scores, shape (n,).
        covariates: Shape (n,) or (n, c).

    Raises:
        ValueError: If shapes disagree, or a value is NaN or infinite.
    """
    x, y = columns(x, y)
    z = np.asarray(covariates, dtype=np.float64)
    z = z[:, None] if z.ndim == 1 else z
    if z.ndim != 2 or len(z) != len(x):
        raise ValueError(f"covariates of shape {z.shape} for {len(x)} models")
    if not np.isfinite(z).all():
        raise ValueError("a covariate is NaN or infinite; leave out models without it")
    n, c = z.shape
    nothing = np.full(n, math.nan)
    if note := undefined(x, y):
        return ResidualRanks(nothing, nothing, note)
    if n < FEWEST_MODELS + c:
        given = "1 covariate" if c == 1 else f"{c} covariates"
        note = f"{_models(n)} too few for a correlation given {given}"
        return ResidualRanks(nothing, nothing, note)
    # Centred ranks stand for the constant.
    ranks = np.column_stack([centred_ranks(column) for column in (x, y, *z.T)])
    of_scores, of_covariates = ranks[:, :2], ranks[:, 2:]
    fit = of_covariates @ np.linalg.lstsq(of_covariates, of_scores, rcond=None)[0]
    residuals = of_scores - fit
    left = np.linalg.norm(residuals, axis=0) / np.linalg.norm(of_scores, axis=0)
    # What is left of ranks that the covariates determine is rounding, not zero.
    if left.min() < 1e-9:
        note = "the covariates determine the ranks of one side"
        return ResidualRanks(nothing, nothing, note)
    return ResidualRanks(residuals[:, 0], residuals[:, 1])


def partial_spearman(x: ArrayLike, y: ArrayLike, covariates: ArrayLike) -> Association:
    """Spearman's correlation of two columns given covariates, such as log parameters.

    It is Pearson's correlation of the :func:`residual_ranks`. For one covariate z this is
    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) of Spearman's r (Conover, Practical
    Nonparametric Statistics, 1999, section 5.4).

    Args:
        x: Scores, shape (n,).
        y: Scores, shape (n,).
        covariates: Shape (n,) or (n, c).

    Raises:
        ValueError: If shapes disagree, or a value is NaN or infinite.
    """
    left = residual_ranks(x, y, covariates)
    if left.note:
        return Association(math.nan, len(left.x), left.note)
    return Association(_cosine(left.x, left.y), len(left.x))


def within_family_correlation(x: ArrayLike, y: ArrayLike, families: Sequence[str]) -> Association:
    """Whether, within a family, the model better on one side is better on the other.

    Families of one model say nothing on it and are left out. The others' models are ranked all
    together, each family's mean rank is taken off on both sides, and the result is Pearson's
    correlation of what is left, pooled over families.

    Args:
        x: Scores, shape (n,).
        y: Scores, shape (n,).
        families: Each model's family, length n.

    Returns:
        The correlation; its `n` counts the models of families that have several.

    Raises:
        ValueError: If lengths disagree, or a score is NaN or infinite.
    """
    x, y = columns(x, y)
    _, of_model = family_numbers(families, len(x))
    kept = np.bincount(of_model)[of_model] > 1 if len(x) else np.zeros(0, dtype=bool)
    x, y, of_model = x[kept], y[kept], of_model[kept]
    if len(x) < FEWEST_MODELS:
        return Association(math.nan, len(x), "too few models have another of their family")
    sizes = np.bincount(of_model)

    def within(scores: Floats) -> Floats:
        ranks = centred_ranks(scores)
        means = np.bincount(of_model, weights=ranks) / np.maximum(sizes, 1)
        left: Floats = ranks - means[of_model]  # equal ranks are exactly their mean
        return left

    a, b = within(x), within(y)
    if not (a.any() and b.any()):
        note = "within every family all models have the same score on one side"
        return Association(math.nan, len(x), note)
    return Association(_cosine(a, b), len(x))


def leave_one_family_out(x: ArrayLike, y: ArrayLike, families: Sequence[str]) -> LeaveOneFamilyOut:
    """How far Spearman's correlation hangs on a single family.

    Args:
        x: Scores, shape (n,).
        y: Scores, shape (n,).
        families: Each model's family, length n.

    Raises:
        ValueError: If lengths disagree, or a score is NaN or infinite.
    """
    x, y = columns(x, y)
    names, of_model = family_numbers(families, len(x))
    if note := undefined(x, y):
        return LeaveOneFamilyOut(math.nan, math.nan, None, note)
    if len(names) < 2:
        return LeaveOneFamilyOut(math.nan, math.nan, None, "all models are of one family")
    without = {
        name: correlations(x[of_model != number], y[of_model != number]).spearman
        for number, name in enumerate(names)
    }
    lost = [name for name, value in without.items() if math.isnan(value)]
    defined = {name: value for name, value in without.items() if not math.isnan(value)}
    note = f"no correlation without {', '.join(lost)}" if lost else None
    if not defined:
        return LeaveOneFamilyOut(math.nan, math.nan, None, note)
    whole = correlations(x, y).spearman
    return LeaveOneFamilyOut(
        low=min(defined.values()),
        high=max(defined.values()),
        # Rounded, so that equal influences are equal and the first by name is taken.
        most_influential=max(defined, key=lambda name: round(abs(defined[name] - whole), 12)),
        note=note,
    )


def _models(count: int) -> str:
    return "1 model is" if count == 1 else f"{count} models are"


def _cosine(a: Floats, b: Floats) -> float:
    value = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return min(1.0, max(-1.0, value))
