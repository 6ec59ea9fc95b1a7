"""Result files to share: the same scores, and nothing of the machine."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import model_result, result, write

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.paths import is_folder
from prh_eval.leaderboard.results import read_results
from prh_eval.leaderboard.scores import ModelRun, Score, scores_of
from prh_eval.leaderboard.sharing import pack, shareable

DATA = Path(__file__).parent / "data"
HOME = "/home/someone/private"


def read(folder: Path) -> tuple[Score, ...]:
    return read_results(folder, progress=False).scores


def plain(scores: tuple[Score, ...]) -> set[Score]:
    """Scores without what a copy may change: the place of the file."""
    return {dataclasses.replace(score, file=Path(score.file).name) for score in scores}


def of_a_machine(**changes: Any) -> dict[str, Any]:
    """A file of a local model, as lm-eval writes it, with a path wherever there may be one."""
    path = f"{HOME}/models/tiny-7m"
    data = model_result(
        path,
        0.1,
        0.5,
        pretty_env_info=f"OS: Debian\nGPU: H200\nlibraries in {HOME}/venv",
        git_hash="0123456",
        upper_git_hash="89abcdef",
        start_time=12345.6,
        end_time=23456.7,
        total_evaluation_time_seconds="11111.1",
        model_source="hf",
        model_name_sanitized="__home__someone__private__models__tiny-7m",
        chat_template=None,
    )
    data["config"] |= {"use_cache": f"{HOME}/cache/lm", "device": "cuda:0", "seed": 0}
    data["config"]["model_args"] |= {"tokenizer": f"{HOME}/models/tok", "peft": None}
    task = data["configs"]["prh_align"]
    task["metadata"] |= {"config_source": f"{HOME}/tasks/prh_align.yaml", "pretrained": path}
    task["metadata"]["alignment"]["model"] = {"model": path, "dtype": "float32"}
    task["dataset_kwargs"] = {"data_files": [f"{HOME}/pairs.csv"]}
    task["doc_to_text"] = "/a/b {{x}}"
    task["filter_list"] = [{"regex_pattern": r"\\boxed/(.*)/"}]
    return {**data, **changes}


# ---------------------------------------------------------------- one file's content


def test_nothing_of_the_machine_remains() -> None:
    data = of_a_machine()
    before = copy.deepcopy(data)
    shared = shareable(data)
    assert data == before
    assert HOME not in json.dumps(shared)
    assert set(before) - set(shared) == {
        "pretty_env_info",
        "upper_git_hash",
        "start_time",
        "end_time",
    }
    assert shared["model_name"] == shared["config"]["model_args"]["pretrained"] == "tiny-7m"
    assert shared["model_name_sanitized"] == "tiny-7m"
    assert shared["config"]["use_cache"] == "lm"
    assert shared["config"]["model_args"]["tokenizer"] == "tok"
    task = shared["configs"]["prh_align"]
    assert task["metadata"]["config_source"] == "prh_align.yaml"
    assert task["metadata"]["alignment"]["model"]["model"] == "tiny-7m"
    assert task["dataset_kwargs"] == {"data_files": ["pairs.csv"]}


def test_what_makes_a_score_is_as_it_was() -> None:
    data = of_a_machine()
    shared = shareable(data)
    for key in ("results", "versions", "n-shot", "n-samples", "date", "git_hash"):
        assert shared[key] == data[key]
    then, now = (each["configs"]["prh_align"] for each in (data, shared))
    assert (now["doc_to_text"], now["filter_list"]) == (then["doc_to_text"], then["filter_list"])
    record, copied = (each["metadata"]["alignment"] for each in (then, now))
    assert {k: v for k, v in copied.items() if k != "model"} == {
        k: v for k, v in record.items() if k != "model"
    }


def test_what_decides_a_references_graphs_is_not_changed() -> None:
    data = of_a_machine()
    reference = data["configs"]["prh_align"]["metadata"]["alignment"]["reference"]
    reference["made_from"] = {"encoder": {"prompt": "/a/b/c"}}
    reference["evidence"] = {"file": f"{HOME}/x.npy"}
    then, now = (
        next(s for s in scores_of(each, Path("m/f.json"), "f") if isinstance(s, Score))
        for each in (data, shareable(data))
    )
    assert then.record is not None and then.record == now.record
    assert HOME not in json.dumps(shareable(data))


@pytest.mark.parametrize(
    ("given_args", "expected"),
    [
        (f"pretrained={HOME}/m-1b,dtype=float16", "pretrained=m-1b,dtype=float16"),
        ("pretrained=org/m,trust_remote_code=true", "pretrained=org/m,trust_remote_code=true"),
        ("pretrained=runs/a/step-1,dtype=auto", "pretrained=step-1,dtype=auto"),
        ("pretrained=./m", "pretrained=m"),
        (r"pretrained=C:\models\m-1b", "pretrained=m-1b"),
        ("pretrained=org/m,peft=~/adapters/x", "pretrained=org/m,peft=x"),
    ],
)
def test_model_arguments_as_text(given_args: str, expected: str) -> None:
    data = result("", {}, model_args=None)
    data["config"]["model_args"] = given_args
    assert shareable(data)["config"]["model_args"] == expected


@pytest.mark.parametrize("name", ["org/m", "gpt2", "org/m-1.5b_x", ""])
def test_a_name_of_the_hub_is_no_folder(name: str) -> None:
    assert not is_folder(name)
    data = model_result(name, 0.1)
    assert shareable(data) == data


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    st.sampled_from(["config", "configs", "model_name", "results", "x"]),
)
def test_any_content_is_taken_and_once_is_enough(value: Any, key: str) -> None:
    shared = shareable({key: value})
    assert shareable(shared) == shared


# ---------------------------------------------------------------- folders


def test_packed_files_of_real_runs_have_the_same_scores(tmp_path: Path) -> None:
    packed = pack(DATA, tmp_path / "packed")
    before, after = read(DATA), read(tmp_path / "packed")
    assert len(before) == len(after) and plain(before) == plain(after)
    assert set(packed.files) == {score.file for score in after}
    assert {file.split("/")[0] for file in packed.files} == {
        "google__gemma-2-2b",
        "state-spaces__mamba2-130m",
        "bigscience__bloom-560m",
        "bigscience__bloom-7b1",
    }


def test_of_a_local_model_all_but_its_name_is_the_same(tmp_path: Path) -> None:
    write(tmp_path / "in", of_a_machine())
    (place,) = pack(tmp_path / "in", tmp_path / "out").files
    assert place == "tiny-7m/results_2026-01-02T03-04-05.678901.json"
    before, after = read(tmp_path / "in"), read(tmp_path / "out")

    def without_model(scores: tuple[Score, ...]) -> list[Score]:
        none = ModelRun("", "", None, None, None, None, {}, "")
        return [dataclasses.replace(s, model=none, file="") for s in scores]

    assert without_model(before) == without_model(after)
    assert {s.model.name for s in after} == {"tiny-7m"}
    assert {(s.model.dtype, s.model.parameters, s.model.sha) for s in after} == {
        (s.model.dtype, s.model.parameters, s.model.sha) for s in before
    }


def test_packing_again_changes_nothing_and_packs_what_is_new(tmp_path: Path) -> None:
    write(tmp_path / "in", model_result("org/a", 0.1))
    pack(tmp_path / "in", tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.json")
    then = file.stat().st_ino, file.read_bytes()
    write(tmp_path / "in", model_result("org/b", 0.2))
    packed = pack(tmp_path / "in", tmp_path / "out")
    assert (file.stat().st_ino, file.read_bytes()) == then
    assert len(packed.files) == 2 == len(list((tmp_path / "out").rglob("*.json")))


def test_a_different_file_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "in", model_result("org/a", 0.1))
    write(tmp_path / "in", model_result("org/b", 0.1))
    there = write(tmp_path / "out", model_result("org/b", 0.9))
    before = there.read_bytes()
    with pytest.raises(PrhEvalError, match=r"org__b.* is there and differs"):
        pack(tmp_path / "in", tmp_path / "out")
    assert there.read_bytes() == before
    assert list((tmp_path / "out").rglob("*.json")) == [there]


def test_two_models_of_one_last_part_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "in", model_result("/a/step-1", 0.1))
    write(tmp_path / "in", model_result("/b/step-1", 0.2))
    with pytest.raises(PrhEvalError, match="'/a/step-1' and '/b/step-1' would both"):
        pack(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_and_model_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "in" / "x", model_result("org/a", 0.1))
    write(tmp_path / "in" / "y", model_result("org/a", 0.2))
    with pytest.raises(PrhEvalError, match="two different files"):
        pack(tmp_path / "in", tmp_path / "out")


def test_samples_and_broken_files_are_not_packed(tmp_path: Path) -> None:
    write(tmp_path / "in", model_result("org/a", 0.1))
    (tmp_path / "in" / "org__a" / "samples_x_2026-01-02T03-04-05.6.jsonl").write_text("{}")
    (tmp_path / "in" / "results_cut.json").write_text('{"results": {')
    packed = pack(tmp_path / "in", tmp_path / "out")
    assert len(packed.files) == 1 == len([p for p in (tmp_path / "out").rglob("*") if p.is_file()])
    assert [skip.path for skip in packed.skipped] == ["results_cut.json"]


@pytest.mark.parametrize("name", ["org/\ud800x", "<b>|=1+1\n`a`", "..", "/", "ünïcode/模型"])
def test_any_name_has_a_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "results_2026-01-02T03-04-05.6.json"
    path.parent.mkdir()
    path.write_text(json.dumps(model_result(name, 0.1)))
    (place,) = pack(tmp_path / "in", tmp_path / "out").files
    assert (tmp_path / "out" / place).is_file()
    assert {score.value for score in read(tmp_path / "out")} == {
        score.value for score in read(tmp_path / "in")
    }


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match="holds no result file"):
        pack(tmp_path, tmp_path / "out")
