"""``prh-eval references`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from reference_files import write_numbers
from tiny_hub import make_dinov2, make_image_captions, write_reference

from prh_eval.cli import main
from prh_eval.errors import PrhEvalError
from prh_eval.schema import REFERENCE


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one reference that is right."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(20, 2, 5)).astype(np.float32)
    write_numbers(tmp_path / "references", "numbers", rows)
    return tmp_path


def run(*argv: str) -> int:
    return main(["references", *argv])


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "features  numbers of the name numbers" in lines["numbers"]
    assert {"cielab", "dinov2_giant"} <= lines.keys()
    assert run("build", "numbers") == 0
    capsys.readouterr()
    assert run("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["numbers"]["built"] == "n = 20"
    assert rows["numbers"]["file"] == str(Path("references/numbers.yaml").resolve())
    assert rows["dinov2_giant"]["built"] == ""


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "numbers") == 0
    out = capsys.readouterr().out
    assert out.startswith("numbers: numbers of the name numbers\n")
    assert "prh_align_numbers" in out
    assert "Not built here yet: `prh-eval references build numbers`" in out
    run("build", "numbers")
    capsys.readouterr()
    assert run("show", "references/numbers.yaml", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert REFERENCE.validate_python(shown["reference"]).name == "numbers"
    (graphs,) = shown["graphs"]
    assert (graphs["pairs"]["n"], graphs["made_from"]["protocol"]) == (20, "paper")
    assert run("show", "numbers") == 0
    out = capsys.readouterr().out
    assert "\nBuilt (n = 20): " in out
    assert "facts.layers" in out


def test_a_file_that_changed_since_is_told(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("build", "numbers")
    file = working_folder / "references" / "numbers.yaml"
    file.write_text(file.read_text() + "similarity: euclidean\n")
    capsys.readouterr()
    run("list", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["numbers"]["built"] == "n = 20, before protocol, similarity changed"


def test_graphs_of_another_definition_are_not_compared(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    write_numbers(working_folder / "references", "others", rows)
    run("build", "numbers", "others")
    capsys.readouterr()
    assert main(["compare", "numbers", "others"]) == 0
    file = working_folder / "references" / "others.yaml"
    text = file.read_text()
    file.write_text(text + "similarity: euclidean\n")
    assert main(["compare", "numbers", "references/others.yaml"]) == 2
    assert main(["compare", "numbers", "others"]) == 2
    assert "'others' has changed since its graphs were built: protocol" in capsys.readouterr().err
    # What decides no graph may change, and a file that is gone takes no graphs along.
    file.write_text(text.replace("numbers of the name", "other words"))
    assert main(["compare", "numbers", "others"]) == 0
    file.unlink()
    assert main(["compare", "numbers", "others"]) == 0


def test_check(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check") == 0
    assert "ok       numbers: valid" in capsys.readouterr().out
    broken = working_folder / "references" / "broken.yaml"
    broken.write_text("kind: vison\n")
    assert run("check") == 1
    out = capsys.readouterr().out
    assert "mistake  broken: " in out
    assert "did you mean 'vision'?" in out
    assert "ok       numbers: valid" in out
    assert run("check", "numbers") == 0
    assert run("check", str(broken)) == 1


def test_check_load(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--load", "numbers", "cielab") == 0
    out = capsys.readouterr().out
    assert "ok       numbers: 20 items, 2 layers of width 5" in out
    assert "ok       cielab: 949 items, 1 layer of width 3" in out
    np.save(working_folder / "references" / "numbers.npy", np.zeros((19, 4)))
    assert run("check", "--load", "numbers") == 1
    out = capsys.readouterr().out
    assert "19" in out and "20" in out


def test_build_says_why_and_where(
    working_folder: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", "numbers", "--k", "7") == 0
    out = capsys.readouterr().out
    (file,) = (cache_folder / "references").glob("*.safetensors")
    assert out.startswith("numbers: 2 layers, 20 items, neighbours up to k = 7: ")
    assert str(file) in out
    before = file.stat().st_mtime_ns
    assert run("build", "numbers", "--k", "7") == 0
    assert file.stat().st_mtime_ns == before
    assert run("build", "numbers", "--rebuild", "--features", "kept.safetensors") == 0
    assert file.stat().st_mtime_ns != before
    kept = safetensors.numpy.load_file("kept.safetensors")
    rows = np.load(working_folder / "references" / "numbers.npy")
    np.testing.assert_array_equal(np.stack([kept["layer_000"], kept["layer_001"]], 1), rows)


def test_build_tells_of_a_near_relative_that_is_not_built(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.default_rng(1).normal(size=(20, 5))
    write_numbers(working_folder / "references", "more", rows, relative="numbers")
    # At the end, for one that was just built needs no telling.
    told = (
        "more: how well its near relative numbers agrees with it is a ceiling for scores; "
        "`prh-eval references build numbers{}` builds that"
    )
    assert run("build", "more", "--protocol", "unclipped", "--caption", "mean") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [told.format(" --protocol unclipped --caption mean")]
    assert run("build", "more") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [told.format("")]
    for names in (["more", "numbers"], ["more"]):
        assert run("build", *names) == 0
        assert "relative" not in capsys.readouterr().out


def test_metric_and_relative_are_shown_and_a_wrong_relative_is_a_mistake(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = working_folder / "references"
    write_numbers(folder, "more", np.eye(20), relative="numbers", metric="lcs_knn")
    assert run("show", "more") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["metric", "lcs_knn"] in lines and ["relative", "numbers"] in lines
    assert run("check", "more") == 0
    write_numbers(folder, "more", np.eye(20), relative="numbrs")
    assert run("check", "more") == 1
    assert "of more: unknown reference 'numbrs'; did you mean 'num" in capsys.readouterr().out
    assert run("build", "more") == 2
    assert not list(working_folder.glob("cache/references/*"))


def test_features_are_kept_where_the_metric_compares_them(
    working_folder: Path, cache_folder: Path
) -> None:
    make_dinov2(working_folder / "encoder")
    make_image_captions(working_folder / "data", n=12)
    for name, metric, kept in (("near", "cycle_knn", 0), ("alike", "cka", 1)):
        file = working_folder / "references" / f"{name}.yaml"
        write_reference(file, working_folder / "encoder", working_folder / "data", metric=metric)
        assert run("build", name) == 0
        assert len(list(cache_folder.glob("references/*.safetensors"))) == 1 + kept
        assert len(list(cache_folder.glob("features/*.safetensors"))) == kept


def test_every_option_reaches_the_build(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_folder / "references" / "captions.csv").write_text(
        "one,two\n" + "".join(f"a {i},b {i}\n" for i in range(20))
    )
    file = working_folder / "references" / "numbers.yaml"
    content = yaml.safe_load(file.read_text())
    content["pairs"]["caption_column"] = ["one", "two"]
    file.write_text(yaml.safe_dump(content))
    seen = {}

    def build(reference: Any, pairs: Any, **options: Any) -> Any:
        seen.update(options, captions=pairs.captions[0])
        raise PrhEvalError("far enough")

    monkeypatch.setattr("prh_eval.references.build.shared_reference_artifact", build)
    options = ["--device", "cpu", "--batch-size", "3", "--workers", "0", "--k", "7", "--rebuild"]
    options += ["--protocol", "unclipped", "--features", "f.safetensors", "--trust-remote-code"]
    options += ["--memory", "2GB"]
    for caption, captions in (("0", ("a 0",)), ("1", ("b 0",)), ("mean", ("a 0", "b 0"))):
        assert run("build", "numbers", "--caption", caption, *options) == 2
        processes = seen.pop("processes")
        assert (processes.world_size, processes.device) == (1, torch.device("cpu"))
        assert seen == {
            "captions": captions,
            "memory_bytes": 2_000_000_000,
            "batch_size": 3,
            "workers": 0,
            "k": 7,
            "graph_k": 7,
            "rebuild": True,
            "protocol": "unclipped",
            "features": Path("f.safetensors"),
            "keep_features": False,
            "trust_remote_code": True,
        }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["build", "numbrs"], "unknown reference 'numbrs'; did you mean 'numbers'?"),
        (["build", "nowhere.yaml"], "no reference file 'nowhere.yaml'"),
        (["build", "numbers", "--protocol", "papr"], "no protocol 'papr'; did you mean 'paper'"),
        (["build", "numbers", "cielab", "--features", "x.safetensors"], "one reference"),
        (["build", "numbers", "--features", "x.npy"], "should end in .safetensors"),
        (["build", "numbers", "--features", "references/numbers.npy/x.safetensors"], "x.safeten"),
        (["build", "numbers", "--device", "cuda:99"], "'cuda:99' cannot be used here"),
        (["build", "numbers", "--device", "banana"], "'banana' cannot be used here"),
        (["export", "numbers"], "has no current graphs"),
        (["export", "numbers", "cielab", "--output", "x.safetensors"], "one reference"),
        (["import", "nowhere.safetensors"], "there is no artifact nowhere.safetensors"),
        (["import", "references/numbers.yaml"], "is cut short or is no artifact"),
    ],
)
def test_wrong_input_is_one_sentence(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("prh-eval: error: ")
    assert words in last


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_numbers_are_numbers(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("build", "numbers", "--batch-size", value)
    assert "should be a number from 1" in capsys.readouterr().err


def test_export_and_import(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("build", "numbers", "cielab") == 0
    assert run("export", "numbers", "cielab", "--output", "shared") == 0
    assert (tmp_path / "shared" / "cielab.safetensors").is_file()
    monkeypatch.setenv("PRH_EVAL_CACHE", str(tmp_path_factory.mktemp("other")))
    assert run("import", "shared/numbers.safetensors", "shared/cielab.safetensors") == 0
    capsys.readouterr()
    assert run("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cielab"]["built"] == "n = 949"


def test_schema_is_the_one_that_files_are_read_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["discriminator"]["propertyName"] == "kind"
    for kind in ("VisionReference", "LanguageReference", "FeaturesReference", "ValuesReference"):
        definition = schema["$defs"][kind]
        assert definition["additionalProperties"] is False
        for key, described in definition["properties"].items():
            assert described.get("description"), f"{kind}.{key} says nothing to an editor"
    # What an editor may complain of must be what we complain of: nobody has to write the name.
    assert "name" not in schema["$defs"]["VisionReference"]["required"]


def test_schema_accepts_what_we_accept(capsys: pytest.CaptureFixture[str]) -> None:
    run("schema")
    validator = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    files = list((Path(__file__).parents[1] / "references").glob("*.yaml"))
    assert files
    for path in files:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert not list(validator.iter_errors(content)), path
        assert list(validator.iter_errors({**content, "unknown": 1})), path
