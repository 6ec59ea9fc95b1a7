"""Whether the other processes of a run are alive, and why one of them ended.

Collectives tell this badly: gloo breaks a connection and says neither whose nor why, and only to
the neighbours; NCCL waits. So every process holds one more TCP connection, to process 0, on which
it says why it leaves. A process that is killed says nothing, but its connection ends at once.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from prh_eval.errors import PrhEvalError, show_error

GRACE_S = 10.0
"""How long a process may go on, or be stuck, after another one has ended, in seconds."""

_EXIT_STATUS = 2  # as the command line's for an error
_HELLO_S = 10.0
_LONGEST_MESSAGE = 1 << 15  # bytes; JSON writes a character in twelve at most
_LONGEST_REASON = 1 << 11
_HELLO, _GOODBYE, _FAULT = "hello", "goodbye", "fault"


class Lifeline:
    """This process's end of the connections among the processes of a run.

    A thread listens; the process itself speaks to it through a pipe, like one more connection.
    Made by :meth:`host` in process 0 and by :meth:`join` in the others.

    Args:
        rank: Of this process, from 0.
        world_size: How many processes there are.
        others: Connections by rank: to all others in process 0, to process 0 in the others.
    """

    def __init__(self, rank: int, world_size: int, others: dict[int, Connection]) -> None:
        self.rank = rank
        self.world_size = world_size
        self._others = others
        self._heard, self._own = Pipe(duplex=False)
        self._fault: str | None = None
        self._settled = threading.Event()  # a fault is known, or there can be none any more
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="prh-eval lifeline", daemon=True)
        self._thread.start()
        # A forked worker of a data loader would hold the connections open beyond our death.
        os.register_at_fork(after_in_child=self._close)

    @classmethod
    def host(
        cls, world_size: int, announce: Callable[[int, str], None], patience: float
    ) -> Lifeline:
        """Process 0's end, when all others have come.

        Args:
            world_size: How many processes there are.
            announce: Called with the port that process 0 listens at, and the key to say there; both
                are for :meth:`join`.
            patience: How long the others may take to come, in seconds.

        Raises:
            PrhEvalError: If they do not all come, or one ends meanwhile; those that came are told.
        """
        key = secrets.token_hex()
        came: dict[Connection, int] = {}
        with _listening(backlog=max(world_size, 128)) as server:
            announce(server.getsockname()[1], key)
            try:
                _await(came, server, key, world_size, patience)
            except PrhEvalError as error:
                for connection in came:
                    _send(connection, _FAULT, str(error))
                    connection.close()
                raise
        for connection in came:
            _send(connection, _HELLO)
        return cls(0, world_size, {rank: connection for connection, rank in came.items()})

    @classmethod
    def join(
        cls, rank: int, world_size: int, address: tuple[str, int], key: str, patience: float
    ) -> Lifeline:
        """The end of a process other than 0, when all have come.

        Args:
            rank: Of this process, from 1.
            world_size: How many processes there are.
            address: Host and port of process 0.
            key: What process 0 announced.
            patience: How long to try to reach process 0, in seconds; it waits for the others.

        Raises:
            PrhEvalError: If process 0 cannot be reached, or says that others are missing.
        """
        try:
            connection = _connection(socket.create_connection(address, timeout=patience))
        except OSError as error:
            raise PrhEvalError(
                f"process {rank} of {world_size} cannot reach process 0 at {address[0]} port "
                f"{address[1]} ({error}); processes must be able to connect to each other at any "
                "port"
            ) from error
        _send(connection, _HELLO, json.dumps([rank, key]))
        kind, text = _received(connection, 0, world_size)
        if kind == _FAULT:
            raise PrhEvalError(text)
        return cls(rank, world_size, {0: connection})

    @property
    def fault(self) -> str | None:
        """Which process ended before its time, and why: a sentence; nothing while all are well."""
        return self._fault

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Communicate with the others; what fails because one of them ended says so.

        Raises:
            PrhEvalError: If a process has ended, with its reason; whatever else breaks
                communication is said in torch's words.
        """
        if self._fault is not None:
            raise PrhEvalError(self._fault)
        try:
            yield
        except RuntimeError as error:  # what torch raises, from gloo and from NCCL
            # The break and the reason of it come at nearly the same time, in either order.
            self._settled.wait(GRACE_S)
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PrhEvalError(
                self._fault
                or f"process {self.rank} of {self.world_size} lost touch with the others: {words}"
            ) from error
        if self._fault is not None:  # NCCL gives back garbage for what never came
            raise PrhEvalError(self._fault)

    def goodbye(self) -> None:
        """Wait until all processes have come to their end well.

        Raises:
            PrhEvalError: If one does not, with its reason.
        """
        _send(self._own, _GOODBYE)
        self._settled.wait()
        if self._fault is not None:
            raise PrhEvalError(self._fault)

    def leave(self, error: BaseException | None = None) -> None:
        """End this process's part, and tell the others why if it is of its own fault."""
        if error is not None and self._fault is None:
            place = f"process {self.rank} of {self.world_size}"
            _send(self._own, _FAULT, f"{place} stopped: {_reason(error)}")
        self._left.set()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for connection in (*self._others.values(), self._heard, self._own):
            connection.close()

    def _listen(self) -> None:
        """Pass on what is heard, until all have said goodbye or one is at fault."""
        ranks = {connection: rank for rank, connection in self._others.items()}
        ranks[self._heard] = self.rank
        remaining = set(ranks.values())
        while remaining:
            for connection in wait(list(ranks)):
                assert isinstance(connection, Connection)
                rank = ranks[connection]
                kind, text = _received(connection, rank, self.world_size)
                if kind == _GOODBYE:
                    remaining.discard(rank)
                    if rank == self.rank != 0:
                        self._tell(_GOODBYE)
                    elif rank != self.rank:
                        del ranks[connection]  # it may end any time now
                elif rank == self.rank:
                    self._tell(_FAULT, text)
                    return
                else:
                    self._stop(text)
                    return
        if self.rank == 0:
            self._tell(_GOODBYE)
        self._settled.set()

    def _stop(self, fault: str) -> None:
        self._fault = fault
        self._settled.set()
        if self.rank == 0:
            self._tell(_FAULT, fault)
        if not self._left.wait(GRACE_S):
            # Stuck in a collective that never ends, or in a long computation for nothing.
            show_error(fault)
            os._exit(_EXIT_STATUS)

    def _tell(self, kind: str, text: str = "") -> None:
        for connection in self._others.values():
            _send(connection, kind, text)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    words = " ".join(str(error).split())[:_LONGEST_REASON]
    return words if isinstance(error, PrhEvalError) else f"{type(error).__name__}: {words}"


