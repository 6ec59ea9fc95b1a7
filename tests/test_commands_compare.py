"""``prh-eval compare`` and ``rescore`` as a person types them: what they print and say."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kept_graphs import features, keep_model, keep_reference, nearest
from statsmodels.stats.multitest import multipletests

from prh_eval.cli import main

N = 24
SHARED = np.random.default_rng(0).normal(size=(N, 8)) * 2
LAYERS = {
    name: features(layers, N, seed, SHARED)
    for seed, (name, layers) in enumerate({"dino": 3, "clip": 2, "org/gpt2": 4}.items())
}


@pytest.fixture
def files() -> dict[str, Path]:
    keep_reference("elsewhere", features(1, 30, seed=9))
    return {
        name: (keep_model if "/" in name else keep_reference)(name, layers)
        for name, layers in LAYERS.items()
    }


def best(x: str, y: str, k: int) -> tuple[float, int, int]:
    """The score and the layers of the best pair, by brute force."""
    neighbors = [[nearest(layer, k).tolist() for layer in LAYERS[name]] for name in (x, y)]
    grid = np.array(
        [
            [
                np.mean([len(set(a) & set(b)) / k for a, b in zip(p, q, strict=True)])
                for q in neighbors[1]
            ]
            for p in neighbors[0]
        ]
    )
    row, column = divmod(int(grid.argmax()), grid.shape[1])
    return float(grid.max()), row, column


def cells(table: str) -> dict[tuple[str, str], str]:
    """A markdown table by the names of rows and columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    header, rows = lines[0], lines[2:]
    return {
        (row[0], column): cell
        for row in rows
        for column, cell in zip(header[1:], row[1:], strict=True)
    }


@pytest.mark.usefixtures("files")
def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "dino", "clip", "gpt2", "--k", "5"]) == 0
    out = capsys.readouterr().out
    scores, about, _, layers = out.strip().split("\n\n")
    found, which = cells(scores), cells(layers)
    named = {"dino": "dino", "clip": "clip", "gpt2": "org/gpt2"}
    assert len(found) == len(which) == 9
    for x in named:
        for y in named:
            if x == y:
                assert found[x, y] == which[x, y] == "—"
                continue
            score, row, column = best(named[x], named[y], 5)
            value, error = map(float, found[x, y].split(" ± "))
            assert value == pytest.approx(score, abs=5.1e-4)
            assert 0 < error < 0.1
            assert which[x, y] == f"{row} / {column}"
    assert "\n" not in about
    for part in ("mutual_knn", "n = 24", "k = 5", f"chance {5 / 23:.4f}", "on pictures"):
        assert part in about


