"""From result files to a board: what counts, what is left out and why, and under which name."""

from __future__ import annotations

import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import simple_parse_args_string
from made_results import alignment, alignment_record, model_result, result, write
from scipy import stats

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.assemble import assemble, default_config
from prh_eval.leaderboard.board import Board
from prh_eval.leaderboard.config import BoardConfig, TaskColumn
from prh_eval.leaderboard.results import Results, read_results
from prh_eval.leaderboard.tiers import tiers

FAMILIES = {"org/a": "A", "org/b": "B", "org/c": "C", "org/d": "D", "org/e": "E", "org/f": "F"}
MNN = {"org/a": 0.16, "org/b": 0.11, "org/c": 0.12, "org/d": 0.14, "org/e": 0.13, "org/f": 0.10}

OTHER_BUILD = {
    "reference": "dinov2_giant",
    "made_from": {"kind": "vision", "graph_version": 2},
    "pairs": {"name": "minhuh/prh"},
}


def config(**changes: Any) -> BoardConfig:
    about: dict[str, Any] = {
        "references": [{"task": "prh_align"}],
        "tasks": [
            {"task": "hellaswag", "metric": "acc_norm", "chance": 0.25},
            {"task": "gsm8k", "metric": "exact_match,strict-match", "also": ["acc"]},
        ],
        "primary": {"reference": "prh_align", "task": "hellaswag"},
        "models": [{"name": name, "family": family} for name, family in FAMILIES.items()],
    }
    return BoardConfig.model_validate(about | changes)


def board(folder: Path, settings: BoardConfig | None = None) -> Board:
    return assemble(read_results(folder, progress=False), settings or config())


def reasons(made: Board) -> str:
    return "\n".join(left.reason for left in made.left_out)


def cells(made: Board, key: str) -> dict[str, float]:
    return {row.name: row.cells[key].value for row in made.rows if key in row.cells}


@pytest.fixture
def six(tmp_path: Path) -> Path:
    for number, (name, mnn) in enumerate(MNN.items()):
        gsm8k = 0.1 * number if number else None
        write(tmp_path, model_result(name, mnn, 0.3 + number / 20, gsm8k, parameters=10**number))
    return tmp_path


def test_scores_names_and_order(six: Path) -> None:
    made = board(six)
    assert [row.name for row in made.rows] == sorted(MNN, key=lambda name: -MNN[name])
    assert cells(made, "prh_align") == MNN
    hellaswag = {name: round(0.3 + i / 20, 6) for i, name in enumerate(MNN)}
    assert cells(made, "hellaswag") == hellaswag
    assert set(cells(made, "gsm8k")) == set(MNN) - {"org/a"}
    cell = made.rows[0].cells["prh_align"]
    assert (cell.stderr, cell.layer, cell.reference_layer) == (0.005, 1, 1)
    assert cell.profile == pytest.approx((0.08, 0.16, 0.08))
    assert (cell.last_layer, cell.date) == (0.08, "2026-01-02T03:04:05.678901")
    assert cell.file == "org__a/results_2026-01-02T03-04-05.678901.json"
    row = made.rows[0]
    assert (row.model, row.dtype, row.parameters, row.family) == ("org/a", "bfloat16", 1, "A")
    column = made.column("prh_align")
    assert column.alignment is not None
    assert column.alignment.reference == column.label == "dinov2_giant"
    assert [(trend.of, trend.models) for trend in made.trends] == [
        ("parameters", 6),
        ("release date", 0),
    ]
    sizes = [10**number for number in range(6)]
    rho = stats.spearmanr(sizes, list(MNN.values())).statistic
    assert made.trends[0].spearman.value == pytest.approx(rho, abs=1e-6)
    assert (column.alignment.n, column.alignment.k, column.models) == (1024, 10, 6)
    assert column.alignment.chance == pytest.approx(10 / 1023, abs=1e-6)
    assert [(c.key, c.n_shot, c.version, c.models) for c in made.columns[1:]] == [
        ("hellaswag", 10, "1", 6),
        ("gsm8k", 5, "1", 5),
    ]
    assert (made.left_out, made.remarks, made.files, made.config) == ((), (), 6, True)


