"""From the content of one of lm-eval's result files to scores."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prh_eval.leaderboard.paths import last_part

# Metrics whose values are proportions, and can be nothing outside 0..1.
PROPORTIONS = frozenset(
    {"acc", "acc_norm", "exact_match"}
    | {"mnn", "mnn_calibrated", "mnn_p", "mnn_cross_fitted", "mnn_last_layer", "mnn_chance"}
    | {"mnn_shared_words"}
)
MNN = "mnn"
# How the names of result files end: `--output_path` may give the stem.
STAMP = re.compile(r"_(\d{4}-\d\d-\d\d)T(\d\d)[-_:](\d\d)[-_:](\d\d(?:\.\d+)?)\.json$")

# What stands among a task's metrics and is a number but no metric.
_NO_METRIC = frozenset({"sample_len", "sample_count"})
# Arguments that make other numbers of the same weights.
_QUANTIZED = ("load_in_4bit", "load_in_8bit", "gptqmodel", "autogptq")
_QUANTIZED_BY = ("quantization", "gguf_file")
# Where lm-eval looks for a model's name.
_NAMES = ("pretrained", "model", "path", "engine")


# Name, revision, dtype and adapter.
Identity = tuple[str, str, str, str]


@dataclass(frozen=True)
class ModelRun:
    """The model that a file's scores are of, as the file tells it.

    Attributes:
        name: As it was given to lm-eval; else lm-eval's own name of it; else the folder's name.
        revision: Branch, tag or commit that was asked for; ``main`` where none was.
        sha: The commit that this was.
        dtype: Without ``torch.``, with the quantisation after a comma; None where the file says
            none.
        parameters: Their number.
        peft: Adapter, or delta weights.
        model_args: All arguments; text where the file has them as text.
        backend: lm-eval's name of the model class, such as ``hf`` or ``vllm``.
        card: Name of the model card that is of it, as `naming.public_scores` found; else None.
    """

    name: str
    revision: str
    sha: str | None
    dtype: str | None
    parameters: int | None
    peft: str | None
    model_args: Mapping[str, Any] = field(hash=False)
    backend: str
    card: str | None = None

    @property
    def identity(self) -> Identity:
        """Name, revision, dtype and adapter: runs that differ in none are of one model."""
        return self.name, self.revision, self.dtype or "", self.peft or ""


@dataclass(frozen=True)
class AlignmentRecord:
    """What an alignment score was measured on, as the task writes it beside the score.

    Attributes:
        reference: Name of the reference.
        reference_key: Hash of all that decides the reference's graphs.
        data: Name of the paired data.
        captions: Fingerprint of its items and the captions that were read.
        n: Number of items.
        k: Neighbourhood size.
        metric: Such as ``mutual_knn``.
        chance: What unrelated representations score; None where that depends on them.
        protocol: Preprocessing of the features.
        pooling: Over a caption's tokens.
        layers: The best pair: language layer, reference layer.
        profile: For each language layer its alignment with its best reference layer.
    """

    reference: str
    reference_key: str
    data: str
    captions: str
    n: int
    k: int
    metric: str
    chance: float | None
    protocol: str
    pooling: str
    layers: tuple[int, int]
    profile: tuple[float, ...]

    @property
    def metric_name(self) -> str:
        """What the metric is called among a task's scores: ``mnn`` for ``mutual_knn``."""
        return MNN if self.metric == "mutual_knn" else self.metric

    @property
    def setup(self) -> tuple[str | int, ...]:
        """What two scores must share to be compared."""
        about = (self.reference, self.reference_key, self.data, self.captions, self.n)
        return (*about, self.k, self.metric, self.protocol, self.pooling)


