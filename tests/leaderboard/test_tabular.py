"""CSV, JSON and its schema, read by other programs."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import jsonschema
import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sample_board import HOSTILE, by_other_metrics, sample_board

from prh_eval.leaderboard.board import Board
from prh_eval.leaderboard.pages.tabular import json_schema, read_json, to_csv, to_json

BOARD = sample_board()
VALIDATOR = jsonschema.Draft202012Validator(json.loads(json_schema()))
FORMULA = tuple("=+-@\t\r＝＋－＠")


def read(board: Board) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(board), newline=""), strict=True))


def with_name(name: str) -> Board:
    row, *others = BOARD.rows[:3]
    texts = dict.fromkeys(("name", "model", "family", "notes"), name)
    return BOARD.model_copy(update={"rows": (row.model_copy(update=texts), *others)})


# ---------------------------------------------------------------- CSV


def test_csv_has_every_number_of_every_row():
    lines = read(BOARD)
    kinds = [line["row"] for line in lines]
    assert kinds == ["model"] * 21 + ["control", "baseline", "baseline"]
    for row, line in zip((*BOARD.rows, *BOARD.controls), lines, strict=False):
        assert line["name"] == row.name and line["control"] == (row.control or "")
        assert float(line["parameters"]) == row.parameters
        assert line["release_date"] == row.release_date and line["kind"] == row.kind
        for column in BOARD.columns:
            cell = row.cells.get(column.key)
            if cell is None:
                assert line[column.key] == line[f"{column.key}:stderr"] == ""
                continue
            assert float(line[column.key]) == cell.value
            assert line[f"{column.key}:stderr"] == ("" if cell.stderr is None else str(cell.stderr))
            assert line[f"{column.key}:tier"] == ("" if cell.tier is None else str(cell.tier))
            assert line[f"{column.key}:file"] == cell.file
            if column.kind == "alignment":
                assert int(line[f"{column.key}:layer"]) == cell.layer
                assert int(line[f"{column.key}:reference_layer"]) == cell.reference_layer
                assert float(line[f"{column.key}:last_layer"]) == cell.last_layer


def test_csv_has_what_no_model_scored():
    words, chance = read(BOARD)[-2:]
    assert (words["name"], words["prh_align"], words["hellaswag"]) == ("shared words", "0.07", "")
    assert (chance["name"], float(chance["prh_align"])) == ("chance", 10 / 1023)
    assert (chance["hellaswag"], chance["gsm8k"]) == ("0.25", "")


def test_a_metric_without_a_chance_level_has_an_empty_cell():
    board = by_other_metrics(BOARD, prh_align=("cka", None))
    chance = read(board)[-1]
    assert (chance["name"], chance["prh_align"], chance["hellaswag"]) == ("chance", "", "0.25")
    jsonschema.validate(json.loads(to_json(board)), json.loads(json_schema()))


def test_pandas_reads_numbers_as_numbers():
    board = sample_board(hostile=True)
    table = pandas.read_csv(io.StringIO(to_csv(board)))
    models = table[table["row"] == "model"]
    for column in BOARD.columns:
        cells = [row.cells.get(column.key) for row in board.rows]
        expected = [math.nan if cell is None else cell.value for cell in cells]
        pandas.testing.assert_series_equal(
            models[column.key], pandas.Series(expected), check_names=False, rtol=1e-12
        )
    assert models["training_tokens"].tolist() == [row.training_tokens for row in board.rows]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        (HOSTILE[2], "'" + HOSTILE[2]),
        ("+1", "'+1"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'=1"),
        ("\r=1", "'=1"),
        ("  =1", "'=1"),
        ("＝1", "'＝1"),
        ("a\nb", "a b"),
        ('say "a", b', 'say "a", b'),
        ("a=1", "a=1"),
    ],
)
def test_csv_computes_nothing(name, cell):
    line = read(with_name(name))[0]
    assert [line[key] for key in ("name", "model", "family", "notes")] == [cell] * 4


@given(st.one_of(st.text(max_size=8), st.text(st.sampled_from("=+-@,;\"'\r\n\t\x00 a\ud800＝"))))
@example("\x00=1")
def test_csv_of_any_name(name):
    text = to_csv(with_name(name))
    text.encode("utf-8")
    head, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert len(lines) == 3 + 1 + 2 and {len(line) for line in lines} == {len(head)}
    for line in lines:
        for cell in line:
            assert not cell.startswith(FORMULA)


def test_csv_of_little():
    empty = BOARD.model_copy(update={"rows": (), "controls": (), "columns": ()})
    assert read(empty) == [] and to_csv(empty).startswith("row,name,model,")


def test_a_key_that_is_a_formula_is_no_formula_in_the_head():
    first, *others = BOARD.columns
    columns = (first.model_copy(update={"key": "=1+1"}), *others)
    head = to_csv(BOARD.model_copy(update={"columns": columns})).splitlines()[0].split(",")
    assert not [cell for cell in head if cell.startswith(FORMULA)] and "'=1+1" in head


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize("board", [BOARD, sample_board(hostile=True, families=2), with_name("é")])
def test_json_is_what_the_schema_says_and_comes_back(board):
    text = to_json(board)
    content = json.loads(text, parse_constant=pytest.fail)
    VALIDATOR.validate(content)
    assert next(iter(content)) == "$schema" and content["$schema"] == "leaderboard.schema.json"
    assert read_json(text) == board
    assert (
        content["rows"][0]["cells"]["prh_align"]["value"] == board.rows[0].cells["prh_align"].value
    )
    assert text.endswith("}\n") and "\\u00e9" not in text


def test_the_schema_is_one_and_refuses_what_is_no_board():
    jsonschema.Draft202012Validator.check_schema(VALIDATOR.schema)
    assert VALIDATOR.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert VALIDATOR.schema["title"] and VALIDATOR.schema["description"]
    content = json.loads(to_json(BOARD))
    assert not VALIDATOR.is_valid({**content, "more": 1})
    assert not VALIDATOR.is_valid({**content, "title": None})
    assert not VALIDATOR.is_valid({key: value for key, value in content.items() if key != "rows"})
    described = VALIDATOR.schema["$defs"]["Association"]["properties"]
    assert all("description" in described[key] for key in ("p", "p_holm", "over_families"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_holds_no_nan(value):
    first, *others = BOARD.associations
    coefficient = first.spearman.model_copy(update={"value": value})
    changed = (first.model_copy(update={"spearman": coefficient}), *others)
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(BOARD.model_copy(update={"associations": changed}))


def test_json_can_be_written_whatever_a_name_holds():
    text = to_json(with_name("half \ud800 \u2028 é"))
    text.encode("utf-8")
    assert json.loads(text)["rows"][0]["name"] == "half \ud800 \u2028 é"
    assert re.search(r'"name": "half \\ud800 ', text)
