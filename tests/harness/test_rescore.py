"""Scores of models that are no longer there against those that lm-eval itself wrote."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import simple_evaluate
from tiny_hub import make_dinov2, make_image_captions, write_reference
from tiny_models import save_model

from prh_eval.cli import main
from prh_eval.errors import PrhEvalError
from prh_eval.harness.rescore import Rescored, rescore
from prh_eval.harness.task import AlignmentTask

N = 18
K = 4


def lm_eval(*arguments: str, cwd: Path) -> None:
    """lm-eval's command line with our tasks, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "prh_eval", "run", "run", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def result(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


class World:
    """A folder with image captions, references ``a`` and ``b`` on them and a language model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = make_image_captions(folder / "data", n=N)
        (folder / "references").mkdir()
        self.reference("a", seed=1)
        captions = datasets.load_dataset(str(self.data), split="train")["text"]
        self.texts = [text for several in captions for text in several]
        self.model = save_model(folder / "models" / "tiny", self.texts)

    def reference(self, name: str, seed: int, **changes: Any) -> Path:
        """Add a reference as a person would: one YAML."""
        encoder = make_dinov2(self.folder / f"encoder_{name}", layers=2, seed=seed)
        path = self.folder / "references" / f"{name}.yaml"
        return write_reference(path, encoder, self.data, **changes)

    def evaluate(self, reference: str, dtype: str = "float32", **options: Any) -> dict[str, Any]:
        """A run of lm-eval's evaluator with the model, in this process."""
        settings = {f"prh_{key}": value for key, value in ({"k": K} | options).items()}
        config = {
            "task": f"prh_align_{reference}",
            "class": AlignmentTask,
            "num_fewshot": 0,
            "metadata": {"version": 1.0, "prh_reference": reference, **settings},
        }
        return simple_evaluate(
            model="hf",
            model_args=f"pretrained={self.model},dtype={dtype}",
            tasks=[config],
            task_manager=_no_tasks(),
            device="cpu",
            batch_size=16,
            bootstrap_iters=0,
        )


def _no_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    # lm-eval asks many programs about this machine, which takes seconds.
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")
    return World(tmp_path)


def again(*references: str, output: Path, **wanted: Any) -> list[Rescored]:
    models = wanted.pop("models", ())
    return rescore(references, output, models=models, options={"k": K} | wanted)


