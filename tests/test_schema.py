"""Whatever stands in a YAML, it is a reference or one sentence, and never a traceback."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prh_eval.alignment.registry import METRICS
from prh_eval.errors import PrhEvalError
from prh_eval.references.registry import load_reference
from prh_eval.schema import REFERENCE, Metric, Reference
from prh_eval.validation import mistake

COMMON = {"description": "d", "licence": "l", "citation": "c"}
EXPLICIT = {"resize": 8, "crop": 8, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}
FILES: list[dict[str, Any]] = [
    {
        **COMMON,
        "kind": "vision",
        "pairs": {"kind": "hub", "path": "a/b", "caption_column": ["x", "y"]},
        "encoder": {"path": "a/b", "token": "class", "layers": [0, -1], "preprocessing": EXPLICIT},
    },
    {
        **COMMON,
        "kind": "vision",
        "pairs": {"kind": "imagefolder", "path": "a"},
        "encoder": {"path": "a/b", "token": "pooled", "preprocessing": "processor"},
    },
    {
        **COMMON,
        "kind": "language",
        "pairs": {"kind": "table", "path": "a.csv"},
        "encoder": {"path": "a/b", "pooling": "mean", "layers": [1, 2]},
    },
    {
        **COMMON,
        "kind": "features",
        "pairs": {"kind": "table", "path": "a.csv"},
        "features": {"path": "f.npz", "names": ["a"]},
    },
    {
        **COMMON,
        "kind": "values",
        "pairs": {"kind": "embedded", "name": "xkcd_colors"},
        "values": {"path": "v.csv", "columns": ["a"]},
        "metric": "cka",
        "relative": "cielab",
    },
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**9)
    | st.floats()
    | st.sampled_from(["", "mean", "vision", "hub", "table", "processor", "pooled", "x" * 300])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value stands, in dicts and lists."""
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in inner:
        found.append((*at, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*at, key))
    return found


def drawn_file(data: st.DataObject) -> dict[str, Any]:
    """A file that is right but for one or two things."""
    content = copy.deepcopy(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 2))):
        *sections, last = data.draw(st.sampled_from(places(content)))
        section: Any = content
        for key in sections:
            section = section[key]
        match data.draw(st.sampled_from(["replace", "remove", "rename"])):
            case "replace":
                section[last] = data.draw(VALUES)
            case "remove":
                del section[last]
            case "rename":
                value = section[last]
                if isinstance(section, dict):
                    del section[last]
                    section[data.draw(st.sampled_from(["kind", "path", "nam", f"{last}s"]))] = value
    return content


@pytest.mark.parametrize("content", FILES, ids=lambda content: content["kind"])
def test_these_are_right(content: dict[str, Any]) -> None:
    REFERENCE.validate_python(content)


def test_metrics_are_those_of_the_registry() -> None:
    assert set(get_args(Metric)) == set(METRICS)
    for name in METRICS:
        assert REFERENCE.validate_python({**FILES[0], "metric": name}).metric == name
    with pytest.raises(ValidationError) as error:
        REFERENCE.validate_python({**FILES[0], "metric": "mutual_kn"})
    sentence = mistake(error.value, Reference)
    assert sentence.startswith("the key 'metric' is 'mutual_kn'; did you mean 'mutual_knn'?")


@given(st.data())
def test_a_mistake_is_one_sentence_about_a_key(data: st.DataObject) -> None:
    content = drawn_file(data)
    try:
        REFERENCE.validate_python(content)
    except ValidationError as error:
        sentence = mistake(error, Reference)
        assert "\n" not in sentence
        assert len(sentence) < 600
        # Neither pydantic's own words for its types, nor the tags by which forms are told apart.
        for inside in ("Literal", "tagged", "union", "Input", "constrained", ".one", ".own"):
            assert inside not in sentence.replace(repr(content), "")


@given(st.data())
def test_an_editor_finds_what_we_find_wrong_with_the_keys(data: st.DataObject) -> None:
    content = drawn_file(data)
    validator = jsonschema.Draft202012Validator(REFERENCE.json_schema())
    try:
        REFERENCE.validate_python(content)
    except ValidationError as error:
        # Conditions between keys are ours alone.
        unknown = any(found["type"] in ("extra_forbidden", "missing") for found in error.errors())
        if unknown:
            assert not validator.is_valid(content)


@given(st.data())
def test_through_a_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path: Path = tmp_path_factory.mktemp("drawn") / "drawn.yaml"
    path.write_text(yaml.safe_dump(drawn_file(data), allow_unicode=True), encoding="utf-8")
    try:
        assert load_reference(path).name == "drawn"
    except PrhEvalError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(str(path))
