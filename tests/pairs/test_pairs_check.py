"""What the check of paired data finds: all of it, at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_files import draw_images, make_image_folder, write_table
from PIL import Image

from prh_eval.pairs.check import BadImage, PairsReport, Range, SharedCaption, check_pairs
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import read_pairs
from prh_eval.schema import EmbeddedPairs, ImageFolderPairs, TablePairs


def check_folder(folder: Path, **options: bool) -> PairsReport:
    spec = ImageFolderPairs(kind="imagefolder", path=str(folder))
    return check_pairs(read_pairs(spec), progress=False, **options)


def check_table(file: Path, **columns: object) -> PairsReport:
    spec = TablePairs(kind="table", path=str(file), **columns)
    return check_pairs(read_pairs(spec), progress=False)


def test_nothing_is_wrong(tmp_path: Path) -> None:
    report = check_folder(make_image_folder(tmp_path / "data", n=12))
    assert report == PairsReport(
        name=f"the folder '{tmp_path / 'data'}' (metadata.jsonl)",
        items=12,
        captions=Range(1, 1.0, 1),
        words=Range(4, 4.0, 4),
        no_caption=(),
        empty_caption=(),
        repeated_ids=(),
        listed_twice=(),
        shared_captions=(),
        images=12,
        bad_images=(),
        same_images=(),
        same_items=(),
        smallest_image=(9, 5),
        largest_image=(9, 11),
    )
    assert report.usable
    assert report.problems == report.notes == []


def test_everything_is_wrong_at_once(tmp_path: Path) -> None:
    draw_images(tmp_path, ["a.png", "b.png", "c.png"])
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    Image.new("RGB", (40, 3)).save(tmp_path / "wide.png")
    rows: list[tuple[str, list[str | None], str | None]] = [
        ("p", ["a dog", "a big dog"], "a.png"),
        ("q", ["a dog", "a big dog"], "copy.png"),
        ("r", ["a dog", "a dog"], "b.png"),
        ("s", ["cat", "\n"], "none.png"),
        ("t", [], "c.png"),
        ("u", ["one two three four five six"], "cut.png"),
        ("u", ["bird", None], None),
        ("v", ["a dog", "a big dog"], "a.png"),
        ("w", ["wide"], "wide.png"),
    ]
    ids, texts, files = zip(*rows, strict=True)
    file = write_table(tmp_path / "t.jsonl", {"id": ids, "text": texts, "image": files})
    report = check_table(file, id_column="id", image_column="image")
    assert report.items == 9
    assert report.captions == Range(0, 14 / 9, 2)
    assert report.words == Range(1, (5 * 2 + 3 * 3 + 6 + 3) / 12, 6)
    assert report.no_caption == ("t",)
    assert report.empty_caption == ("s", "u")
    assert report.repeated_ids == ("u",)
    assert report.listed_twice == (("p", "v"),)
    assert report.shared_captions == (
        SharedCaption("a dog", ("p", "q", "r", "v")),
        SharedCaption("a big dog", ("p", "q", "v")),
    )
    assert report.images == 6
    missing, cut, absent = report.bad_images
    assert missing == BadImage("s", str(tmp_path / "none.png"), "there is no such file")
    assert (cut.item, cut.file) == ("u", str(tmp_path / "cut.png"))
    assert absent == BadImage("u", None, "it has none")
    assert report.same_images == report.same_items == (("p", "q", "v"),)
    assert report.smallest_image == (9, 5)
    assert report.largest_image == (40, 3)
    assert not report.usable
    assert [problem.split(":")[0] for problem in report.problems] == [
        "9 items",
        "1 item has no caption",
        "2 items have an empty caption",
        "1 id of several items",
        "the same image file with the same captions several times",
        "3 images cannot be read",
    ]
    lines = report.problems[5].split("\n")
    assert lines[1] == f"item s ({tmp_path / 'none.png'}): there is no such file"
    assert lines[3] == "item u: it has none"
    assert report.notes == [
        "4 items share a caption with another: 'a dog' (p, q, r, and 1 more), "
        "'a big dog' (p, q, v)",
        "3 items have the image of another, byte for byte: p = q = v",
        "3 items are another item once more, caption and all: p = q = v",
    ]
    found = json.loads(json.dumps(report.as_json()))
    assert found["problems"] == report.problems
    assert found["usable"] is False
    assert found["shared_captions"][0] == {"caption": "a dog", "items": ["p", "q", "r", "v"]}


def test_images_are_left_alone_on_request(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "data", n=12)
    (folder / "0.png").unlink()
    report = check_folder(folder, images=False)
    assert report.images is None
    assert report.usable
    assert check_folder(folder).bad_images[0].item == "0"
    shutil.rmtree(folder / "cats")
    report = check_folder(folder)
    assert len(report.bad_images) == 7
    (problem,) = report.problems
    assert problem.split("\n")[0] == "7 images cannot be read:"
    assert problem.split("\n")[-1] == "and 4 more"


@pytest.mark.parametrize(("n", "usable"), [(0, False), (1, False), (11, False), (12, True)])
def test_too_few_items(tmp_path: Path, n: int, usable: bool) -> None:
    file = write_table(tmp_path / "t.csv", {"text": [f"text {i}" for i in range(n)]})
    report = check_table(file)
    assert report.usable == usable
    assert report.items == n
    assert (report.captions is None) == (report.words is None) == (n == 0)
    if not usable:
        (problem,) = report.problems
        assert problem.endswith("10 nearest neighbours need at least 12")
        assert problem.startswith(f"{n or 'no'} item")


def test_equal_captions_without_images_are_no_equal_items() -> None:
    pairs = read_pairs(EmbeddedPairs(kind="embedded", name="xkcd_colors"))
    report = check_pairs(pairs)
    assert report.items == 949
    assert report.usable
    assert report.images is None
    assert pairs.targets is not None
    chosen = pairs.select([*range(12), 0])
    (group,) = check_pairs(chosen).same_items
    assert group == ("0", "0")
    captions = (("a",), ("a",))
    plain = PairedDataset("plain", ("0", "1"), captions, captions, {})
    assert check_pairs(plain).same_items == ()
    assert check_pairs(plain).shared_captions == (SharedCaption("a", ("0", "1")),)


def test_equal_images_with_other_captions_are_no_equal_items(tmp_path: Path) -> None:
    draw_images(tmp_path, ["a.png", "b.png"])
    columns = {"image": ["a.png", "b.png", "a.png"], "text": ["x", "y", "z"]}
    report = check_table(write_table(tmp_path / "t.csv", columns), image_column="image")
    assert report.same_images == (("0", "2"),)
    assert report.same_items == report.listed_twice == ()


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b b", "c c c", "", " "]), max_size=3),
        min_size=1,
        max_size=9,
    )
)
def test_captions_are_counted_one_by_one(texts: list[list[str]]) -> None:
    captions = tuple(map(tuple, texts))
    ids = tuple(f"i{number}" for number in range(len(texts)))
    report = check_pairs(PairedDataset("drawn", ids, captions, captions, {}))
    assert report.no_caption == tuple(i for i, each in zip(ids, texts, strict=True) if each == [])
    assert report.empty_caption == tuple(
        i for i, each in zip(ids, texts, strict=True) if "" in each or " " in each
    )
    expected = {
        text: tuple(i for i, each in zip(ids, texts, strict=True) if text in each)
        for text in ("a", "b b", "c c c")
    }
    assert {each.caption: each.items for each in report.shared_captions} == {
        text: items for text, items in expected.items() if len(items) > 1
    }
    words = [text.count(" ") + 1 for each in texts for text in each if text.strip()]
    assert report.words == (
        Range(min(words), sum(words) / len(words), max(words)) if words else None
    )
    counts = [len(each) for each in texts]
    assert report.captions == Range(min(counts), sum(counts) / len(counts), max(counts))


def test_long_lists_are_cut_in_sentences_only(tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.jsonl", {"text": [""] * 1234 + ["long " * 40] * 2})
    report = check_table(file)
    assert report.problems == ["1,234 items have an empty caption: 0, 1, 2, and 1,231 more"]
    assert len(report.empty_caption) == 1234
    (note,) = report.notes
    assert len(note) < 120
    assert report.shared_captions[0].caption == "long " * 40
