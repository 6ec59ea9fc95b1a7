"""``prh-eval show`` as a person types it: files, folders, models and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kept_graphs import features, keep_model, keep_reference, nearest
from sample_findings import record, write

from prh_eval.cli import main
from prh_eval.findings import Findings

OLD = Path(__file__).parent / "showing" / "data" / "results_of_version_0.1.json"
N, K = 60, 5
SHARED = np.random.default_rng(0).normal(size=(N, 8)) * 2
LAYERS = {
    name: features(layers, N, seed, SHARED)
    for seed, (name, layers) in enumerate({"org/gpt2": 3, "dino": 2, "clip": 1}.items())
}


@pytest.fixture
def kept() -> dict[str, Path]:
    return {
        name: (keep_model if "/" in name else keep_reference)(name, layers)
        for name, layers in LAYERS.items()
    }


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of a command that ends with status 2 and prints nothing else."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("prh-eval: error: ") and err.count("\n") == 1
    return err


def test_a_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of, other = record(), record(seed=1) | {"reference": {"reference": "clip"}}
    path = write(tmp_path / "results_a.json", {"prh_align": of, "prh_align_clip": other})
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"EleutherAI/pythia-160m × dinov2_giant: {of['score']:.4f} ± 0.0062\n")
    assert f"\n\n\nEleutherAI/pythia-160m × clip: {other['score']:.4f} ± 0.0062\n" in out
    for option in (["--task", "prh_align_clip"], ["--reference", "clip"]):
        assert main(["show", str(path), *option]) == 0
        assert capsys.readouterr().out.startswith("EleutherAI/pythia-160m × clip: ")
    assert main(["show", str(path.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["task"] for each in found] == ["prh_align", "prh_align_clip"]
    assert found[0]["source"] == str(path)
    for each, made in zip(found, (of, other), strict=True):
        expected = Findings.model_validate(made)
        assert Findings.model_validate(each["findings"]) == expected


def test_an_old_result_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(OLD)]) == 0
    assert "prh-eval rescore cielab" in capsys.readouterr().out


def test_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.svg"
    assert main(["show", str(OLD), "--plot", str(figure)]) == 0
    assert capsys.readouterr().out.startswith("models/gpt2-64-step300 × cielab")
    assert figure.read_bytes().startswith(b"<?xml")


def test_a_model_in_the_cache(kept: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    keep_reference("elsewhere", features(1, 30, seed=9))
    keep_reference("unlike", LAYERS["dino"], protocol="unclipped")
    assert main(["show", "gpt2", "--k", str(K), "--json"]) == 0
    found = {
        each["findings"]["reference"]["reference"]: Findings.model_validate(each["findings"])
        for each in json.loads(capsys.readouterr().out)
    }
    assert sorted(found) == ["clip", "dino"]
    of = found["dino"]
    neighbors = [[nearest(x, K).tolist() for x in LAYERS[name]] for name in ("org/gpt2", "dino")]
    grid = np.array(
        [
            [
                np.mean([len(set(a) & set(b)) / K for a, b in zip(p, q, strict=True)])
                for q in neighbors[1]
            ]
            for p in neighbors[0]
        ]
    )
    assert np.array(of.layer_grid) == pytest.approx(grid, abs=1e-6)
    assert of.layers == divmod(int(grid.argmax()), 2)
    assert of.score == pytest.approx(grid.max())
    assert of.chance == pytest.approx(K / (N - 1))
    assert (of.n, of.k, of.metric, of.protocol, of.pooling) == (N, K, "mutual_knn", "paper", "mean")
    assert of.null is not None and of.null.p == pytest.approx(1 / (1 + of.null.draws))
    assert [point.k for point in of.k_curve or []][-1] == 12
    for name in ("gpt2", "org/gpt2", str(kept["org/gpt2"])):
        assert main(["show", name, "--reference", "dino", "--k", str(K)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"org/gpt2 × dino: {grid.max():.4f} ± ")
        assert "the graphs in the cache" in out and "pictures, n = 60 items" in out
        assert out.endswith(
            "Controls that need the captions or the model itself are in result files only:\n"
            "shared words, re-initialised, weights shuffled.\n"
        )


@pytest.mark.usefixtures("kept")
def test_what_the_cache_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, says in (
        (["gpt3"], "neither a file or folder of results nor a model"),
        (["gpt3"], "did you mean 'gpt2'?"),
        (["gpt2", "--reference", "dyno"], "did you mean 'dino'?"),
        (["gpt2", "--k", "13"], "k = 13 should be from 1 to 12"),
        (["gpt2", "--protocol", "papers"], "did you mean 'paper'?"),
        (["gpt2", "--task", "prh_align"], "--task is of result files"),
        (["gone.safetensors"], "there is no file 'gone.safetensors'"),
        (["gpt2", "--plot", "a.png"], "there are 2, clip, dino; --reference should name one"),
    ):
        assert says in fails(["show", *argv], capsys)
    keep_model("other/gpt2", features(1, N, 5))
    assert "'gpt2' is the last part of the names of 2 models" in fails(["show", "gpt2"], capsys)


@pytest.mark.usefixtures("kept")
def test_a_model_with_the_name_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert main(["show", "gpt2", "--reference", "clip", "--k", str(K)]) == 0
    assert capsys.readouterr().out.startswith("org/gpt2 × clip: ")


def test_two_metrics_of_one_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = record() | {"metric": "linear_cka"}
    one = write(tmp_path / "results_1.json", {"a": record()}, date=1.0)
    write(tmp_path / "results_2.json", {"a": other}, date=2.0)
    assert main(["show", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["findings"]["metric"] for each in found] == ["linear_cka", "mutual_knn"]
    says = fails(["show", str(tmp_path), "--plot", str(tmp_path / "a.png")], capsys)
    assert "there are 2, linear_cka in " in says and f"mutual_knn in {one}; the file of" in says


def test_no_reference_of_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "none is in the cache" in fails(["show", "gpt2"], capsys)
    keep_model("gpt2", LAYERS["org/gpt2"])
    assert "(built: none)" in fails(["show", "gpt2"], capsys)
    keep_reference("elsewhere", features(1, 30, seed=9))
    assert "(built: elsewhere); `prh-eval references build NAME`" in fails(["show", "gpt2"], capsys)


def test_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "results_a.json", {"a": record(), "b": record()})
    (tmp_path / "cut.json").write_text('{"results"')
    (tmp_path / "empty").mkdir()
    for argv, says in (
        ([str(tmp_path / "none.json")], "there is no file"),
        ([str(tmp_path / "empty")], "empty holds an alignment, as tasks of prh_eval write it"),
        ([str(tmp_path / "cut.json")], "is damaged, or no result file"),
        ([str(path), "--task", "c"], "no alignment of the task 'c'"),
        ([str(path), "--k", "5"], "was made with k = 10, not 5"),
        ([str(path), "--plot", "a.jpg"], "--plot a.jpg should end in .png, .svg or .pdf"),
        ([str(path), "--plot", "a.png"], "there are 2, a, b; --task should name one"),
        ([str(OLD), "--plot", "/none/a.png"], "--plot /none/a.png cannot be written"),
    ):
        assert main(["show", *argv]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_a_terminal_of_few_signs(tmp_path: Path) -> None:
    of = record() | {"model": {"model": "modèle"}}
    path = write(tmp_path / "results_a.json", {"prh_align": of})
    command = [sys.executable, "-m", "prh_eval", "show", str(path)]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.isascii()
    assert done.stdout.startswith(b"mod?le x dinov2_giant: 0.")
    assert b"#" in done.stdout


def test_result_files_are_shown_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "results_a.json", {"prh_align": record()})
    program = (
        "import sys\n"
        "from prh_eval.cli import main\n"
        f"main(['show', {str(path)!r}])\n"
        "print(sorted({'torch', 'matplotlib', 'lm_eval'} & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True
    )
    assert done.stderr == b"[]\n"
