"""References: mistakes in their files, and artifacts that are built once and kept current."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from tiny_hub import SIZE, make_dinov2, make_image_captions, write_reference

from prh_eval import references
from prh_eval.errors import PrhEvalError
from prh_eval.pairs import PairedDataset, load_pairs
from prh_eval.references import (
    ValuesReference,
    VisionReference,
    load_reference,
    reference_artifact,
    reference_names,
)
from prh_eval.store import GraphArtifact, read_artifact

# ------------------------------------------------------------------ files


def test_every_shipped_reference_is_valid() -> None:
    assert {"dinov2_giant", "cielab"} <= set(reference_names())
    for name in reference_names():
        assert load_reference(name).name == name


def test_the_papers_reference() -> None:
    reference = load_reference("dinov2_giant")
    assert isinstance(reference, VisionReference)
    assert reference.encoder.path == "facebook/dinov2-giant"
    assert (reference.encoder.token, reference.encoder.norm) == ("class", "before")
    # The pretrained_cfg of timm's vit_giant_patch14_dinov2.lvd142m.
    prepare = reference.encoder.preprocessing
    assert (prepare.resize, prepare.crop, prepare.interpolation) == (518, 518, "bicubic")
    assert prepare.mean == (0.485, 0.456, 0.406)
    assert prepare.std == (0.229, 0.224, 0.225)
    pairs = reference.pairs.model_dump()
    assert (pairs["path"], pairs["revision"], pairs["split"]) == ("minhuh/prh", "wit_1024", "train")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder and a small data set."""
    folder = tmp_path_factory.mktemp("hub")
    make_dinov2(folder / "encoder")
    make_image_captions(folder / "data", n=16)
    return folder


