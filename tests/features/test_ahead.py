"""Batches one ahead of their results: order, sizes, memory that runs out, and copies of a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prh_eval.errors import PrhEvalError
from prh_eval.features.ahead import batched, fetch, overlapped, send

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def column(batch: Sequence[int]) -> list[Tensor]:
    rows = torch.tensor(batch, dtype=torch.float32)[:, None]
    return [rows, rows.expand(-1, 2) * 2]


def options(**changes: Any) -> dict[str, Any]:
    return {"device": "cpu", "what": str, "instead": "do without", **changes}


@given(lengths=st.lists(st.integers(1, 30), max_size=6), batch_size=st.integers(1, 40))
def test_batches_stay_within_pieces_and_in_order(lengths: list[int], batch_size: int) -> None:
    ran: list[list[int]] = []

    def run(batch: list[int]) -> list[Tensor]:
        ran.append(batch)
        return column(batch)

    made = list(batched(run, iter(range(sum(lengths))), lengths, batch_size, **options()))
    assert [layers[0].flatten().tolist() for layers in made] == ran
    assert [number for batch in ran for number in batch] == list(range(sum(lengths)))
    wanted = []
    for length in lengths:
        full, rest = divmod(length, batch_size)
        wanted += [batch_size] * full + [rest] * (rest > 0)
    assert list(map(len, ran)) == wanted


def test_a_batch_is_launched_before_the_results_of_the_last_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    def fetched(layers: list[Tensor]) -> object:
        first = int(layers[0][0])

        def wait() -> list[Tensor]:
            events.append(f"wait {first}")
            return layers

        return wait

    def run(batch: list[int]) -> list[Tensor]:
        events.append(f"run {batch[0]}")
        return column(batch)

    monkeypatch.setattr("prh_eval.features.ahead.fetch", fetched)
    for layers in batched(run, iter(range(7)), [4, 3], 2, **options()):
        events.append(f"got {int(layers[0][0])}")
    assert events == [
        "run 0", "run 2", "wait 0", "got 0", "run 4", "wait 2", "got 2", "run 6", "wait 4",
        "got 4", "wait 6", "got 6",
    ]  # fmt: skip


def test_on_the_cpu_one_batch_is_held_at_a_time() -> None:
    living: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def run(batch: range) -> list[Tensor]:
        assert not living
        layers = column(batch)
        living.update(layers)
        return layers

    cpu, found = torch.device("cpu"), []
    for layers in overlapped(run, [range(0, 3), range(3, 4), range(4, 9)], cpu):
        found += layers[0].flatten().tolist()
        del layers
    assert found == list(range(9))


@CUDA
def test_after_a_gpu_batches_come_in_order() -> None:
    device = torch.device("cuda", 0)
    layers = overlapped(lambda n: [torch.full((1, 1), n, device=device)], range(5), device)
    assert [int(layer) for (layer,) in layers] == list(range(5))


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    batch_size=st.integers(1, 20),
    limits=st.lists(st.integers(1, 20), min_size=1, max_size=30),
)
def test_memory_that_runs_out_in_the_middle_loses_nothing(
    lengths: list[int], batch_size: int, limits: list[int]
) -> None:
    calls = 0

    def run(batch: list[int]) -> list[Tensor]:
        nonlocal calls
        calls += 1
        if len(batch) > limits[calls % len(limits)]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")
        return column(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None)
        made = list(batched(run, iter(range(sum(lengths))), lengths, batch_size, **options()))
    joined = [torch.cat(layer) for layer in zip(*made, strict=True)]
    assert all(map(torch.equal, joined, column(range(sum(lengths)))))


def test_the_last_batch_is_halved_too() -> None:
    sizes: list[int] = []

    def run(batch: list[int]) -> list[Tensor]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return column(batch)

    list(batched(run, iter(range(3)), [3], 100, **options()))
    assert sizes == [3, 2, 1]


def test_a_batch_may_hold_more_of_what_is_small() -> None:
    sizes: list[int] = []

    def run(batch: list[int]) -> list[Tensor]:
        sizes.append(len(batch))
        return column(batch)

    more = options(fitting=lambda batch_size, first: batch_size * (1 + first // 5))
    list(batched(run, iter(range(12)), [8, 4], 2, **more))
    assert sizes == [2, 2, 2, 2, 4]


def test_what_is_too_large_by_itself_is_named() -> None:
    def run(batch: list[int]) -> list[Tensor]:
        raise MemoryError

    with pytest.raises(PrhEvalError) as error:
        list(batched(run, iter([7]), [1], 4, **options(what=lambda item: f"item {item}")))
    assert str(error.value) == "item 7 does not fit into the memory of cpu; do without"


def test_on_the_cpu_results_are_not_copied() -> None:
    layers = column(range(3))
    assert [a.data_ptr() for a in fetch(layers)()] == [a.data_ptr() for a in layers]
    stacked = send([torch.ones(2, 3), torch.zeros(2, 3)], torch.device("cpu"))
    assert torch.equal(stacked, torch.stack([torch.ones(2, 3), torch.zeros(2, 3)]))


@CUDA
def test_copies_of_a_gpu_are_whole() -> None:
    device = torch.device("cuda", 0)
    weight = torch.randn(300, 300, device=device)
    items = torch.randn(64, 300, 300).unbind()

    def run(batch: list[Tensor]) -> list[Tensor]:
        made = send(batch, device)
        assert made.device == device
        kept = made[:, 0] + 1
        for _ in range(50):
            made = (made @ weight) / 100
        return [kept, made.flatten(1)[:, :5]]

    made = list(batched(run, iter(items), [64], 8, **options(device=device)))
    assert all(layer.device.type == "cpu" for batch in made for layer in batch)
    assert torch.equal(torch.cat([batch[0] for batch in made]), torch.stack(items)[:, 0] + 1)
    again = list(batched(run, iter(items), [64], 8, **options(device=device)))
    for one, other in zip(made, again, strict=True):
        assert all(map(torch.equal, one, other))
