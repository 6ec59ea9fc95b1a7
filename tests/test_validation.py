"""Files that a person writes: what is read, and the one sentence on each kind of mistake."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from prh_eval.errors import PrhEvalError
from prh_eval.validation import mistake, read_yaml

# ------------------------------------------------------------------ YAML


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_what_is_right_is_read_as_yaml_says(tmp_path: Path) -> None:
    text = "a: 1\nb: [x, 2.5, null]\nc: {d: yes, e: 2020-01-02}\nf: &k {g: h}\ni: *k\n"
    assert read_yaml(written(tmp_path, text)) == {
        "a": 1,
        "b": ["x", 2.5, None],
        "c": {"d": True, "e": datetime.date(2020, 1, 2)},
        "f": {"g": "h"},
        "i": {"g": "h"},
    }


# Line breaks other than \n are not written as they were, which is PyYAML's own affair.
texts = st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \n"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=12,
)


@given(content=st.dictionaries(texts, json_values))
def test_what_pyyaml_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    text = yaml.safe_dump(content, allow_unicode=True)
    assert read_yaml(written(tmp_path_factory.mktemp("yaml"), text)) == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("kind: [vision", "line [12]: this is not YAML that can be read"),
        ("kind: vision\nkind: values", "line 2: .*'kind' stands there twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4: .*'b' stands there twice"),
        ("a: [{b: 1, b: 1}]", "line 1: .*'b' stands there twice"),
        ("kind: vision\n---\nkind: values", "line 2: .*another document"),
        ("kind: !!python/object/apply:os.getcwd []", "not YAML that can be read: could not det"),
        ("kind: !!python/name:os.getcwd", "not YAML that can be read: could not det"),
        ("kind: !function os.getcwd", "not YAML that can be read: could not det"),
        ("\tkind: vision", "line 1: .*cannot start any token"),
        ("kind: !!map vision", "line 1: .*expected a mapping node, but found scalar"),
        ("kind: !!set vision", "line 1: .*expected a mapping node, but found scalar"),
        ("[a]: b\n? [c]\n: d", "unhashable key"),
        # What Python's own conversions refuse, and PyYAML does not catch.
        ("when: 2020-13-45", "not YAML that can be read: month must be in 1..12"),
        ("a: !!int x", "not YAML that can be read: invalid literal"),
        ("a: !!int", "not YAML that can be read: .*index"),
        ("a: !!bool x", "not YAML that can be read: 'x'"),
        ("a: !!float x", "not YAML that can be read: could not convert"),
        ("a: !!timestamp x", "not YAML that can be read"),
        ("a: \x00", "not YAML that can be read: unacceptable character #x0000"),
        ("just words", "should hold keys and values"),
        ("[a, b]", "should hold keys and values"),
        ("", "should hold keys and values"),
        (b"\xff\xfe\x00", "cannot be read: .*codec"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(PrhEvalError, match=words) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None])
def test_a_file_that_is_none(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "file.yaml")
    with pytest.raises(PrhEvalError, match=r"file\.yaml cannot be read: "):
        read_yaml(tmp_path / "file.yaml")


tokens = st.sampled_from(
    [*"{}[]:-?&*!|>%@`'\"#,.=<~ \n", "!!int ", "<<", "0x", "a", "é", "- ", "k: "]
)


@given(pieces=st.lists(tokens, max_size=25))
def test_whatever_stands_in_a_file_there_is_a_mapping_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    path = written(tmp_path_factory.mktemp("yaml"), "".join(pieces))
    try:
        assert isinstance(read_yaml(path), dict)
    except PrhEvalError as error:
        assert "\n" not in str(error)


def test_no_code_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tag = "!!python/object/apply:pathlib.Path.touch"
    with pytest.raises(PrhEvalError):
        read_yaml(written(tmp_path, f"a: {tag}\n- !!python/object/apply:pathlib.Path [{trace}]"))
    with pytest.raises(PrhEvalError):
        read_yaml(written(tmp_path, f"a: !!python/object/apply:os.system ['touch {trace}']"))
    assert not trace.exists()


# ------------------------------------------------------------------ mistakes


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Section):
    kind: Literal["cat"]
    lives: int = Field(gt=0)
    colour: Literal["black", "white", "tabby"] = "black"


class Dog(Section):
    kind: Literal["dog"]
    name: str
    tricks: list[str] = []


class Bowl(Section):
    width: int
    depth: float = 1.0


def by_type(value: Any) -> str:
    return "known" if isinstance(value, str) else "own"


class House(Section):
    kind: Literal["house"] = "house"
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    bowl: Annotated[
        Annotated[Literal["small", "large"], Tag("known")] | Annotated[Bowl, Tag("own")],
        Discriminator(by_type),
    ] = "small"
    rooms: tuple[int, int] = (1, 2)


class Tent(Section):
    kind: Literal["tent"]


HOME = House | Tent
HOME_ADAPTER: TypeAdapter[Any] = TypeAdapter(Annotated[HOME, Field(discriminator="kind")])
DOG = {"kind": "dog", "name": "Rex"}


def sentence(adapter: Any, model: Any, content: Any, prefix: str = "") -> str:
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(content)
    return mistake(caught.value, model, prefix)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pett": 1}, "unknown key 'pett'; did you mean 'pet'? (valid: bowl, kind, pet, rooms)"),
        ({"pet": None}, "the key 'pet' is None; it should hold keys and values"),
        ({"pet": {"kind": "cat"}}, "the key 'pet.lives' is missing"),
        (
            {"pet": {"name": "Rex"}},
            "the key 'pet.kind' is missing; it should be one of cat, dog",
        ),
        (
            {"pet": {"kind": "dgo", "name": "Rex"}},
            "the key 'pet.kind' is 'dgo'; did you mean 'dog'? (valid: cat, dog)",
        ),
        (
            {"pet": {**DOG, "trick": []}},
            "unknown key 'pet.trick'; did you mean 'tricks'? (valid: kind, name, tricks)",
        ),
        (
            {"pet": {"kind": "cat", "lives": 9, "colour": "tabi"}},
            "the key 'pet.colour' is 'tabi'; did you mean 'tabby'? (valid: black, tabby, white)",
        ),
        (
            {"pet": {"kind": "cat", "lives": 0}},
            "the key 'pet.lives' is 0; it should be greater than 0",
        ),
        (
            {"pet": {**DOG, "tricks": ["sit", 3]}},
            "the key 'pet.tricks[1]' is 3; it should be a valid string",
        ),
        (
            {"pet": {**DOG, "tricks": ["sit" * 99]}, "rooms": [1, "sit" * 99]},
            "the key 'rooms[1]' is '" + ("sit" * 99)[:96] + "...; it should be a valid integer, "
            "unable to parse string as an integer",
        ),
        ({"bowl": "smal"}, "the key 'bowl' is 'smal'; did you mean 'small'? (valid: large, small)"),
        ({"bowl": {}}, "the key 'bowl.width' is missing"),
        ({"bowl": {"width": 1, "dept": 2}}, "unknown key 'bowl.dept'; did you mean 'depth'?"),
        ({"bowl": 3}, "the key 'bowl' is 3; it should hold keys and values"),
        ({"kind": "hose"}, "the key 'kind' is 'hose'; did you mean 'house'? (valid: house, tent)"),
    ],
)
def test_the_sentence_names_the_key_and_what_would_be_right(
    changes: dict[str, Any], expected: str
) -> None:
    found = sentence(HOME_ADAPTER, HOME, {"kind": "house", "pet": DOG, **changes})
    assert found == expected or (expected.endswith("?") and found.startswith(expected))


def test_no_kind_at_all() -> None:
    assert (
        sentence(HOME_ADAPTER, HOME, {"pet": DOG})
        == "the key 'kind' is missing; it should be one of house, tent"
    )


def test_of_several_mistakes_the_mistyped_key_is_told() -> None:
    found = sentence(HOME_ADAPTER, HOME, {"kind": "house", "pett": DOG})
    assert found.startswith("unknown key 'pett'; did you mean 'pet'?")
    assert found.endswith(" (the first of 2 mistakes)")


def test_a_prefix_stands_before_every_key() -> None:
    class Options(Section):
        size: int
        shape: Literal["round", "square"] = "round"

    adapter: TypeAdapter[Any] = TypeAdapter(Options)
    assert sentence(adapter, Options, {}, "my_") == "the key 'my_size' is missing"
    assert (
        sentence(adapter, Options, {"size": 1, "siz": 2}, "my_")
        == "unknown key 'my_siz'; did you mean 'my_size'? (valid: my_shape, my_size)"
    )
    assert sentence(adapter, Options, {"size": 1, "shape": "rond"}, "my_") == (
        "the key 'my_shape' is 'rond'; did you mean 'round'? (valid: round, square)"
    )


def test_a_rule_of_a_section_is_said_with_its_place() -> None:
    from prh_eval.schema import REFERENCE, Reference

    encoder = {"path": "x", "token": "pooled", "norm": "after", "preprocessing": "processor"}
    content = {
        "kind": "vision",
        "name": "x",
        "description": "x",
        "licence": "x",
        "citation": "x",
        "pairs": {"kind": "embedded", "name": "xkcd_colors"},
        "encoder": encoder,
    }
    assert sentence(REFERENCE, Reference, content) == (
        "in 'encoder': with token: pooled there is one layer, the model's own output; norm should "
        "be left out"
    )
