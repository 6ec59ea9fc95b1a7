"""lm-eval's result files, of every 0.4 version and of 0.3, found and read."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.scores import STAMP, Score, Unusable, scores_of

_HEAD = 4096  # bytes
_SMALL = 1 << 20  # bytes; what is larger is read only if its name or beginning is a result file's
_LARGEST = 1 << 28  # bytes; lm-eval's largest result files have a few MB
_NAME = re.compile(r"^results(_.*)?\.json$")
# lm-eval writes the results first.
_BEGINNING = re.compile(rb'^(\xef\xbb\xbf)?\s*\{\s*"results"\s*:\s*\{')


@dataclass(frozen=True)
class Skipped:
    """A file, or a value in it, that was not read.

    Attributes:
        path: Relative to the folder that was read, with forward slashes.
        reason: A clause that says why.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Results:
    """What the result files under a folder hold.

    Attributes:
        scores: By file, in the order of paths.
        skipped: What looks like a result and is none, and values that cannot be.
        files: Number of files with at least one score.
    """

    scores: tuple[Score, ...]
    skipped: tuple[Skipped, ...]
    files: int


def read_results(folder: Path, *, progress: bool = True) -> Results:
    """Read all of lm-eval's result files under a folder.

    Whatever else lies there is passed over, unread where name, size and beginning tell. Links to
    folders are not followed.

    Args:
        folder: Where to look, at any depth.
        progress: Show a progress bar, if there is a terminal.

    Returns:
        Every score in every file, those of runs with a limit included; ``merging.merge`` chooses.

    Raises:
        PrhEvalError: If there is no such folder.
    """
    if not folder.is_dir():
        raise PrhEvalError(f"{folder} is no folder; it should be one with lm-eval's result files")
    scores: list[Score] = []
    skipped: list[Skipped] = []
    paths = sorted(_json_files(folder, skipped))
    files = 0
    for path in tqdm(paths, desc="result files", disable=None if progress else True):
        name = path.relative_to(folder).as_posix()
        before = len(scores)
        try:
            data = _load(path)
            if data is not None:
                for found in scores_of(data, path, name):
                    if isinstance(found, Score):
                        scores.append(found)
                    else:
                        skipped.append(Skipped(name, found))
        except Unusable as error:
            skipped.append(Skipped(name, str(error)))
        files += len(scores) > before
    return Results(tuple(scores), tuple(skipped), files)


def read_some_results(folder: Path, *, progress: bool = True) -> Results:
    """`read_results` of a folder that is there for its result files.

    Raises:
        PrhEvalError: If there is no such folder, or no result file in it.
    """
    results = read_results(folder, progress=progress)
    if not (results.files or results.skipped):
        raise PrhEvalError(
            f"{folder} holds no result file of lm-eval; it should hold results_<date>.json of "
            "lm_eval --output_path"
        )
    return results


# ---------------------------------------------------------------- files


def _json_files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        place = Path(str(error.filename)).relative_to(folder).as_posix()
        skipped.append(Skipped(place, f"the folder cannot be read: {error.strerror}"))

    for place, _, names in os.walk(folder, followlinks=False, onerror=unreadable):
        yield from (Path(place, name) for name in names if name.endswith(".json"))


def _load(path: Path) -> dict[str, Any] | None:
    """A result file's content; None if the file is something else."""
    by_name = bool(_NAME.match(path.name) or STAMP.search(path.name))
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would never end
            return None
        with path.open("rb") as file:
            content = file.read(_HEAD)
            looks = by_name or bool(_BEGINNING.match(content))
            if not looks and about.st_size > _SMALL:
                return None
            if about.st_size > _LARGEST:
                raise Unusable(f"it has {about.st_size >> 20} MB, too many for a result file")
            content += file.read()
    except OSError as error:
        if by_name:
            raise Unusable(f"it cannot be read: {error.strerror}") from None
        return None
    # An unlikely name, and the keys in another order: someone may have sorted them.
    if not looks and not (b'"results"' in content and b'"versions"' in content):
        return None
    try:
        data: Any = json.loads(content)
    except RecursionError:
        raise Unusable("it is nested too deeply for a result file") from None
    except ValueError as error:
        cut = " (cut?)" if not content.rstrip().endswith(b"}") else ""
        raise Unusable(f"it is not valid JSON{cut}: {error}") from None
    if not isinstance(data, dict):
        raise Unusable("it is JSON, but no object as lm-eval's files are")
    results = data.get("results")
    if not isinstance(results, dict) or not any(isinstance(v, dict) for v in results.values()):
        raise Unusable("it is JSON, but holds no results by task, as lm-eval's files do")
    if not isinstance(data.get("versions"), dict) or not isinstance(data.get("config"), dict):
        raise Unusable("it has results, but not lm-eval's keys `versions` and `config`")
    return data
