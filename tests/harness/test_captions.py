"""Items with several captions: one of them, or the mean of the features of all."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.loggers.wandb_logger import WandbLogger
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table
from reference_files import write_numbers
from tiny_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prh_eval.errors import PrhEvalError
from prh_eval.features import language
from prh_eval.harness.task import AlignmentTask
from prh_eval.store import read_artifact

N = 26
COLUMNS = ("first", "second", "third")
WORDS = ("red", "blue", "tall", "old", "small", "dog", "cat", "tree", "sky", "sea", "sun", "bird")
CAPTIONS = [
    [
        f"{WORDS[i % 12]} {WORDS[(5 * i + 1) % 12]} {i}",
        f"way {i} of {WORDS[(7 * i) % 12]}",
        f"{WORDS[i * i % 12]} and {i}",
    ]
    for i in range(N)
]
TASK = "prh_align_mine"
Run = Callable[..., dict[str, Any]]
CLASS = "class: !function prh_eval.harness.task.AlignmentTask\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [text for captions in CAPTIONS for text in captions]
    return save_model(tmp_path_factory.mktemp("model"), texts, kind="gpt2")


@pytest.fixture(scope="module")
def features(model: Path) -> np.ndarray:
    """(3 captions, n, layers, width), from the model called on one caption at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    body = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def of(text: str) -> torch.Tensor:
        # Not what else a tokenizer may give: GPT-2 adds token types to its embeddings.
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        states = body(input_ids=ids, output_hidden_states=True)
        return torch.cat([state.mean(dim=1) for state in states.hidden_states]).double()

    with torch.no_grad():
        rows = [torch.stack([of(texts[j]) for texts in CAPTIONS]) for j in range(3)]
    return torch.stack(rows).numpy()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRH_EVAL_REFERENCES", raising=False)
    return tmp_path


def reference(place: Path, rows: np.ndarray, captions: list[list[str]] = CAPTIONS) -> None:
    """A reference made of these features (n, layers, width), whose items have the captions."""
    path = write_numbers(place / "references", "mine", rows.astype(np.float32))
    with (place / "references" / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *captions])
    content = yaml.safe_load(path.read_text())
    content["pairs"]["caption_column"] = list(COLUMNS)
    path.write_text(yaml.safe_dump(content))
    (place / "tasks").mkdir(exist_ok=True)
    (place / "tasks" / "mine.yaml").write_text(
        f"task: {TASK}\n{CLASS}metadata: {{version: 1, prh_reference: mine}}\n"
    )


@pytest.fixture
def run(place: Path, model: Path) -> Run:
    """One run through lm-eval's evaluator; ``prh_`` keys are metadata, all others its own."""

    def run(**kwargs: Any) -> dict[str, Any]:
        metadata = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("prh_")}
        folder = str(place / "tasks")
        manager = TaskManager(include_path=folder, include_defaults=False, metadata=metadata)
        settings: dict[str, Any] = {"tasks": [TASK], "bootstrap_iters": 0, "batch_size": 8}
        settings |= {"model_args": f"pretrained={model},dtype=float32", "device": "cpu"}
        return simple_evaluate(model="hf", task_manager=manager, **(settings | kwargs))

    return run


@pytest.mark.parametrize("caption", [1, 2])
def test_one_caption(place: Path, run: Run, features: np.ndarray, caption: int) -> None:
    reference(place, features[caption])
    found = run(prh_caption=caption)["results"][TASK]
    assert found[f"mnn,caption_{caption}"] == pytest.approx(1.0)
    assert found[f"mnn_stderr,caption_{caption}"] == pytest.approx(0.0)
    assert not any(key.endswith(",none") for key in found)
    other = run(prh_caption=0)["results"][TASK]
    assert other["mnn,none"] < 0.99
    assert not any("caption_" in key for key in other)


def test_the_mean_of_all_captions(
    place: Path, run: Run, features: np.ndarray, cache_folder: Path
) -> None:
    reference(place, features.mean(axis=0))
    result = run(prh_caption="mean")
    found = result["results"][TASK]
    assert found["mnn,mean_over_captions"] == pytest.approx(1.0)
    assert {key.split(",")[1] for key in found if "," in key} == {"mean_over_captions"}
    recorded = result["configs"][TASK]["metadata"]["alignment"]
    assert recorded["n"] == N
    assert result["configs"][TASK]["metadata"]["prh_caption"] == "mean"
    (path,) = (cache_folder / "models").glob("*.safetensors")
    header = read_artifact(path).header
    assert header["pairs"]["n"] == N
    assert header["pairs"] == recorded["reference"]["pairs"]
    assert header["pairs"]["captions"] == recorded["pairs"]["fingerprint"]
    # The same items, read otherwise.
    first = run(prh_caption=0)
    pairs = first["configs"][TASK]["metadata"]["alignment"]["model"]["pairs"]
    assert pairs["items"] == header["pairs"]["items"]
    assert pairs["captions"] != header["pairs"]["captions"]
    assert first["results"][TASK]["mnn,none"] < 0.99