def test_tiers_are_those_of_the_scores(six: Path) -> None:
    made = board(six)
    for column in made.columns:
        of_it = [row.cells[column.key] for row in made.rows if column.key in row.cells]
        wanted = tiers([c.value for c in of_it], [c.stderr for c in of_it])
        assert [cell.tier for cell in of_it] == wanted


def test_statistics_of_the_primary_association(six: Path) -> None:
    made = board(six)
    first, second = made.associations
    assert (first.x, first.y, first.primary, second.y) == ("prh_align", "hellaswag", True, "gsm8k")
    assert not second.primary
    x = list(MNN.values())
    y = [0.3 + i / 20 for i in range(6)]
    assert first.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-6)
    assert first.kendall_b.value == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-6)
    assert first.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)
    assert (first.models, first.families, second.models, second.families) == (6, 6, 5, 5)
    assert first.p is not None and first.p_exact
    assert first.p_holm == first.p  # the other one cannot be tested
    assert second.p is None and "5 of the at least 6" in str(second.p_note)
    # The number of parameters rises exactly with HellaSwag.
    assert first.given_parameters.note == "the covariates determine the ranks of one side"
    assert first.base_only.n == 0


def test_the_declared_primary_hypothesis_comes_first(six: Path) -> None:
    made = board(six, config(primary={"reference": "prh_align", "task": "gsm8k"}))
    assert [(a.y, a.primary) for a in made.associations] == [("gsm8k", True), ("hellaswag", False)]


def test_missing_tasks_are_shown_as_such(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.1))
    made = board(tmp_path)
    assert set(made.rows[0].cells) == {"prh_align"}
    assert "No model has a score of hellaswag." in made.remarks


def test_files_of_one_model_are_joined(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.1))
    later = model_result("org/a", 0.2, 0.5)
    del later["results"]["prh_align"]
    write(tmp_path, later, stamp="2026-02-02T03-04-05.678901")
    (row,) = board(tmp_path).rows
    assert {key: cell.value for key, cell in row.cells.items()} == {
        "prh_align": 0.1,
        "hellaswag": 0.5,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limit": 10}, "with limit 10"),
        ({"shots": {"hellaswag": 0}}, "its few-shot count is 0, where that of most is 10"),
        ({"versions": {"hellaswag": 2}}, "its task version is 2, where that of most is 1"),
        ({"chat_template_sha": "ab"}, "with a chat template or system instruction"),
    ],
)
def test_a_run_that_cannot_be_compared(six: Path, changes: dict[str, Any], reason: str) -> None:
    write(six, model_result("org/z", 0.15, 0.9, **changes))
    made = board(six)
    assert "org/z" not in cells(made, "hellaswag")
    assert reason in reasons(made)
    assert "org/z" in {left.what for left in made.left_out}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"k": 20}, "k"),
        ({"protocol": "paper_loose"}, "protocol"),
        ({"pooling": "last"}, "pooling"),
        ({"pairs": {"fingerprint": "b" * 64}}, "data fingerprint"),
        ({"n": 512}, "number of items"),
        ({"reference": OTHER_BUILD}, "build of the reference"),
    ],
)
def test_an_alignment_that_was_measured_otherwise(
    six: Path, changes: dict[str, Any], name: str
) -> None:
    record = alignment_record([[0.15]], **changes)
    write(six, model_result("org/z", 0.15, 0.9, records={"prh_align": record}))
    made = board(six)
    assert "org/z" not in cells(made, "prh_align")
    assert "org/z" in cells(made, "hellaswag")
    (left,) = made.left_out
    assert f"its {name}" in left.reason and "where that of most" in left.reason


