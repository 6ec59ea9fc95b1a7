"""A board.yaml to finish: columns pinned to what was found, and a card for every model."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from prh_eval.leaderboard.assemble import default_config
from prh_eval.leaderboard.columns import choose, is_of
from prh_eval.leaderboard.config import BoardConfig, TaskColumn
from prh_eval.leaderboard.merging import merge
from prh_eval.leaderboard.naming import public_scores
from prh_eval.leaderboard.results import Results
from prh_eval.leaderboard.scores import Score

log = logging.getLogger(__name__)

_TIMEOUT = 10  # seconds, for the hub to answer on one model
_MOST_TASKS = 12  # other tasks that are mentioned
# The hub has no earlier date: it is when the hub began to keep them.
_FIRST_DATE = "2022-03-02"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_SIZE = re.compile(r"^\d+(\.\d+)?[kmbt]\d?$", re.IGNORECASE)  # BLOOM has 1b7
_PINNED = ("captions", "k", "protocol", "pooling")


@dataclass(frozen=True)
class Found:
    """A model in result files.

    Attributes:
        name: As a page may show it.
        parameters: Every number of parameters that the files tell of it.
    """

    name: str
    parameters: tuple[int, ...]

    @property
    def on_hub(self) -> bool:
        """Whether its name looks like a hub id, and is no folder here."""
        return bool(_HUB_ID.match(self.name)) and not Path(self.name).is_dir()


@dataclass(frozen=True)
class HubFacts:
    """What the hub tells of a model.

    Attributes:
        licence: As its page has it.
        date: Since when it is on the hub, in ISO format.
        parameters: Their number, by the weights' own index.
        chat: Whether it is tagged as made for conversation.
    """

    licence: str | None = None
    date: str | None = None
    parameters: int | None = None
    chat: bool = False


def models(results: Results, config: BoardConfig | None = None) -> list[Found]:
    """The models in result files that have no card yet, by name.

    Args:
        results: The result files.
        config: A board's config with its cards, if there is one.
    """
    sizes: dict[str, set[int]] = {}
    for score in public_scores(results.scores, config.models if config else []):
        if score.model.card is None:
            parameters = score.model.parameters
            sizes.setdefault(score.model.name, set()).update([parameters] if parameters else [])
    return [Found(name, tuple(sorted(sizes[name]))) for name in sorted(sizes)]


def hub_facts(found: Iterable[Found]) -> dict[str, HubFacts]:
    """What the hub tells of models; those it does not know are not there.

    After a first failure to reach it, it is asked no more, and one remark is logged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    facts: dict[str, HubFacts] = {}
    asked = [model for model in found if model.on_hub]
    for model in tqdm(asked, desc="models of the hub", disable=None):
        try:
            facts[model.name] = _facts(HfApi().model_info(model.name, timeout=_TIMEOUT))
        except RepositoryNotFoundError:
            log.info("the hub has no model %r", model.name)
        # What it raises differs from release to release, and nothing here depends on the hub.
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("the hub was not asked for licences and dates: %s", why)
            break
    return facts


def _facts(info: Any) -> HubFacts:
    card: Any = info.card_data or {}
    licence = card.get("license_name") or card.get("license")
    return HubFacts(
        licence=licence if isinstance(licence, str) and licence else None,
        date=info.created_at.date().isoformat() if info.created_at else None,
        parameters=info.safetensors.total if info.safetensors else None,
        chat="conversational" in (info.tags or []),
    )


# ---------------------------------------------------------------- the file


def board_yaml(results: Results, facts: Mapping[str, HubFacts]) -> str:
    """A board.yaml of what was found, for a person to finish.

    Args:
        results: The result files.
        facts: What the hub tells, by model.

    Raises:
        PrhEvalError: If there is no alignment score.
    """
    kept, _ = merge(public_scores(results.scores))
    whole = default_config(results)
    tasks = [task for task in whole.tasks if any(is_of(task, score) for score in kept)]
    lines = [
        "# A board of prh-eval. `prh-eval leaderboard schema` describes every key; what is pinned",
        "# below (version, captions, num_fewshot ...) is what most models' results have.",
        f"title: {_scalar(whole.title)}",
        "# about: What the rows are, a paragraph of Markdown.",
        "",
        "references:",
        *_columns([(column, _pinned_reference(column, kept)) for column in whole.references]),
        "",
        "tasks:" if tasks else "tasks: []",
        *_columns([(column, _pinned_task(column, kept)) for column in tasks]),
        *_other_tasks(kept, {column.task for column in (*whole.references, *tasks)}),
        "",
    ]
    if tasks:
        lines += [
            "# The one hypothesis, declared before looking; all others are exploratory.",
            "primary:",
            f"  reference: {_scalar(whole.references[0].key)}",
            f"  task: {_scalar(tasks[0].key)}",
            "",
        ]
    lines += [
        "# Models of one family share data and recipe. Intervals and tests are over families, so",
        "# that every model needs one.",
        cards_yaml(models(results), facts),
    ]
    return "\n".join(lines)


