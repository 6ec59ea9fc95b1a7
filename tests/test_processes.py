from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import process_worlds as worlds
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from process_worlds import world
from torch import distributed

from prh_eval.errors import PrhEvalError
from prh_eval.processes import Processes, _own_device, processes

KILLED = "ended without a word (killed?)"
NAN = "layer 3 has a NaN in row 7"


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    usual = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    usual |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (usual | variables).items():
        monkeypatch.setenv(name, value)


def sentence(reason: str) -> list[str]:
    return [f"prh-eval: error: {reason}"]


# One process


@given(n=st.integers(0, 1000), size=st.integers(1, 40))
def test_rows_are_shared_evenly_in_order(n: int, size: int) -> None:
    each = [Processes(rank, size, 0, torch.device("cpu")) for rank in range(size)]
    shares = [list(p.rows(n)) for p in each]
    assert [row for share in shares for row in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [list(each[0].rows(n, rank)) for rank in range(size)] == shares


@pytest.mark.parametrize("variables", [None, {"WORLD_SIZE": "1", "MASTER_ADDR": "nowhere.invalid"}])
def test_one_process_needs_no_torch_distributed(
    variables: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variables is not None:
        launched(monkeypatch, **variables)
    for name in ("init_process_group", "all_gather_object", "broadcast_object_list", "all_gather"):
        monkeypatch.delattr(distributed, name)
    tensor = torch.arange(6).view(2, 3)
    with processes("cpu") as p:
        assert (p.rank, p.world_size, p.device, p.first) == (0, 1, torch.device("cpu"), True)
        assert p.rows(7) == range(7)
        assert p.all_gather(tensor).tolist() == tensor.tolist()
        assert p.all_gather_object("x") == ["x"]
        assert p.broadcast_object("x") == "x"
        p.barrier()
        assert [(owner, t.tolist()) for owner, t in p.passed_round(tensor.T)] == [
            (0, tensor.T.tolist())
        ]


def test_errors_of_one_process_are_its_own() -> None:
    with pytest.raises(PrhEvalError, match="as it is"), processes():
        raise PrhEvalError("as it is")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": ""}, "not RANK; start several processes with torchrun or accelerate launch"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "not MASTER_ADDR, MASTER_PORT; start"),
        ({"RANK": "one"}, "RANK is 'one'; it must be a whole number"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'; it must be a whole number"),
        ({"RANK": "2"}, "RANK=2 and WORLD_SIZE=2; ranks go from 0 to WORLD_SIZE - 1"),
    ],
)
def test_half_an_environment_is_said(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **variables)
    with pytest.raises(PrhEvalError) as error, processes("cpu"):
        pass
    assert said in str(error.value)


def test_one_process_is_on_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert Processes.current().device == torch.device("cuda", 3)
    assert Processes.current("cpu").device == torch.device("cpu")
    with processes() as p, processes("cuda:1") as q:
        assert (p.device, q.device) == (torch.device("cuda", 3), torch.device("cuda", 1))


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (None, torch.device("cuda", 1)),
        ("cuda", torch.device("cuda", 1)),
        ("cuda:1", torch.device("cuda", 1)),
        ("cpu", torch.device("cpu")),
        ("cuda:0", "device cuda:0 cannot be shared by 2 processes; say cuda, and every process"),
    ],
)
def test_each_of_several_processes_has_the_device_of_its_local_rank(
    device: str | None, found: torch.device | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if isinstance(found, str):
        with pytest.raises(PrhEvalError, match=found):
            _own_device(device, 1, 2)
    else:
        assert _own_device(device, 1, 2) == found
        assert chosen == [found] * (found.type == "cuda")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("meta", "nothing is computed on the device meta; it should be as cpu or cuda"),
        (torch.device("meta"), "nothing is computed on the device meta"),
        ("banana", "there is no device 'banana': "),
    ],
)
def test_where_nothing_is_computed_is_refused(device: str | torch.device, words: str) -> None:
    for use in (Processes.current, lambda given: _own_device(given, 0, 1)):
        with pytest.raises(PrhEvalError, match=words):
            use(device)


# Several


