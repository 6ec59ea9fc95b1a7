"""Benchmarks run, write what their README says, and their plain ways are right; no speed is judged.

After new results, ``python -m benchmarks tables`` writes the README's tables anew.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import __main__, features, neighbours, permutations, report, scoring
from benchmarks.common import measure, synthetic_features
from benchmarks.timing import added_memory, by_turns, in_fresh_process

CPU = torch.device("cpu")
PRODUCT = "product and topk"
NAMES = ("startup", "scoring", "neighbours", "permutations", "features", "trust")


def brute_neighbours(x: Tensor, k: int) -> list[set[int]]:
    rows = x.numpy().astype(np.float64)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return [set(row) for row in np.argsort(-similarity, axis=1)[:, :k].tolist()]


def sets(found: Tensor) -> list[set[int]]:
    return [set(row) for row in found.tolist()]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every benchmark's JSON of a tiny run."""
    threads = torch.get_num_threads()
    output = tmp_path_factory.mktemp("results")
    try:
        return {
            name: json.loads(
                measure(
                    name,
                    importlib.import_module(f"benchmarks.{name}").run,
                    "cpu",
                    output,
                    tiny=True,
                    threads=1,
                ).read_text()
            )
            for name in NAMES
        }
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_json_has_one_form(name: str, results: dict[str, dict[str, Any]]) -> None:
    result = results[name]
    assert result["benchmark"] == name
    assert result["tiny"] and result["kind"] == "cpu" and result["threads"] == 1
    assert {"cpu", "cores", "memory_gib", "load_average"} <= result["machine"].keys()
    assert result["device"].startswith(result["machine"]["cpu"])
    assert result["versions"]["torch"] == torch.__version__
    assert result["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(result["peak"]) == {"float32", "bfloat16", "float16", "copy_bytes"}
    assert min(result["peak"].values()) > 0
    assert result["figures"]
    for figure in result["figures"]:
        assert math.isfinite(figure["value"])
        assert all(took > 0 for took in figure["seconds"].values())
        assert all(share > 0 for share in figure["of_peak"].values())
        assert figure["unit"] in {"x", "%", "s", "MiB", "arrays", "libraries"}
        assert figure["runs"].keys() == figure["seconds"].keys()
        assert all(count >= 1 for count in figure["runs"].values())


def test_a_ratio_is_of_the_times_beside_it(results: dict[str, dict[str, Any]]) -> None:
    faiss = "faiss" if importlib.util.find_spec("faiss") else PRODUCT
    for name, plain in {"scoring": "textbook", "neighbours": faiss, "features": "padded"}.items():
        ratios = [figure for figure in results[name]["figures"] if figure["unit"] == "x"]
        assert ratios
        for figure in ratios:
            ours = "ours, read twice" if "read twice" in figure["name"] else "ours"
            expected = figure["seconds"][plain] / figure["seconds"][ours]
            assert figure["value"] == pytest.approx(expected, rel=2e-3)


def test_what_was_timed_gave_the_same(results: dict[str, dict[str, Any]]) -> None:
    for figure in results["scoring"]["figures"]:
        if figure["unit"] == "x":
            assert figure["details"]["largest_difference_of_scores"] < 1e-12
    for figure in results["permutations"]["figures"]:
        assert figure["details"]["largest_difference_of_maxima"] < 1e-12
    for figure in results["neighbours"]["figures"][:2]:
        assert figure["details"]["rows_checked_in_float64"] == 400
        assert figure["details"]["rows_unlike_float64"] == 0
        assert figure["details"][f"rows_unlike_{PRODUCT}"]["beyond_near_ties"] == 0
    (trust,) = results["trust"]["figures"]
    assert trust["details"]["difference_of_scores"] == 0
    assert trust["details"]["draws"] == 1000
    for figure in results["features"]["figures"]:
        assert figure["details"].get("largest_difference", 0.0) < 1e-6


def test_a_share_is_of_the_times_beside_it(results: dict[str, dict[str, Any]]) -> None:
    (figure,) = results["trust"]["figures"]
    took = figure["seconds"]
    run = took["features"] + took["graphs"] + took["align"]
    added = max(took["report"] - took["align"], 0)
    assert figure["value"] == pytest.approx(100 * added / run, rel=3e-3)


def test_goals_name_figures_that_exist(results: dict[str, dict[str, Any]]) -> None:
    def shape(name: str) -> str:
        return re.sub(r"\d+", "#", name)

    written = {shape(figure["name"]) for result in results.values() for figure in result["figures"]}
    wanted = {shape(name) for goal in report.GOALS for name in goal.figures.values()}
    assert wanted <= written


def test_readme_has_the_committed_results() -> None:
    text = report.README.read_text(encoding="utf-8")
    assert report.with_tables(text, report.load()) == text, "run python -m benchmarks tables"


def made_up(device: str, kind: str, **figure: Any) -> dict[str, Any]:
    usual = {"what": "it", "seconds": {"ours": 0.5}, "of_peak": {"float16": 0.654}, "details": {}}
    return {
        "device": device,
        "kind": kind,
        "date": "2000-01-01",
        "tiny": False,
        "figures": [{**usual, **figure}],
    }


def rows(table: str) -> dict[str, str]:
    """The goals' first column to the third."""
    cells = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    return {row[1].strip(): row[3].strip() for row in cells if len(row) == 5}


def test_tables_put_figures_beside_goals() -> None:
    chip, other = "Some Chip, 2 cores", "Other Chip"
    results = [
        made_up(chip, "cpu", name="scoring 13 x 12", value=61.234, unit="x"),
        made_up(chip, "cpu", name="scoring 33 x 40", value=1234.5, unit="x"),
        made_up(other, "cuda", name="scoring 33 x 40", value=70.0, unit="x"),
        made_up(other, "cuda", name="neighbours n = 1000000 clustered", value=4.567, unit="s"),
    ]
    found = rows(report.tables(results))
    small, large, *rest, million, gpu, trust = (found[goal.what] for goal in report.GOALS)
    assert small == "61.2x (Some Chip, 2 cores)"
    assert large == "1,234x (Some Chip, 2 cores)" or large == "1,235x (Some Chip, 2 cores)"
    assert million == "4.57 s clustered, 65 % of peak (Other Chip)"
    assert gpu == "70x (Other Chip)"
    assert {*rest, trust} == {"not measured yet"}


def test_a_tiny_result_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "chip").mkdir()
    result = made_up("chip", "cpu", name="scoring 13 x 12", value=1.0, unit="x") | {"tiny": True}
    (tmp_path / "chip" / "scoring.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"scoring\.json is of a tiny run"):
        report.load(tmp_path)


def test_one_command_runs_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "ALL", {"cpu": ("permutations", "no_such_benchmark")})
    assert __main__.measure("cpu", tmp_path, tiny=True) == 1
    (path,) = tmp_path.glob("*/*.json")
    assert path.stem == "permutations"
    printed = capfd.readouterr()
    assert "failed: no_such_benchmark" in printed.err
    assert re.search(r"^permutations: \d+ s$", printed.out, re.MULTILINE)


