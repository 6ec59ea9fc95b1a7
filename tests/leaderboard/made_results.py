"""lm-eval's result files as 0.4 writes them, with drawn scores, for the tests of the board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STAMP = "2026-01-02T03-04-05.678901"


def alignment_record(grid: list[list[float]], **changes: Any) -> dict[str, Any]:
    """What our task writes under configs → task → metadata → alignment, cut to what is read."""
    places = [(x, y) for x, row in enumerate(grid) for y in range(len(row))]
    best = max(places, key=lambda place: grid[place[0]][place[1]])
    record = {
        "n": 1024,
        "k": 10,
        "metric": "mutual_knn",
        "chance": 10 / 1023,
        "protocol": "paper",
        "pooling": "mean",
        "layers": list(best),
        "layer_grid": grid,
        "pairs": {"kind": "hub", "fingerprint": "a" * 64},
        "reference": {
            "reference": "dinov2_giant",
            "made_from": {"kind": "vision", "graph_version": 1},
            "pairs": {"name": "minhuh/prh"},
        },
    }
    return record | changes


def result(
    model: str,
    results: dict[str, dict[str, Any]],
    *,
    records: dict[str, dict[str, Any]] | None = None,
    shots: dict[str, int] | None = None,
    versions: dict[str, Any] | None = None,
    args: dict[str, Any] | None = None,
    limit: float | None = None,
    dtype: str | None = "torch.bfloat16",
    revision: str = "main",
    sha: str = "0123456789abcdef0123456789abcdef01234567",
    parameters: int = 1_000_000,
    **more: Any,
) -> dict[str, Any]:
    """The content of a result file."""
    return {
        "results": {task: {"alias": task, **scores} for task, scores in results.items()},
        "group_subtasks": {task: [] for task in results},
        "configs": {
            task: {"task": task, "metadata": {"alignment": (records or {})[task]}}
            if task in (records or {})
            else {"task": task}
            for task in results
        },
        "versions": {task: 1.0 for task in results} | (versions or {}),
        "n-shot": {task: 0 for task in results} | (shots or {}),
        "n-samples": {task: {"original": 100, "effective": 100} for task in results},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model, **(args or {})},
            "model_num_parameters": parameters,
            "model_dtype": dtype,
            "model_revision": revision,
            "model_sha": sha,
            "limit": limit,
        },
        "date": 1.7e9,
        "model_name": model,
        **more,
    }


def alignment(
    value: float, *, stderr: float = 0.005, filter_: str = "none", **others: float
) -> dict[str, float]:
    """The metrics of an alignment task."""
    return {
        f"mnn,{filter_}": value,
        f"mnn_stderr,{filter_}": stderr,
        f"mnn_last_layer,{filter_}": value / 2,
        f"mnn_last_layer_stderr,{filter_}": stderr,
        f"mnn_chance,{filter_}": 10 / 1023,
    } | {f"{name},{filter_}": number for name, number in others.items()}


def write(folder: Path, content: dict[str, Any], *, stamp: str = STAMP) -> Path:
    """Write a result file where lm-eval would."""
    name = content["model_name"].replace("/", "__")
    path = folder / name / f"results_{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def model_result(
    model: str,
    mnn: float,
    hellaswag: float | None = None,
    gsm8k: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A run of prh_align and, where given, HellaSwag (10 shots) and GSM8K (5 shots)."""
    results: dict[str, dict[str, Any]] = {"prh_align": alignment(mnn)}
    if hellaswag is not None:
        results["hellaswag"] = {
            "acc,none": hellaswag / 2, "acc_stderr,none": 0.004,
            "acc_norm,none": hellaswag, "acc_norm_stderr,none": 0.0045,
        }  # fmt: skip
    if gsm8k is not None:
        results["gsm8k"] = {
            "exact_match,strict-match": gsm8k, "exact_match_stderr,strict-match": 0.01,
            "exact_match,flexible-extract": gsm8k + 0.01,
            "exact_match_stderr,flexible-extract": 0.01,
        }  # fmt: skip
    given = {
        "records": {
            "prh_align": alignment_record([[mnn / 3, mnn / 2], [mnn / 2, mnn], [mnn / 2, 0.0]])
        },
        "shots": {"hellaswag": 10, "gsm8k": 5},
    }
    return result(model, results, **{**given, **changes})
