"""The folder of task YAMLs: right for lm-eval, whole whoever makes it, and not for ever."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.tasks import TaskManager
from reference_files import write_numbers

from prh_eval import resources
from prh_eval.references import registry, tasks
from prh_eval.references.registry import load_reference, reference_names
from prh_eval.references.tasks import tasks_folder

STATIC = {path.stem for path in resources.folder("tasks").glob("*.yaml")}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder without references, in a process that has warned of nothing yet."""
    monkeypatch.delenv("PRH_EVAL_REFERENCES", raising=False)
    monkeypatch.chdir(tmp_path)
    registry._warn_once.cache_clear()
    tasks._temporary.cache_clear()
    yield tmp_path
    registry._warn_once.cache_clear()
    tasks._temporary.cache_clear()


def add(name: str, **changes: Any) -> Path:
    """A reference in the working folder."""
    return write_numbers(Path("references").absolute(), name, np.eye(16), **changes)


def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_folder()), include_defaults=False)


def test_every_reference_is_a_task(place: Path) -> None:
    names = {f"prh_align_{name}" for name in reference_names()}
    found = manager()
    assert set(found.all_subtasks) == STATIC | names
    assert {"prh_align_dinov2_giant", "prh_align_cielab"} <= names
    # One task builds without data, and says which reference it is of.
    (task,) = found.load(["prh_align_cielab"])["tasks"].values()
    assert task.reference.name == "cielab"
    assert (task.VERSION, task.config.num_fewshot) == (1.0, 0)
    assert task.options.metric == "mutual_knn"


def test_a_file_in_the_working_folder_is_a_task_at_once(place: Path) -> None:
    before = set(manager().all_tasks)
    path = add("mine", version=3, metric="lcs_knn")
    found = manager()
    assert set(found.all_tasks) - before <= {"prh_align_mine", "prh_features"}
    assert "prh_align_mine" in found.all_subtasks
    (task,) = found.load(["prh_align_mine"])["tasks"].values()
    assert (task.VERSION, task.options.metric) == (3, "lcs_knn")
    assert task.reference == load_reference(path)
    assert task.dump_config()["metadata"]["prh_reference"] == "mine"
    generated = found.task_index["prh_align_mine"].yaml_path
    assert str(path) in generated.read_text(encoding="utf-8")


def test_tags_by_kind_and_for_all(place: Path) -> None:
    add("mine")
    index = manager().task_index
    names = {f"prh_align_{name}" for name in reference_names()}
    aligned = {name for name in STATIC if name.startswith("prh_align")}
    assert index["prh"].tags == aligned | names
    kinds: dict[str, set[str]] = {}
    for name in reference_names():
        tag = f"prh_{load_reference(name).kind}"
        kinds.setdefault(tag, set()).add(f"prh_align_{name}")
    assert {"prh_vision", "prh_features", "prh_values"} <= set(kinds)
    for tag, expected in kinds.items():
        assert index[tag].tags == expected


@pytest.mark.parametrize("name", ["123", "1e3", "null", "true", "2020-01-02", "A.b-c_d"])
@pytest.mark.parametrize("version", [1, 2.5, 1e-05, 1e22])
def test_names_and_versions_that_yaml_would_take_for_something_else(
    place: Path, name: str, version: float
) -> None:
    add(name, version=version)
    (task,) = manager().load([f"prh_align_{name}"])["tasks"].values()
    assert (task.reference.name, task.VERSION) == (name, version)


def test_folders_of_any_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Path("lines\nand # [quotes' \"é\u2028")
    odd.mkdir()
    write_numbers(odd, "mine", np.eye(16))
    monkeypatch.setenv("PRH_EVAL_REFERENCES", str(odd))
    (task,) = manager().load(["prh_align_mine"])["tasks"].values()
    assert task.reference.name == "mine"


