"""Models that were run once against references of later days, from their kept graphs alone.

lm-eval's own evaluator makes the scores and its own tracker writes the files; in place of a model
stands one that answers with the graphs in the cache.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, get_git_commit_hash
from tqdm import tqdm

from prh_eval import __version__, store
from prh_eval.alignment.registry import metric
from prh_eval.artifacts import (
    MODEL_IDENTITY,
    Kept,
    captions_of,
    data_of,
    kept_headers,
    largest,
    models_named,
    short_names,
)
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.harness.options import PREFIX
from prh_eval.harness.requests import CaptionNeighbors
from prh_eval.harness.task import AlignmentTask
from prh_eval.harness.token_bags import kept_tokens
from prh_eval.references.registry import load_reference
from prh_eval.references.tasks import task_config
from prh_eval.resources import cache_folder
from prh_eval.store import ArtifactError, GraphArtifact

log = logging.getLogger(__name__)

# Captions' fingerprint -> the graphs of one model.
_Graphs = dict[str | None, GraphArtifact]


@dataclass(frozen=True)
class Rescored:
    """One score that was written.

    Attributes:
        model: The model's name as it was given to lm-eval.
        reference: The reference's name.
        metric: What the score is of, as results call it: ``mnn`` for mutual kNN.
        score: The score.
        stderr: Its standard error; None where the metric has none.
        path: The result file.
    """

    model: str
    reference: str
    metric: str
    score: float
    stderr: float | None
    path: Path


def rescore(
    references: Sequence[str],
    output: Path,
    *,
    models: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[Rescored]:
    """Score the models in the cache against references, and write lm-eval result files.

    A model is scored where its graphs are of the captions that the task reads, with the task's
    pooling and protocol. There is one file a model; another dtype, revision or adapter, or
    whatever else makes its graphs others, is another model.

    Args:
        references: Names or YAML files; their graphs are built where they are missing. Empty: all
            whose graphs are in the cache.
        output: lm-eval's ``--output_path``: a folder, in which each model has its own.
        models: Names of models as given to lm-eval, or the last parts of their paths; empty: all.
        options: Settings of the task without the prefix ``prh_`` (``k``, ``pooling``, ...).

    Returns:
        What was written, by model and reference.

    Raises:
        PrhEvalError: If a name is unknown, an option is wrong, no kept graphs fit, a reference
            cannot be built or a file cannot be written.
    """
    if output.suffix == ".json":
        raise PrhEvalError(
            f"--output_path {output} should be a folder: each model has its own file"
        )
    kept = _models(models)
    fitting = _fitting(_tasks(references, options or {}), kept, explicit=bool(references))
    by_model: dict[tuple[str, ...], dict[_Task, Kept]] = {}
    for task, found in fitting.items():
        for each in found:
            identity = tuple(str(each.header.get(field)) for field in MODEL_IDENTITY)
            by_model.setdefault(identity, {})[task] = each
    environment = {"git_hash": get_git_commit_hash()}
    add_env_info(environment)
    written = []
    for _, graphs in tqdm(sorted(by_model.items()), desc="models", disable=None):
        written += _score(graphs, output, environment)
    if not written:
        raise PrhEvalError("all graphs that fit are damaged, so nothing was scored")
    return written


# ---------------------------------------------------------------- what is scored


class _Task(AlignmentTask):
    """An alignment task whose requests are made once, however many models answer them."""

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.config.task)

    @property
    def captions(self) -> str:
        """Fingerprint of the captions that it reads."""
        return self._load_pairs().fingerprint

    def build_all_requests(self, **kwargs: Any) -> None:
        if self._instances is None:
            super().build_all_requests(**kwargs)
        for instance in self._instances or []:
            instance.resps, instance.filtered_resps = [], {}


def _models(names: Sequence[str]) -> list[Kept]:
    """The models' graphs in the cache; of those that differ in k only, the largest."""
    kept = [each for each in kept_headers("models") if each.header["kind"] == "language model"]
    if not kept:
        raise PrhEvalError(
            f"no model was run yet that could be scored: there are no graphs in "
            f"{cache_folder() / 'models'}"
        )
    if not names:
        return largest(kept)
    chosen: list[Kept] = []
    for name in names:
        found = models_named(kept, name)
        if not found:
            known = suggestion(name, short_names(kept))
            raise PrhEvalError(f"no graphs of the model {name!r} are in the cache; {known}")
        chosen += [each for each in found if each not in chosen]
    return largest(chosen)


