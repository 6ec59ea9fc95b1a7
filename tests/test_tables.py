"""Tables on disk: every text as it stands there, every mistake in a sentence."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_files import draw_images, write_table

from prh_eval.errors import PrhEvalError
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import load_pairs, read_pairs
from prh_eval.schema import TablePairs

KINDS = (".csv", ".jsonl", ".parquet")

# What other readers take for a missing value, a number, a date, a truth value or the end of a text.
TRICKY = [
    *("NA", "NaN", "nan", "null", "None", "N/A", "#N/A", "1.0", "1e5", "007", "-0", "inf", "TRUE"),
    *("2024-01-01", " padded ", "a,b", 'a "quoted" word', '"', "two\nlines", "cr\rlf\r\n", "\ttab"),
    *(
        "naïve 🐈 猫",
        "e\u0301",
        "line\u2028separator",
        "next\x85line",
        "\ufeffmark",
        "'",
        "\\n",
        "#",
    ),
]
texts = st.one_of(
    st.sampled_from(TRICKY),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)


def spec(file: Path, **changes: object) -> TablePairs:
    return TablePairs(kind="table", path=str(file), **changes)


def load(file: Path, caption: int | str = 0, **changes: object) -> PairedDataset:
    return load_pairs(spec(file, **changes), caption)


@pytest.mark.parametrize("kind", KINDS)
@given(captions=st.lists(texts, min_size=1, max_size=8), data=st.data())
def test_no_text_is_changed(kind: str, captions: list[str], data: st.DataObject) -> None:
    others = data.draw(st.lists(texts, min_size=len(captions), max_size=len(captions)))
    with tempfile.TemporaryDirectory() as folder:
        file = write_table(Path(folder) / f"t{kind}", {"other": others, "text": captions})
        pairs = read_pairs(spec(file, caption_column=["text", "other"]))
    assert pairs.all_captions == tuple(zip(captions, others, strict=True))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_of_other_programs(tmp_path: Path, newline: str, mark: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerows([["text"], *([text] for text in TRICKY)])
    file = tmp_path / "t.CSV"
    file.write_bytes((mark + written.getvalue() + newline).encode())
    assert load(file).captions == tuple((text,) for text in TRICKY)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_jsonl_of_other_programs(tmp_path: Path, newline: str) -> None:
    lines = [json.dumps({"text": text}) for text in TRICKY]  # as \\u escapes
    file = tmp_path / "t.jsonl"
    file.write_bytes(("\ufeff" + newline.join([*lines, "", " "])).encode())
    assert load(file).captions == tuple((text,) for text in TRICKY)


def test_rows_of_jsonl_may_differ_in_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"id": 1}\n{"text": ["a", null], "id": "b"}\n{"text": null, "id": 3}\n')
    pairs = read_pairs(spec(file, id_column="id"))
    assert pairs.all_captions == (("",), ("a", ""), ("",))
    assert pairs.ids == ("1", "b", "3")
    with pytest.raises(PrhEvalError, match=r"item 1 has an empty caption \(2 such items of 3\)"):
        load(file, id_column="id")


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_lists_of_captions(tmp_path: Path, kind: str) -> None:
    file = write_table(
        tmp_path / f"t{kind}", {"many": [["a", "b"], ["c", "d", "NA"]], "one": ["e", "f"]}
    )
    assert load(file, caption=1, caption_column="many").captions == (("b",), ("d",))
    pairs = load(file, "mean", caption_column=["one", "many"])
    assert pairs.captions == (("e", "a", "b"), ("f", "c", "d", "NA"))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_images(tmp_path: Path, kind: str) -> None:
    drawn = draw_images(tmp_path / "data", ["a.png", "below/b, c.png", "c.png"])
    absolute = str(tmp_path / "data" / "c.png")
    columns = {
        "name": ["x", "007", "1.0"],
        "text": ["one", "two", "three"],
        "picture": ["./a.png", "below/b, c.png", absolute],
    }
    file = write_table(tmp_path / "data" / f"t{kind}", columns)
    pairs = load(file, image_column="picture", id_column="name")
    assert pairs.ids == ("x", "007", "1.0")
    assert pairs.captions == (("one",), ("two",), ("three",))
    assert pairs.images is not None
    for image, pixels in zip(pairs.images, drawn, strict=True):
        np.testing.assert_array_equal(np.array(image), pixels)
    assert pairs.images.files[1] == str(tmp_path / "data" / "below" / "b, c.png")
    plain = load(file)
    assert plain.ids == ("0", "1", "2")
    assert plain.images is None
    assert plain.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert plain.source["kind"] == "table"
    assert json.loads(json.dumps(pairs.source)) == pairs.source


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_whole_numbers_as_ids(tmp_path: Path, kind: str) -> None:
    big = 2**53 + 1  # no float64
    file = write_table(tmp_path / f"t{kind}", {"id": [big, 7], "text": ["a", "b"]})
    assert load(file, id_column="id").ids == (str(big), "7")


@pytest.mark.parametrize("value", [1.5, True, None, "", " ", [1]])
def test_what_cannot_be_an_id(tmp_path: Path, value: object) -> None:
    file = write_table(tmp_path / "t.jsonl", {"id": ["a", value], "text": ["a", "b"]})
    with pytest.raises(PrhEvalError, match=r"row 1 .* in the column 'id'; 'id_column' should"):
        load(file, id_column="id")


@pytest.mark.parametrize("kind", KINDS)
def test_where_it_lies_does_not_matter(tmp_path: Path, kind: str) -> None:
    found = []
    for folder in ("here", "there"):
        draw_images(tmp_path / folder, ["a.png", "b.png"])
        columns = {"image": ["a.png", "b.png"], "text": ["one", "two"]}
        found.append(
            load(write_table(tmp_path / folder / f"t{kind}", columns), image_column="image")
        )
    here, there = found
    assert here.fingerprint == there.fingerprint
    assert here.items_fingerprint == there.items_fingerprint
    assert here.source["sha256"] == there.source["sha256"]
    assert here.images and there.images
    assert here.images.fingerprint == there.images.fingerprint is not None
    other = write_table(tmp_path / f"other{kind}", {"text": ["one", "two."]})
    assert load(other).items_fingerprint != here.items_fingerprint


def test_a_relative_path_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_images(tmp_path, ["a.png"])
    write_table(tmp_path / "t.csv", {"image": ["a.png"], "text": ["one"]})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("t.csv", "./t.csv", "~/t.csv"):
        images = load(Path(path), image_column="image").images
        assert images is not None
        assert images.files == (str(tmp_path / "a.png"),)


def test_parquet_reads_other_columns_not_at_all(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "number": [1.5, None], "a.b": ["c", "d"]}
    frame = pd.DataFrame({**columns, "category": pd.Categorical(["x", "y"])}, index=["p", "q"])
    folder = tmp_path / "year=2024"  # not a column, for this is no partition
    folder.mkdir()
    frame.to_parquet(folder / "t.parquet")
    assert load(folder / "t.parquet", caption_column="category").captions == (("x",), ("y",))
    assert load(folder / "t.parquet", caption_column="a.b").captions == (("c",), ("d",))
    with pytest.raises(PrhEvalError, match=r"no column 'year' .*valid: .*a\.b, category, number, "):
        load(folder / "t.parquet", caption_column="year")
    with pytest.raises(PrhEvalError, match=r"item 0 has 1\.5 in the column 'number'"):
        load(folder / "t.parquet", caption_column="number")


# ------------------------------------------------------------------ mistakes


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    table = pa.Table.from_arrays(columns, names=["text", "other", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(PrhEvalError, match="which has 2 columns 'text'"):
        load(tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet", caption_column="other").captions == (("b",),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["caption_column", "image_column", "id_column"])
def test_an_unknown_column(tmp_path: Path, kind: str, key: str) -> None:
    file = write_table(tmp_path / f"t{kind}", {"text": ["a"], "picture": ["p"]})
    with pytest.raises(PrhEvalError) as error:
        load(file, **{key: "pictures"})
    assert str(error.value) == (
        f"the table '{file}' has no column 'pictures' ('{key}'); did you mean 'picture'? "
        "(valid: picture, text)"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"text,b\na,b\n\na,b,c\n", "line 4: 3 fields where the header has 2"),
        ("t.csv", b'text,b\n"a\nb",c\na\n', "line 4: 1 fields where the header has 2"),
        ("t.csv", b'text\na\n"b\n', "line 3: this is not CSV: unexpected end of data"),
        ("t.csv", b'text\n"a"b\n', "line 2: this is not CSV"),
        ("t.csv", b"text\na\n\xffb\n", "line 3: this is not UTF-8"),
        ("t.csv", b"text,text\na,b\n", "which has 2 columns 'text'"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"text\n", "has no items"),
        ("t.csv", b"text;b\na;b\n", r"no column 'text' .*\(valid: text;b\)"),
        ("t.jsonl", b'{"text": "a"}\n\n{"text": b}\n', "line 3: this is not JSON"),
        ("t.jsonl", b'{"text": "a"}\n["b"]\n', r'line 2: \["b"\] is no object'),
        ("t.jsonl", b'[{"text": "a"}]', "line 1: .* is no object"),
        ("t.jsonl", b'{"text": "\\ud83d"}', "line 1: this is not JSON: .*surrogates"),
        ("t.jsonl", b'{"text": "\xe9"}', "line 1: this is not UTF-8"),
        ("t.jsonl", b"[" * 200_000, "line 1: this is not JSON"),
        ("t.jsonl", b"", "is empty"),
        ("t.jsonl", b'{"text": 7}', "item 0 has 7 in the column 'text'; 'caption_column' should"),
        ("t.jsonl", b'{"text": {"en": "a"}}', "'caption_column' should name a column of strings"),
        ("t.parquet", b"PAR1 not at all PAR1", "which cannot be read as Parquet"),
        ("t.parquet", b"", "which cannot be read as Parquet"),
        ("t.tsv", b"text\na\n", r"has the ending '.tsv'; it should be a .csv, .jsonl or .parquet"),
        ("t", b"text\na\n", "has the ending ''; it should be a .csv"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrhEvalError, match=words) as error:
        load(tmp_path / name)
    assert f"the table '{tmp_path / name}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    write_table(tmp_path / "captions.csv", {"text": ["a"]})
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        PrhEvalError, match=r"did you mean 'captions.csv'\? \(valid: captions.csv\)$"
    ):
        load(tmp_path / "caption.csv")
    with pytest.raises(PrhEvalError, match=f"there is no folder '{tmp_path}/none'"):
        load(tmp_path / "none" / "captions.csv")
    (tmp_path / "images.csv").mkdir()
    for folder in (tmp_path, tmp_path / "images.csv"):
        with pytest.raises(PrhEvalError, match=r"is a folder; 'path' should name a \.csv"):
            load(folder)


def test_images_that_are_no_paths(tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.parquet", {"text": ["a"], "image": [b"bytes"]})
    with pytest.raises(PrhEvalError, match="of the type bytes in the column 'image', which should"):
        load(file, image_column="image")


def test_repeated_ids(tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.csv", {"id": ["x", "y", "x"], "text": ["a", "b", "c"]})
    with pytest.raises(PrhEvalError, match=r"rows 0 and 2 .* have the same id 'x'; 'id_column'"):
        load(file, id_column="id")
    assert len(load(file)) == 3


def test_an_item_listed_twice(tmp_path: Path) -> None:
    columns = {
        "id": ["p", "q", "r", "s", "t"],
        "image": ["a.png", "a.png", "b.png", "./a.png", ""],
        "text": ["one", "two", "one", "one", "one"],
        "text2": ["x", "x", "x", "x", "x"],
    }
    file = write_table(tmp_path / "t.csv", columns)
    with pytest.raises(PrhEvalError, match=r"items p and s are the same: the image .*/a\.png with"):
        load(file, image_column="image", id_column="id")
    # One image with other captions is another item, and so is a caption without an image.
    several = load(
        write_table(file, {**columns, "text2": ["x", "x", "x", "y", "x"]}),
        image_column="image",
        caption_column=["text", "text2"],
    )
    assert len(several) == 5
    assert len(load(file)) == 5