def test_a_broken_file_hurts_no_other(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    add("good")
    add("bad", kind="featurs")
    for _ in range(3):
        found = manager()
        assert "prh_align_good" in found.all_tasks and "prh_align_bad" not in found.all_tasks
    assert caplog.text.count("did you mean 'features'") == 1


# ------------------------------------------------------------------ on disk


def folders(cache: Path) -> list[Path]:
    return sorted((cache / "tasks").iterdir())


def test_the_same_references_are_the_same_folder(place: Path, cache_folder: Path) -> None:
    add("mine")
    first = tasks_folder()
    assert folders(cache_folder) == [first]
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*.yaml")}
    assert tasks_folder() == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.yaml")} == written
    add("mine", version=2)
    second = tasks_folder()
    assert second != first
    assert folders(cache_folder) == sorted([first, second])


@pytest.mark.parametrize("damage", ["missing", "edited", "added", "not text"])
def test_a_damaged_folder_is_made_anew(place: Path, damage: str) -> None:
    folder = tasks_folder()
    content = {path: path.read_bytes() for path in folder.rglob("*.yaml")}
    one = next(iter(content))
    if damage == "missing":
        one.unlink()
    elif damage == "edited":
        one.write_text("task: another\n")
    elif damage == "added":
        (folder / "more.yaml").write_text("task: another\n")
    else:
        one.write_bytes(b"\xff\xfe")
    assert tasks_folder() == folder
    assert {path: path.read_bytes() for path in folder.rglob("*.yaml")} == content


def test_another_process_that_is_faster(
    place: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tasks._write

    def slow(folder: Path, files: Any) -> None:
        write(folder, files)
        monkeypatch.setattr(tasks, "_write", write)
        tasks_folder()  # the other process

    monkeypatch.setattr(tasks, "_write", slow)
    folder = tasks_folder()
    assert folders(cache_folder) == [folder]
    assert "prh_align_cielab" in manager().all_tasks


def _many(start: Any, found: Any) -> None:
    start.wait()
    for _ in range(5):
        folder = tasks_folder()
        found.put((str(folder), len(list(folder.rglob("*.yaml")))))


def test_many_processes_at_once(place: Path, cache_folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Event(), context.Queue()
    processes = [context.Process(target=_many, args=(start, found)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    seen = {found.get(timeout=60) for _ in range(20)}
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert seen == {(str(folders(cache_folder)[0]), len(STATIC) + len(reference_names()))}
    assert len(folders(cache_folder)) == 1


def test_folders_that_nobody_used_for_long_go(place: Path, cache_folder: Path) -> None:
    used, unused, left = (
        tasks_folder(),
        cache_folder / "tasks" / "old",
        cache_folder / "tasks/.x.tmp",
    )
    young = cache_folder / "tasks" / "young"
    for folder in (unused, left, young):
        shutil.copytree(used, folder)
    now = used.stat().st_mtime
    for folder in (used, unused, left):
        os.utime(folder, (now - 40 * 86400,) * 2)
    os.utime(young, (now - 20 * 86400,) * 2)
    tasks_folder()  # is used again, which counts
    add("mine")
    new = tasks_folder()
    assert folders(cache_folder) == sorted([used, young, new])


@pytest.fixture
def unwritable(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (place / "file").write_text("in the way")
    monkeypatch.setenv("PRH_EVAL_CACHE", str(place / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def test_without_a_cache_folder_there_is_a_temporary_one(unwritable: Path) -> None:
    add("mine")
    first, second = tasks_folder(), tasks_folder()
    assert first == second
    assert first.is_relative_to(unwritable)
    assert "prh_align_mine" in manager().all_tasks
    assert len(list(unwritable.glob("prh_eval_tasks_*"))) == 1


def test_the_temporary_folder_goes_with_the_process(unwritable: Path) -> None:
    code = (
        "from prh_eval.references.tasks import tasks_folder; folder = tasks_folder(); "
        "print(folder, folder.is_dir())"
    )
    root = str(Path(tasks.__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(unwritable)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder, there = done.stdout.split()
    assert there == "True" and folder.startswith(str(unwritable))
    assert not Path(folder).exists()
    assert not list(unwritable.glob("prh_eval_tasks_*"))


def test_a_folder_that_must_last_is_the_packages_own_with_a_warning(
    unwritable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tasks_folder(lasting=True) == resources.folder("tasks")
    assert "PRH_EVAL_CACHE can name another" in caplog.text
    assert not list(unwritable.glob("prh_eval_tasks_*"))


def test_a_folder_that_lasts(cache_folder: Path) -> None:
    assert tasks_folder(lasting=True) == tasks_folder()
    assert tasks_folder().parent == cache_folder / "tasks"


def test_another_users_cache_folder_is_read(
    place: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tasks_folder()

    def refused(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tasks.os, "utime", refused)
    monkeypatch.setattr(tasks, "_write", refused)
    assert tasks_folder() == folder
