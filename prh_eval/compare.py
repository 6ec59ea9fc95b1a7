"""The alignment among several references and models, from their neighbour graphs alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.layers import align
from prh_eval.artifacts import different_data, same_data
from prh_eval.errors import PrhEvalError
from prh_eval.store import GraphArtifact


@dataclass(frozen=True)
class PairScore:
    """The best layer pair of two of those that are compared. Layers are counted from 0.

    Attributes:
        a: Name of the one.
        b: Name of the other.
        score: Its alignment, in [0, 1].
        stderr: The standard error of it.
        a_layer: Layer of a.
        b_layer: Layer of b.
    """

    a: str
    b: str
    score: float
    stderr: float
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
        chance: The expected score of one pair of unrelated layers.
    """

    names: tuple[str, ...]
    pairs: tuple[PairScore, ...]
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
    headers = [artifact.header for artifact in artifacts]
    _check_names(names)
    for (x, x_header), (y, y_header) in itertools.combinations(zip(names, headers, strict=True), 2):
        if not same_data(x_header, y_header):
            raise PrhEvalError(different_data(x, [x_header], y, [y_header]))
    for name, artifact in zip(names, artifacts, strict=True):
        if not 1 <= k <= artifact.graph.k:
            raise PrhEvalError(
                f"k = {k} should be from 1 to {artifact.graph.k}, the largest neighbourhood that "
                f"the graph of {name} answers for"
            )
    pairs = []
    every = list(itertools.combinations(range(len(names)), 2))
    for i, j in tqdm(every, desc="pairs", leave=False, disable=None if progress else True):
        found = align(artifacts[i].graph, artifacts[j].graph, k, metric)
        pairs.append(
            PairScore(names[i], names[j], found.score, found.stderr, found.x_layer, found.y_layer)
        )
    n = artifacts[0].graph.n
    return Comparison(
        names=tuple(names),
        pairs=tuple(pairs),
        data=headers[0]["pairs"]["name"],
        n=n,
        k=k,
        metric=metric,
        chance=chance_level(n, k),
    )


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise PrhEvalError(f"{len(names)} is too few to compare; at least 2 are needed")
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if twice:
        raise PrhEvalError(f"{twice[0]!r} is named twice; each should be another")