def test_a_reference_added_later_gets_what_a_real_run_would_give(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = world.evaluate("a")
    world.reference("b", seed=2)
    # The oracle, in a cache of its own, is a run with the model.
    with monkeypatch.context() as patch:
        patch.setenv("PRH_EVAL_CACHE", str(tmp_path / "another cache"))
        lm_eval(
            *("--model", "hf", "--model_args", f"pretrained={world.model},dtype=float32"),
            *("--tasks", "prh_align_b", "--metadata", json.dumps({"prh_k": K})),
            *("--device", "cpu", "--batch_size", "16", "--output_path", "real"),
            cwd=tmp_path,
        )
    shutil.rmtree(world.model)
    assert main(["rescore", "b", "--output_path", "again", "--k", str(K)]) == 0
    said = capsys.readouterr().out
    real, found = result(tmp_path / "real"), result(tmp_path / "again")
    same = ("results", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
    for key in same:
        assert found[key] == real[key], key
    mnn = [each["results"] for each in (first, found)]
    assert mnn[0]["prh_align_a"]["mnn,none"] != mnn[1]["prh_align_b"]["mnn,none"]
    configs = [each["configs"]["prh_align_b"] for each in (real, found)]
    records = [each["metadata"].pop("alignment") for each in configs]
    # A kept graph also knows its key in the cache.
    assert len(records[1]["model"].pop("key")) == 64
    assert records[0] == records[1]
    metadata = [each.pop("metadata") for each in configs]
    assert metadata[1].items() <= metadata[0].items()
    assert configs[0] == configs[1]
    # A tokenizer is not among what is kept.
    missing = set(real) - set(found)
    assert all("token" in key for key in missing)
    assert set(real["config"]) <= set(found["config"])
    for key in ("model", "model_num_parameters", "model_dtype", "model_revision", "model_sha"):
        wanted = str(real["config"][key]).removeprefix("torch.")
        assert str(found["config"][key]) == wanted, key
    assert found["config"]["model_args"].items() >= real["config"]["model_args"].items()
    for key in ("model_name", "model_name_sanitized", "model_source", "max_length"):
        assert found[key] == real[key], key
    assert "not run again" in found["config"]["rescored"]["from"]
    (path,) = (tmp_path / "again").rglob("results_*.json")
    assert path.parent.name == found["model_name_sanitized"]
    score, stderr = (real["results"]["prh_align_b"][f"{m},none"] for m in ("mnn", "mnn_stderr"))
    row = said.splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[1:5]] == [
        str(world.model),
        "b",
        "mnn",
        f"{score:.3f} ± {stderr:.3f}",
    ]
    assert str(path.relative_to(tmp_path)) in row[5]


def test_other_metrics(
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of neighbours they are scored, without an error; features are not kept of models."""
    world.evaluate("a")
    world.reference("b", seed=2, metric="lcs_knn")
    world.reference("c", seed=3, metric="cka")
    assert main(["rescore", "b", "--output_path", "one", "--k", str(K)]) == 0
    score = result(tmp_path / "one")["results"]["prh_align_b"]["lcs_knn,none"]
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    assert [cell.strip() for cell in cells[3:5]] == ["lcs_knn", f"{score:.3f}"]
    sentence = "the metric 'cka' of c compares features"
    with pytest.raises(PrhEvalError, match=sentence):
        again("c", output=tmp_path / "two")
    assert main(["references", "build", "c", "--k", str(K)]) == 0
    found = again(output=tmp_path / "all")
    assert sorted(each.reference for each in found) == ["a", "b"]
    assert sentence in caplog.text


def test_all_references_and_all_dtypes(world: World, tmp_path: Path) -> None:
    real = {("a", dtype): world.evaluate("a", dtype) for dtype in ("float32", "float64")}
    world.reference("b", seed=2)
    real |= {("b", dtype): world.evaluate("b", dtype) for dtype in ("float32", "float64")}
    written = again(output=tmp_path / "out")
    assert [each.reference for each in written] == ["a", "b", "a", "b"]
    files = sorted({each.path for each in written})
    assert len(files) == 2 and files == sorted((tmp_path / "out").rglob("*.json"))
    seen = set()
    for path in files:
        found = json.loads(path.read_text(encoding="utf-8"))
        dtype = found["config"]["model_args"]["dtype"]
        seen.add(dtype)
        for name in "ab":
            task = f"prh_align_{name}"
            assert found["results"][task] == real[name, dtype]["results"][task]
            record = found["configs"][task]["metadata"]["alignment"]
            assert record["model"]["dtype"] == dtype
            assert record["reference"]["reference"] == name
            (said,) = (e for e in written if e.path == path and e.reference == name)
            assert said.model == str(world.model)
            assert said.score == found["results"][task]["mnn,none"]
            assert said.stderr == found["results"][task]["mnn_stderr,none"]
    assert seen == {"float32", "float64"}


@pytest.mark.parametrize(
    ("options", "filter_"),
    [
        ({"pooling": "last"}, "none"),
        ({"protocol": "unclipped"}, "none"),
        ({"caption": 1}, "caption_1"),
        ({"caption": "mean"}, "mean_over_captions"),
        ({"k": 7}, "none"),
    ],
)
def test_options_are_those_of_the_task(
    world: World, tmp_path: Path, options: dict[str, Any], filter_: str
) -> None:
    real = world.evaluate("a", **options)
    usual = world.evaluate("a")
    shutil.rmtree(world.model)
    (found,) = again("a", output=tmp_path / "out", **options)
    wrote = result(tmp_path / "out")
    assert wrote["results"] == real["results"] != usual["results"]
    assert found.score == real["results"]["prh_align_a"][f"mnn,{filter_}"]
    # Graphs of both are in the cache now; neither is taken for the other.
    again("a", output=tmp_path / "plain")
    plain = result(tmp_path / "plain")
    assert plain["results"] == usual["results"]
    for rescored, run in ((wrote, real), (plain, usual)):
        records = [each["configs"]["prh_align_a"]["metadata"] for each in (rescored, run)]
        records[0]["alignment"]["model"].pop("key")
        assert records[0].items() <= records[1].items()


def test_a_file_names_a_reference_and_models_are_chosen(world: World, tmp_path: Path) -> None:
    first = world.model
    world.evaluate("a")
    world.model = save_model(tmp_path / "models" / "other", world.texts, seed=1)
    world.evaluate("a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write_reference(elsewhere / "c.yaml", tmp_path / "encoder_a", world.data)
    (found,) = again(str(path), output=tmp_path / "out", models=["tiny"])
    assert (found.model, found.reference) == (str(first), "c")
    assert len(again("a", output=tmp_path / "out", models=["tiny", str(world.model)])) == 2
    with pytest.raises(PrhEvalError, match="the model 'tinny' are in the cache; did you mean"):
        again("a", output=tmp_path / "out", models=["tinny"])


def test_nothing_fits(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world.evaluate("a", pooling="last")
    with pytest.raises(PrhEvalError) as caught:
        again("a", output=tmp_path / "out")
    said = str(caught.value)
    assert said.startswith("no model in the cache fits a (") and "\n" not in said
    assert "pooling mean, protocol paper, k = 4)" in said
    assert f"there are 1 model on the data set {str(world.data)!r} ({N} items " in said
    assert "pooling last, protocol paper, k up to 17" in said
    # Another reference fits, so that it is a warning.
    world.evaluate("a")
    world.reference("e", seed=3, pairs__split="train[:9]")
    with caplog.at_level(logging.WARNING):
        (found,) = again("a", "e", output=tmp_path / "out")
    assert found.reference == "a"
    assert "no model in the cache fits e (" in caplog.text
    assert not list((tmp_path / "cache" / "references").glob("e-*.safetensors"))


def test_a_graph_with_too_small_a_k_does_not_fit(world: World, tmp_path: Path) -> None:
    from prh_eval.store import GraphArtifact, read_artifact, write_artifact

    world.evaluate("a")
    (path,) = (tmp_path / "cache" / "models").glob("*.safetensors")
    whole = read_artifact(path)
    small = whole.graph.__class__(whole.graph.indices, whole.graph.tied, 5)
    write_artifact(path, GraphArtifact(small, whole.header | {"graph_k": 5}))
    assert len(again("a", output=tmp_path / "out", k=5)) == 1
    with pytest.raises(PrhEvalError, match=r"k = 6\); there are 1 model .*, k up to 5$"):
        again("a", output=tmp_path / "out", k=6)


def test_empty_caches(world: World, tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match="no model was run yet"):
        again("a", output=tmp_path / "out")
    world.evaluate("a")
    shutil.rmtree(tmp_path / "cache" / "references")
    with pytest.raises(PrhEvalError, match="prh-eval references build NAME"):
        again(output=tmp_path / "out")


def test_a_damaged_graph_is_left_out(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.evaluate("a")
    world.evaluate("a", "float64")
    files = sorted((tmp_path / "cache" / "models").glob("*.safetensors"))
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert len(again("a", output=tmp_path / "out")) == 1
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert str(files[0]) in warning
    files[1].unlink()
    with pytest.raises(PrhEvalError, match="damaged"):
        again("a", output=tmp_path / "out")


def test_a_built_reference_whose_file_is_gone(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.evaluate("a")
    path = world.reference("b", seed=2)
    world.evaluate("b")
    path.unlink()
    with caplog.at_level(logging.WARNING):
        assert [each.reference for each in again(output=tmp_path / "out")] == ["a"]
    assert "the reference b is left out" in caplog.text
    with pytest.raises(PrhEvalError, match="unknown reference 'b'"):
        again("b", output=tmp_path / "out")


@pytest.mark.parametrize("gone", ["data", "encoder"])
def test_a_reference_that_cannot_be_had(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    world.evaluate("a")
    data = shutil.copytree(world.data, tmp_path / "copy")
    world.reference("b", seed=2, pairs__path=str(data))
    world.evaluate("b")
    world.reference("b", seed=2, pairs__path=str(data), encoder__token="mean")
    shutil.rmtree(data if gone == "data" else tmp_path / "encoder_b")
    with caplog.at_level(logging.WARNING):
        assert [each.reference for each in again(output=tmp_path / "out")] == ["a"]
    assert "the reference b is left out" in caplog.text
    with pytest.raises(PrhEvalError, match="copy" if gone == "data" else "encoder_b"):
        again("a", "b", output=tmp_path / "named")
    assert not (tmp_path / "named").exists()


def test_where_nothing_can_be_written(world: World, tmp_path: Path) -> None:
    world.evaluate("a")
    (tmp_path / "file").write_text("")
    with pytest.raises(PrhEvalError, match="cannot be written"):
        again("a", output=tmp_path / "file")
    with pytest.raises(PrhEvalError, match="should be a folder"):
        again("a", output=tmp_path / "out.json")


def test_mistakes(world: World, tmp_path: Path) -> None:
    world.evaluate("a")
    for references in (["a"], []):
        with pytest.raises(PrhEvalError, match="'prh_pooling' is 'max'"):
            again(*references, output=tmp_path / "out", pooling="max")
    with pytest.raises(PrhEvalError, match="two references make the task 'prh_align_a'"):
        again("a", "references/a.yaml", output=tmp_path / "out")