def cards_yaml(found: Sequence[Found], facts: Mapping[str, HubFacts]) -> str:
    """Model cards as they stand in board.yaml, under the key ``models``."""
    lines = ["models:"]
    for model in found:
        about = facts.get(model.name, HubFacts())
        lines.append(f"  - name: {_scalar(model.name)}")
        lines += (f"    {line}" for line in _card(model, about))
    return "\n".join(lines) + "\n"


def _card(model: Found, about: HubFacts) -> Iterator[str]:
    guess = _family(model.name)
    if guess:
        yield f"# family: {_scalar(guess)}  # guessed from the name: check, then uncomment"
    else:
        yield "# family:  # to be stated"
    if len(model.parameters) == 1:
        yield f"parameters: {model.parameters[0]}"
    elif model.parameters:
        counts = ", ".join(map(str, model.parameters))
        yield f"# parameters:  # the result files have {counts}"
    elif about.parameters:
        yield f"parameters: {about.parameters}"
    if about.date:
        hash_ = "# " if about.date <= _FIRST_DATE else ""
        earlier = " or earlier" if hash_ else ""
        yield f"{hash_}release_date: {about.date}{earlier}  # since when it is on the hub: check"
    if about.chat:
        yield "# kind: instruct  # the hub has it as conversational: check, then uncomment"
    if about.licence:
        yield f"licence: {_scalar(about.licence)}"
    if model.on_hub:
        yield f"link: https://huggingface.co/{model.name}"


def _family(name: str) -> str:
    """A guess at a family: the name without organisation, up to its size."""
    words = re.split(r"(?<=[^-_])[-_](?=[^-_])", name.rpartition("/")[2])
    sizes = [position for position, word in enumerate(words) if _SIZE.match(word)]
    return "-".join(words[: sizes[0]] if sizes else words)


def _columns(columns: Iterable[tuple[Any, Mapping[str, Any]]]) -> Iterator[str]:
    """Lines of columns: what is stated in their config, then what they are pinned to."""
    for column, pinned in columns:
        stated = column.model_dump(exclude_defaults=True, exclude_none=True)
        keys = {"task": column.task, "metric": column.metric, **stated, **pinned}
        for position, (key, value) in enumerate(keys.items()):
            yield f"{'    ' if position else '  - '}{key}: {_scalar(value)}"


def _pinned_reference(column: Any, scores: Sequence[Score]) -> dict[str, Any]:
    first = next(iter(choose(column, scores).scores), None)
    if first is None:  # all that were found are of runs with a limit
        return {}
    return {"version": first.version} | {name: getattr(first.record, name) for name in _PINNED}


def _pinned_task(column: TaskColumn, scores: Sequence[Score]) -> dict[str, Any]:
    first = next(iter(choose(column, scores).scores), None)
    if first is None:
        return {}
    pinned: dict[str, Any] = {"version": first.version} if first.version else {}
    return pinned | ({} if first.n_shot is None else {"num_fewshot": first.n_shot})


def _other_tasks(scores: Iterable[Score], columns: set[str]) -> Iterator[str]:
    """Comments that a person may make columns of."""
    metrics: dict[str, set[str]] = {}
    for score in scores:
        if score.task not in columns and score.record is None:
            metrics.setdefault(score.task, set()).add(score.metric_key)
    if not metrics:
        return
    yield "# Other tasks that were found:"
    for task in sorted(metrics)[:_MOST_TASKS]:
        first, *others = sorted(metrics[task])
        yield f"#  - task: {_scalar(task)}"
        yield f"#    metric: {_scalar(first)}" + (f"  # or {', '.join(others)}" if others else "")
    if len(metrics) > _MOST_TASKS:
        yield f"# and {len(metrics) - _MOST_TASKS} more"


def _scalar(value: Any) -> str:
    """A value in YAML, on one line."""
    plain = not isinstance(value, str) or value.isprintable()
    text = yaml.safe_dump(
        value,
        default_flow_style=True,
        default_style=None if plain else '"',
        allow_unicode=True,
        width=float("inf"),
    )
    return str(text).removesuffix("...\n").rstrip("\n")