def _tasks(references: Sequence[str], options: Mapping[str, Any]) -> list[_Task]:
    tasks = [_task(given, options) for given in references or _built()]
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise PrhEvalError(f"two references make the task {twice[0]!r}; one should be left out")
    return tasks


def _built() -> list[str]:
    """The names of all references whose graphs are in the cache and whose files are found."""
    names = []
    for name in sorted({kept.name for kept in kept_headers("references")}):
        try:
            names.append(load_reference(name).name)
        except PrhEvalError as error:
            log.warning("the reference %s is left out: %s", name, error)
    if not names:
        raise PrhEvalError(
            "no reference is built here that models could be scored against; "
            "`prh-eval references build NAME` builds one, and `prh-eval rescore NAME` does so too"
        )
    return names


def _task(given: str, options: Mapping[str, Any]) -> _Task:
    reference = load_reference(given)
    config = task_config(reference)
    del config["tag"]  # lm-eval keeps it to itself
    # A file is named by its path, for only then is it found again.
    config["metadata"][PREFIX + "reference"] = given
    config["metadata"].update({PREFIX + key: value for key, value in options.items()})
    return _Task(config)


def _fitting(
    tasks: Iterable[_Task], kept: Sequence[Kept], *, explicit: bool
) -> dict[_Task, list[Kept]]:
    """The graphs that answer each task; a task that none answers is left out.

    So is one of a reference that nobody asked for by name and that cannot be had, with a warning.
    """
    fitting, without = {}, []
    for task in tasks:
        try:
            if metric(task.options.metric).needs == "features":
                raise PrhEvalError(
                    f"the metric {task.options.metric!r} of {task.reference.name} compares "
                    "features, and of models that were run only neighbour graphs are kept; the "
                    "models should be run again with lm_eval"
                )
            found = [each for each in kept if _fits(each.header, task)]
            if found:
                task.build_all_requests()  # and the reference, where it is missing or not current
        except PrhEvalError as error:  # its data or its encoder cannot be had
            if explicit:
                raise
            log.warning("the reference %s is left out: %s", task.reference.name, error)
            continue
        if found:
            fitting[task] = found
        else:
            without.append(task)
    if not fitting:
        wanted = "; ".join(_wanted(task) for task in without) or "the references"
        raise PrhEvalError(f"no model in the cache fits {wanted}; there are {_there_is(kept)}")
    for task in without if explicit else []:
        log.warning("no model in the cache fits %s; there are %s", _wanted(task), _there_is(kept))
    return fitting


def _fits(header: Mapping[str, Any], task: _Task) -> bool:
    # A model knows nothing of its captions' items but the captions.
    return bool(
        captions_of(header) == task.captions
        and header["pooling"] == task.options.pooling
        and header["protocol"] == task.options.protocol
        and header["graph_k"] >= task.options.k
    )


def _wanted(task: _Task) -> str:
    pairs, options = task._load_pairs(), task.options
    return (
        f"{task.reference.name} ({pairs.name}, {len(pairs)} items, captions "
        f"{task.captions[:8]}, pooling {options.pooling}, protocol {options.protocol}, "
        f"k = {options.k})"
    )


def _there_is(kept: Iterable[Kept]) -> str:
    """The data and settings of graphs, and how many models have them."""
    count = Counter(
        f"on {data_of(each.header)}, pooling {each.header['pooling']}, protocol "
        f"{each.header['protocol']}, k up to {each.header['graph_k']}"
        for each in kept
    )
    return "; ".join(
        f"{number} {'model' if number == 1 else 'models'} {what}"
        for what, number in sorted(count.items())
    )


