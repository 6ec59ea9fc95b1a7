"""Sentences on unknown names."""

from __future__ import annotations

from prh_eval.errors import suggestion


def test_the_nearest_name_is_suggested() -> None:
    assert suggestion("helaswag", ["gsm8k", "hellaswag"]) == (
        "did you mean 'hellaswag'? (valid: gsm8k, hellaswag)"
    )
    assert suggestion("xyz", ["b", "a"]) == "valid: a, b"


def test_a_long_list_is_cut_to_what_is_near() -> None:
    names = [f"mmlu_{number:03}" for number in range(80)] + ["hellaswag"]
    sentence = suggestion("helaswag", names)
    assert sentence.startswith("did you mean 'hellaswag'? (valid: hellaswag, ")
    assert sentence.endswith(" and 61 more)")
    assert sentence.count(", ") == 19
    assert suggestion("helaswag", names[:60]).count(", ") == 59