def test_one_model_measured_in_two_ways_keeps_both_apart(six: Path) -> None:
    record = alignment_record([[0.19]], k=20)
    newer = model_result("org/a", 0.19, records={"prh_align": record})
    write(six, newer, stamp="2026-02-02T03-04-05.678901")
    made = board(six)
    assert cells(made, "prh_align")["org/a"] == 0.16
    assert any("with different k; the scores are kept apart" in text for text in made.remarks)


def test_an_alignment_without_its_record_is_refused(six: Path) -> None:
    write(six, model_result("org/z", 0.15, records={}))
    assert "no whole record of what the alignment was measured on" in reasons(board(six))


def test_what_the_config_states_is_what_is_taken(six: Path) -> None:
    write(six, model_result("org/z", 0.15, 0.9, versions={"hellaswag": 2}))
    tasks = [{"task": "hellaswag", "metric": "acc_norm", "version": 2.0}]
    settings = config(tasks=tasks)
    made = board(six, settings)
    assert cells(made, "hellaswag") == {"org/z": 0.9}
    assert "its task version is 1, where the board's is 2" in reasons(made)


def test_a_board_of_chat_templates_takes_only_those(six: Path) -> None:
    write(six, model_result("org/z", 0.15, 0.9, chat_template_sha="ab"))
    task = {"task": "hellaswag", "metric": "acc_norm", "chat_template": True}
    assert cells(board(six, config(tasks=[task], primary=None)), "hellaswag") == {"org/z": 0.9}


def test_other_dtypes_and_revisions_are_other_rows(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.1))
    write(
        tmp_path, model_result("org/a", 0.12, dtype="torch.float32"), stamp="2026-01-03T00-00-00.1"
    )
    write(tmp_path, model_result("org/a", 0.13, revision="step1"), stamp="2026-01-04T00-00-00.1")
    args = {"peft": "/home/ann/adapter"}
    write(tmp_path, model_result("org/a", 0.14, args=args), stamp="2026-01-05T00-00-00.1")
    made = board(tmp_path)
    assert cells(made, "prh_align") == {
        "org/a + adapter": 0.14,
        "org/a @ step1": 0.13,
        "org/a (float32)": 0.12,
        "org/a (bfloat16)": 0.1,
    }
    assert "/home" not in made.model_dump_json()


def test_a_run_of_unknown_dtype_joins_the_only_one(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.1))
    old = model_result("org/a", 0.2, 0.5, dtype=None)
    del old["results"]["prh_align"]
    write(tmp_path, old, stamp="2026-01-03T00-00-00.1")
    made = board(tmp_path)
    assert [set(row.cells) for row in made.rows] == [{"prh_align", "hellaswag"}]
    assert any("does not tell the dtype of org/a" in text for text in made.remarks)


def test_no_machine_path_is_on_the_board(tmp_path: Path) -> None:
    places = ("/home/ann/x/model", "/home/ann/y/model", r"C:\ann\z\model", "/home/ann/other/")
    for number, place in enumerate(places):
        args = {"tokenizer": "/home/ann/tokenizer"}
        made = model_result(place, 0.1 + number / 100, args=args) | {"model_name": f"m{number}"}
        write(tmp_path, made)
    made = board(tmp_path)
    assert sorted(row.name for row in made.rows) == ["other", "x/model", "y/model", "z/model"]
    assert "ann" not in made.model_dump_json()


