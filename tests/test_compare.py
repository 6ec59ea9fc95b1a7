"""The matrix of alignments against brute force on the features that the graphs were made of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_graphs import features, graph, nearest, pairs

from prh_eval.alignment.crossfit import cross_fitted
from prh_eval.alignment.uncertainty import confidence_interval, paired_difference
from prh_eval.compare import Comparison, compare, compare_with
from prh_eval.errors import PrhEvalError
from prh_eval.store import GraphArtifact


def artifact(layers: np.ndarray, k: int = 8, kind: str = "vision", **about: str) -> GraphArtifact:
    header = {"reference": "x", "kind": kind, "pairs": pairs(layers.shape[1], **about)}
    return GraphArtifact(graph(layers, k), header)


def overlaps(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """Each item's share of common neighbours in two layers, with Python's sets."""
    both = zip(nearest(x, k).tolist(), nearest(y, k).tolist(), strict=True)
    return np.array([len(set(a) & set(b)) / k for a, b in both])


@given(st.integers(2, 4), st.integers(1, 5), st.integers(0, 1000))
def test_scores_are_those_of_brute_force(m: int, k: int, seed: int) -> None:
    shared = np.random.default_rng(seed).normal(size=(14, 8)) * 2
    drawn = [features(i % 3 + 1, 14, seed * 10 + i, shared) for i in range(m)]
    names = [f"name {i}" for i in range(m)]
    found = compare([artifact(layers) for layers in drawn], names, k)
    assert [(pair.a, pair.b) for pair in found.pairs] == list(itertools.combinations(names, 2))
    for pair in found.pairs:
        x, y = drawn[names.index(pair.a)], drawn[names.index(pair.b)]
        grid = np.array([[overlaps(a, b, k).mean() for b in y] for a in x])
        assert pair.score == pytest.approx(grid.max(), abs=1e-12)
        assert grid[pair.a_layer, pair.b_layer] == pytest.approx(pair.score, abs=1e-12)
        independent = overlaps(x[pair.a_layer], y[pair.b_layer], k).std() / np.sqrt(14)
        assert pair.stderr >= independent - 1e-12
        assert pair.stderr <= np.sqrt(k + 1) * independent + 1e-12
    assert (found.n, found.k, found.data, found.metric) == (14, k, "pictures", "mutual_knn")
    assert found.chance == pytest.approx(k / 13)


def test_the_order_of_the_names_changes_nothing() -> None:
    drawn = {name: artifact(features(3, 30, seed)) for seed, name in enumerate("abc")}

    def scores(names: str) -> dict[frozenset[str], tuple[float, float]]:
        made = compare([drawn[name] for name in names], list(names), 4)
        return {frozenset((p.a, p.b)): (p.score, p.stderr) for p in made.pairs}

    first, turned = scores("abc"), scores("cba")
    assert first.keys() == turned.keys()
    for pair, values in first.items():
        assert turned[pair] == pytest.approx(values, abs=1e-12)


def test_alignment_with_an_equal_is_1() -> None:
    layers = features(2, 20, seed=0)
    made = compare([artifact(layers), artifact(layers[::-1])], ["a", "b"], 5)
    assert made.pairs[0].score == pytest.approx(1)
    assert (made.pairs[0].a_layer, made.pairs[0].b_layer) == (0, 1)
    assert made.pairs[0].stderr == pytest.approx(0)


def test_differences_are_those_of_the_best_layer_pairs() -> None:
    shared = np.random.default_rng(5).normal(size=(80, 8)) * 2
    y, *models = (artifact(features(2, 80, seed, shared), k=60) for seed in range(4))
    names = ["a", "b", "c"]
    made = compare_with(models, names, y, "reference", 4)
    assert (made.reference, made.n, made.k, made.data) == ("reference", 80, 4, "pictures")
    against = {
        pair.a: pair for pair in compare([*models, y], [*names, "y"], 4).pairs if pair.b == "y"
    }
    flattered = []
    for score in made.scores:
        pair = against[score.name]
        assert (score.score, score.layer) == (pair.score, pair.a_layer)
        assert score.reference_layer == pair.b_layer
        model = models[names.index(score.name)]
        crossed = cross_fitted(model.graph, y.graph, 4, seed=0)
        assert crossed is not None
        around = score.score - crossed.flattery
        assert (score.low, score.high) == confidence_interval(around, score.stderr)
        flattered.append(crossed.flattery)
    assert max(flattered) > 0
    chosen = {
        score.name: (model.graph.layer(score.layer), y.graph.layer(score.reference_layer))
        for score, model in zip(made.scores, models, strict=True)
    }
    assert [(each.a, each.b) for each in made.differences] == [("a", "b"), ("a", "c"), ("b", "c")]
    for each in made.differences:
        right = paired_difference(*chosen[each.a], *chosen[each.b], 4)
        assert vars(right).items() <= vars(each).items()
        assert each.p <= each.p_holm <= 1


def test_a_model_that_is_there_twice_differs_by_nothing() -> None:
    y, model = (artifact(features(1, 30, seed)) for seed in range(2))
    (found,) = compare_with([model, model], ["a", "b"], y, "y", 4).differences
    assert (found.difference, found.stderr, found.p, found.p_holm) == (0, 0, 1, 1)


def sentence(artifacts: list[GraphArtifact], k: int = 4, metric: str = "mutual_knn") -> str:
    with pytest.raises(PrhEvalError) as caught:
        compare(artifacts, ["first", "second", "third"][: len(artifacts)], k, metric)
    return str(caught.value)


def test_a_k_that_a_graph_does_not_answer_for() -> None:
    layers = features(1, 20, seed=0)
    both = [artifact(layers, k=9), artifact(layers, k=6)]
    assert sentence(both, k=7).startswith("k = 7 should be from 1 to 6, ")
    assert "graph of second" in sentence(both, k=7)
    assert "k = 0 should be from 1" in sentence(both, k=0)
    assert isinstance(compare(both, ["a", "b"], 6), Comparison)


def test_other_items_or_captions() -> None:
    layers = features(1, 20, seed=0)
    image, text = artifact(layers), artifact(layers, kind="language model")
    other = artifact(layers, data="sounds")
    assert "first and third are not of the same data" in sentence([image, text, other])
    assert "pictures (20 items" in sentence([image, other])
    assert "sounds (20 items" in sentence([image, other])
    mean = artifact(layers, kind="language", captions="mean")
    assert "second and third are not of the same data" in sentence([image, text, mean])
    assert compare([image, mean], ["a", "b"], 4).n == 20


def test_too_few_and_twice() -> None:
    one = artifact(features(1, 20, seed=0))
    assert "at least 2" in sentence([one])
    with pytest.raises(PrhEvalError, match="'a' is named twice"):
        compare([one, one], ["a", "a"], 4)
    assert "did you mean 'mutual_knn'" in sentence([one, one], metric="mutual_kn")