def test_items_with_unlike_numbers_of_captions(
    place: Path, model: Path, run: Run, features: np.ndarray
) -> None:
    counts = [1 + i % 3 for i in range(N)]
    means = [features[:count, i].mean(axis=0) for i, count in enumerate(counts)]
    reference(place, np.stack(means))
    texts = [captions[:count] for captions, count in zip(CAPTIONS, counts, strict=True)]
    with (place / "references" / "captions.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": each}) + "\n" for each in texts)
    path = place / "references" / "mine.yaml"
    content = yaml.safe_load(path.read_text())
    content["pairs"] = {"kind": "table", "path": "captions.jsonl"}
    path.write_text(yaml.safe_dump(content))
    result = run(prh_caption="mean", prh_k=4)
    assert result["results"][TASK]["mnn,mean_over_captions"] == pytest.approx(1.0)
    for sample, captions in zip(result["samples"][TASK], texts, strict=True):
        assert sample["doc"]["captions"] == captions
        assert len(sample["arguments"][0]) == (3 if len(captions) > 1 else 2)


def test_samples_carry_every_caption_and_their_own_overlap(
    place: Path, run: Run, features: np.ndarray
) -> None:
    reference(place, features.mean(axis=0)[::-1].copy())
    result = run(prh_caption="mean", prh_k=4)
    samples = result["samples"][TASK]
    assert [sample["doc"]["captions"] for sample in samples] == CAPTIONS
    assert [sample["doc"]["caption"] for sample in samples] == [texts[0] for texts in CAPTIONS]
    assert {sample["filter"] for sample in samples} == {"mean_over_captions"}
    for sample, texts in zip(samples, CAPTIONS, strict=True):
        first, settings, every = sample["arguments"][0]
        assert (first, every) == (texts[0], texts)
        assert settings["pooling"] == "mean"
    mean = np.mean([sample["mnn"] for sample in samples])
    assert result["results"][TASK]["mnn,mean_over_captions"] == pytest.approx(mean)
    plain = run(prh_caption=0, prh_k=4)["samples"][TASK]
    assert all(set(sample["doc"]) == {"id", "caption"} for sample in plain)
    assert all(len(sample["arguments"][0]) == 2 for sample in plain)


def test_bits_per_byte_are_over_all_captions(
    place: Path, model: Path, run: Run, features: np.ndarray
) -> None:
    reference(place, features.mean(axis=0))
    tokenizer = AutoTokenizer.from_pretrained(model)
    body = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    nats, size = np.zeros(3), np.zeros(3)
    with torch.no_grad():
        for texts in CAPTIONS:
            for j, text in enumerate(texts):
                ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
                nats[j] += float(body(ids, labels=ids).loss) * (ids.shape[1] - 1)
                size[j] += len(text.encode())
    every = run(prh_caption="mean", prh_bits_per_byte=True)["results"][TASK]
    expected = nats.sum() / size.sum() / np.log(2)
    assert every["bits_per_byte,mean_over_captions"] == pytest.approx(expected, rel=1e-4)
    assert every["mnn,mean_over_captions"] == pytest.approx(1.0)
    second = run(prh_caption=1, prh_bits_per_byte=True)["results"][TASK]
    expected = nats[1] / size[1] / np.log(2)
    assert second["bits_per_byte,caption_1"] == pytest.approx(expected, rel=1e-4)


def inline(name: str, caption: int | str) -> dict[str, Any]:
    metadata = {"version": 1, "prh_reference": "mine", "prh_caption": caption, "prh_k": 5}
    return {"task": name, "class": AlignmentTask, "metadata": metadata}


