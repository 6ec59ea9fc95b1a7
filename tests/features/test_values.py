"""Tables of values that csv, json and pyarrow wrote, against what was written."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.errors import PrhEvalError
from prh_eval.features.values import table_values
from prh_eval.schema import ValueTable

Columns = Mapping[str, Sequence[Any]]


def save_csv(columns: Columns, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def save_jsonl(columns: Columns, path: Path) -> None:
    rows = zip(*columns.values(), strict=True)
    lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def save_parquet(columns: Columns, path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)


SAVE: dict[str, Callable[[Columns, Path], None]] = {
    ".csv": save_csv,
    ".jsonl": save_jsonl,
    ".parquet": save_parquet,
}


def refusal(path: Path, n: int, *columns: str) -> str:
    with pytest.raises(PrhEvalError) as caught:
        table_values(ValueTable(path=str(path), columns=list(columns)), n)
    message = str(caught.value)
    assert repr(str(path)) in message
    return message


@settings(max_examples=30)
@given(
    suffix=st.sampled_from(sorted(SAVE)),
    values=st.lists(
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=8
    ),
    chosen=st.permutations(["valence", "arousal", "words, in text"]),
    count=st.integers(1, 3),
)
def test_every_bit_of_the_chosen_columns_comes_back(
    suffix: str,
    values: list[tuple[float, ...]],
    chosen: list[str],
    count: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("table") / f"t{suffix}"
    names = ["valence", "arousal", "words, in text"]
    columns = dict(zip(names, zip(*values, strict=True), strict=True))
    SAVE[suffix]({**columns, "note": ["é"] * len(values)}, path)
    layers = table_values(ValueTable(path=str(path), columns=chosen[:count]), len(values))
    wanted = torch.tensor([columns[name] for name in chosen[:count]], dtype=torch.float64).T
    assert len(layers) == 1
    assert layers[0].dtype == torch.float64
    assert torch.equal(layers[0], wanted)


@pytest.mark.parametrize("suffix", sorted(SAVE))
def test_whole_numbers_are_numbers(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    SAVE[suffix]({"x": [3, -1, 2**40]}, path)
    (values,) = table_values(ValueTable(path=str(path), columns=["x"]), 3)
    assert values.tolist() == [[3.0], [-1.0], [2.0**40]]


@pytest.mark.parametrize(
    ("suffix", "bad", "shown"),
    [
        (".csv", "high", "'high'"),
        (".csv", "", "missing"),
        (".csv", "nan", "'nan'"),
        (".csv", "1e999", "'1e999'"),
        (".csv", "True", "'True'"),
        (".jsonl", "2.5", "'2.5'"),
        (".jsonl", None, "missing"),
        (".jsonl", True, "True"),
        (".jsonl", [1.0], r"[1.0]"),
        (".jsonl", math.nan, "nan"),
        (".jsonl", math.inf, "inf"),
        (".jsonl", 10**400, "1000"),
        (".parquet", None, "missing"),
        (".parquet", math.nan, "nan"),
    ],
)
def test_what_is_no_number_is_named(suffix: str, bad: Any, shown: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    SAVE[suffix]({"good": [1.5] * 4, "warmth": [1.5, 2.5, bad, bad]}, path)
    message = refusal(path, 4, "good", "warmth")
    assert f"column 'warmth' of row 2 (the first is 0) is {shown}" in message
    table_values(ValueTable(path=str(path), columns=["good"]), 4)


@pytest.mark.parametrize("values", [["1", "2"], [True, False]])
def test_columns_of_text_or_truth_in_parquet_are_refused(values: list[Any], tmp_path: Path) -> None:
    save_parquet({"x": values}, tmp_path / "t.parquet")
    assert f"row 0 (the first is 0) is {values[0]!r}" in refusal(tmp_path / "t.parquet", 2, "x")


def test_a_row_that_lacks_a_key(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"x": 1}\n\n{"y": 2}\n')
    assert "column 'x' of row 1 (the first is 0) is missing" in refusal(path, 2, "x")


@pytest.mark.parametrize("suffix", sorted(SAVE))
def test_counts_that_disagree_are_both_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    SAVE[suffix]({"x": [1.0, 2.0, 3.0]}, path)
    for n in (2, 4):
        assert f"has 3 rows where the paired data has {n} items" in refusal(path, n, "x")


@pytest.mark.parametrize("suffix", sorted(SAVE))
def test_an_unknown_column_names_the_nearest(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    SAVE[suffix]({"valence": [1.0], "arousal": [2.0]}, path)
    assert "has no column 'valance' ('values.columns'); did you mean 'valence'?" in refusal(
        path, 1, "valance"
    )


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,x,y\n1,2,3\n")
    assert "has 2 columns 'x'" in refusal(tmp_path / "t.csv", 1, "x")


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffx,y\r\n1,2\r\n\r\n 3 ,4\r\n", encoding="utf-8")
    (values,) = table_values(ValueTable(path=str(path), columns=["x"]), 2)
    assert values.tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("t.csv", b"x,y\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
        ("t.csv", b"x\n\xff\n", "this is not UTF-8"),
        ("t.csv", b"", "is empty"),
        ("t.jsonl", b'{"x": 1}\n{"x": \n', "line 2: this is not JSON"),
        ("t.jsonl", b"[1]\n", "line 1: [1] is no object"),
        ("t.parquet", b"PAR1", "cannot be read"),
        ("t.xlsx", b"x", "has the ending '.xlsx'; it should be a .csv, .jsonl or .parquet file"),
    ],
)
def test_files_that_are_no_tables(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert why in refusal(tmp_path / name, 1, "x")


def test_a_missing_file(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "t.csv", 1, "x")
