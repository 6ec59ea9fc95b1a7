"""Parts on disk: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from features.ranks import Ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prh_eval.features import parts as parts_module
from prh_eval.features.parts import Parts, pieces, shared


def drawn(rows: int, *widths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator) for width in widths]


def equal(got: Sequence[Tensor] | None, wanted: Sequence[Tensor]) -> bool:
    return got is not None and len(got) == len(wanted) and all(map(torch.equal, got, wanted))


def the_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@settings(max_examples=30)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 13)), min_size=1, max_size=3),
    data=st.data(),
)
def test_parts_come_back_bit_for_bit(
    shapes: list[tuple[int, int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parts") / "new" / "folder"
    starts = data.draw(
        st.lists(st.integers(0, 10**9), min_size=len(shapes), max_size=len(shapes), unique=True)
    )
    wanted = {
        start: drawn(rows, *range(1, layers + 1), seed=start)
        for start, (rows, layers) in zip(starts, shapes, strict=True)
    }
    for start, layers in wanted.items():
        Parts(folder).write(start, layers)
    again = Parts(folder)
    for start, layers in wanted.items():
        assert equal(again.read(start), layers)
    assert again.read(max(starts) + 1) is None
    again.clear()
    assert not folder.exists()
    assert again.read(starts[0]) is None


def test_views_and_inference_tensors_are_written_as_they_are_seen(tmp_path: Path) -> None:
    whole = drawn(6, 4)[0]
    with torch.inference_mode():
        made = whole * 2
    parts = Parts(tmp_path / "p")
    parts.write(0, [whole[::2, 1:], whole.T, made])
    assert equal(parts.read(0), [whole[::2, 1:], whole.T, whole * 2])


def test_a_part_cut_anywhere_is_absent(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.write(0, drawn(2, 3, 5))
    file = the_file(tmp_path)
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        assert parts.read(0) is None
    file.write_bytes(content)
    assert parts.read(0) is not None


def test_one_changed_byte_makes_a_part_absent(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    wanted = drawn(2, 3, 5)
    parts.write(0, wanted)
    file = the_file(tmp_path)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        got = parts.read(0)
        # A byte of the header that says nothing (a space) may change.
        assert got is None or equal(got, wanted)
        if place >= len(content) - 4 * 16:
            assert got is None
    parts.write(0, wanted)
    assert equal(parts.read(0), wanted)


def test_clear_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.write(0, drawn(2, 3))
    file = the_file(tmp_path)
    (tmp_path / f".{file.name}.0123.tmp").write_bytes(b"left by a killed write")
    (tmp_path / "notes.txt").write_text("mine")
    parts.clear()
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_a_part_of_another_commit_is_absent(tmp_path: Path) -> None:
    layers = drawn(2, 3)
    parts = Parts(tmp_path)
    parts.commit = "a" * 40
    parts.write(0, layers)
    for commit, there in (("a" * 40, True), ("b" * 40, False), (None, False)):
        again = Parts(tmp_path)
        again.commit = commit
        assert (again.read(0) is not None) == there


def test_a_killed_write_leaves_no_part(tmp_path: Path) -> None:
    program = (
        "import os, sys, torch\nfrom pathlib import Path\n"
        "from prh_eval.features import parts\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "parts.Parts(Path(sys.argv[1])).write(0, [torch.ones(2, 2)])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == 9
    assert Parts(tmp_path).read(0) is None
    Parts(tmp_path).clear()
    assert not tmp_path.exists()


def test_a_failed_write_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    parts = Parts(in_the_way / "parts")
    with caplog.at_level(logging.WARNING):
        parts.write(0, drawn(2, 3))
        parts.write(2, drawn(2, 3))
    (record,) = caplog.records
    assert "cannot write to" in record.getMessage()
    assert parts.read(0) is None
    parts.clear()


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    Parts(tmp_path).write(0, drawn(2, 3))
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_part_costs_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    Parts(tmp_path).write(0, drawn(2, 3, 4, 5))
    assert len(calls) == 1


# Sharing and resuming


def doubled(rows: Sequence[int]) -> list[Tensor]:
    """Two layers of features by which a row is known."""
    column = torch.tensor(rows, dtype=torch.float32).unsqueeze(1)
    return [column, column.repeat(1, 3) * 2]


class Encoder:
    """Runs rows in batches, notes which, and may be stopped after some batches."""

    def __init__(self, batch_size: int, stop: int | None = None) -> None:
        self.batch_size, self.stop = batch_size, stop
        self.seen: list[int] = []
        self.batches = 0
        self.closed = False

    def __call__(self, missing: list[range]) -> Generator[list[Tensor], None, None]:
        try:
            for piece in missing:
                for start in range(0, len(piece), self.batch_size):
                    if self.batches == self.stop:
                        raise KeyboardInterrupt
                    self.batches += 1
                    batch = piece[start : start + self.batch_size]
                    self.seen.extend(batch)
                    yield doubled(batch)
        finally:
            self.closed = True


def share(encoder: Encoder, count: int, rows: int = 5, **options: Any) -> list[Tensor]:
    options = {"description": "rows", "unit": "row", "progress": False, **options}
    return shared(encoder, pieces(count, rows), **options)


@given(count=st.integers(0, 50), rows=st.integers(1, 60))
def test_pieces_cover_the_rows(count: int, rows: int) -> None:
    cut = pieces(count, rows)
    assert [row for piece in cut for row in piece] == list(range(count))
    assert all(len(piece) == rows for piece in cut[:-1])
    assert all(0 < len(piece) <= rows for piece in cut)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    rows=st.integers(1, 12),
    world_size=st.integers(1, 6),
    batch_size=st.integers(1, 12),
)
def test_every_process_has_all_rows_and_each_is_made_once(
    count: int, rows: int, world_size: int, batch_size: int
) -> None:
    encoders = [Encoder(batch_size) for _ in range(world_size)]
    results = Ranks(world_size).run(
        lambda rank, **options: share(encoders[rank], count, rows, rank=rank, **options)
    )
    assert all(equal(result, doubled(range(count))) for result in results)
    assert sorted(row for encoder in encoders for row in encoder.seen) == list(range(count))
    most = math.ceil(math.ceil(count / rows) / world_size) * rows
    assert all(len(encoder.seen) <= most for encoder in encoders)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    data=st.data(),
)
def test_a_stopped_run_goes_on_with_other_batches_and_processes(
    count: int,
    sizes: tuple[int, int],
    worlds: tuple[int, int],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    made: list[int] = []
    for rank in range(worlds[0]):
        encoder = Encoder(sizes[0], stop=data.draw(st.integers(0, 12)))
        with suppress(KeyboardInterrupt):
            share(
                encoder,
                count,
                parts=Parts(folder),
                rank=rank,
                world_size=worlds[0],
                # One that is not stopped waits for the others, and is stopped there.
                all_gather=interrupted,
            )
        made += encoder.seen
        assert encoder.closed or not encoder.seen
    kept = {
        start + row
        for start in range(0, count, 5)
        for row in range(len((Parts(folder).read(start) or [[]])[0]))
    }
    # All that was made, but for less than one piece a process.
    assert kept <= set(made)
    assert len(made) - len(kept) < 5 * worlds[0]
    encoders = [Encoder(sizes[1]) for _ in range(worlds[1])]
    results = Ranks(worlds[1]).run(
        lambda rank, **options: share(
            encoders[rank], count, parts=Parts(folder), rank=rank, **options
        )
    )
    assert all(equal(result, doubled(range(count))) for result in results)
    seen = [row for encoder in encoders for row in encoder.seen]
    assert sorted(seen) == sorted(set(range(count)) - kept)


def interrupted(tensor: Tensor) -> Tensor:
    raise KeyboardInterrupt


def test_a_part_of_another_length_is_made_again(tmp_path: Path) -> None:
    Parts(tmp_path).write(0, doubled(range(100, 104)))
    Parts(tmp_path).write(5, doubled(range(100, 106)))
    encoder = Encoder(2)
    assert equal(share(encoder, 10, parts=Parts(tmp_path)), doubled(range(10)))
    assert encoder.seen == list(range(10))
    assert equal(Parts(tmp_path).read(5), doubled(range(5, 10)))


def test_parts_are_written_beside_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits for the next piece to be made must not keep it from being made."""
    going_on = threading.Event()
    write = Parts.write

    def waiting(parts: Parts, start: int, layers: Sequence[Tensor]) -> None:
        assert start or going_on.wait(30)
        write(parts, start, layers)

    class Telling(Encoder):
        def __call__(self, missing: list[range]) -> Generator[list[Tensor], None, None]:
            for batch in super().__call__(missing):
                if self.seen[-1] >= 5:
                    going_on.set()
                yield batch

    monkeypatch.setattr(Parts, "write", waiting)
    assert equal(share(Telling(2), 15, parts=Parts(tmp_path)), doubled(range(15)))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_write_that_fails_unexpectedly_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(parts: Parts, start: int, layers: Sequence[Tensor]) -> None:
        if start == 0:
            raise ValueError("a bug")

    monkeypatch.setattr(Parts, "write", broken)
    encoder = Encoder(5)
    with pytest.raises(ValueError, match="a bug"):
        share(encoder, 50, parts=Parts(tmp_path))
    assert len(encoder.seen) <= 15