@pytest.fixture
def yaml_file(hub: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes tmp_path/tiny.yaml with changes."""

    def write(**changes: Any) -> Path:
        return write_reference(tmp_path / "tiny.yaml", hub / "encoder", hub / "data", **changes)

    return write


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder__tokn": "class"}, "unknown key 'encoder.tokn'; did you mean 'token'?"),
        ({"famly": "x"}, "unknown key 'famly'; did you mean 'family'?"),
        ({"values": "cielab"}, "unknown key 'values'; .valid: "),
        ({"pairs__column": "x"}, "unknown key 'pairs.column'; .*caption_column"),
        ({"encoder__preprocessing__size": 3}, "unknown key 'encoder.preprocessing.size'; did you"),
        ({"encoder__token": "clas"}, "'encoder.token' is 'clas'; did you mean 'class'?"),
        ({"encoder__dtype": "float23"}, "'encoder.dtype' is 'float23'; did you mean 'float32'?"),
        ({"encoder__loader": "timm"}, "'encoder.loader' is 'timm'; .valid: transformers."),
        ({"kind": "vison"}, "'kind' is 'vison'; did you mean 'vision'?"),
        ({"kind": None}, "the key 'kind' is missing; it should be one of vision, values"),
        ({"pairs__kind": "hubb"}, "'pairs.kind' is 'hubb'; did you mean 'hub'?"),
        ({"pairs__kind": None}, "the key 'pairs.kind' is missing; .*hub, embedded"),
        ({"pairs": None}, "the key 'pairs' is missing"),
        ({"encoder__path": None}, "the key 'encoder.path' is missing"),
        ({"licence": None}, "the key 'licence' is missing"),
        ({"encoder__revision": 123}, "'encoder.revision' is 123; .*string"),
        ({"parameters": "many"}, "'parameters' is 'many'; .*integer"),
        ({"encoder__preprocessing__crop": 99}, "'encoder.preprocessing' is .*; crop .99. should"),
        ({"encoder__preprocessing__mean": [1, 2]}, "'encoder.preprocessing.mean.2' is missing"),
        ({"encoder": 3}, "'encoder' is 3"),
        ({"pairs": "minhuh/prh"}, "'pairs' is 'minhuh/prh'|'pairs.kind'"),
        ({"name": "other"}, "the key 'name' is 'other'; .* 'tiny'"),
        ({"licence": 1, "citation": 2}, "'licence' is 1; .*first of 2 mistakes"),
        ({"licence": None, "license": "MIT"}, "unknown key 'license'; did you mean 'licence'"),
    ],
)
def test_mistakes_in_a_file(
    yaml_file: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    path = yaml_file(**changes)
    with pytest.raises(PrhEvalError, match=words) as error:
        load_reference(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_right(yaml_file: Callable[..., Path]) -> None:
    reference = load_reference(str(yaml_file(family="tiny", parameters=5, name="tiny")))
    assert reference.name == "tiny"
    assert isinstance(reference, VisionReference)
    assert reference.encoder.preprocessing.crop == SIZE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: [vision", "line 1: this is not YAML"),
        ("kind: vision\nkind: values", "line 2: .*'kind' stands there twice"),
        ("kind: !!python/object/apply:os.getcwd []", "not YAML that can be read"),
        ("just words", "should hold keys and values"),
        ("", "should hold keys and values"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_are_no_yaml(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PrhEvalError, match=words) as error:
        load_reference(path)
    assert str(path) in str(error.value)


def test_unknown_names() -> None:
    with pytest.raises(PrhEvalError, match="'dinov2_gaint'; did you mean 'dinov2_giant'"):
        load_reference("dinov2_gaint")
    with pytest.raises(PrhEvalError, match=r"no reference file 'nowhere/x\.yaml'"):
        load_reference("nowhere/x.yaml")


def test_paths_are_relative_to_the_file(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub, tmp_path / "hub")
    (tmp_path / "sub").mkdir()
    path = write_reference(
        tmp_path / "sub" / "tiny.yaml", Path("../hub/encoder"), Path("../hub/data")
    )
    reference = load_reference(path)
    assert isinstance(reference, VisionReference)
    assert reference.encoder.path == str(tmp_path / "hub" / "encoder")
    assert len(load_pairs(reference.pairs)) == 16


# ------------------------------------------------------------------ artifacts


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The encoders that were loaded, in order."""
    loaded: list[str] = []
    load = references.load_vision_model

    def counted(path: str, **options: Any) -> Any:
        loaded.append(path)
        return load(path, **options)

    monkeypatch.setattr(references, "load_vision_model", counted)
    return loaded


def artifact_of(path: Path, caption: int = 0, **options: Any) -> GraphArtifact:
    reference = load_reference(path)
    pairs = load_pairs(reference.pairs, caption=caption)
    return reference_artifact(reference, pairs, protocol="paper", progress=False, **options)


def file_in(folder: Path) -> Path:
    (path,) = (folder / "references").glob("*.safetensors")
    return path


def brute_force_neighbors(rows: np.ndarray, k: int) -> np.ndarray:
    """The k nearest by Euclidean distance, itself excluded."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


def test_graphs_are_those_of_the_encoder(yaml_file: Callable[..., Path], builds: list[str]) -> None:
    path = yaml_file()
    artifact = artifact_of(path, graph_k=5)
    reference = load_reference(path)
    assert isinstance(reference, VisionReference)
    pairs = load_pairs(reference.pairs)
    assert pairs.images is not None
    model = references.load_vision_model(reference.encoder.path)
    prepare = reference.encoder.preprocessing
    with torch.inference_mode():
        pixels = torch.stack([prepare(image) for image in pairs.images])
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    features = np.stack([state[:, 0].double().numpy() for state in states])
    limit = np.sort(np.abs(features).ravel())[int(0.95 * features.size)]
    features = features.clip(-limit, limit)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    assert (artifact.graph.layers, artifact.graph.n, artifact.graph.k) == (3, 16, 5)
    for layer, rows in enumerate(features):
        expected = brute_force_neighbors(rows, 5)
        np.testing.assert_array_equal(artifact.graph.indices[layer, :, :5].numpy(), expected)


def test_every_setting_reaches_the_encoder(
    yaml_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    load, features = references.load_vision_model, references.vision_features

    def loading(path: str, **options: Any) -> Any:
        seen.update(path=path, **options)
        return load(path)

    def reading(model: Any, images: Any, **options: Any) -> Any:
        seen.update(options)
        return features(model, images, **options)

    monkeypatch.setattr(references, "load_vision_model", loading)
    monkeypatch.setattr(references, "vision_features", reading)
    changes = {"dtype": "float16", "revision": "r1", "token": "mean", "norm": "after"}
    path = yaml_file(**{f"encoder__{key}": value for key, value in changes.items()})
    artifact_of(path, batch_size=3, device="cpu")
    reference = load_reference(path)
    assert isinstance(reference, VisionReference)
    assert seen == {
        **changes,
        "path": reference.encoder.path,
        "preprocessing": reference.encoder.preprocessing,
        "batch_size": 3,
        "device": "cpu",
        "progress": False,
    }


def test_the_colours_graph_is_raw_euclidean(cache_folder: Path) -> None:
    reference = load_reference("cielab")
    assert isinstance(reference, ValuesReference)
    pairs = load_pairs(reference.pairs)
    artifact = reference_artifact(reference, pairs, protocol="paper")
    assert (artifact.graph.layers, artifact.graph.n, artifact.graph.k) == (1, 949, 100)
    assert pairs.targets is not None
    coordinates = references.cielab(pairs.targets).numpy()
    expected = brute_force_neighbors(coordinates, 10)
    np.testing.assert_array_equal(artifact.graph.indices[0, :, :10].numpy(), expected)
    # The protocol is about features; values are the same under any.
    again = reference_artifact(reference, pairs, protocol="paper_loose")
    assert torch.equal(again.graph.indices, artifact.graph.indices)
    assert file_in(cache_folder).is_file()


def test_built_once_and_then_without_encoder_and_images(
    hub: Path, tmp_path: Path, builds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(hub, tmp_path / "hub")
    encoder, data = tmp_path / "hub" / "encoder", tmp_path / "hub" / "data"
    path = write_reference(tmp_path / "tiny.yaml", encoder, data)
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        first = artifact_of(path)
    assert "building the reference tiny: it is not in the cache yet" in caplog.text
    assert builds == [str(encoder)]
    shutil.rmtree(encoder)
    reference = load_reference(path)
    pairs = load_pairs(reference.pairs)
    captions_only = PairedDataset(
        pairs.name, pairs.ids, pairs.captions, pairs.all_captions, pairs.source
    )
    second = reference_artifact(reference, captions_only, protocol="paper")
    assert builds == [str(encoder)]
    assert torch.equal(first.graph.indices, second.graph.indices)
    assert first.header == second.header
    assert first.header["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(first.header)) == first.header


def test_k_is_bounded_by_the_items(yaml_file: Callable[..., Path]) -> None:
    assert artifact_of(yaml_file()).graph.k == 15


def test_another_caption_of_the_same_images_builds_nothing(
    yaml_file: Callable[..., Path], builds: list[str]
) -> None:
    path = yaml_file()
    artifact_of(path)
    artifact_of(path, caption=1)
    assert len(builds) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_artifact_is_rebuilt(
    yaml_file: Callable[..., Path],
    cache_folder: Path,
    builds: list[str],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    path = yaml_file()
    first = artifact_of(path)
    file = file_in(cache_folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    damaged = {"flip": content, "cut": content[:-9], "empty": b"", "foreign": b"x" * 99}[damage]
    file.write_bytes(damaged)
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        second = artifact_of(path)
    assert len(builds) == 2
    assert f"building the reference tiny: {file}" in caplog.text
    assert ("edited or damaged" if damage == "flip" else "no artifact") in caplog.text
    assert torch.equal(first.graph.indices, second.graph.indices)
    read_artifact(file)
    artifact_of(path)
    assert len(builds) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder__token": "mean"}, "encoder.token"),
        ({"encoder__norm": "after"}, "encoder.norm"),
        ({"encoder__dtype": "bfloat16"}, "encoder.dtype"),
        ({"encoder__revision": "abc"}, "encoder.revision"),
        (
            {"encoder__preprocessing__interpolation": "bilinear"},
            "encoder.preprocessing.interpolation",
        ),
        ({"encoder__preprocessing__resize": SIZE + 4}, "encoder.preprocessing.resize"),
        ({"encoder__preprocessing__mean": [0, 0, 0]}, "encoder.preprocessing.mean"),
    ],
)
def test_a_changed_file_is_rebuilt_with_the_reason(
    yaml_file: Callable[..., Path],
    cache_folder: Path,
    builds: list[str],
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    artifact_of(yaml_file())
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        artifact_of(yaml_file(**changes))
    assert len(builds) == 2
    assert f"changed since it was built: {reason}" in caplog.text
    assert file_in(cache_folder).is_file()
    artifact_of(yaml_file(**changes, description="other words", licence="other"))
    assert len(builds) == 2


@pytest.mark.parametrize("what", ["encoder", "images"])
def test_changed_folders_are_rebuilt_with_the_reason(
    hub: Path, tmp_path: Path, builds: list[str], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    shutil.copytree(hub, tmp_path / "hub")
    encoder, data = tmp_path / "hub" / "encoder", tmp_path / "hub" / "data"
    path = write_reference(tmp_path / "tiny.yaml", encoder, data)
    first = artifact_of(path)
    if what == "encoder":
        make_dinov2(encoder, seed=1)
    else:
        make_image_captions(data, n=16, seed=1)
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        second = artifact_of(path)
    assert len(builds) == 2
    assert f"changed since it was built: {what}" in caplog.text
    assert not torch.equal(first.graph.indices, second.graph.indices)


def test_a_known_commit_that_changed_is_rebuilt_and_an_unknown_one_is_not(
    yaml_file: Callable[..., Path], builds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    reference = load_reference(yaml_file())
    pairs = load_pairs(reference.pairs)

    def at(commit: str | None) -> PairedDataset:
        source = {**pairs.source, "commit": commit}
        return PairedDataset(
            pairs.name, pairs.ids, pairs.captions, pairs.all_captions, source, pairs.images
        )

    with caplog.at_level(logging.INFO, logger="prh_eval"):
        for commit, count in (("a" * 40, 1), (None, 1), ("a" * 40, 1), ("b" * 40, 2)):
            reference_artifact(reference, at(commit), protocol="paper", progress=False)
            assert len(builds) == count
    assert "changed since it was built: commit" in caplog.text


def test_choices_of_a_run_do_not_push_each_other_out(
    yaml_file: Callable[..., Path], builds: list[str]
) -> None:
    reference = load_reference(yaml_file())
    pairs = load_pairs(reference.pairs)
    for _ in range(2):
        for protocol in ("paper", "unclipped"):
            for items in (pairs, pairs.select(range(10)), pairs.select(range(9, -1, -1))):
                for k in (3, 4):
                    reference_artifact(
                        reference, items, protocol=protocol, graph_k=k, progress=False
                    )
    assert len(builds) == 12


def test_an_unwritable_cache_folder_does_not_stop_a_run(
    yaml_file: Callable[..., Path],
    tmp_path: Path,
    builds: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = yaml_file()
    expected = artifact_of(path)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRH_EVAL_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        for _ in range(2):
            artifact = artifact_of(path)
            assert torch.equal(artifact.graph.indices, expected.graph.indices)
    assert len(builds) == 3
    assert caplog.text.count("cannot write to the cache folder") == 1


def test_an_error_of_a_build_is_not_taken_for_an_unwritable_folder(
    yaml_file: Callable[..., Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(references, "load_vision_model", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        artifact_of(yaml_file())
    assert not list(cache_folder.rglob("*.safetensors"))


def test_pairs_that_do_not_fit(yaml_file: Callable[..., Path]) -> None:
    colors = load_pairs(load_reference("cielab").pairs)
    with pytest.raises(PrhEvalError, match="tiny needs images and xkcd_colors has none"):
        reference_artifact(load_reference(yaml_file()), colors, protocol="paper")
    pictures = load_pairs(load_reference(yaml_file()).pairs)
    with pytest.raises(PrhEvalError, match="cielab needs items with colours"):
        reference_artifact(load_reference("cielab"), pictures, protocol="paper")
    with pytest.raises(PrhEvalError, match="there is no protocol 'papr'; did you mean 'paper'"):
        reference_artifact(load_reference(yaml_file()), pictures, protocol="papr")


def test_an_unreadable_image_is_named(hub: Path, tmp_path: Path, cache_folder: Path) -> None:
    (shard,) = (hub / "data").rglob("*.parquet")
    files = [row["image"]["bytes"] for row in pyarrow.parquet.read_table(shard).to_pylist()]
    files[11] = files[11][:40]
    make_image_captions(tmp_path / "bad", n=16, image=files)
    path = write_reference(tmp_path / "tiny.yaml", hub / "encoder", tmp_path / "bad")
    with pytest.raises(PrhEvalError, match="the image of item 11 cannot be read"):
        artifact_of(path)
    assert not list(cache_folder.rglob("*.safetensors"))


# One of two processes that need the same artifact. Its build says so in a file, then waits until
# the other one has found the lock taken, so that the two truly meet.
_PROCESS = """
import logging, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
from prh_eval import references, store
from prh_eval.pairs import load_pairs

class Waiting(logging.Handler):
    def emit(self, record):
        if "waiting for another process" in record.getMessage():
            (folder / "waited").touch()

logging.getLogger("prh_eval.store").addHandler(Waiting())
logging.getLogger("prh_eval.store").setLevel(logging.INFO)
cielab = references.cielab

def counted(codes):
    with (folder / "builds").open("a") as file:
        file.write("x")
    for _ in range(1200):
        if (folder / "waited").exists():
            break
        time.sleep(0.05)
    return cielab(codes)

references.cielab = counted
reference = references.load_reference("cielab")
pairs = load_pairs(reference.pairs)
artifact = references.reference_artifact(reference, pairs, protocol="paper")
print(store.fingerprint(artifact.graph.indices.tolist()))
"""


def test_two_processes_build_once(tmp_path: Path, cache_folder: Path) -> None:
    root = str(Path(references.__file__).parents[1])
    search = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search}
    command = [sys.executable, "-c", _PROCESS, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
    assert (tmp_path / "waited").exists()
    assert outputs[0] == outputs[1] != ""
    assert file_in(cache_folder).is_file()