@pytest.mark.parametrize("size", [2, 4])
def test_what_processes_say_reaches_all(size: int, tmp_path: Path) -> None:
    ended = world(worlds.talk, size, tmp_path)
    assert [(end.status, end.stderr) for end in ended] == [(0, "")] * size
    content, bits = worlds.content, worlds.bits
    for rank in range(size):
        said = json.loads((tmp_path / f"said_{rank}").read_text())
        assert said["place"] == [rank, size, rank, "cpu", rank == 0]
        assert said["objects"] == [{"from": other} for other in range(size)]
        assert said["given"] == [[source, "x"] for source in range(size)]
        assert said["gathered"] == [
            "".join(bits(content(dtype, (2, 3), other)) for other in range(size))
            for dtype in worlds.DTYPES
        ]
        assert said["empty"] == [0, 5]
        columns = [content(torch.int64, (3, 2), other).T.tolist() for other in range(size)]
        assert said["column"] == [row for rows in columns for row in rows]
        # Own first, then against the ranks.
        owners = [*range(rank, -1, -1), *range(size - 1, rank, -1)]
        assert said["transposed"] == [[owner, columns[owner]] for owner in owners]
        assert said["rounds"] == [
            [
                [owner, list(shapes[owner]), str(dtype), bits(content(dtype, shapes[owner], owner))]
                for owner in owners
            ]
            for dtype, shapes in worlds.ROUNDS
        ]


def test_the_next_tensor_travels_while_the_caller_works(tmp_path: Path) -> None:
    worlds.make_gate(tmp_path, "received")
    assert [end.status for end in world(worlds.meanwhile, 2, tmp_path)] == [0, 0]


def test_a_tensor_stays_as_it_is_while_it_is_worked_on(tmp_path: Path) -> None:
    assert [end.stderr for end in world(worlds.held, 4, tmp_path)] == [""] * 4


def test_different_tensors_are_refused_by_all(tmp_path: Path) -> None:
    for end in world(worlds.wrong_shapes, 2, tmp_path):
        assert [line.split(":")[0] for line in end.lines] == [
            "processes have different tensors"
        ] * 2


def test_only_process_0_logs_what_is_less_than_a_warning(tmp_path: Path) -> None:
    first, second = world(worlds.logs, 2, tmp_path)
    assert first.lines == ["remark inside", "warning inside", "remark after"]
    assert second.lines == ["warning inside", "remark after"]


def test_a_process_group_that_is_there_is_used_and_left(tmp_path: Path) -> None:
    ended = world(worlds.somebody_elses_group, 2, tmp_path)
    assert [(end.status, end.stderr) for end in ended] == [(0, "")] * 2


# A process that ends before its time


@pytest.mark.parametrize("place", [worlds.in_a_round, worlds.in_a_gather])
@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize("fault", [worlds.mistake, worlds.kill])
def test_all_end_with_the_reason_of_one(
    place: Callable[..., None], fault: Callable[[], None], culprit: int, tmp_path: Path
) -> None:
    ended = world(partial(place, fault, culprit), 4, tmp_path)
    killed = fault is worlds.kill
    reason = KILLED if killed else f"stopped: {NAN}"
    for rank, end in enumerate(ended):
        if rank != culprit:
            assert end.status == 2
            assert end.lines == sentence(f"process {culprit} of 4 {reason}")
    assert ended[culprit].status == (-9 if killed else 2)
    assert ended[culprit].lines == ([] if killed else sentence(NAN))


def test_a_defect_has_its_traceback_once(tmp_path: Path) -> None:
    first, second = world(partial(worlds.in_a_round, worlds.defect, 1), 2, tmp_path)
    assert first.lines == sentence("process 1 of 2 stopped: ZeroDivisionError: division by zero")
    assert second.status == 1
    assert second.lines[-2:] == ["ZeroDivisionError: division", "by zero"]


def test_an_interrupt_ends_all(tmp_path: Path) -> None:
    first, second = world(partial(worlds.in_a_round, worlds.interrupt, 1), 2, tmp_path)
    assert (second.status, second.stderr) == (130, "")
    assert (first.status, first.lines) == (2, sentence("process 1 of 2 stopped: interrupted"))