def test_cards(six: Path) -> None:
    write(six, model_result("org/a", 0.17, revision="step1"), stamp="2026-01-04T00-00-00.1")
    cards = [
        {
            "name": "org/a",
            "title": "Model A",
            "family": "Fam",
            "parameters": "1.5B",
            "training_tokens": "300B",
            "release_date": "2024-02-03",
            "kind": "base",
            "licence": "MIT",
            "link": "https://example.org/a",
        },
        {"name": "org/a", "revision": "step1", "title": "A early", "family": "Fam"},
        {"name": "beta", "aliases": ["org/b"], "family": "B"},
        {"name": "org/c", "family": "C", "control": "untrained weights"},
        {"name": "org/gone", "family": "G"},
    ]
    made = board(six, config(models=cards))
    rows = {row.name: row for row in made.rows}
    a = rows["Model A"]
    assert (a.family, a.parameters, a.training_tokens) == ("Fam", 1.5e9, 3e11)
    assert (a.release_date, a.kind, a.licence) == ("2024-02-03", "base", "MIT")
    assert (a.link, a.model) == ("https://example.org/a", "org/a")
    assert rows["A early"].revision == "step1"
    assert rows["beta"].family == "B"
    (control,) = made.controls
    assert (control.name, control.control) == ("org/c", "untrained weights")
    assert control.cells["prh_align"].tier is None
    assert "org/c" not in rows
    assert "board.yaml has a card of org/gone, of which there is no result." in made.remarks
    primary = made.associations[0]
    assert (primary.models, primary.families) == (5, None)
    assert "org/d, org/e, org/f" in str(primary.over_families.note)
    assert primary.p is None and "is not stated" in str(primary.p_note)
    assert primary.spearman.value is not None
    assert primary.with_noise.low is not None


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"include": ["org/[ab]"]}, {"org/a", "org/b"}),
        ({"exclude": ["org/[ab]"]}, {"org/c", "org/d", "org/e", "org/f"}),
        ({"families": ["A", "C"]}, {"org/a", "org/c"}),
        ({"kind": "base"}, {"org/b"}),
        ({"least_parameters": 1000}, {"org/d", "org/e", "org/f"}),
        ({"most_parameters": "0.1K"}, {"org/a", "org/b", "org/c"}),
        ({"only_with_card": True}, {"org/a", "org/b", "org/c"}),
    ],
)
def test_filters(six: Path, filters: dict[str, Any], left: set[str]) -> None:
    models = [
        {"name": "org/a", "family": "A"},
        {"name": "org/b", "family": "B", "kind": "base"},
        {"name": "org/c", "family": "C"},
    ]
    made = board(six, config(filters=filters, models=models))
    assert {row.name for row in made.rows} == left
    assert {each.what for each in made.left_out} == set(MNN) - left


def test_cards_of_paths_are_of_the_model_that_was_given_by_them(tmp_path: Path) -> None:
    for number, place in enumerate(("/runs/large/m", "/runs/small/m", "m")):
        write(tmp_path, model_result(place, 0.1 + number / 100) | {"model_name": f"m{number}"})
    cards = [
        {"name": "/runs/small/m", "family": "S"},
        {"name": "/runs/large/m", "family": "L", "control": "untrained weights"},
    ]
    made = board(tmp_path, config(models=cards))
    assert {row.name: row.family for row in made.rows} == {"small/m": "S", "m": None}
    assert [(row.name, row.family) for row in made.controls] == [("large/m", "L")]
    alone = board(tmp_path, config(models=[{"name": "m", "family": "M"}]))
    assert {row.name: row.family for row in alone.rows} == {
        "large/m": None,
        "small/m": None,
        "m": "M",
    }


def test_a_card_under_the_name_that_a_page_shows(tmp_path: Path) -> None:
    write(tmp_path, model_result("/runs/ckpt/", 0.1) | {"model_name": "c"})
    (row,) = board(tmp_path, config(models=[{"name": "ckpt", "family": "C"}])).rows
    assert (row.name, row.family) == ("ckpt", "C")


