"""From lm-eval's result files to the alignments in them, those of older versions too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.findings import Findings
from prh_eval.leaderboard.naming import public_names
from prh_eval.leaderboard.pages.escaping import one_line
from prh_eval.leaderboard.scores import STAMP
from prh_eval.validation import mistake

CACHE = "the graphs in the cache"
# What makes results of one name those of different models.
_IDENTITY = ("model", "revision", "dtype", "peft")


@dataclass(frozen=True)
class Shown:
    """An alignment that is to be shown, and where it came from.

    Attributes:
        findings: The alignment.
        source: A file, or `CACHE`.
        task: lm-eval's name of the task; None where the numbers are not of a result file.
    """

    findings: Findings
    source: str
    task: str | None = None

    @property
    def model(self) -> str:
        """The model's name on one line; of a place on a machine its last part."""
        header = self.findings.model
        given = str(header.get("model") or header.get("reference") or "unnamed model")
        given = given.rstrip("/\\") or given
        return one_line(public_names([given])[given]) or "unnamed model"

    @property
    def reference(self) -> str:
        """The reference's name on one line."""
        return one_line(self.given_reference) or "unnamed reference"

    @property
    def given_reference(self) -> str:
        """The reference's name as the record has it; empty where it has none."""
        return str(self.findings.reference.get("reference") or "")

    @property
    def data(self) -> str:
        """Name of the paired data, on one line."""
        pairs = self.findings.reference.get("pairs")
        of_graphs = pairs.get("name") if isinstance(pairs, dict) else None
        return one_line(str(of_graphs or self.findings.pairs.get("name") or "unnamed data"))


def read_file(path: Path) -> list[Shown]:
    """The alignments in one result file, by task, or the one that ``prh-eval align`` wrote.

    Raises:
        PrhEvalError: If the file cannot be read, is no result file, has no alignment, or has one
            that is damaged.
    """
    content = _load(path)
    if _is_of_files(content):
        return [Shown(_findings(_of_files(content), {}, f"{path}: the alignment"), str(path))]
    return _alignments(content, path)


def read_folder(folder: Path) -> list[Shown]:
    """The newest of each task and metric, in lm-eval's result files at any depth of a folder.

    Returns:
        By task and metric; none if no file holds an alignment.

    Raises:
        PrhEvalError: If a result file is damaged, or they are of several models.
    """
    newest: dict[tuple[str, str], tuple[tuple[float, str], Shown]] = {}
    models: dict[tuple[str, ...], Path] = {}
    for path in sorted(folder.rglob("*.json")):
        if not (path.name.startswith("results") or STAMP.search(path.name)) or not path.is_file():
            continue
        content = _load(path)
        if not list(_records(content)):
            continue
        date = content.get("date")
        age = (float(date) if isinstance(date, (int, float)) else 0.0, path.name)
        for shown in _alignments(content, path):
            header = shown.findings.model
            models.setdefault(tuple(str(header.get(field)) for field in _IDENTITY), path)
            assert shown.task is not None
            key = (shown.task, shown.findings.metric)
            if key not in newest or newest[key][0] < age:
                newest[key] = age, shown
    if len(models) > 1:
        files = sorted(path.relative_to(folder).as_posix() for path in models.values())
        listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        raise PrhEvalError(
            f"{folder} holds alignments of {len(models)} models; the folder or file of one should "
            f"be named, as one of {one_line(listed)}"
        )
    return [shown for _, (_, shown) in sorted(newest.items())]


def chosen(
    found: Sequence[Shown],
    *,
    task: str | None = None,
    reference: str | None = None,
    k: int | None = None,
) -> list[Shown]:
    """Of the alignments in result files those that were asked for.

    Args:
        found: At least one.
        task: Only of this task.
        reference: Only with this reference.
        k: The neighbourhood size that they should be of.

    Raises:
        PrhEvalError: If none is left; the sentence says what there is.
    """
    if task is not None and found[0].task is None:
        raise PrhEvalError(f"{found[0].source} is of no task; --task is of lm_eval's result files")
    of_task = [shown for shown in found if task in (None, shown.task)]
    if not of_task:
        there = suggestion(str(task), {one_line(str(shown.task)) for shown in found})
        raise PrhEvalError(f"no alignment of the task {task!r} is in {found[0].source}; {there}")
    left = [shown for shown in of_task if reference in (None, shown.given_reference)]
    if not left:
        there = suggestion(str(reference), {shown.reference for shown in of_task})
        raise PrhEvalError(f"no alignment with {reference!r} is in {found[0].source}; {there}")
    for shown in left:
        if k not in (None, shown.findings.k):
            raise PrhEvalError(
                f"{shown.source} was made with k = {shown.findings.k}, not {k}; for another k it "
                "should be made anew, or a model be named whose graphs are in the cache"
            )
    return left


