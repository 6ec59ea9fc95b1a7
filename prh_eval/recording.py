"""From a report to the record of it that result files carry."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from torch import Tensor

from prh_eval.alignment.layers import LayerScores
from prh_eval.alignment.report import Chosen, Report


def scores_record(scores: LayerScores) -> dict[str, Any]:
    """What any metric finds, as :class:`prh_eval.findings.Findings` names it, in JSON values."""
    # A score is a sum of n k weights: so many places tell any two apart.
    places = max(6, math.ceil(math.log10(scores.n * scores.k)) + 1)
    return {
        "n": scores.n,
        "k": scores.k,
        "chance": scores.chance,
        "layers": [scores.x_layer, scores.y_layer],
        "last_layers": [len(scores.grid) - 1, scores.last_layer_y],
        "layer_grid": _grid(scores.grid, places),
        "score": scores.score,
        "last": {
            "score": scores.last_layer_score,
            "stderr": None,
            "layers": [len(scores.grid) - 1, scores.last_layer_y],
        },
    }


def report_record(report: Report) -> dict[str, Any]:
    """What a report finds, as :class:`prh_eval.findings.Findings` names it, in JSON values."""
    alignment, null, crossed = report.alignment, report.null, report.cross_fitted
    return {
        **scores_record(alignment),
        "stderr": alignment.stderr,
        "interval": list(report.interval),
        "corrected": report.corrected,
        "z": report.z,
        "z_grid": _grid(report.z_grid, 3),
        "null": None
        if null is None
        else {
            "draws": len(null.values),
            "seed": null.seed,
            "alpha": null.alpha,
            "threshold": null.calibrated.threshold,
            "calibrated": null.calibrated.score,
            "p": null.calibrated.p,
            "values": [round(value, 6) for value in null.values.tolist()],
        },
        "cross_fitted": None
        if crossed is None
        else {**asdict(crossed), "layers": [list(pair) for pair in crossed.layers]},
        "embedding": _chosen(report.embedding),
        "last": _chosen(report.last),
        "k_curve": [asdict(point) for point in report.k_curve],
        "n_curve": [asdict(point) for point in report.n_curve],
        "hubs": {**asdict(report.hubs), "warning": report.hub_warning},
    }


def _chosen(chosen: Chosen) -> dict[str, Any]:
    layers = [chosen.x_layer, chosen.y_layer]
    return {"score": chosen.score, "stderr": chosen.stderr, "layers": layers}


def _grid(values: Tensor, places: int) -> list[list[float]]:
    return [[round(value, places) for value in row] for row in values.tolist()]