# ---------------------------------------------------------------- scoring


class _KeptGraphs(LM):
    """In a model's place: answers with the graphs that it made when it was run."""

    def __init__(self, graphs: _Graphs) -> None:
        super().__init__()
        self._graphs = graphs

    def prh_neighbor_graphs(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[CaptionNeighbors]:
        tokens = {captions: kept_tokens(kept.header) for captions, kept in self._graphs.items()}
        answers = []
        for request in requests:
            captions = request.args[1]["captions"]
            place = int(request.doc_id or 0)
            answers.append(CaptionNeighbors(place, self._graphs[captions], tokens=tokens[captions]))
        return answers

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = generate_until = loglikelihood


def _score(
    wanted: Mapping[_Task, Kept], output: Path, environment: Mapping[str, Any]
) -> list[Rescored]:
    """One model against the references that its graphs fit, written as one result file."""
    graphs: _Graphs = {}
    for kept in {kept.path: kept for kept in wanted.values()}.values():
        try:
            graphs[captions_of(kept.header)] = store.read_artifact(kept.path)
        except ArtifactError as error:
            log.warning("left out: %s", error)
    able = {task: kept for task, kept in wanted.items() if captions_of(kept.header) in graphs}
    if not able:
        return []
    started = time.time()
    results: Any = evaluate(
        lm=_KeptGraphs(graphs),
        task_dict={task.name: task for task in able},
        bootstrap_iters=0,
        log_samples=False,
    )
    header = next(iter(able.values())).header
    files = {task.name: kept.path.name for task, kept in able.items()}
    results["config"] = _config(header, files)
    results.update(date=started, max_length=header["max_length"], **environment)
    path = _write(results, output)
    written = []
    for task, kept in able.items():
        scores, read = results["results"][task.name], task.options.filter
        name = metric(task.options.metric).prefix
        score, stderr = scores[f"{name},{read}"], scores[f"{name}_stderr,{read}"]
        # lm-eval has a word where there is none.
        known = stderr if isinstance(stderr, float) else None
        written.append(Rescored(kept.name, task.reference.name, name, score, known, path))
    return written


def _config(header: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """What lm-eval's result files say of a run, as far as the graphs know it."""
    as_given = {
        "pretrained": header["model"],
        "mixed_precision_dtype": header["mixed_precision"].removeprefix("torch.") or None,
        **{
            name: header[name]
            for name in ("revision", "dtype", "peft", "delta", "max_length", "add_bos_token")
        },
    }
    unknown = ("batch_size", "device", "use_cache", "limit", "gen_kwargs")
    seeds = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
    return {
        "model": "hf",
        "model_args": {name: value for name, value in as_given.items() if value is not None},
        "model_num_parameters": header["parameters"],
        "model_dtype": header["dtype"],
        "model_revision": header["revision"],
        "model_sha": header["commit"] or "",
        "batch_sizes": [],
        "bootstrap_iters": 0,
        **dict.fromkeys((*unknown, *seeds)),
        "rescored": {
            "from": "neighbour graphs that were kept when the model was run; it was not run again",
            "graphs": files,
            "prh_eval": __version__,
        },
    }


def _write(results: dict[str, Any], output: Path) -> Path:
    """The file that lm-eval's own tracker writes."""
    tracker = EvaluationTracker(output_path=str(output))
    about = tracker.general_config_tracker
    about.log_experiment_args("hf", results["config"]["model_args"], None, None, False)
    tracker.save_results_aggregated(results)
    # The tracker logs what went wrong and goes on.
    name = f"results_{getattr(tracker, 'date_id', '')}.json"
    path = output / str(about.model_name_sanitized) / name
    if not path.is_file():
        raise PrhEvalError(f"{path} cannot be written; --output_path should be a writable folder")
    return path
