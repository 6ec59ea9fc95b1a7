"""Paired data: what is loaded, in which order, and what a person is told when it cannot be."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from pydantic import ValidationError
from tiny_hub import cache_data_set, cache_revision, make_image_captions

import prh_eval
from prh_eval.errors import PrhEvalError
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import load_pairs
from prh_eval.schema import EmbeddedPairs, HubPairs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of datasets and the hub client that nothing else has written to."""
    folder = tmp_path / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    return folder


def load(folder: Path, caption: int | str = 0, **changes: object) -> PairedDataset:
    return load_pairs(HubPairs(kind="hub", path=str(folder), **changes), caption)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def test_a_folder_in_the_hubs_format(tmp_path: Path) -> None:
    pairs = load(make_image_captions(tmp_path / "data", n=5))
    assert len(pairs) == 5
    assert pairs.ids == ("0", "1", "2", "3", "4")
    assert pairs.captions == tuple((f"picture {i} in words, way 0",) for i in range(5))
    assert pairs.all_captions[3] == ("picture 3 in words, way 0", "picture 3 in words, way 1")
    assert pairs.targets is None
    assert pairs.source["path"] == str(tmp_path / "data")
    assert pairs.source["caption"] == 0
    assert pairs.commit is None
    assert json.loads(json.dumps(pairs.source)) == pairs.source


def test_images_are_those_in_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rgb = [random.integers(0, 256, (4 + i, 9, 3), dtype=np.uint8) for i in range(3)]
    grey = Image.fromarray(rgb[2]).convert("L")
    files = [png(Image.fromarray(rgb[0])), png(Image.fromarray(rgb[1])), png(grey)]
    text = [["a"], ["b"], ["c"]]
    pairs = load(make_image_captions(tmp_path / "data", image=files, text=text))
    assert pairs.images is not None
    for image, pixels in zip(pairs.images, rgb[:2], strict=False):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.array(image), pixels)
    np.testing.assert_array_equal(np.array(pairs.images[-1]), np.array(grey.convert("RGB")))
    chosen = pairs.select([2, 0])
    assert chosen.images is not None
    assert len(chosen.images) == 2
    np.testing.assert_array_equal(np.array(chosen.images[1]), rgb[0])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright, it is 90 degrees clockwise
    file = io.BytesIO()
    image.save(file, format="PNG", exif=exif)
    pairs = load(make_image_captions(tmp_path / "data", image=[file.getvalue()], text=["a"]))
    assert pairs.images is not None
    np.testing.assert_array_equal(
        np.array(pairs.images[0]), np.array(image.transpose(Image.Transpose.ROTATE_270))
    )


def test_captions_as_strings_and_as_lists(tmp_path: Path) -> None:
    text = ["one", "two", "three"]
    pairs = load(make_image_captions(tmp_path / "plain", n=3, text=text))
    assert pairs.captions == (("one",), ("two",), ("three",))
    listed = load(make_image_captions(tmp_path / "listed", n=3, captions=3), caption=2)
    assert listed.captions == tuple((f"picture {i} in words, way 2",) for i in range(3))
    with pytest.raises(
        PrhEvalError, match=r"item 0 has 1 caption, .* no caption 1 .*each item has 1"
    ):
        load(tmp_path / "plain", caption=1)


def test_one_caption_of_differing_numbers_or_the_mean_of_all(tmp_path: Path) -> None:
    text = [["a", "b"], ["c", "d", "x"], ["e"]]
    folder = make_image_captions(tmp_path / "uneven", n=3, text=text)
    assert load(folder).captions == (("a",), ("c",), ("e",))
    with pytest.raises(
        PrhEvalError, match=r"item 2 has 1 caption, .* 1 .*the items have 1 to 3 each"
    ):
        load(folder, caption=1)
    for caption in (2, 3, -1, -2):
        with pytest.raises(
            PrhEvalError, match=f"item . has . captions?, so there is no .* {caption} "
        ):
            load(folder, caption=caption)
    mean = load(folder, caption="mean")
    assert mean.captions == mean.all_captions == (("a", "b"), ("c", "d", "x"), ("e",))
    assert mean.source["caption"] == "mean"
    assert mean.select([2, 0]).captions == (("e",), ("a", "b"))
    assert mean.fingerprint != load(folder).fingerprint
    assert mean.items_fingerprint == load(folder).items_fingerprint


@pytest.mark.parametrize("caption", [0, "mean"])
def test_an_item_without_a_caption(tmp_path: Path, caption: int | str) -> None:
    folder = make_image_captions(tmp_path / "data", n=3, text=[["a"], [], ["c"]])
    with pytest.raises(PrhEvalError, match=r"item 1 has no caption$"):
        load(folder, caption=caption)