def test_all_names_every_benchmark() -> None:
    assert set(__main__.ALL["cpu"]) == set(NAMES)


class Ticks:
    """A clock that shows the times it is given."""

    device = CPU

    def __init__(self, *times: float) -> None:
        self.times = iter(times)

    def now(self) -> float:
        return next(self.times)


def test_by_turns_keeps_the_shortest_of_each() -> None:
    order: list[str] = []
    ways: dict[str, Callable[[], Any]] = {
        "a": lambda: order.append("a") or len(order),
        "b": lambda: order.append("b") or len(order),
    }
    clock: Any = Ticks(0, 3, 10, 15, 20, 24, 30, 32)  # a: 3 and 4; b: 5 and 2
    timed = by_turns(ways, clock, turns=2, seconds=8)
    assert timed.seconds == {"a": 3, "b": 2}
    assert timed.runs == {"a": 2, "b": 2}
    assert order == ["a", "b", "a", "b"]
    assert timed.results == {"a": 3, "b": 4}


def test_a_slow_way_is_left_out_of_further_turns() -> None:
    clock: Any = Ticks(0, 9, 10, 11, 20, 22)  # a: 9; b: 1 and 2
    timed = by_turns({"a": lambda: None, "b": lambda: None}, clock, turns=2, seconds=8)
    assert timed.seconds == {"a": 9, "b": 1}
    assert timed.runs == {"a": 1, "b": 2}


def test_added_memory_is_what_was_allocated() -> None:
    size = 1 << 28
    added = added_memory(lambda: np.ones(size, dtype=np.uint8).sum(), CPU)
    assert added == pytest.approx(size, rel=0.05)
    assert added_memory(lambda: None, CPU) < 0.05 * size


def test_a_fresh_process_has_another_id() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()


@pytest.mark.parametrize("kind", ["isotropic", "clustered"])
def test_synthetic_features(kind: str) -> None:
    first, second = synthetic_features(900, 64, kind, seed=3, device=CPU, layers=2)
    again, _ = synthetic_features(900, 64, kind, seed=3, device=CPU, layers=2)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.shape == (900, 64) and first.dtype == torch.float32
    torch.testing.assert_close(first.norm(dim=1), torch.ones(900))
    mean_cosine = float((first @ first.T).mean())
    assert abs(mean_cosine) < 0.02 if kind == "isotropic" else 0.7 < mean_cosine < 0.98


