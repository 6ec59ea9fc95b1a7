"""Reading alignments from result files: those of now, those in the repository, and damaged ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from sample_findings import record, write

from prh_eval.errors import PrhEvalError
from prh_eval.findings import Findings
from prh_eval.showing.read import chosen, read_file, read_folder
from prh_eval.showing.wording import missing, remake

# As lm-eval wrote it with the tasks of prh_eval before there was more than a score.
OLD = Path(__file__).parent / "data" / "results_of_version_0.1.json"


def test_a_file_of_now_is_read_as_it_is(tmp_path: Path) -> None:
    of = record()
    (shown,) = read_file(write(tmp_path / "results_a.json", {"prh_align": of}))
    assert shown.findings == Findings.model_validate(of)
    assert (shown.task, shown.source) == ("prh_align", str(tmp_path / "results_a.json"))
    assert (shown.model, shown.reference) == ("EleutherAI/pythia-160m", "dinov2_giant")
    assert shown.data == "wit_1024"
    assert missing(shown.findings) == []


def test_a_file_of_before() -> None:
    content = json.loads(OLD.read_text())
    record = content["configs"]["prh_align_color"]["metadata"]["alignment"]
    scores = content["results"]["prh_align_color"]
    (shown,) = read_file(OLD)
    found = shown.findings
    assert (found.score, found.stderr) == (scores["mnn,none"], scores["mnn_stderr,none"])
    assert found.last is not None
    assert (found.last.score, found.last.stderr, list(found.last.layers)) == (
        scores["mnn_last_layer,none"],
        scores["mnn_last_layer_stderr,none"],
        record["last_layers"],
    )
    assert found.controls["shared_words"].score == record["shared_words"]
    chance = 10 / (record["n"] - 1)
    assert found.corrected == pytest.approx((scores["mnn,none"] - chance) / (1 - chance))
    assert "interval" in missing(found)
    assert remake(shown) == (
        f"prh-eval rescore cielab --models {content['model_name']} --output_path DIR"
    )


def test_what_is_missing_is_made_with_the_options_of_the_file(tmp_path: Path) -> None:
    of = record() | {"k": 5, "pooling": "last", "pairs": {"name": "x", "caption": "mean"}}
    of["model"] = {"model": "/home/somebody/my models/tiny"}
    (shown,) = read_file(write(tmp_path / "a.json", {"t": of}))
    assert shown.model == "tiny"
    assert remake(shown) == (
        "prh-eval rescore dinov2_giant --models tiny --k 5 --pooling last --caption mean "
        "--output_path DIR"
    )


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    of = record()
    of["model"] = {"model": "a\x1b[2Jb\nc"}
    of["reference"] = {"reference": "r\x9b1m\u202e"}
    (shown,) = read_file(write(tmp_path / "a.json", {"t": of}))
    assert (shown.model, shown.reference) == ("a [2Jb c", "r 1m")


def test_a_folder_gives_the_newest_of_each_task(tmp_path: Path) -> None:
    old, new, other = (record(seed=seed) for seed in range(3))
    write(tmp_path / "m" / "results_2030-01-01T00-00-00.json", {"a": old, "b": other}, date=1.0)
    write(tmp_path / "m" / "results_2020-01-01T00-00-00.json", {"a": new}, date=2.0)
    (tmp_path / "m" / "config.json").write_text("{}")  # a model's own
    found = read_folder(tmp_path)
    assert [(shown.task, shown.findings.score) for shown in found] == [
        ("a", new["score"]),
        ("b", other["score"]),
    ]
    assert read_folder(tmp_path / "m") == found


def test_a_folder_gives_the_newest_of_each_metric(tmp_path: Path) -> None:
    old, new, other = (record(seed=seed) for seed in range(3))
    other["metric"] = "linear_cka"
    for date, of in enumerate((old, new, other)):
        write(tmp_path / f"results_{date}.json", {"a": of}, date=date)
    assert [(shown.findings.metric, shown.findings.score) for shown in read_folder(tmp_path)] == [
        ("linear_cka", other["score"]),
        ("mutual_knn", new["score"]),
    ]


def test_what_align_writes(tmp_path: Path) -> None:
    parts = ("pairs", "reference", "model", "protocol", "pooling", "controls")
    of = {key: value for key, value in record().items() if key not in parts}
    sides = {
        side: {"file": f"/somewhere/{side}.npy", "protocol": "paper", "layers": 2} for side in "xy"
    }
    path = tmp_path / "aligned.json"
    path.write_text(json.dumps(of | sides))
    (shown,) = read_file(path)
    assert (shown.model, shown.reference, shown.task) == ("x.npy", "y.npy", None)
    assert (shown.findings.score, shown.findings.protocol) == (of["score"], "paper")
    with pytest.raises(PrhEvalError, match="is of no task; --task is of lm_eval's result files"):
        chosen([shown], task="prh_align")
    path.write_text(json.dumps(of | sides | {"k": 0}))
    with pytest.raises(PrhEvalError, match=r"aligned\.json: the alignment is damaged: .*'k'"):
        read_file(path)


def test_a_folder_without_alignments_gives_none(tmp_path: Path) -> None:
    write(tmp_path / "results_a.json", {})
    assert read_folder(tmp_path) == []


def test_a_folder_of_several_models(tmp_path: Path) -> None:
    for name in "xy":
        of = record() | {"model": {"model": name}}
        write(tmp_path / name / "results_1.json", {"a": of})
    with pytest.raises(PrhEvalError, match=r"alignments of 2 models; .* x/results_1\.json, y/"):
        read_folder(tmp_path)


def test_choosing(tmp_path: Path) -> None:
    other = record() | {"reference": {"reference": "clip"}}
    found = read_file(write(tmp_path / "a.json", {"a": record(), "b": other}))
    assert [shown.task for shown in chosen(found)] == ["a", "b"]
    assert [shown.task for shown in chosen(found, task="b")] == ["b"]
    assert [shown.task for shown in chosen(found, reference="clip", k=10)] == ["b"]
    with pytest.raises(PrhEvalError, match=r"no alignment of the task 'c' is in .*valid: a, b"):
        chosen(found, task="c")
    with pytest.raises(PrhEvalError, match=r"with 'dino' is in .*'dinov2_giant'"):
        chosen(found, reference="dino")
    with pytest.raises(PrhEvalError, match=r"made with k = 10, not 5; .* or a model be named"):
        chosen(found, k=5)


def _changed(**parts: Any) -> dict[str, Any]:
    return {key: value for key, value in (record() | parts).items() if value is not ...}


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (_changed(k=...), "the alignment of t is damaged: the key 'k' is missing"),
        (_changed(n="many"), "damaged: the key 'n' is 'many'"),
        (_changed(n=0), "damaged: the key 'n' is 0"),
        (_changed(k_curve=[{"k": 0, "score": 0.1, "chance": 0.1}]), "damaged: .*k_curve.*k"),
        (_changed(null=record()["null"] | {"draws": 0}), "damaged: .*draws"),
        (_changed(layer_grid=[]), "layer grid is no table"),
        (_changed(layer_grid=[[0.1], [0.1, 0.2]]), "layer grid is no table"),
        (_changed(layers=[4, 0]), "the layer pair 4, 0 is outside"),
        (_changed(stderr=float("nan")), "a number that is not finite"),
        (_changed(null=record()["null"] | {"values": []}), "its null has no draws"),
        ([], "should hold keys and values"),
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, of: Any, says: str) -> None:
    path = write(tmp_path / "a.json", {"t": {}})
    content = json.loads(path.read_text())
    content["configs"]["t"]["metadata"]["alignment"] = of
    path.write_text(json.dumps(content))
    with pytest.raises(PrhEvalError, match=says) as error:
        read_file(path)
    assert "\n" not in str(error.value)


def test_a_record_without_a_score(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"t": _changed(score=...)})
    content = json.loads(path.read_text())
    del content["results"]["t"]["mnn,none"]
    path.write_text(json.dumps(content))
    with pytest.raises(PrhEvalError, match="it has no score"):
        read_file(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"results": {"a"', "damaged, or no result file: "),
        ("[1, 2]", "JSON, but no result file"),
        ('{"name": 1}', "JSON, but no result file"),
        ('{"results": {"mmlu": {}}}', "holds no alignment, .*; its tasks: mmlu"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(PrhEvalError, match=says):
        read_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match=r"there is no file .*b.json; its folder holds no such"):
        read_file(tmp_path / "b.json")
    write(tmp_path / "results_a.json", {})
    with pytest.raises(PrhEvalError, match=r"did you mean 'results_a\.json'"):
        read_file(tmp_path / "result_a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {})
    path.chmod(0)
    with pytest.raises(PrhEvalError, match=r"a\.json cannot be read: Permission denied"):
        read_file(path)