def test_captions_in_several_columns(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "data").mkdir(parents=True)
    columns = {"short": ["a", "b"], "long": [["a1", "a2"], ["b1"]]}
    datasets.Dataset.from_dict(columns).to_parquet(folder / "data" / "train.parquet")
    pairs = load(folder, caption_column=["long", "short"], image_column=None, caption="mean")
    assert pairs.captions == (("a1", "a2", "a"), ("b1", "b"))
    with pytest.raises(PrhEvalError, match=r"no column 'shor' .'caption_column'.; .* 'short'"):
        load(folder, caption_column=["long", "shor"], image_column=None)


def test_subsets(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for subset in ("cats", "dogs"):
        (folder / subset).mkdir(parents=True)
        texts = datasets.Dataset.from_dict({"text": [f"{subset} {i}" for i in range(3)]})
        texts.to_parquet(folder / subset / "train.parquet")
    card = "".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("cats", "dogs")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    pairs = load(folder, subset="dogs", image_column=None)
    assert pairs.captions == (("dogs 0",), ("dogs 1",), ("dogs 2",))
    assert pairs.source["subset"] == "dogs"
    with pytest.raises(PrhEvalError, match=r"'fish' not found.*cats.*dogs"):
        load(folder, subset="fish", image_column=None)


@pytest.mark.parametrize("empty", ["", "  \n\t", "\u2003", None])
def test_empty_captions(tmp_path: Path, empty: str | None) -> None:
    text = [["a", "x"], [empty, "x"], ["c", "x"], [empty, "x"]]
    folder = make_image_captions(tmp_path / "data", n=4, text=text)
    with pytest.raises(PrhEvalError, match=r"item 1 has an empty caption \(2 such items of 4\)"):
        load(folder)
    assert load(folder, caption=1).captions == (("x",),) * 4
    with pytest.raises(PrhEvalError, match=r"item 1 has an empty caption \(2 such items of 4\)"):
        load(folder, caption="mean")


def test_select_keeps_the_order_asked_for(tmp_path: Path) -> None:
    pairs = load(make_image_captions(tmp_path / "data", n=6))
    chosen = pairs.select([4, 1])
    assert chosen.ids == ("4", "1")
    assert [caption.split()[1] for (caption,) in chosen.captions] == ["4", "1"]
    assert [texts[1].split()[1] for texts in chosen.all_captions] == ["4", "1"]
    assert pairs.select(range(6)).fingerprint == pairs.fingerprint
    assert len({pairs.fingerprint, chosen.fingerprint, pairs.select([1, 4]).fingerprint}) == 3


def test_fingerprints_see_what_they_should(tmp_path: Path) -> None:
    folder = make_image_captions(tmp_path / "data", n=4)
    first, again, second = load(folder), load(folder), load(folder, caption=1)
    assert first.fingerprint == again.fingerprint != second.fingerprint
    assert first.items_fingerprint == again.items_fingerprint == second.items_fingerprint
    other = load(make_image_captions(tmp_path / "other", n=4, seed=1))
    assert other.fingerprint == first.fingerprint
    assert first.images is not None
    assert again.images is not None
    assert other.images is not None
    assert first.images.fingerprint == again.images.fingerprint != other.images.fingerprint
    assert first.images.select([1, 0]).fingerprint != first.images.select([0, 1]).fingerprint


def test_images_are_not_decoded_before_they_are_asked_for(tmp_path: Path) -> None:
    whole = png(Image.new("RGB", (40, 40), "red"))
    files = [whole, whole[: len(whole) // 2], b"not an image", None]
    text = [["a"], ["b"], ["c"], ["d"]]
    pairs = load(make_image_captions(tmp_path / "data", image=files, text=text))
    assert pairs.images is not None
    assert pairs.images[0].size == (40, 40)
    for item in (1, 2, 3):
        with pytest.raises(PrhEvalError, match=f"the image of item {item} cannot be read"):
            pairs.images[item]
    with pytest.raises(PrhEvalError, match="the image of item 2 cannot be read"):
        pairs.select([0, 2]).images[1]  # type: ignore[index]
    assert len(pairs.images.fingerprint) == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"caption_column": "txt"}, "no column 'txt' .'caption_column'.; did you mean 'text'"),
        ({"image_column": "img"}, "no column 'img' .'image_column'.; did you mean 'image'"),
        ({"image_column": "text"}, "the column 'text' holds .* should name a column of images"),
        ({"caption_column": "image"}, "'caption_column' should name a column of strings"),
        ({"split": "test"}, "could not be loaded: .*test.*train"),
    ],
)
def test_wrong_columns_and_splits(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    folder = make_image_captions(tmp_path / "data", n=3)
    with pytest.raises(PrhEvalError, match=words) as error:
        load(folder, **changes)
    assert "\n" not in str(error.value)


def test_without_images(tmp_path: Path) -> None:
    folder = make_image_captions(tmp_path / "data", n=3)
    assert load(folder, image_column=None).images is None


def test_a_part_of_a_split(tmp_path: Path) -> None:
    folder = make_image_captions(tmp_path / "data", n=6)
    pairs = load(folder, split="train[:4]")
    assert len(pairs) == 4


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder(path: str) -> None:
    with pytest.raises(PrhEvalError, match=f"there is no folder '{path}'"):
        load_pairs(HubPairs(kind="hub", path=path))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(PrhEvalError, match="could not be loaded") as error:
        load(tmp_path / "data")
    assert "hub" not in str(error.value)


def test_no_network_names_what_works() -> None:
    spec = HubPairs(kind="hub", path="minhuh/prh", revision="wit_1024")
    with pytest.raises(PrhEvalError) as error:
        load_pairs(spec)
    sentence = str(error.value)
    for words in ("'minhuh/prh'", "'wit_1024'", "prh_align_color", "local folder"):
        assert words in sentence
    assert "\n" not in sentence


def test_the_revision_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_image_captions(tmp_path / "data", n=3)
    load_dataset, asked = datasets.load_dataset, []

    def of_the_hub(path: str, **options: object) -> datasets.Dataset:
        asked.append((path, options))
        return load_dataset(str(folder), split="train")

    monkeypatch.setattr(datasets, "load_dataset", of_the_hub)
    load_pairs(HubPairs(kind="hub", path="minhuh/prh", revision="wit_1024", split="train"))
    assert asked == [("minhuh/prh", {"name": None, "revision": "wit_1024", "split": "train"})]


# ------------------------------------------------------------------ a filled cache, no network


@pytest.fixture
def cached(tmp_path: Path, hub_cache: Path) -> HubPairs:
    """A data set as datasets leaves it in its cache after a download of commit COMMIT."""
    folder = make_image_captions(tmp_path / "data", n=4)
    cache_data_set(hub_cache, folder, "minhuh/prh", COMMIT)
    return HubPairs(kind="hub", path="minhuh/prh", revision="wit_1024")


def test_a_cached_copy_of_the_revision(cached: HubPairs, hub_cache: Path) -> None:
    cache_revision(hub_cache, "minhuh/prh", "wit_1024", COMMIT)
    pairs = load_pairs(cached)
    assert len(pairs) == 4
    assert pairs.commit == pairs.source["commit"] == COMMIT


def test_a_cached_copy_of_another_revision_is_refused(cached: HubPairs, hub_cache: Path) -> None:
    cache_revision(hub_cache, "minhuh/prh", "wit_1024", OTHER)
    with pytest.raises(PrhEvalError, match="of commit 0123456789ab, not of revision 'wit_1024'"):
        load_pairs(cached)
    with pytest.raises(PrhEvalError, match="not of revision 'ffff"):
        load_pairs(cached.model_copy(update={"revision": OTHER}))
    assert load_pairs(cached.model_copy(update={"revision": COMMIT})).commit == COMMIT


def test_a_cached_copy_of_an_unknown_revision_is_warned_about(
    cached: HubPairs, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        load_pairs(cached)
    assert "cannot tell whether the cached copy is of revision 'wit_1024'" in caplog.text


# ------------------------------------------------------------------ embedded


def test_the_xkcd_colours() -> None:
    pairs = load_pairs(EmbeddedPairs(kind="embedded", name="xkcd_colors"))
    file = Path(prh_eval.__file__).parent / "data" / "xkcd_colors.csv"
    rows = list(csv.reader(file.open(encoding="utf-8")))[1:]
    assert len(pairs) == len(rows) == 949
    assert pairs.captions == tuple((name,) for name, _ in rows)
    assert pairs.targets == tuple(code for _, code in rows)
    assert dict(zip(pairs.captions, pairs.targets, strict=True))["cloudy blue",] == "#acc2d9"
    assert pairs.images is None
    chosen = pairs.select([948, 0])
    assert chosen.targets == (rows[948][1], rows[0][1])
    with pytest.raises(PrhEvalError, match="no caption 1"):
        load_pairs(EmbeddedPairs(kind="embedded", name="xkcd_colors"), caption=1)


def test_specs_forbid_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="caption"):
        HubPairs(kind="hub", path="a/b", caption="text")
