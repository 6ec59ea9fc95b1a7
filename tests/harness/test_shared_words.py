"""The control beside every score: the captions' words alone, through lm-eval and after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from reference_files import write_numbers
from sklearn.feature_extraction.text import TfidfVectorizer
from tiny_models import save_model

from prh_eval import resources
from prh_eval.cli import main
from prh_eval.colors import cielab
from prh_eval.harness.task import AlignmentTask

N = 24
K = 4
WORDS = ("red", "dark", "light", "green", "blue", "sea", "a", "mud")
TEXTS = [f"{WORDS[i % 8]} {WORDS[i * i % 7]} {WORDS[i % 5]}" for i in range(N - 3)]
TEXTS += ["mud", "mud", "..."]  # duplicates, and no word at all
SECOND = [f"{text} again" if i % 2 else "nothing" for i, text in enumerate(TEXTS)]
TASK = "prh_align_mine"


def layers() -> np.ndarray:
    """(N, 2, 3), of which the second layer knows the words."""
    generator = np.random.default_rng(0)
    known = np.array([[text.count(word) for word in ("red", "mud", "a")] for text in TEXTS])
    return np.stack([generator.normal(size=(N, 3)), known + generator.normal(size=(N, 3)) / 5], 1)


def places(nearness: np.ndarray, k: int) -> np.ndarray:
    """How much each item is among the k nearest of each other; ties share."""
    nearness = np.round(nearness, 9)
    np.fill_diagonal(nearness, -np.inf)
    nearer = (nearness[:, None, :] > nearness[:, :, None]).sum(-1)
    ties = (nearness[:, None, :] == nearness[:, :, None]).sum(-1)
    weights = np.clip((k - nearer) / ties, 0, 1)
    np.fill_diagonal(weights, 0)
    return weights


def cosine(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length > 0, length, 1)
    return rows @ rows.T


def by_words(captions: list[list[str]], k: int) -> np.ndarray:
    """How much each item is among the k nearest of each other, by scikit-learn and NumPy."""
    flat = [text for texts in captions for text in texts]
    vectors = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(flat).toarray()
    item = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    means = np.stack([vectors[item == i].mean(axis=0) for i in range(len(captions))])
    return places(cosine(means), k)


def expected(captions: list[list[str]], k: int = K, *, clipped: bool = True) -> float:
    """The score against ``mine``, in the protocol ``paper`` or ``unclipped``."""
    features = layers().astype(np.float32).astype(np.float64)
    if clipped:
        limit = np.sort(np.abs(features).ravel())[int(0.95 * features.size)]
        features = features.clip(-limit, limit)
    mine = by_words(captions, k)
    return max((mine * places(cosine(x), k)).sum() / (k * N) for x in features.swapaxes(0, 1))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A language model; the working folder holds the reference ``mine``."""
    monkeypatch.chdir(tmp_path)
    write_numbers(tmp_path / "references", "mine", layers().astype(np.float32))
    table = [{"text": list(texts)} for texts in zip(TEXTS, SECOND, strict=True)]
    lines = "".join(json.dumps(row) + "\n" for row in table)
    (tmp_path / "references" / "captions.jsonl").write_text(lines, encoding="utf-8")
    path = tmp_path / "references" / "mine.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["pairs"]["path"] = "captions.jsonl"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return save_model(tmp_path / "model", [*TEXTS, *SECOND])


def evaluate(model: Path, **kwargs: Any) -> dict[str, Any]:
    options = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("prh_")}
    metadata = {"version": 1, "prh_reference": "mine", "prh_k": K, **options}
    return simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=[{"task": TASK, "class": AlignmentTask, "metadata": metadata}],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        **kwargs,
    )


FIRST = [[text] for text in TEXTS]


@pytest.mark.parametrize(
    ("options", "name", "wanted"),
    [
        ({}, "none", lambda: expected(FIRST)),
        ({"prh_k": 7}, "none", lambda: expected(FIRST, 7)),
        ({"prh_pooling": "last"}, "none", lambda: expected(FIRST)),
        ({"prh_protocol": "unclipped"}, "none", lambda: expected(FIRST, clipped=False)),
        ({"prh_caption": 1}, "caption_1", lambda: expected([[text] for text in SECOND])),
        (
            {"prh_caption": "mean"},
            "mean_over_captions",
            lambda: expected([list(texts) for texts in zip(TEXTS, SECOND, strict=True)]),
        ),
    ],
)
def test_every_run_reports_it(model: Path, options: dict[str, Any], name: str, wanted: Any) -> None:
    run = evaluate(model, **options)
    found = run["results"][TASK][f"mnn_shared_words,{name}"]
    assert found == pytest.approx(wanted(), abs=1e-12)
    assert run["configs"][TASK]["metadata"]["alignment"]["controls"]["shared_words"] == {
        "score": found
    }
    assert {sample["mnn_shared_words"] for sample in run["samples"][TASK]} == {found}
    assert "mnn_shared_words" not in run["higher_is_better"][TASK]


def test_it_is_of_the_chosen_items(model: Path, colors: dict[str, str]) -> None:
    names, codes = list(colors)[:60], list(colors.values())[:60]
    space = cielab(codes).numpy()
    distance = ((space[:, None] - space[None]) ** 2).sum(-1)
    wanted = (by_words([[name] for name in names], K) * places(-distance, K)).sum() / (K * 60)
    for chosen in ({"limit": 60}, {"samples": {TASK: list(range(60))}}):
        run = evaluate(model, prh_reference="cielab", **chosen)
        found = run["results"][TASK]["mnn_shared_words,none"]
        assert found == pytest.approx(wanted, abs=1e-12)


def test_it_does_not_depend_on_the_model(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", [*TEXTS, *SECOND], kind="gpt2", seed=1)
    first, second = (evaluate(each)["results"][TASK] for each in (model, other))
    assert first["mnn_shared_words,none"] == second["mnn_shared_words,none"]
    assert first["mnn,none"] != second["mnn,none"]


def test_nothing_is_counted_where_nothing_is_compared(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> float:
        raise AssertionError("scored words without a reference")

    monkeypatch.setattr("prh_eval.harness.task.shared_words", never)
    assert len(evaluate(model, predict_only=True)["samples"][TASK]) == N


def test_result_files_have_it_rescored_ones_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--tasks", "prh_align", "--model", "hf"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    command += ["--include_path", str(resources.folder("tasks")), "--output_path", "real"]
    command += ["--metadata", json.dumps({"prh_reference": "mine", "prh_k": K})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "mnn_shared_words" in run.stdout
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")
    assert main(["rescore", "mine", "--output_path", "again", "--k", str(K)]) == 0
    for folder, task in (("real", "prh_align"), ("again", TASK)):
        (path,) = (tmp_path / folder).rglob("results_*.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["results"][task]["mnn_shared_words,none"]
        assert found == pytest.approx(expected(FIRST), abs=1e-12)
        assert content["configs"][task]["metadata"]["alignment"]["controls"]["shared_words"] == {
            "score": found
        }


def test_several_rescored_models_share_one_count(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model)
    evaluate(save_model(tmp_path / "other", [*TEXTS, *SECOND], seed=1))
    counts = []
    monkeypatch.setattr(
        "prh_eval.harness.task.shared_words", lambda *args: counts.append(args) or 0.25
    )
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")
    assert main(["rescore", "mine", "--output_path", "again", "--k", str(K)]) == 0
    files = [json.loads(p.read_text(encoding="utf-8")) for p in tmp_path.glob("again/*/*.json")]
    assert [file["results"][TASK]["mnn_shared_words,none"] for file in files] == [0.25, 0.25]
    assert len(counts) == 1
