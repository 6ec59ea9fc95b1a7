"""Real runs of ``lm_eval`` as a person types them, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from reference_files import write_numbers
from tiny_hub import (
    cache_data_set,
    cache_model,
    cache_revision,
    make_dinov2,
    make_image_captions,
    write_reference,
)
from tiny_models import save_model

from prh_eval import resources
from prh_eval.references.registry import load_reference

HERE = Path(__file__).parent


def lm_eval(
    *arguments: str, cwd: Path, launcher: tuple[str, ...] = ("-m", "lm_eval"), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line; the environment of the tests (no network, own cache) holds."""
    return subprocess.run(
        [sys.executable, *launcher, "run", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wide_model(colors: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2, whose learned positions a wrong padding would shift."""
    return save_model(tmp_path_factory.mktemp("gpt2"), colors, kind="gpt2")


def several_captions(folder: Path, texts: list[str]) -> None:
    """A task ``several`` in folder/tasks, of 31 items that have one to three of the texts."""
    path = write_numbers(
        folder / "references", "numbers", np.random.default_rng(0).normal(size=(31, 4))
    )
    with (folder / "references" / "captions.jsonl").open("w", encoding="utf-8") as file:
        for i in range(31):
            file.write(json.dumps({"text": texts[5 * i : 5 * i + 1 + i % 3]}) + "\n")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["pairs"]["path"] = "captions.jsonl"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "tasks" / "several.yaml").write_text(
        "task: several\nclass: !function prh_eval.harness.task.AlignmentTask\n"
        "metadata: {version: 1, prh_reference: numbers, prh_caption: mean, "
        "prh_control: untrained, prh_bits_per_byte: true}\n"
    )


def test_two_processes_give_exactly_the_result_of_one(
    wide_model: Path, colors: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(resources.folder("tasks"), tmp_path / "tasks")
    several_captions(tmp_path, list(colors))
    tasks = ("prh_align_color", "several")
    common = ("--model", "hf", "--model_args", f"pretrained={wide_model},dtype=float32")
    common += ("--tasks", ",".join(tasks), "--batch_size", "16", "--log_samples")
    common += ("--include_path", "tasks")
    one = lm_eval(*common, "--device", "cpu", "--output_path", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = lm_eval(
        *common,
        *("--output_path", "two"),
        cwd=tmp_path,
        launcher=(*torchrun, str(HERE / "data_parallel.py")),
        ACCELERATE_USE_CPU="1",
    )
    assert two.returncode == 0, two.stderr
    first, second = results(tmp_path / "one"), results(tmp_path / "two")
    assert second["results"] == first["results"]
    assert any("bits_per_byte" in metric for metric in first["results"]["several"])
    for task in tasks:
        recorded = [run["configs"][task]["metadata"]["alignment"] for run in (first, second)]
        assert recorded[0] == recorded[1]
    samples = [
        {
            (path.name.rpartition("_")[0], sample["doc"]["id"]): sample["mnn"]
            for path in (tmp_path / side).rglob("samples_*.jsonl")
            for sample in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        }
        for side in ("one", "two")
    ]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 949 + 31
    # Both processes really had a share.
    assert "949/949" in one.stderr and "475/475" in two.stderr and "474/474" in two.stderr


def test_a_vision_reference_is_built_once_and_used_ever_after(tmp_path: Path) -> None:
    data = make_image_captions(tmp_path / "data", n=24, seed=0)
    encoder = make_dinov2(tmp_path / "encoder", layers=3)
    reference = write_reference(tmp_path / "tiny.yaml", encoder, data)
    captions = datasets.load_dataset(str(data), split="train")["text"]
    model = save_model(tmp_path / "model", [texts[0] for texts in captions])
    arguments = ("--model", "hf", "--model_args", f"pretrained={model},dtype=float32")
    arguments += ("--tasks", "prh_align", "--device", "cpu", "--batch_size", "8")
    arguments += ("--include_path", str(resources.folder("tasks")))
    # As JSON, which lm-eval 0.4.12 understands too.
    arguments += ("--metadata", json.dumps({"prh_reference": str(reference), "prh_k": 4}))
    first = lm_eval(*arguments, "--output_path", "first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "mnn_last_layer" in first.stdout
    shutil.rmtree(encoder)
    second = lm_eval(*arguments, "--output_path", "second", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert results(tmp_path / "first")["results"] == results(tmp_path / "second")["results"]
    found = results(tmp_path / "first")["configs"]["prh_align"]
    assert len(found["metadata"]["alignment"]["layer_grid"]) == 3
    assert len(found["metadata"]["alignment"]["layer_grid"][0]) == 3


def test_prh_align_as_it_is_shipped(tmp_path: Path) -> None:
    # No option at all: the shipped YAMLs, with tiny things of the real names in the hub's cache.
    encoder = load_reference("dinov2_giant").encoder
    home, commit = tmp_path / "hub", "0123456789abcdef" * 2 + "01234567"
    data = make_image_captions(tmp_path / "data", n=14)
    cache_data_set(home, data, "minhuh/prh", commit)
    cache_revision(home, "minhuh/prh", "wit_1024", commit)
    cache_model(home, make_dinov2(tmp_path / "encoder", layers=2), encoder.path, encoder.revision)
    captions = datasets.load_dataset(str(data), split="train")["text"]
    model = save_model(tmp_path / "model", [texts[0] for texts in captions])
    run = lm_eval(
        *("--model", "hf", "--model_args", f"pretrained={model}", "--tasks", "prh_align"),
        *("--include_path", str(resources.folder("tasks")), "--output_path", "results"),
        cwd=tmp_path,
        HF_HOME=str(home),
    )
    assert run.returncode == 0, run.stderr
    found = results(tmp_path / "results")
    recorded = found["configs"]["prh_align"]["metadata"]["alignment"]
    assert (recorded["n"], recorded["k"], recorded["protocol"]) == (14, 10, "paper")
    assert recorded["pairs"]["commit"] == commit
    assert recorded["reference"]["made_from"]["encoder"]["path"] == "facebook/dinov2-giant"
    assert np.array(recorded["layer_grid"]).shape == (3, 2)
    assert found["results"]["prh_align"]["mnn,none"] == pytest.approx(
        np.max(recorded["layer_grid"]), abs=1e-6
    )


def test_without_a_network_one_sentence_says_what_to_do(model_folder: Path, tmp_path: Path) -> None:
    arguments = ("--model", "hf", "--model_args", f"pretrained={model_folder}", "--device", "cpu")
    arguments += ("--include_path", str(resources.folder("tasks")))
    run = lm_eval(*arguments, "--tasks", "prh_align", cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("prh_eval: error: ")
    assert "minhuh/prh" in last and "prh_align_color" in last


def test_a_config_file_with_everything_in_it(model_folder: Path, tmp_path: Path) -> None:
    config = {
        "model": "hf",
        "model_args": {"pretrained": str(model_folder), "dtype": "float32"},
        "tasks": ["prh_align_color"],
        "include_path": str(resources.folder("tasks")),
        "device": "cpu",
        "batch_size": "auto",
        "samples": {"prh_align_color": [40, *range(30)]},
        "metadata": {"prh_k": 3, "prh_protocol": "paper_loose"},
        "log_samples": True,
        "write_out": True,
        "use_cache": str(tmp_path / "responses"),
        "output_path": "out",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = lm_eval("--config", "run.yaml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Could not save" not in run.stderr
    found = results(tmp_path / "out")
    recorded = found["configs"]["prh_align_color"]["metadata"]["alignment"]
    assert (recorded["n"], recorded["k"], recorded["protocol"]) == (31, 3, "paper_loose")
    (path,) = (tmp_path / "out").rglob("samples_prh_align_color_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [sample["doc"]["id"] for sample in samples] == [*map(str, range(30)), "40"]
    mean = sum(sample["mnn"] for sample in samples) / 31
    assert mean == pytest.approx(found["results"]["prh_align_color"]["mnn,none"])
    assert all(len(json.dumps(sample)) < 2000 for sample in samples)
    assert (tmp_path / "responses_rank0.db").exists()


def test_predict_only_writes_the_neighbours(model_folder: Path, tmp_path: Path) -> None:
    run = lm_eval(
        *("--model", "hf", "--model_args", f"pretrained={model_folder}", "--device", "cpu"),
        *("--include_path", str(resources.folder("tasks")), "--tasks", "prh_align_color"),
        *("--predict_only", "--limit", "20", "--output_path", "out"),
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    (path,) = (tmp_path / "out").rglob("samples_prh_align_color_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == 20
    assert "nearest in the last of 3 layers" in str(samples[0]["filtered_resps"])
