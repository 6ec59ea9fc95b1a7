"""Finding graphs in the cache: by name, by what they fit, and what is said where none is left."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_graphs import features, keep_model, keep_reference

from prh_eval import store
from prh_eval.artifacts import choose, kept_headers, models_named
from prh_eval.errors import PrhEvalError

FEW = features(2, 16, seed=0)
MORE = features(2, 20, seed=1)


def sentence(*names: str, protocol: str = "paper") -> str:
    """What a person is told; always one line."""
    with pytest.raises(PrhEvalError) as caught:
        choose(names, protocol)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def chosen(*names: str, protocol: str = "paper") -> list[Path]:
    return [kept.path for kept in choose(names, protocol)]


def test_headers_are_listed_without_reading_the_graphs() -> None:
    path = keep_reference("dino", FEW)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last byte belongs to the graph
    path.write_bytes(content)
    (kept,) = kept_headers("references")
    assert (kept.path, kept.name, kept.header["kind"]) == (path, "dino", "vision")
    with pytest.raises(store.ArtifactError, match="checksum"):
        store.read_artifact(path)
    assert kept_headers("models") == []


def test_files_that_are_no_use_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    whole = keep_model("gpt2", FEW)
    folder = whole.parent
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:100])
    (folder / "empty.safetensors").write_bytes(b"")
    other = {"x": np.zeros(3, dtype=np.float32)}
    safetensors.numpy.save_file(other, folder / "weights.safetensors")
    old = store.read_artifact(whole)
    for name, header in {
        "earlier": {**old.header, "pairs": "0" * 64},
        "nameless": {key: value for key, value in old.header.items() if key != "model"},
        "kindless": {key: value for key, value in old.header.items() if key != "kind"},
        "later": {**old.header, "graph_version": 99},
    }.items():
        path = folder / f"{name}.safetensors"
        store.write_artifact(path, store.GraphArtifact(old.graph, header))
    with safetensors.safe_open(whole, "numpy") as file:
        metadata = file.metadata() | {"format": "prh_eval.graph/9"}
    safetensors.numpy.save_file(other, folder / "format.safetensors", metadata)
    (folder / ".whole.safetensors.0.tmp").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert [kept.path for kept in kept_headers("models")] == [whole]
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("8 of the files in the cache cannot be used: ")
    for name in ("cut", "empty", "weights", "earlier", "nameless", "kindless", "later", "format"):
        assert f"{name}.safetensors" in said
    assert "of version 99" in said


def test_a_reference_and_a_model_by_their_names() -> None:
    dino, clip = keep_reference("dino", FEW), keep_reference("clip", FEW)
    gpt2 = keep_model("openai-community/gpt2", FEW)
    assert chosen("clip", "dino") == [clip, dino]
    assert chosen("dino", "openai-community/gpt2", "clip") == [dino, gpt2, clip]
    assert chosen("gpt2", "references/dino.yaml") == [gpt2, dino]
    assert chosen(str(gpt2), str(dino)) == [gpt2, dino]


def test_a_model_in_a_folder() -> None:
    here, there = keep_model("/a/tiny", FEW), keep_model("/b/small/", FEW)
    assert chosen("tiny", "small") == [here, there]


def test_the_last_part_of_two_models_names() -> None:
    keep_model("a/gpt2", FEW), keep_model("b/gpt2", FEW)
    plain = keep_model("gpt2", FEW)
    keep_reference("dino", FEW)
    # The whole name of one is also the last part of others'.
    assert chosen("gpt2", "dino")[0] == plain
    plain.unlink()
    assert "a/gpt2, b/gpt2" in sentence("gpt2", "dino")
    assert models_named(kept_headers("models"), "pt2") == []


def test_a_name_of_both_kinds() -> None:
    one, other = keep_reference("gpt2", FEW, kind="language"), keep_model("gpt2", FEW)
    said = sentence("gpt2", "gpt2")
    assert "both a reference and a model" in said
    assert str(one) in said and str(other) in said


def test_an_unknown_name() -> None:
    keep_reference("dinosaur", FEW), keep_model("gpt2", FEW)
    said = sentence("dinosour", "gpt2")
    assert "no graphs of 'dinosour'" in said and "did you mean 'dinosaur'?" in said
    keep_model("a/opt", FEW), keep_model("b/opt", FEW), keep_model("/runs/tiny", FEW)
    assert "(valid: a/opt, b/opt, dinosaur, gpt2, tiny)" in sentence("dinosour", "gpt2")
    assert "there is no artifact 'gone.safetensors'" in sentence("gone.safetensors", "gpt2")


def test_an_empty_cache() -> None:
    assert "none of anything yet" in sentence("x", "y")


def test_a_reference_that_was_not_built_names_the_command() -> None:
    keep_model("gpt2", FEW)
    assert "`prh-eval references build cielab`" in sentence("cielab", "gpt2")


def test_a_file_that_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not one")
    keep_model("gpt2", FEW)
    assert "is cut short or is no artifact" in sentence(str(tmp_path / "x.safetensors"), "gpt2")


def test_the_protocol_chooses_and_values_have_none() -> None:
    paper, unclipped = (
        keep_reference("dino", FEW),
        keep_reference("dino", FEW, protocol="unclipped"),
    )
    values = keep_reference("lab", FEW, kind="values", protocol=None)
    assert chosen("dino", "lab") == [paper, values]
    assert chosen("dino", "lab", protocol="unclipped") == [unclipped, values]
    said = sentence("dino", "lab", protocol="paper_loose")
    assert "paper and unclipped" in said and "'paper_loose'" in said


def test_graphs_on_other_data_are_left_out() -> None:
    keep_reference("dino", MORE, data="other")
    dino = keep_reference("dino", FEW)
    keep_model("gpt2", MORE)
    gpt2 = keep_model("gpt2", FEW)
    assert chosen("dino", "gpt2") == [dino, gpt2]
    # The same number of items is not the same items.
    keep_model("opt", FEW, data="other")
    said = sentence("dino", "gpt2", "opt")
    assert "gpt2 and opt" not in said
    assert said.startswith("dino and opt are not of the same data: dino is on ")
    assert "pictures (16 items" in said and "other (20 items" in said and "other (16 items" in said


def test_three_that_fit_in_twos_only() -> None:
    sets = {"a": ("x", "y"), "b": ("y", "z"), "c": ("x", "z")}
    for name, on in sets.items():
        for data in on:
            keep_reference(name, FEW, data=data)
    said = sentence("a", "b", "c")
    assert said.startswith("there is no data that all of these have graphs of: a on x (")
    assert len(chosen("a", "b")) == 2


def test_captions_count_for_those_that_read_them() -> None:
    image = keep_reference("dino", FEW, captions="0")
    first, mean = (keep_model("gpt2", FEW, captions=which) for which in ("0", "mean"))
    opt = keep_model("opt", FEW, captions="mean")
    sentences = keep_reference("minilm", FEW, kind="language", captions="0")
    # An image encoder sees no caption, so it fits both; the others decide.
    assert chosen("dino", "gpt2", "opt") == [image, mean, opt]
    assert chosen("gpt2", "minilm", "dino") == [first, sentences, image]
    said = sentence("minilm", "opt")
    assert said.startswith("minilm and opt are not of the same data") and "captions" in said
    said = sentence("dino", "gpt2")
    assert "2 data in common" in said and "in place of 'gpt2'" in said
    assert str(first) in said and str(mean) in said
    assert chosen("dino", str(mean)) == [image, mean]


def test_several_data_in_common() -> None:
    one, two = keep_reference("dino", FEW), keep_reference("dino", MORE)
    keep_reference("clip", FEW)
    clip = keep_reference("clip", MORE)
    said = sentence("dino", "clip")
    assert "in place of 'dino'" in said and str(one) in said and str(two) in said
    assert chosen(str(two), "clip") == [two, clip]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dtype", ("float32", "bfloat16")),
        ("revision", ("main", "step1000")),
        ("pooling", ("mean", "last")),
        ("peft", (None, "adapter")),
        ("max_length", (512, 2048)),
    ],
)
def test_several_graphs_of_a_model_are_told_apart(field: str, values: tuple[str, str]) -> None:
    keep_reference("dino", FEW)
    # Other weights go with all of these but pooling.
    files = [
        keep_model(
            "gpt2", FEW, weights="0" * 64 if field == "pooling" else f"{i:064}", **{field: v}
        )
        for i, v in enumerate(values)
    ]
    said = sentence("dino", "gpt2")
    assert said.startswith("'gpt2' has 2 graphs that fit")
    for value, file in zip(values, files, strict=True):
        assert f"{field} {value}: {file}" in said
    assert "weights" not in said
    assert chosen("dino", str(files[1]))[1] == files[1]


def test_weights_that_alone_differ_are_said() -> None:
    keep_reference("dino", FEW)
    for digit in "12":
        keep_model("/runs/last", FEW, weights=digit * 64)
    said = sentence("dino", "last")
    assert "weights 1111" in said and "weights 2222" in said


def test_of_graphs_that_differ_in_k_only_the_largest_is_taken() -> None:
    keep_reference("dino", FEW)
    files = {k: keep_model("gpt2", FEW, k=k, key=str(k), batch_size=k) for k in (12, 5, 14, 7)}
    assert chosen("dino", "gpt2")[1] == files[14]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(
        st.sets(st.tuples(st.sampled_from("xyz"), st.sampled_from("01")), min_size=1, max_size=3),
        min_size=2,
        max_size=3,
    ),
    st.sets(st.sampled_from("xyz"), min_size=1),
)
def test_the_choice_is_the_only_one_that_fits(
    tmp_path_factory: pytest.TempPathFactory,
    models: list[set[tuple[str, str]]],
    images: set[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRH_EVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        for data in images:
            keep_reference("dino", FEW, data=data)
        for number, graphs in enumerate(models):
            for data, captions in graphs:
                keep_model(f"m{number}", FEW, data=data, captions=captions)
        names = ["dino", *(f"m{number}" for number in range(len(models)))]
        # By brute force: which data and captions do all have?
        common = [one for one in set.intersection(*models) if one[0] in images]
        if len(common) == 1:
            found = choose(names)
            assert {kept.header["pairs"]["name"] for kept in found} == {common[0][0]}
            assert len({kept.header["pairs"]["captions"] for kept in found[1:]}) == 1
        else:
            assert ("data in common" in sentence(*names)) == bool(common)