def test_json(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "gpt2", str(files["dino"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["pairs"]
    score, row, column = best("org/gpt2", "dino", 10)
    assert (pair["a"], pair["b"]) == ("gpt2", files["dino"].stem)
    assert pair["score"] == pytest.approx(score)
    assert (pair["a_layer"], pair["b_layer"]) == (row, column)
    assert found["chance"] == pytest.approx(10 / 23)
    assert [found[key] for key in ("n", "k", "metric", "data")] == [
        24,
        10,
        "mutual_knn",
        "pictures",
    ]
    assert found["graphs"] == [
        {"name": "gpt2", "kind": "language model", "file": str(files["org/gpt2"])},
        {"name": files["dino"].stem, "kind": "vision", "file": str(files["dino"])},
    ]


@pytest.mark.usefixtures("files")
def test_csv_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "table.csv"
    command = ["compare", "dino", "clip", "gpt2", "--csv"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main([*command, "--output", str(output)]) == 0
    assert capsys.readouterr().out == ""
    assert output.read_text(encoding="utf-8") == printed
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [(row["a"], row["b"]) for row in rows] == [
        ("dino", "clip"),
        ("dino", "gpt2"),
        ("clip", "gpt2"),
    ]
    assert float(rows[0]["score"]) == pytest.approx(best("dino", "clip", 10)[0])
    assert float(rows[0]["chance"]) == pytest.approx(10 / 23)
    assert {row["data"] for row in rows} == {"pictures"}


@pytest.mark.usefixtures("files")
def test_against_a_reference(capsys: pytest.CaptureFixture[str]) -> None:
    keep_model("opt", features(2, N, 7))
    command = ["compare", "gpt2", "opt", "clip", "--reference", "dino", "--k", "5"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "dino"
    assert [each["name"] for each in found["scores"]] == ["gpt2", "opt", "clip"]
    assert [each["name"] for each in found["graphs"]] == ["gpt2", "opt", "clip", "dino"]
    score, layer, reference_layer = best("org/gpt2", "dino", 5)
    first = found["scores"][0]
    assert first["score"] == pytest.approx(score)
    assert (first["layer"], first["reference_layer"]) == (layer, reference_layer)
    assert first["low"] < score < first["high"]
    assert [(d["a"], d["b"]) for d in found["differences"]] == [
        ("gpt2", "opt"),
        ("gpt2", "clip"),
        ("opt", "clip"),
    ]
    scores = {each["name"]: each["score"] for each in found["scores"]}
    for each in found["differences"]:
        assert each["difference"] == pytest.approx(scores[each["a"]] - scores[each["b"]])
        assert each["low"] < each["difference"] < each["high"]
    p = [each["p"] for each in found["differences"]]
    adjusted = multipletests(p, method="holm")[1]
    assert [each["p_holm"] for each in found["differences"]] == pytest.approx(adjusted)

    assert main([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row, each in zip(rows, found["differences"], strict=True):
        assert float(row["stderr"]) == pytest.approx(each["stderr"])
        assert (row["reference"], row["k"], row["data"]) == ("dino", "5", "pictures")

    assert main(command) == 0
    table, about, differences, note = capsys.readouterr().out.strip().split("\n\n")
    told = cells(table)
    assert told["gpt2", "score"] == f"{score:.3f} ± {first['stderr']:.3f}"
    assert told["gpt2", "95 % interval"] == f"{first['low']:.3f} to {first['high']:.3f}"
    assert told["gpt2", "layer"] == str(layer)
    assert told["gpt2", "layer of dino"] == str(reference_layer)
    assert "mutual_knn with dino" in about and "n = 24, k = 5" in about
    told = cells(differences)
    last = found["differences"][2]
    assert told["opt - clip", "difference"] == f"{last['difference']:+.3f} ± {last['stderr']:.3f}"
    for column, value in (("p", last["p"]), ("p, adjusted", last["p_holm"])):
        assert told["opt - clip", column] == ("< 0.001" if value < 0.001 else f"{value:.3f}")
    assert note.startswith("3 differences on the same items")


@pytest.mark.usefixtures("files")
def test_a_metric_without_errors(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "dino", "clip", "--metric", "cycle_knn", "--k", "5"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"][0]["stderr"] is None
    assert main(command) == 0
    out = capsys.readouterr().out
    assert cells(out.split("\n\n")[0])["dino", "clip"] == f"{found['pairs'][0]['score']:.3f}"
    assert "±" not in out


def test_two_files_of_one_name_are_told_apart(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for folder, of in (("x", "dino"), ("y", "clip")):
        (tmp_path / folder).mkdir()
        copy = tmp_path / folder / "same.safetensors"
        copy.write_bytes(files[of].read_bytes())
        names.append(str(copy))
    assert main(["compare", *names, "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["a"], row["b"]] == names


@pytest.mark.usefixtures("files")
def test_the_protocol_is_that_of_the_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    for name, of in (("dino", "clip"), ("clip", "clip")):
        keep_reference(name, LAYERS[of], protocol="unclipped")
    for protocol, score in (("paper", best("dino", "clip", 10)[0]), ("unclipped", 1)):
        assert main(["compare", "dino", "clip", "--csv", "--protocol", protocol]) == 0
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert float(row["score"]) == pytest.approx(score)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dino"], "at least 2"),
        (["dino", "dino"], "'dino' is named twice"),
        (["dino", "clap"], "did you mean 'clip'"),
        (["dino", "dinov2_giant"], "`prh-eval references build dinov2_giant`"),
        (["dino", "elsewhere"], "dino and elsewhere are not of the same data"),
        (["dino", "clip", "--k", "13"], "k = 13 should be from 1 to 12"),
        (["dino", "clip", "--metric", "mutual_kn"], "there is no metric 'mutual_kn'"),
        (["dino", "clip", "--metric", "cka"], "the metric 'cka' compares features"),
        (["dino", "--reference", "clip"], "at least 2"),
        (["dino", "clip", "--reference", "clip"], "'clip' is the reference, and among those"),
        (["dino", "clip", "--reference", "elsewhere"], "not of the same data"),
        (
            ["dino", "clip", "--reference", "gpt2", "--metric", "cycle_knn"],
            "--metric cycle_knn should be mutual_knn where there is a --reference",
        ),
        (["dino", "clip", "--protocol", "papper"], "did you mean 'paper'"),
        (["dino", "clip", "--output", "no/such/folder/x"], "no/such/folder/x cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("prh-eval: error: ") and captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_damaged_graph_is_named(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(files["dino"].read_bytes())
    content[-1] ^= 1
    files["dino"].write_bytes(content)
    assert main(["compare", "dino", "clip"]) == 2
    assert f"{files['dino']} was edited or damaged" in capsys.readouterr().err


@pytest.mark.usefixtures("files")
def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from prh_eval.cli import main; main(['compare', 'dino', 'clip']); "
        "heavy = {'transformers', 'lm_eval', 'datasets', 'PIL'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "| dino" in run.stdout


@pytest.mark.parametrize(("caption", "right"), [("3", True), ("mean", True), ("-1", False)])
def test_caption_of_rescore(
    caption: str, right: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["rescore", "--output_path", str(tmp_path), f"--caption={caption}"]
    if right:  # as far as the empty cache
        assert main(arguments) == 2
        assert "no model was run yet" in capsys.readouterr().err
        return
    with pytest.raises(SystemExit):
        main(arguments)
    assert "should be a number from 0, or mean" in capsys.readouterr().err