# ---------------------------------------------------------------- files


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        there = [each.name for each in path.parent.glob("*.json")]
        near = suggestion(path.name, there) if there else "its folder holds no such files"
        raise PrhEvalError(f"there is no file {path}; {one_line(near)}") from None
    except OSError as error:
        raise PrhEvalError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError:
        raise PrhEvalError(f"{path} is nested too deeply for a result file") from None
    except ValueError as error:
        raise PrhEvalError(f"{path} is damaged, or no result file: {error}") from None
    whole = isinstance(content, dict)
    if not (whole and (isinstance(content.get("results"), dict) or _is_of_files(content))):
        raise PrhEvalError(
            f"{path} is JSON, but no result file; it should be what lm_eval --output_path or "
            "prh-eval align --output writes"
        )
    return dict(content)


def _records(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record of each alignment task, by the task's name."""
    for task, config in sorted(_dict(content, "configs").items()):
        metadata = _dict(config, "metadata") if isinstance(config, dict) else {}
        if "alignment" in metadata:
            yield task, metadata["alignment"]


def _alignments(content: Mapping[str, Any], path: Path) -> list[Shown]:
    found = [
        Shown(
            _findings(
                record, _metrics(content, task), f"{path}: the alignment of {one_line(task)}"
            ),
            str(path),
            task,
        )
        for task, record in _records(content)
    ]
    if not found:
        tasks = ", ".join(sorted(map(one_line, content["results"]))[:5]) or "none"
        raise PrhEvalError(
            f"{path} holds no alignment, which tasks of prh_eval write; its tasks: {tasks}"
        )
    return found


def _is_of_files(content: Mapping[str, Any]) -> bool:
    """Whether it is what ``prh-eval align`` writes of two files of features."""
    return all(isinstance(_dict(content, side).get("file"), str) for side in ("x", "y"))


def _of_files(content: Mapping[str, Any]) -> dict[str, Any]:
    """The record of two files' alignment."""
    model, reference = (PurePath(content[side]["file"]).name for side in ("x", "y"))
    return {
        **content,
        "protocol": content["x"].get("protocol"),
        "pairs": {"name": "rows of two files"},
        "model": {"model": model},
        "reference": {"reference": reference},
    }


def _metrics(content: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A task's results by metric, without the filters' names, which say what captions were read."""
    metrics = _dict(_dict(content, "results"), task)
    return {key.partition(",")[0]: value for key, value in metrics.items()}


def _findings(record: object, metrics: Mapping[str, Any], where: str) -> Findings:
    if not isinstance(record, dict):
        raise PrhEvalError(f"{where} should hold keys and values")
    try:
        findings = Findings.model_validate(_completed(record, metrics))
    except ValidationError as error:
        raise PrhEvalError(f"{where} is damaged: {one_line(mistake(error, Findings))}") from None
    wrong = _mistake(findings)
    if wrong:
        raise PrhEvalError(f"{where} is damaged: {wrong}")
    return findings


def _completed(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A record with what older versions wrote elsewhere, or left to a reader to work out."""
    whole = dict(record)
    for field, metric in (("score", "mnn"), ("stderr", "mnn_stderr")):
        if whole.get(field) is None and _is_number(metrics.get(metric)):
            whole[field] = metrics[metric]
    words = whole.pop("shared_words", None)
    if "controls" not in whole and _is_number(words):
        whole["controls"] = {"shared_words": {"score": words}}
    if whole.get("last") is None and whole.get("last_layers") and "mnn_last_layer" in metrics:
        whole["last"] = {
            "score": metrics["mnn_last_layer"],
            "stderr": metrics.get("mnn_last_layer_stderr"),
            "layers": whole["last_layers"],
        }
    known = all(_is_number(whole.get(field)) for field in ("score", "chance"))
    if whole.get("corrected") is None and known and whole["chance"] < 1:
        whole["corrected"] = (whole["score"] - whole["chance"]) / (1 - whole["chance"])
    return whole


def _mistake(findings: Findings) -> str | None:
    """What cannot be in a record, though its types are right."""
    grid = findings.layer_grid
    if not grid or not grid[0] or len({len(row) for row in grid}) > 1:
        return "its layer grid is no table of numbers"
    try:
        json.dumps(findings.model_dump(), allow_nan=False)
    except ValueError:
        return "it holds a number that is not finite"
    for layer, reference_layer in (
        findings.layers,
        *(each.layers for each in (findings.embedding, findings.last) if each),
        *(findings.cross_fitted.layers if findings.cross_fitted else ()),
    ):
        if not (0 <= layer < len(grid) and 0 <= reference_layer < len(grid[0])):
            return f"the layer pair {layer}, {reference_layer} is outside its layer grid"
    if findings.null is not None and not findings.null.values:
        return "its null has no draws"
    if findings.score is None:
        return "it has no score"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dict(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}
