"""lm-eval's result files: real ones, cut down, their values read off by hand; and drawn ones."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.merging import Conflict, merge
from prh_eval.leaderboard.results import Results, read_results
from prh_eval.leaderboard.scores import ModelRun, Score, parse_model_args, scores_of

DATA = Path(__file__).parent / "data"
STAMPED = "results_2025-01-02T03-04-05.600000.json"


def content(**changes: Any) -> dict[str, Any]:
    """A result file as lm-eval 0.4 writes it, of one task; keys changed or, by None, left out."""
    data: dict[str, Any] = {
        "results": {"toy": {"alias": "toy", "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "configs": {"toy": {"task": "toy", "num_fewshot": 0}},
        "versions": {"toy": 1.0},
        "n-shot": {"toy": 0},
        "higher_is_better": {"toy": {"acc": True}},
        "n-samples": {"toy": {"original": 25, "effective": 25}},
        "config": {"model": "hf", "model_args": {"pretrained": "org/m"}, "limit": None},
    }
    return {key: value for key, value in (data | changes).items() if value is not None}


def config(**changes: Any) -> dict[str, Any]:
    return content(config=content()["config"] | changes)


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def read(folder: Path) -> Results:
    return read_results(folder, progress=False)


def only(data: dict[str, Any], path: str = f"m/{STAMPED}") -> Score:
    (score,) = scores_of(data, Path(path), path)
    assert isinstance(score, Score)
    return score


# ---------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def real() -> Results:
    return read(DATA)


def test_every_value_of_the_real_files_is_read_once(real: Results) -> None:
    assert real.skipped == ()
    assert real.files == 9
    by_file: dict[str, int] = {}
    for score in real.scores:
        by_file[score.file] = by_file.get(score.file, 0) + 1
    gemma = 2 + 2 + 4  # hellaswag, lambada, and two tasks and two groups of mmlu
    assert by_file == {
        "google__gemma-2-2b/results_2025-03-03T02-29-42.286969.json": gemma,
        "google__gemma-2-2b/results_2025-03-03T20-58-19.132054.json": gemma,
        "state-spaces__mamba2-130m/results_2025-03-02T05-26-06.356142.json": 3,
        **{
            f"v0.3/{model}/{model}_{name}.json": count
            for model in ("bloom-560m", "bloom-7b1")
            for name, count in (
                ("common_sense_reasoning_0-shot", 4),
                ("gsm8k_8-shot", 1),
                ("mathematical_reasoning_few_shot_5-shot", 3),
            )
        },
    }


def test_a_file_of_04(real: Results) -> None:
    (score,) = (
        s
        for s in real.scores
        if (s.task, s.metric) == ("hellaswag", "acc_norm") and "T20-58" in s.file
    )
    assert score == Score(
        model=ModelRun(
            name="google/gemma-2-2b",
            revision="main",
            sha="c5ebcd40d208330abc697524c919956e692655cf",
            dtype="float32",
            parameters=2614341888,
            peft=None,
            model_args={"pretrained": "google/gemma-2-2b"},
            backend="hf",
        ),
        task="hellaswag",
        metric="acc_norm",
        filter="none",
        value=0.7303326030671181,
        stderr=0.0044288001407399545,
        higher_is_better=True,
        n_shot=0,
        version="1",
        n_samples=10042,
        limit=None,
        date="2025-03-03T20:58:19.132054",
        file="google__gemma-2-2b/results_2025-03-03T20-58-19.132054.json",
    )


def test_a_group_of_04(real: Results) -> None:
    first, second = (s for s in real.scores if s.task == "mmlu_stem")
    assert first.file < second.file
    assert (second.metric, second.value, second.stderr) == (
        "acc",
        0.4291151284490961,
        0.008602716641420094,
    )
    assert (second.n_shot, second.version, second.higher_is_better) == (0, "2", True)


def test_a_file_of_03(real: Results) -> None:
    (score,) = (
        s for s in real.scores if s.metric == "acc_norm" and s.model.name == "bigscience/bloom-7b1"
    )
    assert score == Score(
        model=ModelRun(
            name="bigscience/bloom-7b1",
            revision="main",
            sha=None,
            dtype=None,
            parameters=None,
            peft=None,
            model_args={"pretrained": "bigscience/bloom-7b1", "use_accelerate": True},
            backend="hf-causal-experimental",
        ),
        task="hellaswag",
        metric="acc_norm",
        filter="none",
        value=0.5967934674367655,
        stderr=0.0048953903414456264,
        higher_is_better=None,
        n_shot=0,
        version="0",
        n_samples=None,
        limit=None,
        date="",
        file="v0.3/bloom-7b1/bloom-7b1_common_sense_reasoning_0-shot.json",
    )
    (no_stderr,) = (
        s
        for s in real.scores
        if (s.metric, s.model.name) == ("em", score.model.name) and s.task == "mc_taco"
    )
    assert (no_stderr.value, no_stderr.stderr) == (0.13588588588588588, None)


def test_of_03s_two_gsm8k_values_the_one_of_its_own_file_is_taken(real: Results) -> None:
    everything = [s for s in real.scores if s.task == "gsm8k"]
    assert sorted((s.n_shot, s.value) for s in everything) == [
        (5, 0.0),
        (5, 0.0),
        (8, 0.00530705079605762),
        (8, 0.018953752843062926),
    ]
    for scores in (real.scores, everything):  # also where one task was chosen before
        kept, conflicts = merge(scores)
        assert [(s.model.name, s.n_shot, s.value) for s in kept if s.task == "gsm8k"] == [
            ("bigscience/bloom-560m", 8, 0.00530705079605762),
            ("bigscience/bloom-7b1", 8, 0.018953752843062926),
        ]
        assert [c for c in conflicts if c.model == "bigscience/bloom-7b1"] == [
            Conflict(
                "bigscience/bloom-7b1",
                "taken",
                "bigscience/bloom-7b1 was run on gsm8k with 5 and 8 examples; that with 8 examples "
                "is taken, for its file was made for this task alone",
                (
                    "v0.3/bloom-7b1/bloom-7b1_gsm8k_8-shot.json",
                    "v0.3/bloom-7b1/bloom-7b1_mathematical_reasoning_few_shot_5-shot.json",
                ),
            )
        ]


def test_of_two_equal_runs_the_newest_counts_for_every_task(real: Results) -> None:
    gemma = [s for s in real.scores if s.model.name == "google/gemma-2-2b"]
    kept, conflicts = merge(gemma)
    assert conflicts == []
    assert {s.date for s in kept} == {"2025-03-03T20:58:19.132054"}
    assert 2 * len(kept) == len(gemma)


# ---------------------------------------------------------------- one file's content


@pytest.mark.parametrize(
    ("given_args", "expected"),
    [
        ("pretrained=x,dtype=float16", {"pretrained": "x", "dtype": "float16"}),
        ("pretrained=x, trust_remote_code=True", {"pretrained": "x", "trust_remote_code": True}),
        ("a=[1,2],b=None", {"a": "[1,2]", "b": None}),
        ('a={"x": 1, "y=z": [2,3]},b=4', {"a": '{"x": 1, "y=z": [2,3]}', "b": "4"}),
        ("stop=a,b,c=d=e", {"stop": "a,b", "c": "d=e"}),
        ("", {}),
        (",,", {}),
        (None, {}),
        ({"pretrained": "x", "n": [1]}, {"pretrained": "x", "n": [1]}),
    ],
)
def test_model_arguments(given_args: object, expected: dict[str, Any]) -> None:
    assert parse_model_args(given_args) == expected


@given(
    st.dictionaries(
        st.text("abcdef_", min_size=1), st.text("xyz/-.0123", min_size=1), min_size=1, max_size=5
    )
)
def test_model_arguments_survive_as_text(args: dict[str, str]) -> None:
    assert parse_model_args(",".join(f"{k}={v}" for k, v in args.items())) == args


def test_what_is_unknown_of_a_model_is_none() -> None:
    model = only(config(model_num_parameters=-1, model_sha="", model_dtype="")).model
    assert (model.parameters, model.sha, model.dtype, model.peft) == (None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"model_args": "pretrained=m,dtype=float16"}, "float16"),
        ({"model_args": "pretrained=m,load_in_4bit=True"}, "load_in_4bit"),
        (
            {"model_dtype": "torch.float16", "model_args": {"load_in_8bit": True}},
            "float16, load_in_8bit",
        ),
        ({"model_args": {"load_in_8bit": False}}, None),
    ],
)
def test_dtype(changes: dict[str, Any], expected: str | None) -> None:
    assert only(config(**changes)).model.dtype == expected


def test_a_models_name_falls_back() -> None:
    assert only(config()).model.name == "org/m"
    named = config(model_args="model=gpt") | {"model_name": "gpt"}
    assert only(named).model.name == "gpt"
    assert only(config(model_args=None)).model.name == "m"


def test_revision_and_adapter() -> None:
    model = only(config(model_args="pretrained=m,revision=step1,peft=a/b")).model
    assert (model.revision, model.peft) == ("step1", "a/b")
    assert only(config(model_revision="step2")).model.revision == "step2"


@pytest.mark.parametrize(
    ("name", "date"),
    [
        (STAMPED, "2025-01-02T03:04:05.600000"),
        ("my.run_2025-01-02T03-04-05.600000.json", "2025-01-02T03:04:05.600000"),
        ("results_2024-01-02T03:04:05.600000.json", "2024-01-02T03:04:05.600000"),
        ("results_2024-01-02T03-04-05.json", "2024-01-02T03:04:05"),
        ("results.json", "1970-01-02T00:00:00"),
    ],
)
def test_dates(name: str, date: str) -> None:
    assert only(content(date=86400.0), f"m/{name}").date == date


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone cannot be set here")
def test_a_date_from_the_content_knows_no_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-7")
        time.tzset()
        date = only(content(date=86400.0), "m/results.json").date
    time.tzset()
    assert date == "1970-01-02T00:00:00"


@pytest.mark.parametrize("date", [1e300, float("nan"), "yesterday", None, [1]])
def test_no_date(date: object) -> None:
    assert only(content(date=date), "m/results.json").date == ""


def test_metrics_filters_and_what_is_no_metric() -> None:
    metrics = {
        "name": "toy",
        "alias": " - toy",
        "sample_len": 25,
        "sample_count": {"acc,none": 25},
        "acc": 0.25,
        "acc_stderr": 0.125,
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": "N/A",
        "exact_match,flexible-extract": 0.75,
        "exact_match_stderr,flexible-extract": None,
        "f1,none": "N/A",
        "em,none": None,
        "ok,none": True,
        "word_perplexity,none": 12.5,
        "word_perplexity_stderr,none": float("nan"),
    }
    found = list(scores_of(content(results={"toy": metrics}), Path("m/r.json"), "m/r.json"))
    assert [(s.metric, s.filter, s.value, s.stderr) for s in found if isinstance(s, Score)] == [
        ("acc", "none", 0.25, 0.125),
        ("exact_match", "strict-match", 0.5, None),
        ("exact_match", "flexible-extract", 0.75, None),
        ("word_perplexity", "none", 12.5, None),
    ]
    assert len(found) == 4


@pytest.mark.parametrize(
    ("metric", "value", "stderr", "reason"),
    [
        ("acc", float("nan"), None, "it is no finite number"),
        ("word_perplexity", float("inf"), 0.1, "it is no finite number"),
        ("em", 10**400, None, "it is no finite number"),
        ("acc_norm", 1.5, None, "a proportion lies in 0..1"),
        ("exact_match", 73.0, None, "a proportion lies in 0..1"),
        ("mnn", -0.01, 0.1, "a proportion lies in 0..1"),
        ("acc", 0.5, -0.1, "its standard error, -0.1, is negative"),
    ],
)
def test_impossible_values(
    tmp_path: Path, metric: str, value: float, stderr: float | None, reason: str
) -> None:
    metrics = {f"{metric},none": value, f"{metric}_stderr,none": stderr, "fine,none": 7}
    write(tmp_path / "m" / STAMPED, content(results={"toy": metrics}))
    results = read(tmp_path)
    assert [(s.metric, s.value) for s in results.scores] == [("fine", 7.0)]
    assert [(s.path, s.reason) for s in results.skipped] == [
        (f"m/{STAMPED}", f"toy {metric},none is {value}: {reason}")
    ]


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0])
def test_possible_proportions(value: float) -> None:
    assert only(content(results={"toy": {"acc,none": value}})).value == value


def test_few_shot_counts() -> None:
    assert only(content(**{"n-shot": {"toy": 3}})).n_shot == 3
    assert only(content(**{"n-shot": None}, configs={"toy": {"num_fewshot": 4}})).n_shot == 4
    old = {"configs": None, "n-shot": None}
    assert only(content(**old)).n_shot is None
    assert only(config(num_fewshot=5) | {"configs": {}, "n-shot": {}}).n_shot == 5


@pytest.mark.parametrize(
    ("subtasks", "expected"),
    [
        ({"toy": ["a", "b"]}, None),
        ({"toy": ["a", "c"]}, 1),
        ({"toy": ["g"], "g": ["a", "c"]}, 1),
        ({"toy": ["g"], "g": ["toy"]}, None),  # a ring
    ],
)
def test_a_groups_few_shot_count_is_its_tasks(
    subtasks: dict[str, list[str]], expected: int | None
) -> None:
    data = content(configs={}, group_subtasks=subtasks, **{"n-shot": {"a": 1, "b": 2, "c": 1}})
    assert only(data).n_shot == expected


def test_a_group_that_stands_among_the_groups_only() -> None:
    data = content(groups={"toys": {"acc,none": 0.75}, "toy": {"acc,none": 0.5}})
    found = [s for s in scores_of(data, Path("m/r.json"), "m/r.json") if isinstance(s, Score)]
    assert sorted((s.task, s.value) for s in found) == [("toy", 0.5), ("toys", 0.75)]


@pytest.mark.parametrize(
    ("version", "expected"), [(1.0, "1"), (1, "1"), (2.5, "2.5"), ("Yaml", "Yaml"), (0, "0")]
)
def test_versions(version: object, expected: str) -> None:
    assert only(content(versions={"toy": version})).version == expected


def test_a_version_falls_back_to_the_tasks_config() -> None:
    data = content(versions={}, configs={"toy": {"metadata": {"version": 3.0}}})
    assert only(data).version == "3"
    assert only(content(versions={})).version == ""


def test_higher_is_better_falls_back_to_the_tasks_config() -> None:
    listed = {"toy": {"metric_list": [{"metric": "acc", "higher_is_better": False}]}}
    assert only(content(higher_is_better=None, configs=listed)).higher_is_better is False
    assert only(content(higher_is_better=None)).higher_is_better is None


@pytest.mark.parametrize(("limit", "expected"), [(10, 10.0), (0.5, 0.5), ("7", 7.0), (0, 0.0)])
def test_limits(limit: object, expected: float) -> None:
    assert only(config(limit=limit)).limit == expected


def test_chosen_documents_are_a_limit() -> None:
    data = content(**{"n-samples": {"toy": {"original": 25, "effective": 9}}})
    score = only(data)
    assert (score.limit, score.n_samples) == (9, 9)


# ---------------------------------------------------------------- folders


def test_layouts(tmp_path: Path) -> None:
    stamp = "2025-01-02T03-04-05.600000"
    names = [f"m/results_{stamp}.json", f"stem_{stamp}.json", "deep/er/old_gsm8k_8-shot.json"]
    for name in names:
        write(tmp_path / name, content())
    assert sorted(s.file for s in read(tmp_path).scores) == sorted(names)


def test_sorted_keys_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "r.json", json.dumps(content(), sort_keys=True))
    assert len(read(tmp_path).scores) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("samples_toy_2025-01-02T03-04-05.600000.jsonl", json.dumps({"doc": 1})),
        ("package.json", '{"name": "x"}'),
        ("list.json", "[1, 2, 3]"),
        ("broken.json", '{"a": '),
        ("empty.json", ""),
        ("search.json", '{"items": 3, "results": [1]}'),
        ("results.txt", json.dumps(content())),
    ],
)
def test_other_files_are_passed_over(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path / name, text)
    assert read(tmp_path) == Results((), (), 0)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (STAMPED, "", "it is not valid JSON (cut?): "),
        (STAMPED, json.dumps(content())[:-40], "it is not valid JSON (cut?): "),
        ("other.json", json.dumps(content())[:60], "it is not valid JSON (cut?): "),
        (STAMPED, '{"results": {]}', "it is not valid JSON: "),
        ("results.json", "[1]", "it is JSON, but no object"),
        ("stem_2025-01-02T03-04-05.600000.json", "[1]", "it is JSON, but no object"),
        ("results.json", '{"results": [1]}', "it is JSON, but holds no results by task"),
        ("results.json", '{"results": {"a": 1}}', "it is JSON, but holds no results by task"),
        (
            "other.json",
            '{"results": {"toy": {"acc": 0.5}}}',
            "it has results, but not lm-eval's keys `versions` and `config`",
        ),
        ("results.json", "[" * 100_000, "it is nested too deeply"),
        (
            STAMPED,
            json.dumps(config(limit="some")),
            "its limit should be a number or null, not 'some'",
        ),
    ],
)
def test_what_looks_like_a_result_is_named(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    write(tmp_path / "m" / name, text)
    write(tmp_path / "n" / STAMPED, content())  # the others are read all the same
    results = read(tmp_path)
    assert [s.file for s in results.scores] == [f"n/{STAMPED}"]
    (skipped,) = results.skipped
    assert skipped.path == f"m/{name}"
    assert skipped.reason.startswith(reason)


def test_large_files_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = 1 << 29
    for name, start in (
        ("unrelated.json", b'{"data": ['),
        ("begins.json", b'{"results": {'),
        (STAMPED, b'{"data": ['),
    ):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(large)  # a hole: it takes no space, but would take memory
    monkeypatch.setattr(json, "loads", pytest.fail)
    results = read(tmp_path)
    assert results.scores == ()
    assert [(s.path, s.reason) for s in results.skipped] == [
        (name, "it has 512 MB, too many for a result file") for name in ("begins.json", STAMPED)
    ]


def test_a_large_file_is_read_where_it_begins_as_results_do(tmp_path: Path) -> None:
    bulk = {"grid": [0.123456] * 200_000}
    write(tmp_path / "a.json", content(bulk=bulk))
    write(tmp_path / "b.json", {"bulk": bulk, **content()})
    assert os.path.getsize(tmp_path / "b.json") > 1 << 20
    assert [s.file for s in read(tmp_path).scores] == ["a.json"]


def test_links_that_go_round(tmp_path: Path) -> None:
    write(tmp_path / "m" / STAMPED, content())
    (tmp_path / "m" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "results.json").symlink_to("results.json")
    (tmp_path / "other.json").symlink_to("nowhere")
    results = read(tmp_path)
    assert [s.file for s in results.scores] == [f"m/{STAMPED}"]
    (skipped,) = results.skipped
    assert skipped.path == "results.json"
    assert skipped.reason.startswith("it cannot be read: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    assert read(tmp_path) == Results((), (), 0)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "closed" / STAMPED, content())
    write(tmp_path / "open" / STAMPED, content())
    scandir = os.scandir

    def refusing(place: Any) -> Any:
        if os.fspath(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    results = read(tmp_path)
    assert [s.file for s in results.scores] == [f"open/{STAMPED}"]
    assert [(s.path, s.reason) for s in results.skipped] == [
        ("closed", "the folder cannot be read: Permission denied")
    ]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match="is no folder"):
        read(tmp_path / "nothing")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["toy", "acc,none", "acc", "alias", "limit", "version", "a,b"])
                | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from([*content(), "groups", "group_subtasks", "date", "model_name"]),
)
def test_nothing_in_a_file_ends_the_reading(
    tmp_path_factory: pytest.TempPathFactory, value: object, key: str
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    write(folder / "m" / STAMPED, content() | {key: value})
    for score in read(folder).scores:
        assert score.value == pytest.approx(score.value)  # finite: NaN equals nothing
        assert hash(score) == hash(dataclasses.replace(score))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, prh_eval.leaderboard.results, prh_eval.leaderboard.merging\n"
        "print(sorted({'torch', 'lm_eval', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- merging


def score(**changes: Any) -> Score:
    """A score; model fields too may be changed."""
    base = only(content())
    fields = {field.name for field in dataclasses.fields(ModelRun)}
    model = {key: value for key, value in changes.items() if key in fields}
    rest = {key: value for key, value in changes.items() if key not in fields}
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **model), **rest)


def test_tasks_of_several_files_are_merged() -> None:
    a, b = score(task="a", file="1"), score(task="b", file="2")
    assert merge([b, a]) == ([a, b], [])


def test_the_newest_whole_run_counts() -> None:
    old = score(date="2024-12-31T23:59:59", file="z", value=0.1)
    new = score(date="2025-01-01T00:00:00", file="a", value=0.2)
    limited = score(date="2026-01-01T00:00:00", file="b", value=0.3, limit=100.0)
    kept, conflicts = merge([new, limited, old])
    assert kept == [new]
    assert conflicts == [
        Conflict(
            "org/m",
            "limit",
            "org/m was run on toy with limit 100 in b, which is refused; a run on all documents "
            "is needed",
            ("b",),
        )
    ]


@pytest.mark.parametrize(
    ("one", "other", "kind", "part"),
    [
        ({"dtype": "float16"}, {"dtype": "float32"}, "model", "with dtype float16 and float32;"),
        ({"revision": "main"}, {"revision": "x"}, "model", "with revision main and x;"),
        ({"peft": None}, {"peft": "a/b"}, "model", "with adapter a/b and none;"),
        ({"n_shot": 0}, {"n_shot": 5}, "few-shot", "on toy with 0 and 5 examples;"),
        (
            {"n_shot": None},
            {"n_shot": 10},
            "few-shot",
            "on toy with an unknown number of and 10 examples;",
        ),
        ({"version": "1"}, {"version": "2"}, "version", "on toy in versions 1 and 2;"),
        ({"prompt": None}, {"prompt": "x"}, "prompt", "different chat templates"),
    ],
)
def test_what_differs_is_kept_apart_and_said(
    one: dict[str, Any], other: dict[str, Any], kind: str, part: str
) -> None:
    scores = [score(file="1", **one), score(file="2", date="2030-01-01T00:00:00", **other)]
    kept, conflicts = merge(scores)
    assert sorted(s.file for s in kept) == ["1", "2"]
    assert [(c.kind, c.files) for c in conflicts] == [(kind, ("1", "2"))]
    assert part in conflicts[0].sentence
    assert conflicts[0].sentence.endswith("the scores are kept apart")


def test_two_commits_of_one_revision_are_said() -> None:
    scores = [score(sha="a" * 40, task="a"), score(sha="b" * 40, task="b")]
    kept, (conflict,) = merge(scores)
    assert len(kept) == 2
    assert conflict.kind == "commit"
    assert "the commits aaaaaaaa and bbbbbbbb at revision main" in conflict.sentence


def test_a_dated_run_does_not_yield_to_03s_own_file() -> None:
    own = score(n_shot=8, date="", file="m_toy_8-shot.json")
    collection = score(n_shot=5, date="", file="m_many_5-shot.json")
    dated = score(n_shot=4, file=STAMPED)
    kept, conflicts = merge([own, collection, dated])
    assert sorted(s.file for s in kept) == ["m_toy_8-shot.json", STAMPED]
    assert [c.kind for c in conflicts] == ["few-shot", "taken"]


def test_a_dated_file_is_no_file_of_03() -> None:
    dated = score(n_shot=8, file="m_toy_8-shot.json")
    collection = score(n_shot=5, date="", file="m_many_5-shot.json")
    kept, conflicts = merge([dated, collection])
    assert len(kept) == 2
    assert [c.kind for c in conflicts] == ["few-shot"]


def test_a_file_without_a_dtype_joins_the_only_one() -> None:
    old = score(dtype="float16", date="2024-01-01T00:00:00", value=0.1, file="a.json")
    new = score(dtype=None, date="2025-01-01T00:00:00", value=0.2, file="b.json")
    kept, conflicts = merge([old, new])
    assert [(s.value, s.model.dtype) for s in kept] == [(0.2, "float16")]
    assert [(c.kind, c.files) for c in conflicts] == [("dtype", ("b.json",))]
    assert merge([old])[1] == []
    third = score(dtype="float32", date="2023-01-01T00:00:00", value=0.3, file="c.json")
    kept, conflicts = merge([old, new, third])
    assert {s.model.dtype for s in kept} == {None, "float16", "float32"}
    assert [c.kind for c in conflicts] == ["model"]


drawn = st.builds(
    score,
    name=st.sampled_from(["m", "n"]),
    revision=st.sampled_from(["main", "x"]),
    dtype=st.sampled_from([None, "float16"]),
    n_shot=st.sampled_from([None, 0, 5]),
    task=st.sampled_from(["a", "b"]),
    metric=st.sampled_from(["acc", "f1"]),
    filter=st.sampled_from(["none", "strict-match"]),
    version=st.sampled_from(["", "1"]),
    date=st.sampled_from(["", "2024-01-01T00:00:00", "2025-01-01T00:00:00"]),
    limit=st.sampled_from([None, None, None, 10.0]),
    prompt=st.sampled_from([None, "x"]),
    value=st.floats(0, 1),
)


@given(st.lists(drawn, max_size=25), st.randoms(use_true_random=False))
def test_merging_drawn_scores(scores: list[Score], random: Any) -> None:
    scores = [dataclasses.replace(s, file=f"{i:03}.json") for i, s in enumerate(scores)]
    kept, conflicts = merge(scores)
    told = {(s.model.name, s.model.revision) for s in scores if s.limit is None and s.model.dtype}
    newest: dict[object, Score] = {}  # plain: later ones overwrite
    for s in sorted(scores, key=lambda s: (s.date, s.file)):
        if s.limit is None:
            if (s.model.name, s.model.revision) in told:  # float16 is the only one there is
                s = dataclasses.replace(s, model=dataclasses.replace(s.model, dtype="float16"))
            m = s.model
            newest[m.name, m.revision, m.dtype, s.n_shot, s.task, s.metric, s.filter, s.version,
                   s.prompt] = s  # fmt: skip
    assert len(kept) == len(newest)
    assert set(kept) == set(newest.values())
    refused = {s.file for s in scores if s.limit is not None}
    assert {file for c in conflicts if c.kind == "limit" for file in c.files} == refused
    identities: dict[str, set[object]] = {}
    counts: dict[object, set[object]] = {}
    for s in kept:
        identities.setdefault(s.model.name, set()).add((s.model.revision, s.model.dtype))
        counts.setdefault((s.model, s.task), set()).add(s.n_shot)
    assert {c.model for c in conflicts if c.kind == "model"} == {
        name for name, found in identities.items() if len(found) > 1
    }
    assert sum(c.kind == "few-shot" for c in conflicts) == sum(
        len(found) > 1 for found in counts.values()
    )
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert merge(shuffled) == (kept, conflicts)
    assert merge(kept)[0] == kept
