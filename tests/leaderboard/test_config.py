"""board.yaml: read, or one sentence on what is wrong in it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.config import BoardConfig, Card, read_board

WHOLE = """
title: A board
references:
  - task: prh_align
    label: DINOv2-giant
    version: 1.0
    k: 10
tasks:
  - {task: hellaswag, metric: acc_norm, num_fewshot: 10, chance: 0.25}
  - {task: gsm8k, metric: "exact_match,strict-match", also: [acc]}
primary: {reference: prh_align, task: hellaswag}
models:
  - name: org/a
    family: A
    parameters: 160M
    training_tokens: 300e9
    release_date: 2023-04-03
    kind: base
    link: https://example.org/a
filters:
  least_parameters: 1.5M
"""


def read(folder: Path, text: str) -> BoardConfig:
    path = folder / "board.yaml"
    path.write_text(text, encoding="utf-8")
    return read_board(path)


def test_a_whole_file(tmp_path: Path) -> None:
    board = read(tmp_path, WHOLE)
    (reference,) = board.references
    assert (reference.key, reference.heading, reference.version) == (
        "prh_align",
        "DINOv2-giant",
        "1",
    )
    assert [task.num_fewshot for task in board.tasks] == [10, None]
    (card,) = board.models
    assert (card.parameters, card.training_tokens) == (1.6e8, 3e11)
    assert card.release_date == date(2023, 4, 3)
    assert board.filters.least_parameters == 1.5e6


def test_the_schema_for_editors_takes_what_we_take() -> None:
    schema = BoardConfig.model_json_schema()
    whole = json.loads(json.dumps(yaml.safe_load(WHOLE), default=str))
    jsonschema.validate(whole, schema)
    whole["models"][0]["parameters"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, schema)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("titel",), "x", "unknown key 'titel'; did you mean 'title'"),
        (("references",), [], "'references'"),
        (("references", 0, "task"), None, "references[0].task"),
        (("tasks", 0, "metrics"), "acc", "unknown key 'tasks[0].metrics'; did you mean 'metric'"),
        (("tasks", 1, "task"), "hellaswag", "two columns are called 'hellaswag'"),
        (("tasks", 1, "label"), "hellaswag", "two columns have the label 'hellaswag'"),
        (
            ("primary", "task"),
            "helaswag",
            "primary.task is 'helaswag', which is no column; did you",
        ),
        (
            ("models", 0, "parameters"),
            "many",
            "it should be a number, as 1400000000, 1.4e9 or 1.4B",
        ),
        (("models", 0, "parameters"), -1, "models[0].parameters"),
        (("models", 0, "release_date"), "spring", "models[0].release_date"),
        (("models", 0, "kind"), "chat", "'models[0].kind'"),
        (("models", 0, "link"), "javascript:alert(1)", "models[0].link"),
        (("models", 0, "control"), "random", "'models[0].control'"),
        (("filters", "familie"), ["A"], "unknown key 'filters.familie'"),
    ],
)
def test_one_sentence_on_a_mistake(
    tmp_path: Path, place: tuple[Any, ...], value: Any, sentence: str
) -> None:
    content = yaml.safe_load(WHOLE)
    inner = content
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(PrhEvalError) as error:
        read(tmp_path, yaml.safe_dump(content))
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'board.yaml'}: ")
    assert sentence in text
    assert "\n" not in text


def test_two_cards_of_one_model(tmp_path: Path) -> None:
    cards = "models: [{name: a}, {name: b, aliases: [a]}]"
    with pytest.raises(PrhEvalError, match="two model cards are of 'a'"):
        read(tmp_path, f"references: [{{task: prh_align}}]\n{cards}")
    apart = "models: [{name: a}, {name: a, revision: x}]"
    assert len(read(tmp_path, f"references: [{{task: prh_align}}]\n{apart}").models) == 2


@given(
    st.sampled_from([("", 1), ("K", 10**3), ("M", 10**6), ("B", 10**9), ("T", 10**12)]),
    st.decimals(min_value="0.001", max_value=999, places=3),
)
def test_amounts(suffix: tuple[str, int], number: Any) -> None:
    card = Card.model_validate({"name": "a", "parameters": f"{number}{suffix[0]}"})
    assert card.parameters == pytest.approx(float(number) * suffix[1])


@given(st.text(max_size=6))
def test_other_text_is_no_amount(text: str) -> None:
    try:
        amount = Card.model_validate({"name": "a", "parameters": text}).parameters
    except ValidationError:
        return
    assert amount is not None and amount > 0
    assert float(text.strip().rstrip("KMBT").strip()) > 0
