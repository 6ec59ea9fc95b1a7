"""The choice of the best layer pair, and what is reported beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from alignment.oracles import dense

from prh_eval.alignment import registry
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.layers import ItemScores, align, align_features, best_of
from prh_eval.alignment.metrics import item_overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.alignment.uncertainty import standard_error
from prh_eval.errors import PrhEvalError

N, K = 80, 6


def model(noises: list[float], seed: int, last: float | None = None) -> NeighborGraph:
    """Layers that see the same latent through different amounts of noise."""
    z = np.random.default_rng(0).standard_normal((N, 5))
    g = np.random.default_rng(seed)
    layers = [z @ g.standard_normal((5, 12)) + s * g.standard_normal((N, 12)) for s in noises]
    return neighbor_graph(
        preprocess([torch.from_numpy(x) for x in layers], protocol("paper")), K + 2
    )


def test_best_pair_last_layer_and_their_errors():
    x, y = model([3, 0.2, 1, 2], seed=1), model([2, 3, 0.3], seed=2)
    result = align(x, y, K)
    grid = np.einsum("aij,bij->ab", dense(x, K), dense(y, K)) / (N * K)
    np.testing.assert_allclose(result.grid.numpy(), grid, atol=1e-15)
    assert (result.x_layer, result.y_layer) == (1, 2) == divmod(int(grid.argmax()), 3)
    assert result.score == pytest.approx(grid.max(), abs=1e-15)
    assert result.last_layer_y == grid[3].argmax()
    assert result.last_layer_score == pytest.approx(grid[3].max(), abs=1e-15)
    assert result.last_layer_score < result.score
    for items, score, stderr, pair in (
        (result.item_overlaps, result.score, result.stderr, (1, 2)),
        (result.last_layer_item_overlaps, result.last_layer_score, result.last_layer_stderr,
         (3, result.last_layer_y)),
    ):  # fmt: skip
        expected = (dense(x, K)[pair[0]] * dense(y, K)[pair[1]]).sum(axis=1) / K
        np.testing.assert_allclose(items.numpy(), expected, atol=1e-15)
        assert float(items.mean()) == pytest.approx(score, abs=1e-15)
        alone = standard_error(x.layer(pair[0]), y.layer(pair[1]), K)
        assert stderr == pytest.approx(alone, rel=1e-13)
        assert 0 < stderr < score
    assert (result.n, result.k, result.chance) == (N, K, K / (N - 1))


def test_standard_errors_see_the_whole_graphs(monkeypatch):
    reach = []
    monkeypatch.setattr(
        "prh_eval.alignment.layers.standard_error",
        lambda x, y, k: reach.append((x.k, y.k, k, x.layers, y.layers)) or 0.5,
    )
    result = align(model([1, 2], seed=1), model([1], seed=2), K)
    assert (result.stderr, result.last_layer_stderr) == (0.5, 0.5)
    assert reach == [(K + 2, K + 2, K, 1, 1)] * 2


def test_equal_layers_give_the_first_pair():
    x, y = model([0.5], seed=1), model([0.5], seed=2)
    thrice = NeighborGraph(x.indices.repeat(3, 1, 1), x.tied.repeat(3, 1, 1), x.k)
    twice = NeighborGraph(y.indices.repeat(2, 1, 1), y.tied.repeat(2, 1, 1), y.k)
    result = align(thrice, twice, K)
    assert (result.x_layer, result.y_layer, result.last_layer_y) == (0, 0, 0)


def planted(
    monkeypatch: pytest.MonkeyPatch, needs: registry.Needs, scores: torch.Tensor, **others: Any
) -> None:
    """Register a metric that gives these scores to whatever it is asked about."""
    planted = registry.Metric(
        "planted", needs, lambda *_: scores, "this test", items=item_overlap, **others
    )
    monkeypatch.setitem(registry.METRICS, "planted", planted)


def test_rounding_does_not_choose(monkeypatch):
    scores = torch.tensor([[0.1, 0.3], [0.2, 0.1 + 0.2], [0.1 + 0.2, 0.3]], dtype=torch.float64)
    planted(monkeypatch, "graphs", scores)
    x = model([1, 1, 1], seed=1)
    result = align(x, model([1, 1], seed=2), K, metric="planted")
    assert (result.x_layer, result.y_layer, result.last_layer_y) == (0, 1, 0)
    assert (result.score, result.last_layer_score) == (0.3, 0.1 + 0.2)


def test_features_have_a_best_pair_and_a_last_layer_but_no_error(monkeypatch):
    scores = torch.tensor([[0.1, 0.7, 0.3], [0.2, 0.6, 0.6]], dtype=torch.float64)
    planted(monkeypatch, "features", scores)
    result = align_features([torch.eye(9)] * 2, [torch.eye(9)] * 3, 4, "planted")
    assert not isinstance(result, ItemScores)
    assert (result.score, result.x_layer, result.y_layer) == (0.7, 0, 1)
    assert (result.last_layer_score, result.last_layer_y) == (0.6, 1)
    assert (result.n, result.k, result.chance) == (9, 4, None)
    assert result.grid.equal(scores)


def test_a_metric_may_know_its_chance_and_may_be_better_where_lower(monkeypatch):
    scores = torch.tensor([[0.1, 0.7], [0.2, 0.6]], dtype=torch.float64)
    planted(monkeypatch, "features", scores, higher_is_better=False, chance=lambda n, k: n + k / 10)
    result = align_features([torch.eye(9)] * 2, [torch.eye(9)] * 2, 4, "planted")
    assert (result.score, result.x_layer, result.y_layer) == (0.1, 0, 0)
    assert (result.last_layer_score, result.last_layer_y) == (0.2, 0)
    assert result.chance == 9.4


def test_best_of_equals_is_the_first():
    scores = torch.tensor([[0.3, 0.1 + 0.2], [0.1, 0.1]], dtype=torch.float64)
    assert (best_of(scores), best_of(scores, higher_is_better=False)) == (0, 2)


def test_unknown_metric_and_graphs_that_do_not_fit():
    x = model([1], seed=1)
    with pytest.raises(PrhEvalError, match="did you mean 'mutual_knn'"):
        align(x, x, K, metric="mutual_kn")
    with pytest.raises(PrhEvalError, match="compares neighbour graphs and there are features"):
        align_features([torch.eye(9)], [torch.eye(9)], K, "mutual_knn")
    with pytest.raises(PrhEvalError, match="k = 9 is not among"):
        align(x, x, K + 3)


def test_features_are_not_graphs(monkeypatch):
    planted(monkeypatch, "features", torch.zeros(1, 1))
    x = model([1], seed=1)
    with pytest.raises(PrhEvalError, match="'planted' compares features and there are neighbour"):
        align(x, x, K, metric="planted")
