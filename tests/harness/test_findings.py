"""What stands beside a score in lm-eval's results: chance, error, controls, other metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.test_task import TASK, evaluate, lab, layer_features, nearest

from prh_eval.errors import PrhEvalError
from prh_eval.findings import Findings

N, K = 120, 5
DRAWS = 400


@pytest.fixture(scope="module")
def run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRH_EVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        metadata = {"prh_k": K, "prh_draws": DRAWS, "prh_control": "untrained"}
        return evaluate(model_folder, metadata, limit=N)


@pytest.fixture(scope="module")
def findings(run: dict[str, Any]) -> Findings:
    return Findings.model_validate(run["configs"][TASK]["metadata"]["alignment"])


def edges(neighbors: list[set[int]]) -> np.ndarray:
    table = np.zeros((len(neighbors), len(neighbors)))
    for item, theirs in enumerate(neighbors):
        table[item, sorted(theirs)] = 1
    return table


def test_the_null_is_that_of_the_best_layer_under_re_pairing(
    findings: Findings, model_folder: Path, colors: dict[str, str]
) -> None:
    """Against dense adjacency matrices that NumPy permutes."""
    names = list(colors)[:N]
    layers = [edges(nearest(x @ x.T, K)) for x in layer_features(model_folder, names, "mean")]
    space = np.stack([lab(colors[name]) for name in names])
    reference = edges(nearest(-((space[:, None] - space[None]) ** 2).sum(-1), K))
    g = np.random.default_rng(0)
    drawn = []
    for order in (g.permutation(N) for _ in range(DRAWS)):
        moved = reference[np.ix_(order, order)]
        drawn.append(max((layer * moved).sum() / (N * K) for layer in layers))
    null = findings.null
    assert null is not None
    assert len(null.values) == null.draws == DRAWS
    error = math.sqrt(2) * np.std(drawn) / math.sqrt(DRAWS)
    assert np.mean(null.values) == pytest.approx(np.mean(drawn), abs=4 * error)
    assert np.std(null.values) == pytest.approx(np.std(drawn), rel=0.25)
    # One pair's spread over all re-pairings, which z is in units of.
    one = [
        (layers[findings.layers[0]] * reference[np.ix_(order, order)]).sum() / (N * K)
        for order in (g.permutation(N) for _ in range(DRAWS))
    ]
    assert findings.z is not None
    assert findings.score is not None
    expected = (findings.score - K / (N - 1)) / np.std(one)
    assert findings.z == pytest.approx(expected, rel=0.2)


def test_figures_follow_from_each_other(run: dict[str, Any], findings: Findings) -> None:
    result = {name.partition(",")[0]: value for name, value in run["results"][TASK].items()}
    null, score, chance = findings.null, findings.score, findings.chance
    assert null is not None
    assert score is not None
    assert chance == pytest.approx(K / (N - 1))
    assert score == pytest.approx(result["mnn"])
    higher = sum(value >= score - 5e-7 for value in null.values)
    assert null.p == result["mnn_p"] == pytest.approx((1 + higher) / (1 + DRAWS))
    ranked = sorted([score, *null.values])
    assert null.threshold == pytest.approx(ranked[math.ceil(0.95 * (DRAWS + 1)) - 1], abs=1e-6)
    calibrated = max((score - null.threshold) / (1 - null.threshold), 0)
    assert null.calibrated == result["mnn_calibrated"] == pytest.approx(calibrated)
    assert findings.corrected == pytest.approx((score - chance) / (1 - chance))
    assert result["mnn_z"] == findings.z
    assert findings.z_grid is not None
    row, column = findings.layers
    assert findings.z_grid[row][column] == pytest.approx(findings.z, abs=6e-4)
    assert findings.interval is not None
    assert findings.interval[0] < score < findings.interval[1]
    grid = np.array(findings.layer_grid)
    assert findings.embedding is not None
    assert findings.embedding.score == pytest.approx(grid[0].max(), abs=1e-6)
    assert findings.last is not None
    assert (
        findings.last.score == result["mnn_last_layer"] == pytest.approx(grid[-1].max(), abs=1e-6)
    )
    assert findings.cross_fitted is not None
    assert findings.cross_fitted.score == result["mnn_cross_fitted"] <= grid.max() + 1e-9
    assert findings.k_curve is not None
    assert findings.n_curve is not None
    assert {point.k: point.score for point in findings.k_curve}[K] == pytest.approx(score)
    assert findings.n_curve[-1].n == N
    assert findings.n_curve[-1].score == pytest.approx(score)
    assert findings.hubs is not None


def test_controls_stand_beside_the_score(run: dict[str, Any], findings: Findings) -> None:
    controls = {name: control.score for name, control in findings.controls.items()}
    words = run["results"][TASK]["mnn_shared_words,none"]
    assert set(controls) == {"shared_words", "shared_tokens", "reinitialized", "shuffled"}
    assert controls["shared_words"] == words
    assert all(0 <= score <= 1 for score in controls.values())
    grids = {controls[name] for name in ("reinitialized", "shuffled")} | {findings.score}
    assert len(grids) == 3


def test_no_draws_no_null(model_folder: Path) -> None:
    run = evaluate(model_folder, {"prh_k": K, "prh_draws": 0}, limit=40)
    assert run["configs"][TASK]["metadata"]["alignment"]["null"] is None
    assert not {"mnn_p,none", "mnn_calibrated,none"} & set(run["results"][TASK])
    assert "mnn_z,none" in run["results"][TASK]


def test_another_metric_has_results_of_its_own_name(
    model_folder: Path, colors: dict[str, str]
) -> None:
    """CKA from features: the model called directly, and CIELAB as it is."""
    run = evaluate(model_folder, {"prh_metric": "cka"}, limit=N)
    names = list(colors)[:N]
    y = np.stack([lab(colors[name]) for name in names])
    y = y - y.mean(axis=0)
    expected = []
    for x in layer_features(model_folder, names, "mean"):
        x = x - x.mean(axis=0)
        shared = np.linalg.norm(x.T @ y) ** 2
        expected.append(shared / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))
    result = run["results"][TASK]
    assert result["cka,none"] == pytest.approx(max(expected), abs=1e-4)
    assert result["cka_last_layer,none"] == pytest.approx(expected[-1], abs=1e-4)
    assert result["cka_layer,none"] == int(np.argmax(expected))
    assert not [name for name in result if name.startswith("mnn")]
    recorded = run["configs"][TASK]["metadata"]["alignment"]
    assert Findings.model_validate(recorded).metric == "cka"
    assert np.array(recorded["layer_grid"])[:, 0] == pytest.approx(expected, abs=1e-4)


def test_another_metric_of_neighbours_is_a_mean_over_items(model_folder: Path) -> None:
    run = evaluate(model_folder, {"prh_metric": "cycle_knn", "prh_k": K}, limit=N)
    samples = [sample["cycle_knn"] for sample in run["samples"][TASK]]
    assert set(samples) <= {0.0, 1.0} or len(set(samples)) > 2
    assert run["results"][TASK]["cycle_knn,none"] == pytest.approx(np.mean(samples))


def test_an_unknown_metric_is_one_sentence(model_folder: Path) -> None:
    with pytest.raises(PrhEvalError, match="did you mean 'cka'") as caught:
        evaluate(model_folder, {"prh_metric": "ckaa"}, limit=N)
    assert "\n" not in str(caught.value)