@dataclass(frozen=True)
class Score:
    """One value of one task, or group of tasks, in one file.

    Attributes:
        model: The model.
        task: Name of the task or group.
        metric: Such as ``acc_norm``.
        filter: Such as ``strict-match``; ``none`` where the file names none.
        value: Finite.
        stderr: Its standard error, where there is one.
        higher_is_better: Where the file says so.
        n_shot: Examples in the prompt; None where the file does not say, or where a group's tasks
            differ.
        version: The task's version as text, ``1`` for 1.0; empty where there is none.
        n_samples: Number of documents that were scored.
        limit: What the run was limited to (a count, or a share below 1); None for all documents.
        date: When the run ended, in ISO format; empty where neither name nor content tells.
        file: The file, relative to the folder that was read, with forward slashes.
        prompt: Hashes of chat template and system instruction, and arguments of generation, where
            there were any.
        record: Of a task of ours, what it was measured on.
    """

    model: ModelRun
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    n_shot: int | None
    version: str
    n_samples: int | None
    limit: float | None
    date: str
    file: str
    prompt: str | None = None
    record: AlignmentRecord | None = None

    @property
    def metric_key(self) -> str:
        """Metric and filter as 0.4's files and a board's config have them, no filter left out."""
        return metric_key(self.metric, self.filter)


def metric_key(metric: str, filter_: str) -> str:
    """Metric and filter in one name: ``acc_norm``, ``exact_match,strict-match``."""
    return metric if filter_ == "none" else f"{metric},{filter_}"


class Unusable(Exception):
    """Why a file that looks like a result is none."""


def scores_of(data: Mapping[str, Any], path: Path, name: str) -> Iterator[Score | str]:
    """Every score in a result file's content.

    Args:
        data: The content, with the dicts ``results``, ``versions`` and ``config``.
        path: The file; its name and its folder's tell what the content does not.
        name: The file's name in the scores.

    Yields:
        A score; or a clause on why a value cannot be one.

    Raises:
        Unusable: If none of them can be used.
    """
    model, date, limit = _model(data, path), _date(data, path), _limit(data)
    # Most groups stand in both.
    for task, metrics in {**_dict(data, "groups"), **data["results"]}.items():
        if not isinstance(metrics, dict):
            continue
        counted, there_are = _sample_counts(data, task, metrics)
        # --samples picks documents and leaves no other trace.
        chosen = counted if counted and there_are and counted < there_are else None
        n_shot, version, record = _n_shot(data, task), _version(data, task), _record(data, task)
        for key, value in metrics.items():
            metric, _, filter_ = key.partition(",")  # 0.3 has no filters
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or metric in _NO_METRIC or metric.endswith("_stderr"):
                continue  # an alias, "N/A", null
            stderr = metrics.get(f"{metric}_stderr{key[len(metric) :]}")
            wrong = _impossible(metric, value, stderr)
            if wrong:
                yield f"{task} {key} is {value}: {wrong}"
                continue
            yield Score(
                model=model,
                task=task,
                metric=metric,
                filter=filter_ or "none",
                value=float(value),
                stderr=_finite(stderr),
                higher_is_better=_higher_is_better(data, task, metric),
                n_shot=n_shot,
                version=version,
                n_samples=counted,
                limit=chosen if limit is None else limit,
                date=date,
                file=name,
                # Captions are read without a prompt, whatever was asked for.
                prompt=None if record else _prompt(data, task),
                record=record,
            )


def _impossible(metric: str, value: float, stderr: object) -> str | None:
    """Why a value cannot be, if so."""
    if _finite(value) is None:
        return "it is no finite number"
    if metric in PROPORTIONS and not 0 <= value <= 1:
        return "a proportion lies in 0..1"
    error = _finite(stderr)
    if error is not None and error < 0:
        return f"its standard error, {error}, is negative"
    return None


