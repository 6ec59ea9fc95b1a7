"""Graphs of references go from one machine to another whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_files import write_numbers
from tiny_hub import make_dinov2, make_image_captions, write_reference

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.errors import PrhEvalError
from prh_eval.pairs.load import load_pairs
from prh_eval.references import build
from prh_eval.references.build import reference_artifact
from prh_eval.references.registry import load_reference
from prh_eval.references.transfer import export_artifact, import_artifact
from prh_eval.store import GraphArtifact, read_artifact, write_artifact


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a reference in ./references/."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(20, 2, 5)).astype(np.float32)
    return write_numbers(tmp_path / "references", "numbers", rows)


@pytest.fixture
def other_machine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty cache, and no encoding of anything."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the encoder was run")

    folder = tmp_path_factory.mktemp("other")
    with monkeypatch.context() as patch:

        def move() -> Path:
            patch.setenv("PRH_EVAL_CACHE", str(folder))
            patch.setattr(build, "encode", refuse)
            return folder

        yield move  # type: ignore[misc]


def built(path: Path | str, **options: Any) -> GraphArtifact:
    reference = load_reference(path)
    return reference_artifact(
        reference, load_pairs(reference.pairs), protocol="paper", progress=False, **options
    )


def exported(path: Path | str, output: Path) -> Path:
    reference = load_reference(path)
    return export_artifact(reference, load_pairs(reference.pairs), protocol="paper", output=output)


def test_there_and_back(numbers: Path, tmp_path: Path, other_machine: Any) -> None:
    first = built(numbers)
    file = exported("numbers", tmp_path / "shared")
    assert file == tmp_path / "shared" / "numbers.safetensors"
    folder = other_machine()
    kept = import_artifact(file)
    assert kept.is_relative_to(folder)
    second = built(numbers)
    assert torch.equal(first.graph.indices, second.graph.indices)
    assert first.header == second.header


def test_captions_suffice_where_the_graphs_are_present(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_machine: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dinov2(tmp_path / "encoder")
    make_image_captions(tmp_path / "data", n=16)
    (tmp_path / "references").mkdir()
    path = write_reference(
        tmp_path / "references" / "tiny.yaml", Path("../encoder"), Path("../data")
    )
    first = built(path)
    file = exported("tiny", tmp_path / "tiny.safetensors")
    other_machine()
    import_artifact(file)
    # The other machine has the captions, but neither the encoder nor an image that can be read.
    shutil.rmtree(tmp_path / "encoder")
    reference = load_reference(path)
    pairs = load_pairs(reference.pairs)
    unreadable = make_image_captions(tmp_path / "captions", n=16, image=[None] * 16)
    captions = load_pairs(reference.pairs.model_copy(update={"path": str(unreadable)}))
    assert captions.fingerprint == pairs.fingerprint
    object.__setattr__(captions, "images", None)
    second = reference_artifact(reference, captions, protocol="paper")
    assert torch.equal(first.graph.indices, second.graph.indices)


def test_what_is_not_built_is_not_exported(numbers: Path, tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match="numbers has no current graphs: it is not in the cache"):
        exported(numbers, tmp_path / "x.safetensors")
    built(numbers)
    np.save(numbers.with_suffix(".npy"), np.zeros((20, 3)))
    with pytest.raises(PrhEvalError, match="changed since it was built: features; `prh-eval refer"):
        exported(numbers, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_names_that_are_no_artifacts(numbers: Path, tmp_path: Path) -> None:
    built(numbers)
    with pytest.raises(PrhEvalError, match=r"x\.npy should end in \.safetensors"):
        exported(numbers, tmp_path / "x.npy")


@pytest.mark.parametrize("damage", ["cut", "edited", "foreign"])
def test_a_damaged_file_is_refused(numbers: Path, tmp_path: Path, damage: str) -> None:
    built(numbers)
    file = exported(numbers, tmp_path / "x.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"cut": content[:-7], "edited": content, "foreign": b"PK"}[damage])
    with pytest.raises(PrhEvalError, match=r"x\.safetensors (is cut short|was edited)"):
        import_artifact(file)


def test_a_model_is_no_reference(tmp_path: Path) -> None:
    indices = torch.tensor([[[1, 2], [2, 0], [0, 1]]], dtype=torch.int32)
    graph = NeighborGraph(indices, torch.zeros_like(indices, dtype=torch.bool), 2)
    write_artifact(tmp_path / "m.safetensors", GraphArtifact(graph, {"model": "a/b"}))
    with pytest.raises(PrhEvalError, match="the graphs of no reference but of a/b"):
        import_artifact(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["unknown", "../../outside", "/etc/passwd"])
def test_unknown_names_are_refused(numbers: Path, tmp_path: Path, name: str) -> None:
    artifact = built(numbers)
    header = {**artifact.header, "reference": name}
    write_artifact(tmp_path / "x.safetensors", GraphArtifact(artifact.graph, header))
    with pytest.raises(PrhEvalError, match="is not known here"):
        import_artifact(tmp_path / "x.safetensors")


def test_another_definition_is_refused(numbers: Path, tmp_path: Path) -> None:
    built(numbers)
    file = exported(numbers, tmp_path / "x.safetensors")
    text = numbers.read_text()
    numbers.write_text(text + "similarity: euclidean\n")
    with pytest.raises(PrhEvalError, match=r"another definition of 'numbers'.*in protocol, simil"):
        import_artifact(file)
    numbers.write_text(text.replace("numbers of the name", "words on"))
    import_artifact(file)


def test_graphs_of_other_items_are_not_taken_for_these(
    numbers: Path, tmp_path: Path, other_machine: Any
) -> None:
    built(numbers)
    file = exported(numbers, tmp_path / "x.safetensors")
    other_machine()
    import_artifact(file)
    captions = numbers.with_name("captions.csv")
    captions.write_text(captions.read_text().replace("number 7", "number seven"))
    with pytest.raises(AssertionError, match="the encoder was run"):
        built(numbers)


def test_what_was_imported_is_whole(numbers: Path, tmp_path: Path, other_machine: Any) -> None:
    built(numbers)
    file = exported(numbers, tmp_path / "x.safetensors")
    other_machine()
    assert read_artifact(import_artifact(file)).header == read_artifact(file).header
