"""A reference's features: right, made once, kept, and made anew when anything changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from reference_files import write_numbers
from tiny_hub import make_dinov2, write_reference
from tiny_models import save_model
from transformers import Dinov2Model

from prh_eval.errors import PrhEvalError
from prh_eval.features import vision
from prh_eval.features.images import prepare
from prh_eval.features.parts import Parts
from prh_eval.pairs.load import load_pairs
from prh_eval.references.build import reference_artifact, reference_features
from prh_eval.references.registry import load_reference
from prh_eval.schema import VisionReference


def features_of(path: Path, caption: int = 0) -> list[torch.Tensor]:
    reference = load_reference(path)
    return reference_features(
        reference, load_pairs(reference.pairs, caption=caption), progress=False
    )


def file_in(folder: Path) -> Path:
    (path,) = (folder / "features").glob("*.safetensors")
    return path


def same(x: list[torch.Tensor], y: list[torch.Tensor]) -> bool:
    return len(x) == len(y) and all(a.equal(b) for a, b in zip(x, y, strict=True))


def test_they_are_what_leaves_the_encoder(yaml_file: Callable[..., Path]) -> None:
    path = yaml_file()
    reference = load_reference(path)
    assert isinstance(reference, VisionReference)
    images = load_pairs(reference.pairs).images
    spec = reference.encoder.preprocessing
    assert images is not None and not isinstance(spec, str)
    model = Dinov2Model.from_pretrained(reference.encoder.path).eval()
    with torch.inference_mode():
        pixels = torch.stack([prepare(image, spec) for image in images])
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    for features in (features_of(path), features_of(path)):  # made, then kept
        assert [layer.dtype for layer in features] == [torch.float32] * 3
        for layer, state in zip(features, states, strict=True):
            torch.testing.assert_close(layer, state[:, 0].clone(), rtol=1e-5, atol=1e-5)


def test_made_once_for_every_caption_and_every_protocol(
    yaml_file: Callable[..., Path],
    cache_folder: Path,
    builds: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = yaml_file()
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        first = features_of(path)
    assert "making the features of the reference tiny: it is not in the cache yet" in caplog.text
    assert same(first, features_of(path)) and same(first, features_of(path, caption=1))
    reference = load_reference(path)
    pairs = load_pairs(reference.pairs)
    kept = {
        name: reference_artifact(reference, pairs, protocol=name)
        for name in ("paper", "paper_loose", "unclipped")
    }
    assert builds == ["tiny"]
    # No graphs lie among the features, nor features among the graphs; parts are tidied up.
    assert len(list((cache_folder / "references").glob("*.safetensors"))) == 3
    assert not list((file_in(cache_folder).parent / "unfinished").iterdir())
    # The graphs are those that are built of an encoder.
    for name, artifact in kept.items():
        again = reference_artifact(reference, pairs, protocol=name, rebuild=True, progress=False)
        assert again.graph.indices.equal(artifact.graph.indices)
        assert again.header == artifact.header
    assert len(builds) == 4


def test_where_graphs_are_there_features_are_made_all_the_same(
    yaml_file: Callable[..., Path], builds: list[str]
) -> None:
    path = yaml_file()
    reference = load_reference(path)
    reference_artifact(reference, load_pairs(reference.pairs), protocol="paper", progress=False)
    features_of(path)
    assert len(builds) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder__token": "mean"}, "encoder.token"),
        ({"encoder__preprocessing__mean": [0, 0, 0]}, "encoder.preprocessing.mean"),
    ],
)
def test_a_changed_file_is_made_anew_with_the_reason(
    yaml_file: Callable[..., Path],
    builds: list[str],
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    first = features_of(yaml_file())
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        second = features_of(yaml_file(**changes))
    assert f"changed since it was built: {reason}" in caplog.text
    assert not same(first, second)
    # How neighbours are ranked, and what is measured, is not of the features.
    features_of(yaml_file(**changes, similarity="euclidean", metric="cka", relative="other"))
    assert len(builds) == 2


def test_another_encoder_in_the_same_folder_is_noticed(
    tmp_path: Path, hub: Path, builds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make_dinov2(tmp_path / "encoder")
    path = write_reference(tmp_path / "tiny.yaml", encoder, hub / "data")
    first = features_of(path)
    make_dinov2(encoder, seed=1)
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        assert not same(first, features_of(path))
        # And graphs are not built of what has changed.
        make_dinov2(encoder, seed=2)
        reference = load_reference(path)
        reference_artifact(reference, load_pairs(reference.pairs), protocol="paper", progress=False)
    assert len(builds) == 3
    assert "changed since it was built: encoder" in caplog.text


@pytest.mark.parametrize("damage", ["flip", "cut", "graph"])
def test_a_damaged_file_is_made_anew(
    yaml_file: Callable[..., Path],
    cache_folder: Path,
    builds: list[str],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    path = yaml_file()
    first = features_of(path)
    file = file_in(cache_folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "graph":
        safetensors.torch.save_file({"x": torch.zeros(1)}, file, {"format": "prh_eval.graph/1"})
    else:
        file.write_bytes(content if damage == "flip" else content[:-9])
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        assert same(first, features_of(path))
    words = {"flip": "edited or damaged", "cut": "no artifact", "graph": "'prh_eval.features/1'"}
    assert f"making the features of the reference tiny: {file}" in caplog.text
    assert words[damage] in caplog.text
    features_of(path)
    assert len(builds) == 2


def test_an_unwritable_cache_folder_does_not_stop_a_run(
    yaml_file: Callable[..., Path],
    tmp_path: Path,
    builds: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = yaml_file()
    expected = features_of(path)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRH_EVAL_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        for _ in range(2):
            assert same(features_of(path), expected)
    assert len(builds) == 3
    assert caplog.text.count("cannot write to the cache folder") == 1


def test_of_two_at_once_one_makes_them(yaml_file: Callable[..., Path], builds: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(features_of, [yaml_file()] * 2)
    assert same(first, second)
    assert builds == ["tiny"]


def test_what_was_interrupted_goes_on_where_it_was(
    yaml_file: Callable[..., Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "_PART", 4)
    write = Parts.write
    written: list[int] = []

    def interrupted(self: Parts, start: int, layers: Any) -> None:
        write(self, start, layers)
        written.append(start)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", interrupted)
    path = yaml_file()
    with pytest.raises(KeyboardInterrupt):
        features_of(path)
    assert not list((cache_folder / "features").glob("*.safetensors"))
    features = features_of(path)
    assert written == [0, 4, 8, 12]
    file_in(cache_folder).unlink()
    assert same(features, features_of(path))
    assert written[4:] == [0, 4, 8, 12]  # nothing was left of the parts


def test_a_language_reference_reads_the_captions_that_the_task_reads(
    hub: Path, tmp_path: Path, builds: list[str]
) -> None:
    texts = [f"picture {i} in words, way {j}" for i in range(16) for j in range(2)]
    save_model(tmp_path / "model", texts, "llama")
    (tmp_path / "words.yaml").write_text(
        "{kind: language, description: d, licence: l, citation: c, "
        f"pairs: {{kind: hub, path: '{hub / 'data'}'}}, "
        "encoder: {path: ./model, pooling: mean}}"
    )
    for _ in range(2):
        first, second = (features_of(tmp_path / "words.yaml", caption) for caption in (0, 1))
        assert not same(first, second)
    assert len(builds) == 2


def test_numbers_in_a_file_are_read_where_they_are(tmp_path: Path, cache_folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 2, 3))
    (first, second) = features_of(write_numbers(tmp_path, "numbers", rows))
    np.testing.assert_array_equal(torch.stack([first, second], 1).numpy(), rows)
    assert not (cache_folder / "features").exists()
    rows[4, 1, 0] = np.nan
    with pytest.raises(PrhEvalError, match="features of the reference numbers is NaN"):
        features_of(write_numbers(tmp_path, "numbers", rows))
