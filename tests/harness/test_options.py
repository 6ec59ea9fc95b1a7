"""The options of a task: what the metadata may say, and what the score is called."""

from __future__ import annotations

from typing import Any

import pytest

from prh_eval.alignment.registry import METRICS
from prh_eval.errors import PrhEvalError
from prh_eval.harness.options import TaskOptions, parse_options


def test_keys_of_others_are_left_alone() -> None:
    metadata = {"version": 1.0, "pretrained": "x", "prh_reference": "cielab", "prh_k": 4}
    assert parse_options(metadata, "t") == TaskOptions(reference="cielab", k=4)


def test_what_is_parsed_can_be_given_again() -> None:
    options = TaskOptions(reference="cielab", k=4, caption="mean", bits_per_byte=True)
    assert parse_options(options.as_metadata(), "t") == options
    assert all(key.startswith("prh_") for key in options.as_metadata())


@pytest.mark.parametrize(
    ("caption", "name"),
    [(0, "none"), (1, "caption_1"), (12, "caption_12"), ("mean", "mean_over_captions")],
)
def test_which_captions_are_read_is_part_of_the_scores_name(caption: Any, name: str) -> None:
    options = parse_options({"prh_reference": "x", "prh_caption": caption}, "t")
    assert options.caption == caption
    assert options.filter == name


def test_every_registered_metric_can_be_named_and_no_other() -> None:
    for name in METRICS:
        assert parse_options({"prh_reference": "x", "prh_metric": name}, "t").metric == name
        assert name in str(TaskOptions.model_fields["metric"].description)
    with pytest.raises(PrhEvalError, match="'prh_metric' is 'ckaa'; did you mean 'cka'"):
        parse_options({"prh_reference": "x", "prh_metric": "ckaa"}, "t")


def test_controls_are_off_and_the_null_is_drawn_unless_said_otherwise() -> None:
    options = parse_options({"prh_reference": "x"}, "t")
    assert (options.control, options.draws) == (None, None)
    given = {"prh_reference": "x", "prh_control": "untrained", "prh_draws": 0}
    assert parse_options(given, "t").as_metadata().items() >= given.items()


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "task t: the key 'prh_reference' is missing"),
        ({"prh_reference": 3}, "task t: the key 'prh_reference' is 3; it should be a valid string"),
        (
            {"prh_reference": "x", "prh_referense": "y"},
            "task t: unknown key 'prh_referense'; did you mean 'prh_reference'? (valid: "
            "prh_bits_per_byte, prh_caption, prh_control, prh_draws, prh_k, prh_metric, "
            "prh_pooling, prh_protocol, prh_reference)",
        ),
        (
            {"prh_reference": "x", "prh_caption": "1"},
            "task t: the key 'prh_caption' is '1'; it should be the number of a caption, from 0, "
            "or mean",
        ),
        (
            {"prh_reference": "x", "prh_control": "trained"},
            "task t: the key 'prh_control' is 'trained'; did you mean 'untrained'? (valid: "
            "untrained)",
        ),
        (
            {"prh_reference": "x", "prh_draws": -1},
            "task t: the key 'prh_draws' is -1; it should be greater than or equal to 0",
        ),
        (
            {"prh_reference": "x", "prh_bits_per_byte": "perhaps"},
            "task t: the key 'prh_bits_per_byte' is 'perhaps'; it should be a valid boolean, "
            "unable to interpret input",
        ),
    ],
)
def test_mistakes(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PrhEvalError) as error:
        parse_options(metadata, "t")
    assert str(error.value) == sentence