def test_a_failed_encoder_leaves_what_was_finished(tmp_path: Path) -> None:
    encoder = Encoder(5, stop=2)
    with pytest.raises(KeyboardInterrupt):
        share(encoder, 20, parts=Parts(tmp_path))
    assert sorted(file.name[:9] for file in tmp_path.iterdir()) == ["000000000", "000000005"]


def test_layers_are_gathered_one_by_one_and_given_up() -> None:
    """While a layer is gathered, neither those before it nor their pieces are held twice."""
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def all_gather(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            held.append(weakref.ref(tensor))
            alive.append(sum(ref() is not None for ref in held))
        return torch.cat([tensor, tensor])

    layers = share(Encoder(2), 9, rank=0, world_size=2, all_gather=all_gather)
    assert [layer.shape for layer in layers] == [(9, 1), (9, 3)]
    assert alive == [1, 1]


def test_several_processes_need_a_way_to_gather() -> None:
    with pytest.raises(ValueError, match="all_gather is needed for 2 processes"):
        share(Encoder(1), 3, world_size=2)


@pytest.mark.parametrize(
    ("progress", "rank", "shown"), [(True, 0, "5/5"), (True, 1, ""), (False, 0, "")]
)
def test_one_progress_bar(
    progress: bool, rank: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gather: Callable[[Tensor], Tensor] = lambda tensor: torch.cat([tensor] * 2)  # noqa: E731
    share(Encoder(2), 10, rank=rank, world_size=2, all_gather=gather, progress=progress)
    bar = capsys.readouterr().err
    assert shown in bar
    assert bool(bar) == bool(shown)


# ---------------------------------------------------------------- layers that processes share


@pytest.mark.parametrize("full_from", [0, 1, 3])
def test_a_disk_that_fills_up_is_left_as_it_was(tmp_path, monkeypatch, full_from):
    layers, tried = drawn(6, 3, 4, 5), []
    real = Parts.write_whole

    def write(self: Parts, name: str, layer: Tensor) -> Path | None:
        tried.append(name)
        path = real(self, name, layer)
        return path if len(tried) <= full_from else None

    monkeypatch.setattr(Parts, "write_whole", write)
    gathered = parts_module._gathered(
        [layer.clone() for layer in layers], [{range(6): 0}], 6, lambda x: x, Parts(tmp_path)
    )
    assert equal(gathered, layers)
    assert len(tried) == min(full_from + 1, 3)
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_map_files_costs_memory_alone(tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(torch, "from_file", refuse)
    layers = drawn(6, 3, 4)
    copies = [layer.clone() for layer in layers]
    gathered = parts_module._gathered(copies, [{range(6): 0}], 6, lambda x: x, Parts(tmp_path))
    assert equal(gathered, layers)