def _send(connection: Connection, kind: str, text: str = "") -> None:
    with suppress(OSError):  # who has gone is known from the other direction
        connection.send_bytes(json.dumps([kind, text]).encode())


def _received(connection: Connection, rank: int, world_size: int) -> tuple[str, str]:
    """What came, or that the connection ended without a goodbye."""
    try:
        kind, text = json.loads(connection.recv_bytes(_LONGEST_MESSAGE))
    except (EOFError, OSError, ValueError):
        return _FAULT, f"process {rank} of {world_size} ended without a word (killed?)"
    return kind, text


def _listening(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
        )
    return socket.create_server(("", 0), backlog=backlog)


def _connection(end: socket.socket) -> Connection:
    end.setblocking(True)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A machine that loses its power or its network says nothing: noticed within two minutes.
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(end.detach())


def _await(
    came: dict[Connection, int], server: socket.socket, key: str, world_size: int, patience: float
) -> None:
    """Add the other processes as they come, until they are all there."""
    deadline = time.monotonic() + patience
    while len(came) < world_size - 1:
        ready = wait([server, *came], timeout=max(0.0, deadline - time.monotonic()))
        for each in ready:
            if isinstance(each, Connection):
                raise PrhEvalError(_received(each, came[each], world_size)[1])
            connection = _connection(server.accept()[0])
            rank = _rank_of(connection, key)
            if rank is None:
                connection.close()
                continue
            twice = rank in came.values()
            came[connection] = rank
            if twice:
                raise PrhEvalError(
                    f"two processes say that they are process {rank} of {world_size}; every "
                    "process needs a RANK of its own"
                )
        if not ready:
            missing = sorted(set(range(1, world_size)) - set(came.values()))
            raise PrhEvalError(
                f"{_processes(missing)} of {world_size} did not come within {patience:g} s; start "
                "as many as WORLD_SIZE says, all with the same MASTER_ADDR and MASTER_PORT"
            )


def _rank_of(connection: Connection, key: str) -> int | None:
    """Who has connected; nobody, if it is not one of ours."""
    with suppress(EOFError, OSError, ValueError, TypeError):
        if connection.poll(_HELLO_S):
            _, text = json.loads(connection.recv_bytes(_LONGEST_MESSAGE))
            rank, said = json.loads(text)
            if hmac.compare_digest(str(said), key):
                return int(rank)
    return None


def _processes(ranks: Iterable[int]) -> str:
    names = [str(rank) for rank in ranks]
    return f"process{'es' if len(names) > 1 else ''} {', '.join(names)}"