def test_textbook_score() -> None:
    x, y = (torch.randn(30, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    x, y = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, y))
    pairs = zip(brute_neighbours(x, 4), brute_neighbours(y, 4), strict=True)
    expected = np.mean([len(a & b) / 4 for a, b in pairs])
    assert scoring.textbook(x, y, 4) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("way", ["ours", "product_and_topk", "flat_index", "exact"])
def test_neighbours(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        neighbours.PLAIN_BYTES, "cpu", 1 << 16
    )  # several blocks of the plain product
    (x,) = synthetic_features(300, 16, "clustered", seed=5, device=CPU)
    if way == "flat_index":
        found = neighbours.flat_index(pytest.importorskip("faiss"), x, 7)
    elif way == "exact":
        found = neighbours.exact(x, torch.arange(300), 7)
    else:
        found = getattr(neighbours, way)(x, 7)
    assert sets(found) == brute_neighbours(x, 7)


def test_flat_index_of_duplicates() -> None:
    faiss = pytest.importorskip("faiss")
    found = neighbours.flat_index(faiss, torch.ones(40, 4) / 2, 3)
    assert found.shape == (40, 3)
    assert all(item not in row and len(row) == 3 for item, row in enumerate(sets(found)))


def test_disagreement() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    mine = torch.tensor([[1, 2], [0, 2], [1, 0], [2, 4], [3, 2]])
    same = mine.flip(1)
    assert neighbours.disagreement(x, mine, same) == {
        "rows": 0,
        "beyond_near_ties": 0,
        "largest_gap": 0.0,
    }
    theirs = mine.clone()
    theirs[0] = torch.tensor([1, 3])
    found = neighbours.disagreement(x, mine, theirs)
    assert found["rows"] == found["beyond_near_ties"] == 1
    assert found["largest_gap"] == pytest.approx(math.cos(0.3) - math.cos(0.6), abs=1e-12)


def test_plain_null() -> None:
    generator = torch.Generator().manual_seed(1)
    n, k = 12, 3
    x, y = (
        torch.stack([torch.rand(n, n, generator=generator).topk(k).indices for _ in range(layers)])
        for layers in (2, 3)
    )
    orders = torch.Generator().manual_seed(9)
    expected = []
    for _ in range(4):
        p = torch.randperm(n, generator=orders).tolist()
        scores = [
            sum(len({p[j] for j in a[i].tolist()} & set(b[p[i]].tolist())) for i in range(n))
            for a in x
            for b in y
        ]
        expected.append(max(scores) / (n * k))
    assert permutations.plain_null(x, y, 4, 9).tolist() == pytest.approx(expected, abs=1e-12)


def test_captions_are_as_long_as_said() -> None:
    lengths = [len(caption.split()) for caption in features.made_captions(1024, 50_257)]
    assert max(lengths) == 60 and min(lengths) >= 1
    assert sum(lengths) / 1024 == pytest.approx(20, abs=1)


@pytest.mark.parametrize("begins", [False, True])
def test_padded_features_are_those_of_each_caption_alone(begins: bool) -> None:
    model = features.made_model(32, 60, CPU)
    tokenizer = features.made_tokenizer(60, begins=begins)
    captions = features.made_captions(6, 60)
    pooled, loss = features.padded_with_head(model, tokenizer, captions, loss=True)
    for number, caption in enumerate(captions):
        ids = torch.tensor([[0] * begins + [int(word[1:]) + 1 for word in caption.split()]])
        with torch.inference_mode():
            output = model(ids, labels=ids, output_hidden_states=True)
        expected = torch.stack(output.hidden_states).mean(dim=2)[:, 0]
        torch.testing.assert_close(pooled[:, number], expected, atol=2e-6, rtol=0)
        expected_loss = float(output.loss) * (ids.shape[1] - 1)
        assert float(loss[number]) == pytest.approx(expected_loss, rel=1e-5)


def test_batches_are_recorded_without_what_came_before() -> None:
    model = features.made_model(32, 60, CPU)
    batches = [torch.ones(2, 3, dtype=torch.int64), torch.ones(1, 5, dtype=torch.int64)]

    def run() -> None:
        for ids in (torch.ones(1, 2, dtype=torch.int64), *batches):
            model.transformer(input_ids=ids, attention_mask=torch.ones_like(ids))

    calls = features.recorded_batches(model, 11, run)
    assert [call["input_ids"].shape for _, call in calls] == [(2, 3), (1, 5)]
    with pytest.raises(ValueError, match="not all captions"):
        features.recorded_batches(model, 7, run)
