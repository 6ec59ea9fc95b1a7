"""Where references are found, by name or by path."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prh_eval import resources
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.schema import REFERENCE, Reference
from prh_eval.validation import mistake, read_yaml

# The environment variable that names further folders, separated as in PATH.
FOLDERS = "PRH_EVAL_REFERENCES"
SUFFIX = ".yaml"
# A reference's name becomes the name of its task.
TASK_PREFIX = "prh_align_"

log = logging.getLogger(__name__)


def reference_names() -> list[str]:
    """The names of all valid references, sorted; see :func:`valid_references`."""
    return sorted(reference_files())


def reference_files() -> dict[str, Path]:
    """The files of all valid references, by name; see :func:`valid_references`."""
    return {reference.name: path for path, reference in valid_references().items()}


def valid_references() -> dict[Path, Reference]:
    """All valid references, by file.

    They are looked for in the folder that comes with the package, in ``./references/`` of the
    working folder, and in the folders that ``PRH_EVAL_REFERENCES`` names. Where two files have the
    same name the earlier one stands. A file that is broken, or ignored for its name, is one warning
    in a process, and hurts no other.
    """
    found = {}
    for path in found_files().values():
        try:
            found[path] = _load(path)
        except PrhEvalError as error:
            _warn_once(f"a reference is left out: {error}")
    return found


def found_files() -> dict[str, Path]:
    """The file of each name, valid or not, sorted by name; see :func:`valid_references`."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in _files(folder):
            first = found.setdefault(path.stem, path)
            if first is not path and not _same(first, path):
                _warn_once(
                    f"the reference file {path} is ignored: {first} has the same name and is found "
                    "first; rename one of them"
                )
    return dict(sorted(found.items()))


def load_reference(name_or_path: str | Path) -> Reference:
    """Read and validate a reference.

    Args:
        name_or_path: A name from :func:`reference_names`, or a path that ends in ``.yaml``. Paths
            within the file are relative to it; those of a hub data set and of an encoder only if
            they start with ``./`` or ``../``, for they look like hub ids otherwise.

    Returns:
        The reference, of the type that its kind asks for.

    Raises:
        PrhEvalError: If there is no such reference, or the file has a mistake; the sentence says
            where and what would be right.
    """
    given = str(name_or_path)
    if given.endswith(SUFFIX):
        path = Path(os.path.expanduser(given))
        if not path.is_file():
            raise PrhEvalError(f"there is no reference file {given!r}")
        return _load(path)
    if given.lower().endswith((SUFFIX, ".yml")):
        raise PrhEvalError(f"the reference file {given!r} should end in {SUFFIX}")
    files = found_files()
    if given not in files:
        raise PrhEvalError(f"unknown reference {given!r}; {suggestion(given, files)}")
    return _load(files[given])


def relative_of(reference: Reference) -> Reference | None:
    """The near relative that a reference's file names, if it names one.

    Raises:
        PrhEvalError: If there is no such reference, or it is on other pairs.
    """
    if reference.relative is None:
        return None
    try:
        relative = load_reference(reference.relative)
    except PrhEvalError as error:
        raise PrhEvalError(f"the key 'relative' of {reference.name}: {error}") from error
    if relative.pairs != reference.pairs:
        raise PrhEvalError(
            f"the key 'relative' of {reference.name} is {relative.name!r}, which is on other "
            "pairs; it should name a reference whose 'pairs' are the same"
        )
    return relative


# ------------------------------------------------------------------ finding


def _folders() -> list[Path]:
    own = Path("references")
    named = [part for part in os.environ.get(FOLDERS, "").split(os.pathsep) if part]
    return [
        resources.folder("references"),
        *([own.absolute()] if own.is_dir() else []),
        *(Path(os.path.expanduser(part)).absolute() for part in named),
    ]


def _files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        reason = error.strerror or error
        _warn_once(f"the folder of references {folder} cannot be read ({reason}); see {FOLDERS}")
        return
    for entry in entries:
        if entry.name.startswith(".") or os.path.isdir(entry):
            continue
        if entry.suffix == SUFFIX:
            yield entry
        elif entry.suffix.lower() in (SUFFIX, ".yml"):
            _warn_once(
                f"the file {entry} is ignored: a reference's file ends in {SUFFIX}; rename it"
            )


def _same(first: Path, second: Path) -> bool:
    """Whether two files say the same; their own relative paths count."""
    try:
        return first.samefile(second) or _load(first) == _load(second)
    except (OSError, PrhEvalError):
        return False


@functools.cache
def _warn_once(sentence: str) -> None:
    # lm-eval makes several task managers in a process, and each lists the references.
    log.warning("%s", sentence)


# ------------------------------------------------------------------ reading


def _load(path: Path) -> Reference:
    _check_name(path)
    content = {"name": path.stem, **read_yaml(path)}
    try:
        _resolve_paths(content, path.parent)
        reference = REFERENCE.validate_python(content)
    except ValidationError as error:
        raise PrhEvalError(f"{path}: {mistake(error, Reference)}") from None
    except ValueError as error:
        raise PrhEvalError(f"{path}: it has a path that cannot be one: {error}") from None
    if reference.name != path.stem:
        raise PrhEvalError(
            f"{path}: the key 'name' is {reference.name!r}; it should be left out or be the file's "
            f"name, {path.stem!r}"
        )
    return reference


def _check_name(path: Path) -> None:
    name = path.stem
    # lm-eval takes the name of a task that ends in .yaml for a path.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.endswith(SUFFIX):
        raise PrhEvalError(
            f"{path}: a reference is called after its file, so {name!r} should consist of letters, "
            "digits, '_', '-' and '.', and begin with a letter or digit; rename the file"
        )
    if (resources.folder("tasks") / f"{TASK_PREFIX}{name}.yaml").exists():
        raise PrhEvalError(
            f"{path}: the name {name!r} would make the task {TASK_PREFIX}{name}, which comes with "
            "the package as another one; rename the file"
        )


def _resolve_paths(content: dict[Any, Any], folder: Path) -> None:
    """Make the paths in a reference absolute; those in its file are relative to the file."""
    for name in ("pairs", "encoder", "features", "values"):
        section = content.get(name)
        if not isinstance(section, dict) or not isinstance(section.get("path"), str):
            continue
        path = os.path.expanduser(section["path"])
        perhaps_hub = name == "encoder" or (name == "pairs" and section.get("kind") == "hub")
        marked = path.startswith(("./", "../")) or path in (".", "..")
        if not os.path.isabs(path) and (marked or not perhaps_hub):
            path = os.path.realpath(folder / path)
        section["path"] = path
