from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import pytest

from prh_eval.errors import PrhEvalError
from prh_eval.lifeline import Lifeline

SAFETY_S = 60


T = TypeVar("T")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a process that does not leave is the tests' own."""
    monkeypatch.setattr("prh_eval.lifeline.GRACE_S", 10.0 * SAFETY_S)


def submit(call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call in a thread that no failing test waits for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def everywhere(call: Callable[[Lifeline], T], ends: Iterable[Lifeline]) -> list[T | Exception]:
    """What all ends get at the same time."""
    futures = [submit(call, end) for end in ends]
    return [future.exception(SAFETY_S) or future.result() for future in futures]


class Host:
    """Process 0 of a run, in a thread."""

    def __init__(self, world_size: int) -> None:
        announced: Future[tuple[int, str]] = Future()
        self.lifeline = submit(
            Lifeline.host,
            world_size,
            lambda port, key: announced.set_result((port, key)),
            SAFETY_S,
        )
        self.port, self.key = announced.result(SAFETY_S)
        self.world_size = world_size

    def join(self, rank: int) -> Lifeline:
        address = ("127.0.0.1", self.port)
        return Lifeline.join(rank, self.world_size, address, self.key, SAFETY_S)

    def stranger(self, said: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(said)
        return connection


def message(*parts: object) -> bytes:
    """As multiprocessing frames it."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours.detach())
    connection.send_bytes(json.dumps(parts).encode())
    connection.close()
    return theirs.recv(1 << 16)


def test_strangers_are_turned_away() -> None:
    host = Host(2)
    strangers = [
        host.stranger(said)
        for said in (
            b"GET / HTTP/1.1\r\n\r\n",
            message("hello", json.dumps([1, "guessed"])),
            message("hello", "1"),
            message("hello"),
        )
    ]
    host.stranger(b"").close()
    joined = host.join(1)
    for stranger in strangers:
        stranger.settimeout(SAFETY_S)
        # Closed, by an end or by a reset.
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
        stranger.close()
    ends = [host.lifeline.result(SAFETY_S), joined]
    assert everywhere(Lifeline.goodbye, ends) == [None, None]
    assert everywhere(Lifeline.leave, ends) == [None, None]
    assert [end.fault for end in ends] == [None, None]


def test_who_has_said_goodbye_may_end() -> None:
    host = Host(2)
    other = host.stranger(message("hello", json.dumps([1, host.key])))
    first = host.lifeline.result(SAFETY_S)
    other.sendall(message("goodbye", ""))
    other.close()
    assert everywhere(Lifeline.goodbye, [first]) == [None]
    first.leave()


def test_two_processes_of_one_rank_are_told() -> None:
    host = Host(3)
    twins = [submit(host.join, 1) for _ in range(2)]
    said = "two processes say that they are process 1 of 3; every process needs a RANK of its own"
    with pytest.raises(PrhEvalError, match=said):
        host.lifeline.result(SAFETY_S)
    assert [str(twin.exception(SAFETY_S)) for twin in twins] == [said] * 2


def test_a_process_that_ends_before_all_have_come_is_told() -> None:
    host = Host(3)
    host.stranger(message("hello", json.dumps([2, host.key]))).close()
    with pytest.raises(PrhEvalError, match=r"process 2 of 3 ended without a word \(killed\?\)"):
        host.lifeline.result(SAFETY_S)


def test_process_0_that_cannot_be_reached_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(PrhEvalError, match=r"process 1 of 2 cannot reach process 0 at 127.0.0.1"):
        Lifeline.join(1, 2, address, "key", SAFETY_S)


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}", "\udcff"])
def test_a_long_reason_is_cut(culprit: int, letter: str) -> None:
    host = Host(2)
    joined = host.join(1)
    ends = [host.lifeline.result(SAFETY_S), joined]
    ends[culprit].leave(PrhEvalError(letter * 100_000))
    (error,) = everywhere(Lifeline.goodbye, [ends[1 - culprit]])
    assert isinstance(error, PrhEvalError)
    assert str(error) == f"process {culprit} of 2 stopped: {letter * 2048}"
    ends[1 - culprit].leave(error)


def test_the_first_reason_is_everybodys() -> None:
    host = Host(4)
    ends = [submit(host.join, rank) for rank in (1, 2, 3)]
    ends.insert(0, host.lifeline)
    lines = [end.result(SAFETY_S) for end in ends]
    lines[3].leave(PrhEvalError("first"))
    said = "process 3 of 4 stopped: first"
    assert list(map(str, everywhere(Lifeline.goodbye, lines[:3]))) == [said] * 3
    for line in lines[:3]:
        line.leave(PrhEvalError("later"))
        assert line.fault == said


@pytest.mark.parametrize(
    "communicate",
    [
        pytest.param(lambda: None, id="after"),
        pytest.param(lambda: (_ for _ in ()).throw(RuntimeError("Connection closed")), id="broken"),
    ],
)
def test_broken_communication_is_explained(communicate: Callable[[], None]) -> None:
    host = Host(2)
    joined = host.join(1)
    first = host.lifeline.result(SAFETY_S)
    with pytest.raises(PrhEvalError, match="process 1 of 2 stopped: as it is"), first.watched():
        joined.leave(PrhEvalError("as it is"))
        assert everywhere(Lifeline.goodbye, [first]) != [None]  # by when it is known
        communicate()
    first.leave(PrhEvalError(first.fault or ""))


def test_what_else_breaks_is_in_torchs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prh_eval.lifeline.GRACE_S", 0.0)
    host = Host(2)
    joined = host.join(1)
    first = host.lifeline.result(SAFETY_S)
    said = "process 0 of 2 lost touch with the others: Timed out$"
    with pytest.raises(PrhEvalError, match=said), first.watched():
        raise RuntimeError("Timed out\nafter this and that")
    assert everywhere(Lifeline.goodbye, [first, joined]) == [None, None]
    for end in (first, joined):
        end.leave()