@pytest.mark.parametrize(
    "args",
    [
        [{"peft": "/x/run1/final"}, {"peft": "/x/run2/final"}],
        [{"subfolder": "step1"}, {"subfolder": "step2"}],
        [{"gguf_file": "a.Q2"}, {"gguf_file": "a.Q8"}],
        [{"quantization": "awq"}, {"quantization": "gptq"}],
    ],
)
def test_what_makes_other_models_is_kept_apart(tmp_path: Path, args: list[dict[str, Any]]) -> None:
    for number, each in enumerate(args):
        stamp = f"2026-01-0{number + 1}T00-00-00.1"
        write(tmp_path, model_result("org/a", 0.1 + number / 100, args=each), stamp=stamp)
    made = board(tmp_path)
    assert sorted(row.cells["prh_align"].value for row in made.rows) == [0.1, 0.11]
    assert len({row.name for row in made.rows}) == 2


def test_the_newest_run_counts_whatever_it_leaves_out(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.1, 0.5))
    newer = model_result("org/a", 0.2, 0.6, dtype=None, parameters=-1, sha="")
    write(tmp_path, newer, stamp="2026-02-02T00-00-00.1")
    made = board(tmp_path)
    (row,) = made.rows
    assert (row.cells["prh_align"].value, row.cells["hellaswag"].value) == (0.2, 0.6)
    assert (row.parameters, row.dtype) == (1_000_000, "bfloat16")
    assert row.commit == "0123456789abcdef0123456789abcdef01234567"


def test_filters_decide_before_the_column_does(tmp_path: Path) -> None:
    for number in range(3):
        other = model_result(f"x/{number}", 0.1, 0.5, versions={"hellaswag": 2})
        write(tmp_path, other)
    write(tmp_path, model_result("y/0", 0.12, 0.6))
    made = board(tmp_path, config(filters={"include": ["y/*"]}))
    assert cells(made, "hellaswag") == {"y/0": 0.6}


def test_the_preferred_name_of_a_metric_counts(tmp_path: Path) -> None:
    content = model_result("org/a", 0.1, gsm8k=0.4)
    content["results"]["gsm8k"]["acc,none"] = 0.01
    write(tmp_path, content)
    assert cells(board(tmp_path), "gsm8k") == {"org/a": 0.4}


@pytest.mark.parametrize(("said", "stated"), [(False, None), (None, None), (None, False)])
def test_a_loss_is_better_where_lower(
    tmp_path: Path, said: bool | None, stated: bool | None
) -> None:
    record = {"prh_align": alignment_record([[0.1]])}
    for number in range(3):
        perplexity = {"word_perplexity,none": 10.0 + number, "word_perplexity_stderr,none": 0.1}
        content = result(
            f"org/{number}",
            {"prh_align": alignment(0.1), "wikitext": perplexity},
            records=record,
            higher_is_better={"wikitext": {} if said is None else {"word_perplexity": said}},
        )
        write(tmp_path, content)
    task = {"task": "wikitext", "metric": "word_perplexity", "higher_is_better": stated}
    made = board(tmp_path, config(tasks=[task], primary=None))
    assert not made.column("wikitext").higher_is_better
    tiers_of = {row.name: row.cells["wikitext"].tier for row in made.rows}
    assert tiers_of == {"org/0": 1, "org/1": 2, "org/2": 3}
    if said is False:
        with pytest.raises(PrhEvalError, match="say the contrary"):
            board(tmp_path, config(tasks=[{**task, "higher_is_better": True}], primary=None))


def test_a_metric_that_no_result_has(six: Path) -> None:
    tasks = [{"task": "hellaswag", "metric": "acc_nrm"}]
    with pytest.raises(PrhEvalError, match=r"acc_nrm.*did you mean 'acc_norm'"):
        board(six, config(tasks=tasks))


def test_a_metric_of_an_alignment_task_as_a_task(six: Path) -> None:
    tasks = [{"task": "prh_align", "name": "last", "metric": "mnn_last_layer"}]
    made = board(six, config(tasks=tasks, primary=None))
    assert cells(made, "last") == {name: round(value / 2, 6) for name, value in MNN.items()}


