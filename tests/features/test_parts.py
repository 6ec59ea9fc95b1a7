"""Parts on disk: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prh_eval.features.parts import Parts, resumed


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


# Resuming


def doubled(batch: Sequence[int]) -> list[Tensor]:
    rows = torch.tensor(batch, dtype=torch.float32).unsqueeze(1)
    return [rows, rows.repeat(1, 3) * 2]


@settings(max_examples=40)
@given(
    count=st.integers(1, 300),
    first=st.integers(1, 100),
    second=st.integers(1, 100),
    stop=st.integers(0, 10),
)
def test_a_stopped_run_goes_on_and_gives_the_same(
    count: int, first: int, second: int, stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts = Parts(tmp_path_factory.mktemp("parts"))
    items = range(1000, 1000 + count)
    ran: list[int] = []

    def run(batch: Sequence[int]) -> list[Tensor]:
        if len(ran) >= stop:
            raise KeyboardInterrupt
        ran.append(len(batch))
        return doubled(batch)

    with suppress(KeyboardInterrupt):
        list(resumed(run, items, first, parts))
    assert max(ran, default=0) <= first
    kept = sum(len(parts.read(row)[0]) for row in range(count) if parts.read(row))
    # All that was run, but for less than one part.
    assert sum(ran) - kept < first + 64
    seen: list[int] = []

    def rest(batch: Sequence[int]) -> list[Tensor]:
        seen.extend(batch)
        assert len(batch) <= second
        return doubled(batch)

    pieces = list(resumed(rest, items, second, parts))
    layers = [torch.cat(layer) for layer in zip(*pieces, strict=True)]
    assert equal(layers, doubled(items))
    assert seen == list(items)[kept:]


def test_batches_are_the_same_with_and_without_parts(tmp_path: Path) -> None:
    items = list(range(200))
    plain = [len(piece[0]) for piece in resumed(doubled, items, 7, None)]
    kept = [len(piece[0]) for piece in resumed(doubled, items, 7, Parts(tmp_path))]
    assert plain == kept == [7] * 28 + [4]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_part_beyond_the_end_is_not_used(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.write(0, doubled(range(5)))
    pieces = list(resumed(doubled, [7, 8, 9], 2, parts))
    assert torch.cat([piece[0] for piece in pieces]).flatten().tolist() == [7, 8, 9]
