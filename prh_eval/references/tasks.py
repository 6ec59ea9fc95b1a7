"""The folder of task YAMLs that lm-eval scans: the package's own, and one for every reference."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prh_eval import resources
from prh_eval.references.registry import TASK_PREFIX, valid_references
from prh_eval.schema import Reference

# The subfolder with the tasks of references alone.
GENERATED = "references"

_UNUSED_FOR = 30 * 24 * 3600  # seconds, after which a folder is removed

log = logging.getLogger(__name__)


def tasks_folder(*, lasting: bool = False) -> Path:
    """A folder with all our task YAMLs, for lm-eval's ``--include_path``.

    lm-eval lets a tag of a later folder replace that of an earlier one, so one folder holds all.
    It is named after its content and lies in the cache folder. Where nothing can be written there
    it is a temporary one, which goes when the process ends.

    Args:
        lasting: Whether the folder must outlive this process: then it is that of the package's own
            tasks, with a warning, where the cache folder cannot be written.

    Returns:
        The folder; its subfolder ``references`` has the tasks ``prh_align_<name>``.

    Raises:
        OSError: If no folder can be written at all.
    """
    files = {**_own(), **_generated()}
    try:
        return _kept(resources.cache_folder() / "tasks", files)
    except OSError as error:
        if not lasting:
            return _kept(_temporary(), files)
        own = resources.folder("tasks")
        log.warning(
            "the tasks of reference files cannot be written to the cache folder (%s): %s has only "
            "the package's own; PRH_EVAL_CACHE can name another cache folder",
            error.strerror or error,
            own,
        )
        return own


def _own() -> dict[str, str]:
    folder = resources.folder("tasks")
    return {
        f"package/{path.relative_to(folder).as_posix()}": path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("**/*.yaml"))
    }


def _generated() -> dict[str, str]:
    return {
        f"{GENERATED}/{TASK_PREFIX}{reference.name}.yaml": _task(path, reference)
        for path, reference in valid_references().items()
    }


def task_config(reference: Reference) -> dict[str, Any]:
    """The lm-eval task ``prh_align_<name>`` of a reference, but for its class."""
    return {
        "task": TASK_PREFIX + reference.name,
        "tag": ["prh", f"prh_{reference.kind}"],
        "output_type": "prh_neighbor_graphs",
        "num_fewshot": 0,
        "metadata": {
            "version": reference.version,
            "prh_reference": reference.name,
            "prh_metric": reference.metric,
        },
    }


def _task(path: Path, reference: Reference) -> str:
    return (
        f"# Made by prh_eval from {str(path)!r}.\n"
        "class: !function prh_eval.harness.task.AlignmentTask\n"
        f"{yaml.safe_dump(task_config(reference), sort_keys=False)}"
    )


def _kept(parent: Path, files: Mapping[str, str]) -> Path:
    """A folder with these files, whole whenever it is there, whoever else is making it."""
    content = json.dumps(files, sort_keys=True).encode("ascii")
    target = parent / hashlib.sha256(content).hexdigest()[:16]
    if not _holds(target, files):
        parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile's, which only its owner may read: a cache folder may be shared.
        temporary = parent / f".{uuid.uuid4().hex}.tmp"
        try:
            _write(temporary, files)
            if target.exists() and not _holds(target, files):
                shutil.rmtree(target)
            temporary.rename(target)
        except OSError:
            if not _holds(target, files):  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _remove_unused(parent)
    with contextlib.suppress(OSError):  # another user's
        os.utime(target)
    return target


def _holds(folder: Path, files: Mapping[str, str]) -> bool:
    try:
        found = {
            path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
            for path in folder.glob("**/*.yaml")
        }
    except (OSError, UnicodeDecodeError):
        return False
    return found == files


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _remove_unused(parent: Path) -> None:
    for entry in parent.iterdir():
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime < time.time() - _UNUSED_FOR:
                shutil.rmtree(entry, ignore_errors=True)


@functools.cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="prh_eval_tasks_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
