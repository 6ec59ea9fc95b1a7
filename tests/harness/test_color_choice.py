"""Which of four colours looks like this one: the documents, and a model's answers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tiny_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prh_eval import resources
from prh_eval.harness.color_choice import color_choice, documents

# Of the documents of version 1.0. Where it must change, the task's version must rise.
FINGERPRINT = "6e4050264ee48d6807f4032ec752fbfe07687131e7a2bea6dad3e293f64c54ce"

TASK = "prh_color_choice"


@pytest.fixture(scope="module")
def docs() -> list[dict[str, Any]]:
    return documents()


@pytest.fixture(scope="module")
def lab(colors: dict[str, str]) -> dict[str, tuple[float, float, float]]:
    """CIELAB by the definition in CIE 15, a number at a time."""

    def linear(byte: int) -> float:
        c = byte / 255
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    def compressed(t: float) -> float:
        return t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29

    found = {}
    for name, code in colors.items():
        r, g, b = (linear(int(code[i : i + 2], 16)) for i in (1, 3, 5))
        x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.9504700
        y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
        z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.0888300
        fx, fy, fz = map(compressed, (x, y, z))
        found[name] = (116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz))
    return found


def words(name: str) -> set[str]:
    return set(name.replace("/", " ").split())


# ------------------------------------------------------------------ documents


def test_the_documents_are_those_of_this_version(docs: list[dict[str, Any]]) -> None:
    content = json.dumps(docs, sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == FINGERPRINT


def test_every_colour_is_asked_about_once_and_each_place_is_right_as_often(
    docs: list[dict[str, Any]], colors: dict[str, str]
) -> None:
    assert [doc["name"] for doc in docs] == list(colors)
    assert sorted(Counter(doc["answer"] for doc in docs).items()) == [
        (0, 238),
        (1, 237),
        (2, 237),
        (3, 237),
    ]
    for doc in docs:
        assert len(set(doc["choices"])) == 4 and doc["name"] not in doc["choices"]


def test_the_answer_is_the_nearest_and_the_others_are_graded(
    docs: list[dict[str, Any]], lab: dict[str, tuple[float, float, float]]
) -> None:
    answers = {doc["choices"][doc["answer"]] for doc in docs}
    for doc in docs:
        distance = {
            other: math.dist(lab[doc["name"]], lab[other])
            for other in lab
            if not words(doc["name"]) & words(other)  # and so not itself
        }
        answer = doc["choices"][doc["answer"]]
        length = len(answer.split())
        short = [distance[name] for name in distance if len(name.split()) <= 2]
        assert distance[answer] == pytest.approx(min(short), abs=1e-6)
        eligible = sorted(
            distance[name]
            for name in answers & distance.keys()
            if len(name.split()) == length and distance[name] >= distance[answer] + 10 - 1e-6
        )
        wrong = sorted(distance[c] for c in doc["choices"] if c != answer)  # KeyError: shared word
        assert all(len(choice.split()) == length for choice in doc["choices"])
        assert answers.issuperset(doc["choices"])
        assert wrong[0] >= distance[answer] + 10 - 1e-6
        tenth, third = (round(len(eligible) * share) for share in (0.1, 1 / 3))
        assert eligible[0] - 1e-6 <= wrong[0] <= eligible[tenth - 1] + 1e-6
        assert eligible[tenth] - 1e-6 <= wrong[1] <= eligible[third - 1] + 1e-6
        assert eligible[third] - 1e-6 <= wrong[2] <= eligible[-1] + 1e-6


def test_what_is_named_often_does_not_tell(docs: list[dict[str, Any]]) -> None:
    often = Counter(doc["choices"][doc["answer"]] for doc in docs)
    right = 0.0
    for doc in docs:
        counts = [often[choice] for choice in doc["choices"]]
        best = [place for place, count in enumerate(counts) if count == max(counts)]
        right += (doc["answer"] in best) / len(best)
    # The answer itself counts once more for its own document; chance alone has an error of 0.014.
    assert right / len(docs) < 0.35


def test_metadata_of_other_tasks_is_passed_over(docs: list[dict[str, Any]]) -> None:
    data = color_choice(version=1.0, prh_k=3, pretrained="a model")
    assert data["test"].to_list() == docs


# ------------------------------------------------------------------ lm-eval


def manager() -> TaskManager:
    return TaskManager(include_path=str(resources.folder("tasks")), include_defaults=False)


class Oracle(LM):
    """Finds a colour the likelier, the nearer (or the further) it is to the one asked about."""

    def __init__(self, lab: dict[str, tuple[float, float, float]], sign: int) -> None:
        super().__init__()
        self.lab, self.sign = lab, sign

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        found = []
        for context, continuation in (request.args for request in requests):
            assert continuation[0] == " " and context.endswith(" looks like")
            asked = self.lab[context.removesuffix(" looks like")]
            distance = math.dist(asked, self.lab[continuation[1:]])
            found.append((-self.sign * distance, False))
        return found

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


@pytest.mark.parametrize(("sign", "accuracy"), [(1, 1.0), (-1, 0.0)])
def test_who_knows_the_colours_knows_every_answer(
    lab: dict[str, tuple[float, float, float]], sign: int, accuracy: float
) -> None:
    found = simple_evaluate(Oracle(lab, sign), tasks=[TASK], task_manager=manager())
    assert found["results"][TASK]["acc,none"] == accuracy
    assert found["versions"][TASK] == 1.0
    assert found["n-shot"][TASK] == 0


def test_it_is_no_alignment_task() -> None:
    index = manager().task_index
    assert TASK in index and not index[TASK].tags


def test_the_command_line_scores_what_the_model_says(
    docs: list[dict[str, Any]], colors: dict[str, str], tmp_path: Path
) -> None:
    texts = [*colors, "looks like"]
    model_folder = save_model(tmp_path / "model", texts)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
            *("--model_args", "pretrained=model,dtype=float32", "--device", "cpu"),
            *("--tasks", TASK, "--include_path", str(resources.folder("tasks"))),
            *("--batch_size", "64", "--log_samples", "--output_path", "out"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"][TASK]
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    right = []
    for doc, sample in zip(docs, samples, strict=True):
        assert sample["doc"] == doc
        asked = len(tokenizer(f"{doc['name']} looks like").input_ids)
        whole = [f"{doc['name']} looks like {choice}" for choice in doc["choices"]]
        ids = tokenizer(whole, return_tensors="pt").input_ids  # equally long, so without padding
        with torch.no_grad():
            chances = model(ids).logits[:, :-1].log_softmax(dim=-1)
        following = chances.gather(2, ids[:, 1:, None])[:, asked - 1 :]
        likelihoods = following.sum(dim=(1, 2)).tolist()
        written = [float(response[0]) for response in sample["filtered_resps"]]
        assert written == pytest.approx(likelihoods, abs=1e-3)
        right.append(max(range(4), key=likelihoods.__getitem__) == doc["answer"])
    assert results["acc,none"] == pytest.approx(sum(right) / len(right), abs=2 / 949)
    assert results["acc,none"] == sum(sample["acc"] for sample in samples) / len(samples)