def test_tasks_that_read_other_captions_share_a_pass_but_no_graph(
    place: Path,
    run: Run,
    features: np.ndarray,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference(place, features.mean(axis=0))
    passes: list[int] = []
    real = language.language_features

    def counting(model: Any, tokenizer: Any, captions: list[str], **kwargs: Any) -> Any:
        passes.append(len(captions))
        return real(model, tokenizer, captions, **kwargs)

    monkeypatch.setattr("prh_eval.harness.requests.language_features", counting)
    found = run(tasks=[inline("mean", "mean"), inline("one", 1), inline("zero", 0)])["results"]
    assert passes == [5 * N]
    assert found["mean"]["mnn,mean_over_captions"] == pytest.approx(1.0)
    for name, caption, key in (("one", 1, "mnn,caption_1"), ("zero", 0, "mnn,none")):
        alone = run(tasks=[inline(name, caption)])["results"]
        assert found[name][key] == alone[name][key] < 0.99
    assert len(list((cache_folder / "models").glob("*.safetensors"))) == 3


def test_lm_evals_caches_know_which_captions_were_read(
    place: Path,
    run: Run,
    features: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference(place, features.mean(axis=0))
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(place / "requests"))
    caches = {"use_cache": str(place / "responses"), "cache_requests": True}
    first = {c: run(prh_caption=c, **caches)["results"] for c in (0, "mean", 1)}
    assert len({json.dumps(result) for result in first.values()}) == 3

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran although its graphs are cached")

    monkeypatch.setattr("prh_eval.harness.requests.language_features", never)
    for caption, result in first.items():
        assert run(prh_caption=caption, **caches)["results"] == result


def test_groups_and_tables_and_loggers_take_the_name(
    place: Path, run: Run, features: np.ndarray
) -> None:
    reference(place, features.mean(axis=0))
    (place / "tasks" / "group.yaml").write_text(
        f"group: both\ntask:\n  - {TASK}\n"
        "aggregate_metric_list:\n  - metric: mnn\n    weight_by_size: true\n"
        "    filter_list: [mean_over_captions]\nmetadata:\n  version: 1\n"
    )
    result = run(prh_caption="mean", tasks=["both"])
    assert result["groups"]["both"]["mnn,mean_over_captions"] == pytest.approx(1.0)
    table = make_table(result)
    (row,) = [line for line in table.splitlines() if TASK in line]
    assert "|mean_over_captions|" in row and "|mnn " in row
    logger = object.__new__(WandbLogger)
    frame = logger._generate_dataset(result["samples"][TASK], result["configs"][TASK])
    assert len(frame) == N
    logger.results, logger.task_names = result, [TASK]
    logger.task_configs = result["configs"]
    _, summary = logger._sanitize_results_dict()
    assert summary[f"{TASK}/mnn,mean_over_captions"] == pytest.approx(1.0)


def test_predict_only_has_the_name_too(place: Path, run: Run, features: np.ndarray) -> None:
    reference(place, features.mean(axis=0))
    samples = run(prh_caption="mean", predict_only=True)["samples"][TASK]
    assert {sample["filter"] for sample in samples} == {"mean_over_captions"}
    assert "nearest in the last of 3 layers" in str(samples[0]["filtered_resps"])


def test_a_caption_that_an_item_lacks(place: Path, run: Run, features: np.ndarray) -> None:
    reference(place, features[0])
    with pytest.raises(PrhEvalError, match="item 0 has 3 captions, so there is no caption 3"):
        run(prh_caption=3)


# ------------------------------------------------------------------ remote code


@pytest.fixture
def allowed(
    place: Path, features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What is asked of a reference's artifact when the task has this metadata."""
    reference(place, features[0])
    asked: dict[str, Any] = {}

    def artifact(*args: Any, **kwargs: Any) -> Any:
        asked.update(kwargs)
        raise PrhEvalError("far enough")

    monkeypatch.setattr("prh_eval.harness.task.reference_artifact", artifact)

    def build(metadata: dict[str, Any]) -> dict[str, Any]:
        config = {"task": "t", "metadata": {"prh_reference": "mine", **metadata}}
        with pytest.raises(PrhEvalError, match="far enough"):
            AlignmentTask(config).build_all_requests()
        return asked

    return build


@pytest.mark.parametrize(
    ("metadata", "trusted"),
    [
        ({}, False),
        ({"trust_remote_code": True}, True),
        ({"trust_remote_code": False}, False),
        ({"trust_remote_code": "False"}, False),
        ({"trust_remote_code": None}, False),
    ],
)
def test_remote_code_is_allowed_by_the_command_line_alone(
    allowed: Callable[[dict[str, Any]], dict[str, Any]], metadata: dict[str, Any], trusted: bool
) -> None:
    asked = allowed({**metadata, "prh_k": 7, "prh_protocol": "unclipped"})
    assert asked == {
        "protocol": "unclipped",
        "k": 7,
        "trust_remote_code": trusted,
    }


@pytest.mark.parametrize("given", [True, False])
def test_remote_code_is_allowed_by_lm_evals_flag(
    allowed: Callable[[dict[str, Any]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    given: bool,
) -> None:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    monkeypatch.setattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE", False, raising=False)
    flag = {"trust_remote_code": True} if given else {}
    command_line = argparse.Namespace(tasks="t", model_args={"pretrained": "x"}, **flag)
    config = EvaluatorConfig.from_cli(command_line)
    assert allowed(config.metadata)["trust_remote_code"] is given