def test_groups_have_the_versions_of_their_tasks_and_no_samples_left_out(tmp_path: Path) -> None:
    def group(name: str, version: int, effective: int) -> None:
        content = result(
            name,
            {"prh_align": alignment(0.1), "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.01}},
            records={"prh_align": alignment_record([[0.1]])},
            versions={"mmlu": "N/A", "mmlu_x": version},
            group_subtasks={"mmlu": ["mmlu_x"]},
        )
        content["n-samples"] = {"mmlu_x": {"original": 100, "effective": effective}}
        write(tmp_path, content)

    group("org/a", 1, 100)
    group("org/b", 1, 100)
    group("org/c", 2, 100)
    group("org/d", 1, 3)
    made = board(tmp_path, config(tasks=[{"task": "mmlu", "metric": "acc"}], primary=None))
    assert set(cells(made, "mmlu")) == {"org/a", "org/b"}
    assert "its task version is 2" in reasons(made) and "with limit 3" in reasons(made)


def test_sampled_answers_are_no_greedy_ones(six: Path) -> None:
    hot = model_result("org/a", 0.1, gsm8k=0.9)
    hot["configs"]["gsm8k"]["output_type"] = "generate_until"
    hot["config"]["gen_kwargs"] = {"temperature": 1.0}
    write(six, hot, stamp="2026-05-05T00-00-00.1")
    made = board(six)
    assert "org/a" not in cells(made, "gsm8k")
    assert "with arguments of generation" in reasons(made)


def test_captions_have_no_prompt_whatever_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.1))
    templated = model_result("org/a", 0.2, chat_template_sha="ab")
    write(tmp_path, templated, stamp="2026-02-02T00-00-00.1")
    made = board(tmp_path)
    assert cells(made, "prh_align") == {"org/a": 0.2}
    assert not any("template" in text for text in made.remarks)
    assert "--apply_chat_template" not in made.rows[0].reproduce[0]


def test_scores_of_no_known_error_have_no_tiers(tmp_path: Path) -> None:
    for number in range(3):
        content = model_result(f"org/{number}", 0.1, 0.5 + number / 1e4)
        del content["results"]["hellaswag"]["acc_norm_stderr,none"]
        write(tmp_path, content)
    made = board(tmp_path)
    assert [row.cells["hellaswag"].tier for row in made.rows] == [None] * 3
    assert "3 of 6 scores have no known error" in str(made.associations[0].with_noise.note)


def test_bits_per_byte_is_a_third_axis(six: Path) -> None:
    for number, name in enumerate(MNN):
        record = {"prh_align": alignment_record([[MNN[name]]])}
        scores = {"prh_align": alignment(MNN[name], bits_per_byte=2 - number / 10)}
        write(six, result(name, scores, records=record), stamp="2026-02-02T00-00-00.1")
    made = board(six)
    column = made.column("prh_align:bits_per_byte")
    assert (column.kind, column.higher_is_better, column.models) == ("bits per byte", False, 6)
    pairs = [(a.x, a.y) for a in made.associations]
    assert pairs == [
        ("prh_align", "hellaswag"),
        ("prh_align", "gsm8k"),
        ("prh_align", column.key),
        (column.key, "hellaswag"),
        (column.key, "gsm8k"),
    ]
    best = next(row for row in made.rows if row.name == "org/f").cells[column.key]
    assert (best.value, best.tier) == (1.5, None)  # of no known error, so that none is told apart
    down = made.associations[3].spearman.value
    assert down == pytest.approx(-1)


def test_other_values_of_an_alignment_task(tmp_path: Path) -> None:
    scores = alignment(0.15, mnn_shared_words=0.06, mnn_calibrated=0.12)
    record = {"prh_align": alignment_record([[0.15]])}
    write(tmp_path, result("org/a", {"prh_align": scores}, records=record))
    made = board(tmp_path)
    facts = made.columns[0].alignment
    assert facts is not None and facts.shared_words == 0.06
    assert made.rows[0].cells["prh_align"].calibrated == 0.12


