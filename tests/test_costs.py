"""The cost model, against files and graphs that were made, and sums done by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from aligning_worlds import drawn, save
from torch.profiler import ProfilerActivity, profile

from prh_eval import costs
from prh_eval.aligning import Source, align_files
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.report import report
from prh_eval.costs import (
    DEVICES,
    device,
    encoding_operations,
    model_costs,
    reporting_bytes,
    reporting_seconds,
)
from prh_eval.errors import PrhEvalError
from prh_eval.store import GraphArtifact, write_artifact

H200 = DEVICES["h200"]


@pytest.mark.parametrize("n", [50, 70_000])
def test_bytes_are_those_of_files_and_graphs(n: int, tmp_path: Path) -> None:
    k, layers, dim = 4, 2, 3
    expected = model_costs(n, layers, dim, k, H200, stored="float32")
    if n < 1000:
        path = save(drawn(layers, n, dim, 1), tmp_path / "x.safetensors")
        result = align_files(Source(str(path)), Source(str(path)), k=k, folder=tmp_path / "work")
        assert result is not None
        graph = result[1].artifact.graph
        (kept,) = (tmp_path / "work").glob("*.safetensors")
        size, on_disk = path.stat().st_size, kept.stat().st_size
    else:  # the sizes of what would be written, without the search
        indices = torch.arange(n).remainder(n)[None, :, None].expand(layers, n, k).int()
        graph = NeighborGraph(indices, torch.zeros(layers, n, k, dtype=torch.bool), k)
        write_artifact(tmp_path / "graph.safetensors", GraphArtifact(graph, {}))
        on_disk = (tmp_path / "graph.safetensors").stat().st_size
        size = layers * n * dim * 4
    header = 2000
    assert expected.feature_bytes <= size <= expected.feature_bytes + header
    assert expected.kept_bytes <= on_disk <= expected.kept_bytes + header
    held = sum(x.numel() * x.element_size() for x in (graph.indices, graph.tied))
    assert expected.graph_bytes == held


@pytest.mark.parametrize("n", [60_000, 70_000])
def test_the_memory_that_writing_takes(n: int, tmp_path: Path) -> None:
    layers, k = 4, 10
    expected = model_costs(n, layers, 3, k, H200)
    indices = torch.arange(n, dtype=torch.int32)[None, :, None].repeat(layers, 1, k)
    graph = NeighborGraph(indices, torch.zeros(layers, n, k, dtype=torch.bool), k)
    tracemalloc.start()
    try:
        write_artifact(tmp_path / "graph.safetensors", GraphArtifact(graph, {}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What torch takes itself, the graph, is not traced.
    assert peak == pytest.approx(expected.writing_bytes - expected.graph_bytes, rel=0.02)


def test_operations_and_seconds_of_a_million_items() -> None:
    n, dim = 1_000_000, 1024
    one = model_costs(n, 25, dim, 10, H200)
    # Every pair of items once, two operations a dimension: half of n^2, twice.
    assert one.search.operations == pytest.approx(n * n * dim, rel=0.06)
    assert one.operations == 25 * one.search.operations
    assert one.search_seconds == pytest.approx(one.search.operations / (0.5 * 989e12))
    assert one.received_bytes == 0
    eight = model_costs(n, 25, dim, 10, H200, processes=8)
    # Among processes every pair twice; each receives what the seven others have, in float16.
    assert eight.search.operations == pytest.approx(2 * n * n * dim, rel=0.05)
    assert eight.search_seconds == pytest.approx(eight.search.operations / (8 * 0.5 * 989e12))
    assert eight.received_bytes == 875_000 * dim * 2
    assert eight.search.peak_bytes < one.search.peak_bytes < 0.5 * 141e9
    faster = model_costs(n, 25, dim, 10, H200, efficiency=1.0)
    assert faster.search_seconds == pytest.approx(one.search_seconds / 2)
    assert (
        faster.reading_seconds
        == one.reading_seconds
        == pytest.approx(25 * n * dim * 2 * costs.READING_NANOSECONDS * 1e-9)
    )
    wider = model_costs(n, 25, dim, 10, H200, stored="float32")
    assert wider.reading_seconds == pytest.approx(2 * one.reading_seconds)
    assert one.seconds == one.reading_seconds + 25 * one.search_seconds


def test_a_slow_link_is_what_takes_the_time() -> None:
    slow = costs.Device("slow", "a slow link", "cuda", 989e12, 10**11, 1e6)
    made = model_costs(100_000, 1, 64, 10, slow, processes=2)
    assert made.search_seconds == pytest.approx(made.received_bytes / 0.5e6)


def test_memory_is_bounded_by_what_is_allowed() -> None:
    peak = model_costs(1_000_000, 1, 1024, 10, H200).search.peak_bytes
    bounded = model_costs(1_000_000, 1, 1024, 10, H200, memory_bytes=peak - 1)
    assert bounded.search.peak_bytes < peak
    with pytest.raises(PrhEvalError, match=r"take at least .* of memory, where 1,000"):
        model_costs(1_000_000, 1, 1024, 10, H200, memory_bytes=10**9)


def test_scores_and_features() -> None:
    per_neighbor = 7 * costs.REPORTING_NANOSECONDS + costs.CHOSEN_NANOSECONDS
    assert reporting_seconds(1000, 3, 4, 10) == pytest.approx(10_000 * per_neighbor * 1e-9)
    # 7 billion parameters, 2 million items of 30 tokens.
    assert encoding_operations(7e9, 2_000_000, 30) == 8.4e17


@pytest.mark.parametrize(("layers", "other"), [(1, 1), (3, 12)])
def test_the_memory_that_a_report_takes(layers: int, other: int) -> None:
    """What torch holds at once for it, beside the graphs, by torch's own account."""
    n, k = 40_000, 20
    generator = torch.Generator().manual_seed(0)
    x, y = (
        NeighborGraph(
            # Strides of a random length: no neighbour twice in a row.
            (
                torch.arange(n)[:, None]
                + torch.randint(1, n // k, (count, n, 1), generator=generator)
                * torch.arange(1, k + 1)
            )
            .remainder(n)
            .int(),
            torch.zeros(count, n, k, dtype=torch.bool),
            k,
        )
        for count in (layers, other)
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        report(x, y, k, draws=0)
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert reporting_bytes(n, k) == pytest.approx(peak, rel=0.25)


def test_devices() -> None:
    for name, found in DEVICES.items():
        assert device(name) is found
        assert found.kind == "cuda"
    with pytest.raises(
        PrhEvalError, match=r"no device 'h20' .*did you mean 'h200'\? \(valid: a100"
    ):
        device("h20")


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of 100 million operations in 10 ms each would be 20 GFLOP/s."""
    clock = iter([0.0, 0.1, 0.2, 0.21, 0.4, 0.5, 0.53, 2.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    here = device("cpu")
    assert here.flops == pytest.approx(2 * 2048**3 / 0.01)
    assert here.kind == "cpu"
    assert here.label.startswith("this machine's CPU, ")
    assert next(clock, None) is None
