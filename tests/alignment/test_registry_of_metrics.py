"""The registry of metrics: every name, and that what it stands for is what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prh_eval.alignment.layers import Alignment, ItemScores, LayerScores, align, align_features
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.registry import HEADLINE, METRICS, Metric, check_similarity, metric
from prh_eval.errors import PrhEvalError

N, K = 40, 6


def side(seed: int, noises: list[float]) -> list[torch.Tensor]:
    """Layers in rows of unit length that see one latent through different amounts of noise."""
    z = np.random.default_rng(0).standard_normal((N, 4))
    g = np.random.default_rng(seed)
    layers = [z @ g.standard_normal((4, 7)) + s * g.standard_normal((N, 7)) for s in noises]
    return [torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in layers]


def score(name: str, x: list[torch.Tensor], y: list[torch.Tensor]) -> LayerScores:
    if metric(name).needs == "features":
        return align_features(x, y, K, name)
    return align(neighbor_graph(x, K), neighbor_graph(y, K), K, name)


def test_names_lead_to_metrics_with_sources_and_keys_of_their_own():
    assert all(metric(name).name == name for name in METRICS)
    assert all(each.source for each in METRICS.values())
    prefixes = {name: each.prefix for name, each in METRICS.items()}
    assert prefixes == {**dict(zip(METRICS, METRICS, strict=True)), HEADLINE: "mnn"}
    assert metric(HEADLINE).grid is overlap


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_finds_the_pair_that_was_planted(name: str):
    x, y = side(1, [8, 0.1, 3]), side(2, [4, 0.1])
    found = score(name, x, y)
    assert (found.x_layer, found.y_layer, found.last_layer_y) == (1, 1, 1)
    assert (found.grid.shape, found.grid.dtype) == ((3, 2), torch.float64)
    assert found.score == found.grid[1, 1] > found.last_layer_score == found.grid[2, 1]
    assert (found.n, found.k) == (N, K)
    # A score of items is their mean, and items are what graphs have.
    assert isinstance(found, ItemScores) == (metric(name).needs == "graphs")
    assert isinstance(found, Alignment) == (name == HEADLINE)
    if isinstance(found, ItemScores):
        assert float(found.item_overlaps.mean()) == pytest.approx(found.score, abs=1e-13)
        assert found.last_layer_item_overlaps.shape == (N,)


@pytest.mark.parametrize("name", [name for name, each in METRICS.items() if each.chance])
def test_chance_is_the_mean_over_pairings(name: str):
    (x,), (y,) = side(1, [0.1]), side(2, [0.1])
    g = np.random.default_rng(3)
    scores = [score(name, [x], [y[torch.from_numpy(g.permutation(N))]]).score for _ in range(60)]
    expected = score(name, [x], [y]).chance
    error = np.std(scores, ddof=1) / np.sqrt(len(scores))
    assert np.mean(scores) == pytest.approx(expected, abs=4 * error)


def test_a_metric_of_one_kind_is_refused_where_there_is_the_other():
    assert isinstance(metric("cka", "features"), Metric)
    with pytest.raises(PrhEvalError) as error:
        metric("cka", "graphs")
    assert str(error.value) == (
        "the metric 'cka' compares features and there are neighbour graphs here; it should be one "
        "of mutual_knn, cycle_knn, lcs_knn, edit_distance_knn"
    )


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_that_goes_by_cosines_is_refused_for_values(name: str):
    x, y = side(1, [1]), side(2, [1])
    check_similarity(name, "cosine")
    # What goes by cosines alone does not see lengths.
    stretched = [y[0] * torch.arange(1, N + 1)[:, None]]
    if METRICS[name].cosine:
        with pytest.raises(PrhEvalError, match=f"'{name}' goes by cosine similarity, and the ref"):
            check_similarity(name, "euclidean")
    elif METRICS[name].needs == "features":
        check_similarity(name, "euclidean")
        assert abs(score(name, x, stretched).score - score(name, x, y).score) > 1e-6


def test_an_unknown_name():
    with pytest.raises(PrhEvalError, match=r"'mutual_nn'.*did you mean 'mutual_knn'"):
        metric("mutual_nn")
