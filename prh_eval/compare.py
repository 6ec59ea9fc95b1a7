"""The alignment among several references and models, from their neighbour graphs alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from prh_eval.alignment.crossfit import cross_fitted
from prh_eval.alignment.layers import Alignment, align
from prh_eval.alignment.registry import HEADLINE
from prh_eval.alignment.registry import metric as named_metric
from prh_eval.alignment.report import SEED
from prh_eval.alignment.uncertainty import confidence_interval, paired_difference
from prh_eval.artifacts import different_data, same_data
from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.inference import holm
from prh_eval.store import GraphArtifact


@dataclass(frozen=True)
class PairScore:
    """The best layer pair of two of those that are compared. Layers are counted from 0.

    Attributes:
        a: Name of the one.
        b: Name of the other.
        score: Its alignment, in [0, 1].
        stderr: The standard error of it; None where the metric has none.
        a_layer: Layer of a.
        b_layer: Layer of b.
    """

    a: str
    b: str
    score: float
    stderr: float | None
    a_layer: int
    b_layer: int


@dataclass(frozen=True)
class Comparison:
    """The alignment of every pair of several references and models on the same items.

    Attributes:
        names: Whose graphs, m of them.
        pairs: The m (m - 1) / 2 pairs, each once: the first with all later ones, and so on.
        data: Name of the paired data.
        n: Number of items.
        k: Neighbourhood size.
        metric: Name of the metric.
        chance: The expected score of one pair of unrelated layers; None where it is not known.
    """

    names: tuple[str, ...]
    pairs: tuple[PairScore, ...]
    data: str
    n: int
    k: int
    metric: str
    chance: float | None


@dataclass(frozen=True)
class ReferenceScore:
    """The best layer pair of one model and the reference. Layers are counted from 0.

    Attributes:
        name: The model.
        score: Its alignment with the reference, in [0, 1].
        stderr: The standard error of it.
        low: Lower end of the 95 % confidence interval of the chosen pair's expected score, around
            the score less ``flattery``.
        high: Upper end.
        flattery: What the choice of the layer pair flatters the score by.
        layer: Layer of the model.
        reference_layer: Layer of the reference.
    """

    name: str
    score: float
    stderr: float
    low: float
    high: float
    flattery: float
    layer: int
    reference_layer: int


@dataclass(frozen=True)
class ScoreDifference:
    """The difference of two models' scores against the reference, each of its best layer pair.

    Attributes:
        a: The one.
        b: The other.
        difference: The score of a less that of b.
        stderr: The standard error of it, as both are scored on the same items.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        p: Two-sided p-value of no difference.
        p_holm: The same, adjusted for all differences that are here (Holm 1979, Scandinavian
            Journal of Statistics 6).
    """

    a: str
    b: str
    difference: float
    stderr: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class ReferenceComparison:
    """How several models differ in their alignment with one reference.

    Attributes:
        reference: Name of the reference.
        scores: One a model.
        differences: The m (m - 1) / 2 of m models: the first with all later ones, and so on.
        data: Name of the paired data.
        n: Number of items.
        k: Neighbourhood size.
        metric: Name of the metric.
        chance: The expected score of one pair of unrelated layers.
    """

    reference: str
    scores: tuple[ReferenceScore, ...]
    differences: tuple[ScoreDifference, ...]
    data: str
    n: int
    k: int
    metric: str
    chance: float


def compare(
    artifacts: Sequence[GraphArtifact],
    names: Sequence[str],
    k: int = 10,
    metric: str = "mutual_knn",
    *,
    progress: bool = False,
) -> Comparison:
    """Score every pair of several references and models.

    Huh et al. (2024, arXiv 2405.07987) compare vision models with each other, and language models
    with each other, in this way (section 2 and appendix B).

    Args:
        artifacts: Graphs of at least two, all of the same items; those that are made of captions,
            of the same captions.
        names: What each is called, all different.
        k: Neighbourhood size that all graphs answer for.
        metric: Name of a metric; a symmetric one, so that each pair is scored once.
        progress: Whether to show a progress bar, where there is a terminal.

    Returns:
        The score of the best layer pair of every two.

    Raises:
        PrhEvalError: If there are fewer than two, a name is there twice, two are not of the same
            data, a graph does not answer for k, or the metric is unknown.
    """
    _check(artifacts, names, k)
    measure = named_metric(metric, "graphs")
    pairs = []
    every = list(itertools.combinations(range(len(names)), 2))
    for i, j in tqdm(every, desc="pairs", leave=False, disable=None if progress else True):
        found = align(artifacts[i].graph, artifacts[j].graph, k, metric)
        stderr = found.stderr if isinstance(found, Alignment) else None
        pairs.append(
            PairScore(names[i], names[j], found.score, stderr, found.x_layer, found.y_layer)
        )
    n = artifacts[0].graph.n
    return Comparison(
        names=tuple(names),
        pairs=tuple(pairs),
        data=artifacts[0].header["pairs"]["name"],
        n=n,
        k=k,
        metric=metric,
        chance=measure.chance(n, k) if measure.chance else None,
    )


def compare_with(
    artifacts: Sequence[GraphArtifact],
    names: Sequence[str],
    reference: GraphArtifact,
    reference_name: str,
    k: int = 10,
    *,
    progress: bool = False,
) -> ReferenceComparison:
    """Score several models against a reference by mutual kNN, and every two's difference.

    Args:
        artifacts: Graphs of at least two, all of the same items as the reference; those that are
            made of captions, of the same captions.
        names: What each is called, all different.
        reference: Graphs of the reference.
        reference_name: What it is called; no other is called the same.
        k: Neighbourhood size that all graphs answer for.
        progress: Whether to show a progress bar, where there is a terminal.

    Returns:
        The scores of the best layer pairs, and their differences.

    Raises:
        PrhEvalError: If there are fewer than two to compare, a name is there twice, two are not
            of the same data, or a graph does not answer for k.
    """
    if reference_name in names:
        raise PrhEvalError(
            f"{reference_name!r} is the reference, and among those that are compared with it too; "
            "one of the two should be another"
        )
    _check_names(names)
    _check([*artifacts, reference], [*names, reference_name], k)
    found, pairs, flattery = [], [], []
    quiet = None if progress else True
    for artifact in tqdm(artifacts, desc="models", leave=False, disable=quiet):
        alignment = align(artifact.graph, reference.graph, k)
        crossed = cross_fitted(artifact.graph, reference.graph, k, seed=SEED)
        found.append(alignment)
        flattery.append(crossed.flattery if crossed else 0.0)
        pairs.append(
            (artifact.graph.layer(alignment.x_layer), reference.graph.layer(alignment.y_layer))
        )
    every = list(itertools.combinations(range(len(names)), 2))
    differences = [
        paired_difference(*pairs[i], *pairs[j], k)
        for i, j in tqdm(every, desc="differences", leave=False, disable=quiet)
    ]
    adjusted = [p for p in holm([each.p for each in differences]) if p is not None]
    return ReferenceComparison(
        reference=reference_name,
        scores=tuple(
            ReferenceScore(
                name,
                each.score,
                each.stderr,
                *confidence_interval(each.score - flattered, each.stderr),
                flattered,
                each.x_layer,
                each.y_layer,
            )
            for name, each, flattered in zip(names, found, flattery, strict=True)
        ),
        differences=tuple(
            ScoreDifference(names[i], names[j], **vars(difference), p_holm=p)
            for (i, j), difference, p in zip(every, differences, adjusted, strict=True)
        ),
        data=reference.header["pairs"]["name"],
        n=reference.graph.n,
        k=k,
        metric=HEADLINE,
        chance=found[0].chance,
    )


def _check(artifacts: Sequence[GraphArtifact], names: Sequence[str], k: int) -> None:
    """Refuse what cannot be compared."""
    _check_names(names)
    headers = [artifact.header for artifact in artifacts]
    for (x, x_header), (y, y_header) in itertools.combinations(zip(names, headers, strict=True), 2):
        if not same_data(x_header, y_header):
            raise PrhEvalError(different_data(x, [x_header], y, [y_header]))
    for name, artifact in zip(names, artifacts, strict=True):
        if not 1 <= k <= artifact.graph.k:
            raise PrhEvalError(
                f"k = {k} should be from 1 to {artifact.graph.k}, the largest neighbourhood that "
                f"the graph of {name} answers for"
            )


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise PrhEvalError(f"{len(names)} is too few to compare; at least 2 are needed")
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if twice:
        raise PrhEvalError(f"{twice[0]!r} is named twice; each should be another")
