"""A reference's graphs: right, built once, kept, and built anew when anything changes."""

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
import safetensors.numpy
import torch
import yaml
from aligning_worlds import build_reference
from process_worlds import world
from tiny_hub import SIZE, make_dinov2, make_image_captions, write_reference
from tiny_models import save_model
from transformers import Dinov2Model

from prh_eval import layer_graphs
from prh_eval.colors import cielab
from prh_eval.errors import PrhEvalError
from prh_eval.features import vision
from prh_eval.features.images import prepare
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import load_pairs
from prh_eval.references import build
from prh_eval.references.build import reference_artifact, reference_features
from prh_eval.references.registry import load_reference
from prh_eval.schema import VisionReference
from prh_eval.store import GraphArtifact, read_artifact, read_features


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
    artifact = artifact_of(path, k=5, graph_k=5)
    reference = load_reference(path)
    assert isinstance(reference, VisionReference)
    pairs = load_pairs(reference.pairs)
    assert pairs.images is not None
    model = Dinov2Model.from_pretrained(reference.encoder.path).eval()
    spec = reference.encoder.preprocessing
    assert not isinstance(spec, str)
    with torch.inference_mode():
        pixels = torch.stack([prepare(image, spec) for image in pairs.images])
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
    encode = build.encode

    def seeing(reference: Any, pairs: Any, **options: Any) -> Any:
        seen.update(options)
        return encode(reference, pairs, **options)

    monkeypatch.setattr(build, "encode", seeing)
    choices = {"batch_size": 3, "device": "cpu", "workers": 0, "trust_remote_code": True}
    artifact_of(yaml_file(), **choices)
    del seen["parts"]
    assert seen.pop("processes").world_size == 1
    assert seen == {**choices, "device": torch.device("cpu"), "progress": False}


def test_the_colours_graph_is_raw_euclidean(cache_folder: Path) -> None:
    reference = load_reference("cielab")
    pairs = load_pairs(reference.pairs)
    artifact = reference_artifact(reference, pairs, protocol="paper")
    assert (artifact.graph.layers, artifact.graph.n, artifact.graph.k) == (1, 949, 100)
    assert pairs.targets is not None
    coordinates = cielab(pairs.targets).numpy()
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
    assert builds == ["tiny"]
    shutil.rmtree(encoder)
    reference = load_reference(path)
    pairs = load_pairs(reference.pairs)
    captions_only = PairedDataset(
        pairs.name, pairs.ids, pairs.captions, pairs.all_captions, pairs.source
    )
    second = reference_artifact(reference, captions_only, protocol="paper")
    assert builds == ["tiny"]
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
                reference_artifact(reference, items, protocol=protocol, k=3, progress=False)
    assert len(builds) == 6


