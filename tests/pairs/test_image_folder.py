"""Folders of images with captions, against datasets' own imagefolder."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from pair_files import draw_images, make_image_folder, write_table

from prh_eval.errors import PrhEvalError
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import load_pairs
from prh_eval.schema import ImageFolderPairs

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def load(folder: Path | str, caption: int | str = 0, **changes: object) -> PairedDataset:
    return load_pairs(ImageFolderPairs(kind="imagefolder", path=str(folder), **changes), caption)


@pytest.mark.parametrize("metadata", METADATA)
def test_it_is_what_datasets_loads(tmp_path: Path, metadata: str) -> None:
    folder = make_image_folder(tmp_path / "data", n=6, metadata=metadata)
    pairs = load(folder)
    oracle = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert pairs.ids == ("0", "1", "2", "3", "4", "5")
    assert pairs.captions == tuple((text,) for text in oracle["text"])
    assert pairs.images is not None
    assert len(pairs.images) == len(oracle)
    for image, row in zip(pairs.images, oracle, strict=True):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.array(image), np.array(row["image"]))
    content = (folder / metadata).read_bytes()
    assert pairs.source["sha256"] == hashlib.sha256(content).hexdigest()
    assert pairs.source["file"] == metadata
    assert json.loads(json.dumps(pairs.source)) == pairs.source


def test_several_captions(tmp_path: Path) -> None:
    texts = [["a", "b"], ["c", "d", "e"]]
    folder = make_image_folder(tmp_path / "data", n=2, text=texts, extra=["x", "y"])
    assert load(folder, caption=1).captions == (("b",), ("d",))
    mean = load(folder, "mean", caption_column=["text", "extra"])
    assert mean.captions == (("a", "b", "x"), ("c", "d", "e", "y"))


def test_texts_that_datasets_would_take_for_missing(tmp_path: Path) -> None:
    texts = ["NA", "null", "1.0", "", " x "]
    folder = make_image_folder(tmp_path / "data", n=5, metadata="metadata.csv", text=texts)
    with pytest.raises(PrhEvalError, match=r"item 3 has an empty caption \(1 such items of 5\)"):
        load(folder)
    texts[3] = "None"
    folder = make_image_folder(tmp_path / "data", n=5, metadata="metadata.csv", text=texts)
    assert load(folder).captions == tuple((text,) for text in texts)


@pytest.mark.parametrize("metadata", METADATA)
def test_captions_load_without_the_images(tmp_path: Path, metadata: str) -> None:
    folder = make_image_folder(tmp_path / "data", n=4, metadata=metadata)
    whole = load(folder)
    assert whole.images is not None
    assert whole.images.fingerprint is not None
    shutil.move(folder / "cats", tmp_path / "elsewhere")
    pairs = load(folder)
    assert pairs.items_fingerprint == whole.items_fingerprint
    assert pairs.images is not None
    assert pairs.images.fingerprint is None
    assert pairs.images[2].mode == "RGB"
    with pytest.raises(PrhEvalError) as error:
        pairs.images[3]
    assert str(error.value) == (
        f"the folder '{folder}' ({metadata}): the image of item 3 ({folder}/cats/3.png) cannot be "
        "read: there is no such file"
    )
    shutil.move(tmp_path / "elsewhere", folder / "cats")
    again = load(folder).images
    assert again is not None
    assert again.fingerprint == whole.images.fingerprint


def test_the_fingerprint_is_of_what_the_folder_holds(tmp_path: Path) -> None:
    first = load(make_image_folder(tmp_path / "here", n=4))
    moved = load(shutil.copytree(tmp_path / "here", tmp_path / "there"))
    assert moved.fingerprint == first.fingerprint
    assert moved.items_fingerprint == first.items_fingerprint
    assert first.images and moved.images
    assert moved.images.fingerprint == first.images.fingerprint
    draw_images(tmp_path / "there", ["2.png"], seed=1)
    changed = load(tmp_path / "there")
    assert changed.items_fingerprint == first.items_fingerprint
    assert changed.images is not None
    assert changed.images.fingerprint != first.images.fingerprint


def test_one_image_with_several_captions_is_several_items(tmp_path: Path) -> None:
    draw_images(tmp_path, ["a.png", "b.png"])
    columns = {"file_name": ["a.png", "a.png", "b.png"], "text": ["x", "y", "x"]}
    write_table(tmp_path / "metadata.csv", columns)
    assert len(load(tmp_path)) == 3
    write_table(tmp_path / "metadata.csv", {**columns, "text": ["x", "x", "x"]})
    with pytest.raises(PrhEvalError, match=r"items 0 and 1 are the same: the image .*a\.png with"):
        load(tmp_path)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match=r"there is no folder '.*/none'"):
        load(tmp_path / "none")
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    with pytest.raises(
        PrhEvalError, match=r"has no metadata\.jsonl, metadata\.csv or .*'file_name'$"
    ):
        load(folder)
    make_image_folder(folder / "train", n=2)
    with pytest.raises(
        PrhEvalError, match=r"data/train has one: is 'path' meant to be that folder"
    ):
        load(folder)
    write_table(folder / "metadata.csv", {"file": ["0.png"], "text": ["a"]})
    with pytest.raises(PrhEvalError, match=r"no column 'file_name' .*; did you mean 'file'\?"):
        load(folder)
    write_table(folder / "metadata.jsonl", {"file_name": ["0.png"], "text": ["a"]})
    with pytest.raises(
        PrhEvalError, match=r"has metadata\.jsonl and metadata\.csv; there should be"
    ):
        load(folder)
    (folder / "metadata.csv").unlink()
    with pytest.raises(PrhEvalError, match=r"no column 'txt' .'caption_column'.; .* 'text'"):
        load(folder, caption_column="txt")
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{\n')
    with pytest.raises(PrhEvalError, match=r"\(metadata.jsonl\), line 2: this is not JSON"):
        load(folder)