def test_commands_that_make_a_row(tmp_path: Path) -> None:
    record = alignment_record([[0.15]], k=20)
    scores = model_result(
        "org/a, b", 0.15, 0.5, 0.2, records={"prh_align": record}, args={"trust_remote_code": True}
    )
    write(tmp_path, scores)
    write(tmp_path, model_result("org/b", 0.15, 0.5, records={"prh_align": record}))
    found = {
        row.name: [shlex.split(line) for line in row.reproduce] for row in board(tmp_path).rows
    }
    odd = found["org/a, b"]
    assert [line[line.index("--tasks") + 1] for line in odd] == ["prh_align", "hellaswag", "gsm8k"]
    assert odd[0][-2:] == ["--metadata", '{"prh_k": 20}']
    assert [line[-2:] for line in odd[1:]] == [["--num_fewshot", "10"], ["--num_fewshot", "5"]]
    assert '"pretrained": "org/a, b"' in odd[0][4]
    given = simple_parse_args_string(found["org/b"][0][4])
    assert given == {"pretrained": "org/b", "revision": scores["config"]["model_sha"]}


def test_usual_alignment_and_a_task_are_one_command(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/a", 0.15, 0.5))
    (line,) = board(tmp_path).rows[0].reproduce
    assert line.endswith("--tasks hellaswag,prh_align --num_fewshot 10")


def test_without_a_config(six: Path) -> None:
    record = alignment_record([[0.1]])
    extra = result(
        "org/a",
        {"prh_align_clip": alignment(0.1), "arc_easy": {"acc,none": 0.6, "acc_stderr,none": 0.01}},
        records={"prh_align_clip": record},
    )
    write(six, extra, stamp="2026-02-02T00-00-00.1")
    results = read_results(six, progress=False)
    made = assemble(results)
    keys = [column.key for column in made.columns]
    assert keys == ["prh_align", "prh_align_clip", "hellaswag", "gsm8k"]
    # One reference has two tasks here, so that its name tells them not apart.
    assert [column.label for column in made.columns[:2]] == keys[:2]
    assert not made.config and not any(each.primary for each in made.associations)
    arc = TaskColumn(task="arc_easy", metric="acc")
    made = assemble(results, tasks=[arc])
    assert [column.key for column in made.columns] == ["prh_align", "prh_align_clip", "arc_easy"]
    assert cells(made, "arc_easy") == {"org/a": 0.6}


def test_captions_of_other_names_are_columns_of_their_own(tmp_path: Path) -> None:
    record = {"prh_align": alignment_record([[0.1]])}
    scores = {"prh_align": alignment(0.1) | alignment(0.2, filter_="mean_over_captions")}
    write(tmp_path, result("org/a", scores, records=record))
    found = default_config(read_results(tmp_path, progress=False))
    assert [column.key for column in found.references] == [
        "prh_align:mean_over_captions",
        "prh_align",
    ]


def test_nothing_to_show(tmp_path: Path) -> None:
    content = model_result("org/a", 0.1, 0.5)
    del content["results"]["prh_align"]
    write(tmp_path, content)
    results = read_results(tmp_path, progress=False)
    with pytest.raises(PrhEvalError, match="none of the 1 result files has an alignment score"):
        assemble(results)
    with pytest.raises(PrhEvalError, match="has a score that the board takes"):
        assemble(results, config(tasks=[], primary=None))


def other_metric(metric: str, chance: float | None, *, task: str = "prh_align") -> dict[str, Any]:
    """A run of an alignment task by another metric than mNN, as the task reports it."""
    record = alignment_record([[0.4, 0.6]], metric=metric, chance=chance)
    scores = {f"{metric},none": 0.6, f"{metric}_last_layer,none": 0.5, f"{metric}_layer,none": 0.0}
    return result("org/a", {task: scores}, records={task: record})


@pytest.mark.parametrize(
    ("metric", "chance"), [("cka", None), ("rsa", 0.0), ("debiased_cka", 0.0), ("triplets", 0.5)]
)
def test_chance_is_that_of_the_metric(tmp_path: Path, metric: str, chance: float | None) -> None:
    write(tmp_path, other_metric(metric, chance))
    references = [{"task": "prh_align", "metric": metric}]
    (column, *_) = board(tmp_path, config(references=references, primary=None)).columns
    assert column.alignment is not None
    assert (column.metric, column.chance, column.alignment.chance) == (metric, chance, chance)


def test_chance_is_not_that_of_what_is_derived_from_the_score(tmp_path: Path) -> None:
    record = {"prh_align": alignment_record([[0.15]])}
    write(tmp_path, result("org/a", {"prh_align": alignment(0.15, mnn_z=4.0)}, records=record))
    references = [
        {"task": "prh_align", "metric": metric, "name": metric}
        for metric in ("mnn", "mnn_last_layer", "mnn_z")
    ]
    columns = board(tmp_path, config(references=references, primary=None)).columns
    level = pytest.approx(10 / 1023, abs=1e-6)
    assert [column.chance for column in columns[:3]] == [level, level, None]


@pytest.mark.parametrize("found", [{}, {"chance": "high"}, {"chance": float("nan")}])
def test_a_record_without_a_chance_has_none(tmp_path: Path, found: dict[str, Any]) -> None:
    record = alignment_record([[0.15]])
    del record["chance"]
    write(tmp_path, model_result("org/a", 0.15, records={"prh_align": record | found}))
    assert board(tmp_path).columns[0].chance is None


def test_alignment_by_other_metrics_is_named_where_no_config_asks_for_it(six: Path) -> None:
    write(six, other_metric("cka", None, task="prh_align_cka"), stamp="2026-02-02T00-00-00.1")
    write(six, other_metric("rsa", 0.0, task="prh_align_rsa"), stamp="2026-02-03T00-00-00.1")
    results = read_results(six, progress=False)
    made = assemble(results)
    assert [column.key for column in made.columns] == ["prh_align", "hellaswag", "gsm8k"]
    (said,) = [remark for remark in made.remarks if "board.yaml" in remark]
    assert "prh_align_cka (cka), prh_align_rsa (rsa)" in said
    assert "metric: cka or metric: rsa" in said
    settings = config(references=[{"task": "prh_align"}])
    assert not any("board.yaml" in remark for remark in assemble(results, settings).remarks)


def test_only_alignment_by_another_metric(tmp_path: Path) -> None:
    write(tmp_path, other_metric("cka", None))
    results = read_results(tmp_path, progress=False)
    with pytest.raises(PrhEvalError, match=r"has an mNN score.*prh_align \(cka\).*metric: cka"):
        assemble(results)


@given(order=st.randoms(use_true_random=False))
def test_the_order_of_files_changes_nothing(order: random.Random) -> None:
    scores = list(EVERYTHING.scores)
    order.shuffle(scores)
    assert assemble(Results(tuple(scores), (), 6), SETTINGS) == EXPECTED


def _everything() -> Results:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for number, (name, mnn) in enumerate(MNN.items()):
            write(Path(folder), model_result(name, mnn, 0.3 + number / 20, 0.1 * number))
        write(
            Path(folder),
            model_result("org/a", 0.17, 0.4, dtype="torch.float32"),
            stamp="2026-03-03T00-00-00.1",
        )
        write(Path(folder), model_result("org/z", 0.17, 0.4, versions={"hellaswag": 3}))
        write(Path(folder), model_result("/home/x/z", 0.18) | {"model_name": "z"})
        write(Path(folder), model_result("/home/y/z", 0.19) | {"model_name": "zz"})
        return read_results(Path(folder), progress=False)


EVERYTHING = _everything()
SETTINGS = config()
EXPECTED = assemble(Results(EVERYTHING.scores, (), 6), SETTINGS)
