"""Images in files, against Pillow itself."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pair_files import draw_images
from PIL import Image, ImageOps

from prh_eval.errors import PrhEvalError
from prh_eval.pairs.images import Images, UnreadableImageError

ORIENTATION = 0x0112


def images_in(*files: Path | None) -> Images:
    ids = [f"item-{number}" for number in range(len(files))]
    return Images.in_files([file and str(file) for file in files], ids, "the pairs")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb_as_in_pillow(tmp_path: Path, mode: str) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    file = tmp_path / "image.tif"
    image.save(file)
    read = images_in(file)[0]
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.array(read), np.array(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_upright_as_the_camera_says(tmp_path: Path, orientation: int, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = tmp_path / "image"
    Image.fromarray(pixels).save(file, format=kind, exif=exif)
    with Image.open(file) as plain:
        expected = np.array(ImageOps.exif_transpose(plain))
        assert (orientation > 1) != np.array_equal(expected, np.array(plain))
    np.testing.assert_array_equal(np.array(images_in(file)[0]), expected)


def test_a_sequence(tmp_path: Path) -> None:
    drawn = draw_images(tmp_path, ["a.png", "b.png", "c.png"])
    images = images_in(*(tmp_path / name for name in ("a.png", "b.png", "c.png")))
    assert len(images) == len(list(images)) == 3
    np.testing.assert_array_equal(np.array(images[-1]), drawn[2])
    with pytest.raises(IndexError):
        images[3]
    chosen = images.select([2, 0])
    assert [Path(file or "").name for file in chosen.files] == ["c.png", "a.png"]
    np.testing.assert_array_equal(np.array(chosen[1]), drawn[0])


def test_the_fingerprint_is_of_the_files(tmp_path: Path) -> None:
    draw_images(tmp_path, ["a.png", "b.png"])
    images = images_in(tmp_path / "a.png", None, tmp_path / "b.png")
    contents = [(tmp_path / "a.png").read_bytes(), b"", (tmp_path / "b.png").read_bytes()]
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    assert images.fingerprint == hashlib.sha256(digests).hexdigest()
    assert [images.content(position) or b"" for position in range(3)] == contents


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    draw_images(tmp_path, ["whole.png"])
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    reasons = {
        "cut.png": "truncated",
        "text.png": "not an image that Pillow can read",
        "empty.png": "not an image that Pillow can read",
        "folder.png": "directory",
        "none.png": "there is no such file",
        "a:b.png": "there is no such file",
    }
    images = images_in(*(tmp_path / name for name in ["whole.png", *reasons]), None)
    assert images[0].mode == "RGB"
    for position, (name, reason) in enumerate(reasons.items(), start=1):
        with pytest.raises(UnreadableImageError) as error:
            images[position]
        sentence = str(error.value)
        start = f"the pairs: the image of item item-{position} ({tmp_path / name}) cannot be read: "
        assert sentence.startswith(start)
        assert reason in sentence.removeprefix(start).lower() or reason in sentence
        assert "\n" not in sentence
        assert str(tmp_path) not in sentence.removeprefix(start)
    with pytest.raises(PrhEvalError, match="the image of item item-7 cannot be read: it has none"):
        images[7]


def test_an_image_without_bytes_and_path_is_none() -> None:
    # As a Parquet file has it whose writer knew no missing structs.
    stored = pa.array(
        [{"bytes": None, "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    rows = datasets.Dataset(pa.table({"image": stored})).cast_column("image", datasets.Image())
    images = Images(rows, ["x"], "the pairs")
    assert images.content(0) is None
    assert images.files == (None,)
    with pytest.raises(
        UnreadableImageError, match="the image of item x cannot be read: it has none"
    ):
        images[0]


def test_threads_may_share_it(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(24)]
    drawn = draw_images(tmp_path, names)
    images = images_in(*(tmp_path / name for name in names))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(24), 10))
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(lambda position: np.array(images[int(position)]), order))
    for position, pixels in zip(order, read, strict=True):
        np.testing.assert_array_equal(pixels, drawn[position])
