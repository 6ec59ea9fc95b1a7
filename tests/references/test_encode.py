"""Each kind of reference on paired data, against its library called directly."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.language_zoo import CAPTIONS, assert_close, plain_features, tiny_model, word_tokenizer
from PIL import Image
from tiny_hub import SIZE, make_dinov2
from torch import Tensor
from transformers import Dinov2Model

from prh_eval.errors import PrhEvalError
from prh_eval.features.parts import Parts
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.references.encode import encode
from prh_eval.schema import REFERENCE

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
N = 6


def pictures() -> list[Image.Image]:
    """Images of the encoder's own size, so that preparing them is plain arithmetic."""
    random = np.random.default_rng(0)
    shape = (SIZE, SIZE, 3)
    return [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(N)]


def items(captions: list[tuple[str, ...]] | None = None, **more: Any) -> PairedDataset:
    read = tuple(captions or [(caption,) for caption in CAPTIONS[:N]])
    ids = tuple(map(str, range(len(read))))
    return PairedDataset("some pairs", ids, read, read, {}, **more)


def reference(kind: str, **fields: Any) -> Any:
    content = {
        "name": "tried",
        "kind": kind,
        "description": "for the test",
        "pairs": {"kind": "embedded", "name": "xkcd_colors"},
        "licence": "CC0-1.0",
        "citation": "none",
    }
    return REFERENCE.validate_python({**content, **fields})


def vision(folder: Path, **fields: Any) -> Any:
    preprocessing = {
        "resize": SIZE, "crop": SIZE, "interpolation": "bicubic", "mean": MEAN, "std": STD,
    }  # fmt: skip
    encoder = {"path": str(folder), "token": "class", "preprocessing": preprocessing}
    return reference("vision", encoder=encoder, **fields)


def language(folder: Path, **fields: Any) -> Any:
    return reference("language", encoder={"path": str(folder), "pooling": "mean"}, **fields)


def saved_language_model(folder: Path) -> tuple[Any, Any]:
    model, tokenizer = tiny_model("gpt_neox"), word_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def refusal(described: Any, pairs: PairedDataset) -> str:
    with pytest.raises(PrhEvalError) as caught:
        encode(described, pairs, progress=False)
    return str(caught.value)


# Vision