def _finite(value: object) -> float | None:
    """A number; None for anything else, as lm-eval writes "N/A" where it has none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond floats
        return None


def _n_shot(data: Mapping[str, Any], task: str, within: tuple[str, ...] = ()) -> int | None:
    """How many examples a task's prompts had.

    0.4 says so by task, and by the tasks of a group. 0.3 has one count for all tasks of a file, its
    ``--num_fewshot``; whether that suits a task, nobody asked (see ``merging.merge``).
    """
    config = _dict(_dict(data, "configs"), task)
    for count in (_dict(data, "n-shot").get(task), config.get("num_fewshot")):
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    subtasks = _subtasks(data, task, within)
    if subtasks:
        counts = {_n_shot(data, subtask, (*within, task)) for subtask in subtasks}
        return counts.pop() if len(counts) == 1 else None
    count = data["config"].get("num_fewshot")
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _version(data: Mapping[str, Any], task: str, within: tuple[str, ...] = ()) -> str:
    version = data["versions"].get(task)
    if version is None:
        version = _dict(_dict(_dict(data, "configs"), task), "metadata").get("version", "")
    if version in ("", "N/A"):  # a group without one of its own has its tasks'
        subtasks = _subtasks(data, task, within)
        below = sorted({_version(data, each, (*within, task)) for each in subtasks} - {""})
        return ", ".join(below)
    return f"{version:g}" if isinstance(version, float) else str(version)


def _subtasks(data: Mapping[str, Any], group: str, within: tuple[str, ...] = ()) -> list[str]:
    """The tasks right below a group; none below itself."""
    subtasks = _dict(data, "group_subtasks").get(group)
    if not isinstance(subtasks, list) or group in within:
        return []
    return [str(task) for task in subtasks]


def _record(data: Mapping[str, Any], task: str) -> AlignmentRecord | None:
    """Our own task's record; None where there is none, or not a whole one."""
    found = _dict(_dict(_dict(_dict(data, "configs"), task), "metadata"), "alignment")
    if not found:
        return None
    reference, pairs = _dict(found, "reference"), _dict(found, "pairs")
    made_from = json.dumps(reference.get("made_from"), sort_keys=True)
    try:
        layer, reference_layer = map(int, found["layers"])
        return AlignmentRecord(
            reference=str(reference["reference"]),
            reference_key=hashlib.sha256(made_from.encode()).hexdigest(),
            data=str(_dict(reference, "pairs").get("name") or pairs.get("name") or ""),
            captions=str(pairs["fingerprint"]),
            n=int(found["n"]),
            k=int(found["k"]),
            metric=str(found["metric"]),
            chance=_finite(found.get("chance")),
            protocol=str(found["protocol"]),
            pooling=str(found["pooling"]),
            layers=(layer, reference_layer),
            profile=tuple(max(map(float, row)) for row in found["layer_grid"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _sample_counts(
    data: Mapping[str, Any], task: str, metrics: Mapping[str, Any], within: tuple[str, ...] = ()
) -> tuple[int | None, int | None]:
    """How many documents were scored, and how many the task, or all tasks of the group, have."""
    subtasks = _subtasks(data, task, within)
    below = [_sample_counts(data, each, {}, (*within, task)) for each in subtasks]
    if task not in _dict(data, "n-samples") and below:
        all_scored, all_there_are = ([n for n in each if n] for each in zip(*below, strict=True))
        if len(all_scored) == len(all_there_are) == len(below):
            return sum(all_scored), sum(all_there_are)
    counts = _dict(_dict(data, "n-samples"), task)
    found = (counts.get("effective", metrics.get("sample_len")), counts.get("original"))
    scored, there_are = (n if isinstance(n, int) and n > 0 else None for n in found)
    return scored, there_are


def _higher_is_better(data: Mapping[str, Any], task: str, metric: str) -> bool | None:
    better = _dict(_dict(data, "higher_is_better"), task).get(metric)
    if better is None:
        listed = _dict(_dict(data, "configs"), task).get("metric_list")
        for each in listed if isinstance(listed, list) else []:
            if isinstance(each, dict) and each.get("metric") == metric:
                better = each.get("higher_is_better")
    return better if isinstance(better, bool) else None


# ---------------------------------------------------------------- the run


def _model(data: Mapping[str, Any], path: Path) -> ModelRun:
    config = data["config"]
    args = parse_model_args(config.get("model_args"))
    given = next((args[key] for key in _NAMES if args.get(key)), None)
    name = _text(given or data.get("model_name") or path.parent.resolve().name)
    dtype = config.get("model_dtype") or args.get("dtype")
    quantized = [key for key in _QUANTIZED if args.get(key)]
    quantized += [f"{key} {last_part(_text(args[key]))}" for key in _QUANTIZED_BY if args.get(key)]
    revision = _text(config.get("model_revision") or args.get("revision") or "main")
    if args.get("subfolder"):
        revision += f", subfolder {_text(args['subfolder'])}"
    precision = [str(dtype).removeprefix("torch.")] if dtype else []
    parameters = config.get("model_num_parameters")
    known = isinstance(parameters, int) and not isinstance(parameters, bool) and parameters > 0
    peft = args.get("peft") or args.get("delta")
    return ModelRun(
        name=name.rstrip("/\\") or name,
        revision=revision,
        sha=str(config.get("model_sha") or "") or None,
        dtype=", ".join(precision + quantized) or None,
        parameters=parameters if known else None,  # lm-eval writes -1 where it does not know
        peft=_text(peft) if peft else None,
        model_args=args,
        backend=str(config.get("model") or data.get("model_source") or ""),
    )


def parse_model_args(given: object) -> dict[str, Any]:
    """lm-eval's ``--model_args`` as a result file has them.

    Args:
        given: A dict, or text such as ``pretrained=x,dtype=float16``. A comma within brackets, or
            before what has no ``=``, belongs to the value.

    Returns:
        By name. In text, True, False and None are recognised; other values remain text.
    """
    if isinstance(given, dict):
        return {str(key): value for key, value in given.items()}
    if not isinstance(given, str):
        return {}
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    pieces: list[str] = []
    depth = 0
    for piece in given.split(","):
        if pieces and (depth > 0 or "=" not in piece):
            pieces[-1] += f",{piece}"
        else:
            pieces.append(piece)
        depth += sum(map(piece.count, "[{(")) - sum(map(piece.count, "]})"))
    pairs = (piece.partition("=") for piece in pieces if "=" in piece)
    return {key.strip(): words.get(value.strip().lower(), value.strip()) for key, _, value in pairs}


def _date(data: Mapping[str, Any], path: Path) -> str:
    """When the run ended, by the file's name; else when it began, by its content."""
    stamp = STAMP.search(path.name)
    if stamp:
        day, hour, minute, second = stamp.groups()
        return f"{day}T{hour}:{minute}:{second}"
    try:
        began = datetime.fromtimestamp(float(data["date"]), timezone.utc)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return ""  # 0.3 tells nothing
    return began.replace(tzinfo=None).isoformat()


def _limit(data: Mapping[str, Any]) -> float | None:
    limit = data["config"].get("limit")
    if limit is None:
        return None
    try:
        return float(limit)
    except (TypeError, ValueError, OverflowError):
        raise Unusable(f"its limit should be a number or null, not {limit!r}") from None


def _prompt(data: Mapping[str, Any], task: str) -> str | None:
    """What was done to a task's prompts and answers beyond the task itself."""
    keys = ("chat_template_sha", "system_instruction_sha")
    parts = [f"{key} {data[key]}" for key in keys if data.get(key)]
    generated = _dict(_dict(data, "configs"), task).get("output_type") == "generate_until"
    if generated and data["config"].get("gen_kwargs"):
        parts.append(f"gen_kwargs {data['config']['gen_kwargs']}")
    return ", ".join(parts) or None


def _text(value: object) -> str:
    """As text that can be written: JSON may hold half of a surrogate pair."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _dict(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What stands under a key if it is a dict; else an empty one."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}