def test_who_waits_in_the_ring_hears_of_a_failed_computation(tmp_path: Path) -> None:
    for other in (0, 1, 3):
        worlds.make_gate(tmp_path, f"waits_{other}")
    ended = world(worlds.raises_while_others_wait, 4, tmp_path)
    assert [end.status for end in ended] == [2] * 4
    reasons = [f"process 2 of 4 stopped: {NAN}"] * 4
    reasons[2] = NAN
    assert [end.lines for end in ended] == list(map(sentence, reasons))


def test_who_is_done_hears_of_who_fails_after(tmp_path: Path) -> None:
    for other in (0, 2):
        worlds.make_gate(tmp_path, f"done_{other}")
    ended = world(worlds.raises_while_others_are_done, 3, tmp_path)
    assert [end.status for end in ended] == [2] * 3
    assert ended[0].lines == ended[2].lines == sentence(f"process 1 of 3 stopped: {NAN}")


def test_who_computes_for_ever_ends_all_the_same(tmp_path: Path) -> None:
    worlds.make_gate(tmp_path, "never")
    first, second = world(worlds.killed_while_others_compute, 2, tmp_path)
    assert second.status == -9
    assert (first.status, first.lines) == (2, sentence(f"process 1 of 2 {KILLED}"))


def test_a_worker_that_outlives_its_process_does_not_hide_its_death(tmp_path: Path) -> None:
    worlds.make_gate(tmp_path, "worker")
    first, second = world(worlds.killed_with_a_worker, 2, tmp_path)
    worlds.open_gate(tmp_path, "worker")
    assert second.status == -9
    assert (first.status, first.lines) == (2, sentence(f"process 1 of 2 {KILLED}"))


def test_a_mistake_of_one_before_the_group_is_there_ends_all(tmp_path: Path) -> None:
    first, second = world(worlds.no_device, 2, tmp_path)
    reason = "local rank 1 has no CUDA device: this machine has 1; start one process a device, or "
    reason += "use the device cpu"
    assert (second.status, second.lines) == (2, sentence(reason))
    assert (first.status, first.lines) == (2, sentence(f"process 1 of 2 stopped: {reason}"))


@pytest.mark.parametrize(
    ("came", "missing"), [([0], "processes 1, 2"), ([0, 2], "process 1"), ([1, 2], "process 0")]
)
def test_who_does_not_come_is_not_waited_for(came: list[int], missing: str, tmp_path: Path) -> None:
    for end in world(worlds.comes_alone, 3, tmp_path, came):
        assert end.status == 2
        # torch warns of it too.
        assert end.lines[-1].startswith(
            f"prh-eval: error: {missing} of 3 did not come within 0.5 s; start"
        )


# Launchers

PROGRAM = """
import sys
import torch
from prh_eval.errors import PrhEvalError, show_error
from prh_eval.processes import processes

try:
    with processes("cpu") as p:
        seen = [(owner, t.tolist()) for owner, t in p.passed_round(torch.tensor([10 + p.rank]))]
        everybody = p.all_gather_object(seen)
        if p.first:
            print(everybody, flush=True)
        p.barrier()
        if p.rank == 1 and "fail" in sys.argv:
            raise PrhEvalError("row 5 is NaN")
except PrhEvalError as error:
    show_error(error)
    sys.exit(2)
"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2")
ACCELERATE += ("--main_process_port", "0")
EVERYBODY = [[(0, [10]), (1, [11])], [(1, [11]), (0, [10])]]


def launch(launcher: tuple[str, ...], folder: Path, *arguments: str) -> tuple[int, str, str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, "-m", *launcher, str(program), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=worlds.SAFETY_S,
        # Unbuffered, a line that is not written at once is torn apart by the other process.
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "PYTHONUNBUFFERED": "1"},
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_under_accelerate(tmp_path: Path) -> None:
    status, stdout, stderr = launch(ACCELERATE, tmp_path)
    assert status == 0, stderr
    assert stdout == f"{EVERYBODY}\n"


def test_under_torchrun_a_failure_shows_its_reason_once(tmp_path: Path) -> None:
    status, stdout, stderr = launch(TORCHRUN, tmp_path, "fail")
    assert status != 0
    assert stdout == f"{EVERYBODY}\n"
    assert stderr.count("prh-eval: error: row 5 is NaN\n") == 1