def plain_blocks(folder: Path, images: list[Image.Image]) -> list[Tensor]:
    """The class token after each block, from transformers' own model; float64."""
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.float64) / 255
    pixels = (pixels - np.array(MEAN)) / np.array(STD)
    model = Dinov2Model.from_pretrained(folder).double().eval()
    with torch.no_grad():
        states = model(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    return [state[:, 0] for state in states.hidden_states[1:]]


def test_images_become_the_blocks_of_the_encoder(tmp_path: Path) -> None:
    folder = make_dinov2(tmp_path / "encoder")
    images: Any = pictures()
    parts = Parts(tmp_path / "parts")
    made = encode(
        vision(folder), items(images=images), batch_size=4, workers=0, progress=False, parts=parts
    )
    assert_close(made.layers, plain_blocks(folder, images))
    assert parts.read(0) is not None
    model = Dinov2Model.from_pretrained(folder)
    assert made.facts["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert made.facts["commit"] is None
    assert made.facts["layers"] == 3
    assert made.facts["widths"] == [32] * 3
    assert json.loads(json.dumps(made.facts["input"])) == made.facts["input"]
    assert "mean" in json.dumps(made.facts["input"])


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_parts_of_another_commit_are_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "vision":
        make_dinov2(tmp_path / "model")
        described, images = vision(tmp_path / "model"), pictures()
        where = "prh_eval.features.vision_transformers.cached_commit"
    else:
        saved_language_model(tmp_path / "model")
        described, images = language(tmp_path / "model"), None
        where = "prh_eval.features.sentences.cached_commit"
    parts = Parts(tmp_path / "parts")
    for commit in ("a" * 40, "b" * 40):
        monkeypatch.setattr(where, lambda *_, commit=commit: commit)
        encode(described, items(images=images), progress=False, parts=parts)
        assert parts.commit == commit
        assert parts.read(0) is not None
    parts.commit = "a" * 40
    assert parts.read(0) is None


def test_without_images_the_key_is_named(tmp_path: Path) -> None:
    message = refusal(vision(tmp_path), items())
    assert message == (
        "the reference tried needs images and some pairs has none; "
        "'pairs.image_column' should name a column of images"
    )


# Language


def test_captions_become_hidden_states(tmp_path: Path) -> None:
    model, tokenizer = saved_language_model(tmp_path / "model")
    parts = Parts(tmp_path / "parts")
    made = encode(language(tmp_path / "model"), items(), progress=False, parts=parts)
    assert_close(made.layers, plain_features(model, tokenizer, CAPTIONS[:N]))
    assert made.facts["layers"] == 3
    assert made.facts["widths"] == [16] * 3
    assert made.facts["truncated_captions"] == 0
    assert set(made.facts) == {
        "commit", "parameters", "input", "truncated_captions", "layers", "widths",
    }  # fmt: skip
    assert parts.read(0) is not None


def test_several_captions_become_their_mean(tmp_path: Path) -> None:
    model, tokenizer = saved_language_model(tmp_path)
    captions = [tuple(CAPTIONS[:3]), (CAPTIONS[4],), (CAPTIONS[5], CAPTIONS[0])]
    made = encode(language(tmp_path), items(captions), progress=False)
    each = [plain_features(model, tokenizer, own) for own in captions]
    wanted = [torch.stack([layer.mean(dim=0) for layer in own]) for own in zip(*each, strict=True)]
    assert_close(made.layers, wanted)


@pytest.mark.parametrize("kind", ["language", "vision"])
def test_remote_code_needs_the_command_line_too(kind: str, tmp_path: Path) -> None:
    if kind == "language":
        saved_language_model(tmp_path)
    else:
        make_dinov2(tmp_path)
    plain = language(tmp_path) if kind == "language" else vision(tmp_path)
    encoder = {**plain.encoder.model_dump(exclude_unset=True), "trust_remote_code": True}
    described = reference(kind, encoder=encoder)
    images: Any = pictures()
    assert "--trust_remote_code" in refusal(described, items(images=images))
    encode(described, items(images=images), progress=False, trust_remote_code=True)


@pytest.mark.parametrize(
    ("share", "warned"), [(0.5, True), (0.89, True), (0.95, False), (1.05, False), (1.12, True)]
)
def test_a_stated_size_that_is_wrong_is_one_warning(
    share: float, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = saved_language_model(tmp_path)
    actual = sum(weight.numel() for weight in model.gpt_neox.parameters())
    stated = round(share * actual)
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        encode(language(tmp_path, parameters=stated), items(), progress=False)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("prh_eval")]
    assert len(messages) == warned
    if warned:
        assert f"states {stated} parameters and its encoder has {actual}" in messages[0]


# Features and values


def test_features_from_a_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {f"layer{i}": random.standard_normal((N, 3 + i)) for i in (9, 10)}
    np.savez(tmp_path / "f.npz", **arrays)
    described = reference("features", features={"path": str(tmp_path / "f.npz")}, parameters=5)
    made = encode(described, items())
    assert [layer.tolist() for layer in made.layers] == [a.tolist() for a in arrays.values()]
    assert made.facts == {"layers": 2, "widths": [12, 13]}
    assert "6 items where the paired data has 2" in refusal(described, items([("a",), ("b",)]))


def test_values_from_a_table(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("x", "y"), *[(i, i / 3) for i in range(N)]])
    values = {"path": str(tmp_path / "t.csv"), "columns": ["y", "x"]}
    made = encode(reference("values", values=values), items())
    assert [layer.tolist() for layer in made.layers] == [[[i / 3, i] for i in range(N)]]
    assert made.facts == {"layers": 1, "widths": [2]}


def test_colours_become_cielab() -> None:
    colours = ("#000000", "#ffffff", "#ff0000", "#00ff00", "#0000ff", "#777777")
    made = encode(reference("values", values="cielab"), items(targets=colours))
    # Published values of the sRGB primaries under D65 (Lindbloom).
    wanted = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18]]
    np.testing.assert_allclose(made.layers[0][:4].numpy(), wanted, atol=0.05)


def test_without_colours_the_pairs_are_named() -> None:
    message = refusal(reference("values", values="cielab"), items())
    assert message == (
        "the reference tried needs items with colours and some pairs has none; "
        "'pairs' should be {kind: embedded, name: xkcd_colors}"
    )


def test_numbers_of_some_of_the_items(tmp_path: Path) -> None:
    """As ``--limit`` and ``--samples`` choose them: the file has a row for each item there is."""
    values = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    np.savez(tmp_path / "f.npz", layer=values)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], *values.tolist()])
    features = reference("features", features={"path": str(tmp_path / "f.npz")})
    columns = {"path": str(tmp_path / "t.csv"), "columns": ["a", "b", "c"]}
    some = items().select([4, 0, 2, 5]).select([2, 1, 3])
    for each in (features, reference("values", values=columns)):
        (layer,) = encode(each, some).layers
        np.testing.assert_allclose(layer.numpy(), values[[2, 0, 5]], rtol=1e-6)