def test_a_graph_of_too_small_a_k_is_built_anew(
    yaml_file: Callable[..., Path], builds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = yaml_file()
    assert artifact_of(path, k=3, graph_k=4).graph.k == 4
    assert artifact_of(path, k=4).graph.k == 4
    assert len(builds) == 1
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        assert artifact_of(path, k=5, graph_k=6).graph.k == 6
    assert "its graph answers for k up to 4 and 5 is asked for" in caplog.text
    assert artifact_of(path, k=9, graph_k=2).graph.k == 9
    # More than there are neighbours is as many as there are.
    assert artifact_of(path, k=200).graph.k == 15
    assert artifact_of(path, k=300).graph.k == 15
    assert len(builds) == 4


def test_a_folder_that_moved_changes_nothing(hub: Path, tmp_path: Path, builds: list[str]) -> None:
    for place in ("here", "there"):
        shutil.copytree(hub, tmp_path / place / "hub")
        (tmp_path / place / "files").mkdir()
        path = tmp_path / place / "files" / "tiny.yaml"
        write_reference(path, Path("../hub/encoder"), Path("../hub/data"))
        artifact_of(path)
        assert len(builds) == 1
        shutil.rmtree(tmp_path / place)


def test_euclidean_features_are_taken_as_they_are(yaml_file: Callable[..., Path]) -> None:
    path = yaml_file(similarity="euclidean")
    kept = path.with_name("features.safetensors")
    artifact = artifact_of(path, features=kept)
    assert artifact.header["made_from"]["protocol"] is None
    for layer, rows in enumerate(safetensors.numpy.load_file(kept).values()):
        expected = brute_force_neighbors(rows.astype(np.float64), 10)
        np.testing.assert_array_equal(artifact.graph.indices[layer, :, :10].numpy(), expected)


def test_features_that_were_kept_make_the_same_graphs(
    yaml_file: Callable[..., Path], hub: Path, tmp_path: Path, builds: list[str]
) -> None:
    path = yaml_file()
    first = artifact_of(path)
    again = artifact_of(path, features=tmp_path / "kept.safetensors")
    assert len(builds) == 2
    from_file = {
        "kind": "features",
        "description": "the same, from a file",
        "features": {"path": "kept.safetensors"},
        "pairs": {"kind": "hub", "path": str(hub / "data")},
        "licence": "CC0-1.0",
        "citation": "none",
    }
    (tmp_path / "kept.yaml").write_text(yaml.safe_dump(from_file))
    third = artifact_of(tmp_path / "kept.yaml")
    for other in (again, third):
        assert torch.equal(first.graph.indices, other.graph.indices)


@pytest.mark.parametrize("kind", ["features", "values"])
def test_a_changed_file_of_numbers_is_rebuilt_with_the_reason(
    hub: Path, tmp_path: Path, builds: list[str], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    numbers = np.random.default_rng(0).normal(size=(16, 3))
    section: dict[str, Any] = {"path": "numbers.npy"}
    if kind == "values":
        section = {"path": "numbers.csv", "columns": ["a", "b", "c"]}
    content = {
        "kind": kind,
        "description": "numbers",
        kind: section,
        "pairs": {"kind": "hub", "path": str(hub / "data")},
        "similarity": "euclidean",
        "licence": "CC0-1.0",
        "citation": "none",
    }
    path = tmp_path / "numbers.yaml"
    path.write_text(yaml.safe_dump(content))

    def write(rows: np.ndarray) -> None:
        np.save(tmp_path / "numbers.npy", rows)
        np.savetxt(
            tmp_path / "numbers.csv", rows, fmt="%.17g", delimiter=",", header="a,b,c", comments=""
        )

    for rows, count in ((numbers, 1), (numbers, 1), (numbers[::-1], 2)):
        write(rows)
        with caplog.at_level(logging.INFO, logger="prh_eval"):
            graph = artifact_of(path).graph
        assert len(builds) == count
        np.testing.assert_array_equal(graph.indices[0, :, :10], brute_force_neighbors(rows, 10))
    assert f"changed since it was built: {kind}" in caplog.text
    # Where the file is not at hand the graphs suffice.
    (tmp_path / section["path"]).unlink()
    artifact_of(path)
    assert len(builds) == 2


def test_a_language_reference_reads_the_captions_that_the_task_reads(
    hub: Path, tmp_path: Path, builds: list[str]
) -> None:
    texts = [f"picture {i} in words, way {j}" for i in range(16) for j in range(2)]
    save_model(tmp_path / "model", texts, "llama")
    content = {
        "kind": "language",
        "description": "a language model",
        "encoder": {"path": "./model", "pooling": "mean"},
        "pairs": {"kind": "hub", "path": str(hub / "data")},
        "licence": "CC0-1.0",
        "citation": "none",
    }
    path = tmp_path / "words.yaml"
    path.write_text(yaml.safe_dump(content))
    first, second = artifact_of(path), artifact_of(path, caption=1)
    assert len(builds) == 2
    assert not torch.equal(first.graph.indices, second.graph.indices)
    artifact_of(path)
    artifact_of(path, caption=1)
    assert len(builds) == 2


# A build that is killed once the second part is on disk: nothing can be tidied up.
_KILLED = """
import os, sys
from prh_eval.features import parts, vision
from prh_eval.pairs.load import load_pairs
from prh_eval.references.build import reference_artifact
from prh_eval.references.registry import load_reference

vision._PART = 4
write = parts.Parts.write

def and_die(self, start, layers):
    write(self, start, layers)
    if start >= 4:
        os.kill(os.getpid(), 9)

parts.Parts.write = and_die
reference = load_reference(sys.argv[1])
pairs = load_pairs(reference.pairs)
reference_artifact(reference, pairs, protocol="paper", batch_size=2, progress=False)
"""


def test_a_killed_build_goes_on_where_it_was(
    yaml_file: Callable[..., Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file()
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path)], env=_environment())
    assert killed.returncode == -9
    assert not list((cache_folder / "references").glob("*.safetensors"))
    assert len(list((cache_folder / "references").rglob("unfinished/*/*.safetensors"))) == 2

    # Parts of an earlier definition are neither read nor kept.
    other = cache_folder / "references" / "unfinished"
    (parts,) = other.iterdir()
    old = other / (parts.name[:-16] + "0" * 16)
    shutil.copytree(parts, old)

    monkeypatch.setattr(vision, "_PART", 4)
    decoded: list[int] = []
    reference = load_reference(path)
    pairs = load_pairs(reference.pairs)
    get = type(pairs.images).__getitem__

    def counted(self: Any, position: int) -> Any:
        decoded.append(position)
        return get(self, position)

    monkeypatch.setattr(type(pairs.images), "__getitem__", counted)
    artifact = reference_artifact(reference, pairs, protocol="paper", batch_size=2, progress=False)
    assert sorted(decoded) == list(range(8, 16))
    assert not list(other.iterdir())
    whole = reference_artifact(
        reference, pairs, protocol="paper", batch_size=2, progress=False, rebuild=True
    )
    assert torch.equal(artifact.graph.indices, whole.graph.indices)
    assert sorted(decoded[8:]) == list(range(16))


# A build that is killed once the graph of its second layer is on disk.
_KILLED_IN_A_SEARCH = """
import os, sys
from prh_eval import layer_graphs
from prh_eval.pairs.load import load_pairs
from prh_eval.references.build import reference_artifact
from prh_eval.references.registry import load_reference

write = layer_graphs.GraphParts.write

def and_die(self, layer, graph):
    write(self, layer, graph)
    if layer == 1:
        os.kill(os.getpid(), 9)

layer_graphs.GraphParts.write = and_die
reference = load_reference(sys.argv[1])
pairs = load_pairs(reference.pairs)
reference_artifact(reference, pairs, protocol="paper", progress=False)
"""


def test_a_killed_search_goes_on_at_the_layer_it_reached(
    yaml_file: Callable[..., Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file()
    command = [sys.executable, "-c", _KILLED_IN_A_SEARCH, str(path)]
    assert subprocess.run(command, env=_environment()).returncode == -9
    assert not list((cache_folder / "references").glob("*.safetensors"))
    unfinished = cache_folder / "references" / "unfinished"
    (folder,) = unfinished.iterdir()
    assert len(list(folder.glob("*.layer.safetensors"))) == 2
    old = unfinished / (folder.name[:-16] + "0" * 16)
    shutil.copytree(folder, old)

    searched = []
    search = layer_graphs.neighbor_graph

    def counted(*arguments: Any, **options: Any) -> Any:
        searched.append(options["device"])
        return search(*arguments, **options)

    monkeypatch.setattr(layer_graphs, "neighbor_graph", counted)
    artifact = artifact_of(path, device="cpu")
    assert searched == [torch.device("cpu")]
    assert not list(unfinished.iterdir())
    whole = artifact_of(path, rebuild=True)
    assert len(searched) == 4
    assert torch.equal(artifact.graph.indices, whole.graph.indices)
    assert torch.equal(artifact.graph.tied, whole.graph.tied)


def test_what_is_kept_of_a_build_stays_until_the_whole_is_written(
    yaml_file: Callable[..., Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file()
    with monkeypatch.context() as unwritable:
        unwritable.setattr(build.store, "save_artifact", lambda *_: False)
        first = artifact_of(path)
    unfinished = cache_folder / "references" / "unfinished"
    assert len(list(unfinished.glob("*/*.layer.safetensors"))) == 3
    monkeypatch.setattr(layer_graphs, "neighbor_graph", None)
    second = artifact_of(path)
    assert torch.equal(first.graph.indices, second.graph.indices)
    assert not list(unfinished.iterdir())


def test_memory_that_is_too_small_is_told(yaml_file: Callable[..., Path]) -> None:
    with pytest.raises(PrhEvalError, match="of memory, where 1,000 bytes are allowed"):
        artifact_of(yaml_file(), memory_bytes=1000)


def test_processes_build_what_one_does(
    yaml_file: Callable[..., Path], tmp_path: Path, cache_folder: Path
) -> None:
    path = yaml_file(metric="cka")
    ended = world(build_reference, 2, tmp_path)
    assert [each.status for each in ended] == [0, 0], ended
    # Together, and no one of them again for the features that the metric compares.
    assert [(tmp_path / f"encoded_{rank}").read_text() for rank in (0, 1)] == ["once\n"] * 2
    (kept,) = (cache_folder / "features").glob("*.safetensors")
    layers, _ = read_features(kept)
    kept.unlink()
    shared = read_artifact(file_in(cache_folder))
    assert not list((cache_folder / "references" / "unfinished").iterdir())
    alone = artifact_of(path, rebuild=True)
    assert torch.equal(shared.graph.indices, alone.graph.indices)
    assert torch.equal(shared.graph.tied, alone.graph.tied)
    assert shared.header == alone.header
    reference = load_reference(path)
    made = reference_features(reference, load_pairs(reference.pairs), progress=False)
    assert len(layers) == len(made)
    assert all(map(torch.equal, layers, made))
    printed = [(tmp_path / f"stdout_{rank}").read_text() for rank in (0, 1)]
    assert printed[0].startswith("tiny: 3 layers, 16 items, neighbours up to k = 15: ")
    assert printed[0].count("\n") == 2  # the second time from the cache
    assert printed[1] == ""


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

    monkeypatch.setattr(build, "encode", broken)
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
from prh_eval import store
from prh_eval.pairs.load import load_pairs
from prh_eval.references import build
from prh_eval.references.registry import load_reference

class Waiting(logging.Handler):
    def emit(self, record):
        if "waiting for another process" in record.getMessage():
            (folder / "waited").touch()

logging.getLogger("prh_eval.store").addHandler(Waiting())
logging.getLogger("prh_eval.store").setLevel(logging.INFO)
encode = build.encode

def counted(*arguments, **options):
    with (folder / "builds").open("a") as file:
        file.write("x")
    for _ in range(1200):
        if (folder / "waited").exists():
            break
        time.sleep(0.05)
    return encode(*arguments, **options)

build.encode = counted
reference = load_reference("cielab")
pairs = load_pairs(reference.pairs)
artifact = build.reference_artifact(reference, pairs, protocol="paper")
print(store.fingerprint(artifact.graph.indices.tolist()))
"""


def _environment() -> dict[str, str]:
    root = str(Path(build.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_two_processes_build_once(tmp_path: Path, cache_folder: Path) -> None:
    command = [sys.executable, "-c", _PROCESS, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
    assert (tmp_path / "waited").exists()
    assert outputs[0] == outputs[1] != ""
    assert file_in(cache_folder).is_file()
