"""What a person may write in ``board.yaml``: the one description of it."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.schema import Name, Section
from prh_eval.validation import mistake, read_yaml

BOARD_FILE = "board.yaml"

HELLASWAG = {"task": "hellaswag", "label": "HellaSwag", "metric": "acc_norm", "chance": 0.25}
# lm-eval 0.3 calls GSM8K's strict match acc.
GSM8K = {"task": "gsm8k", "label": "GSM8K", "metric": "exact_match,strict-match", "also": ["acc"]}
USUAL: dict[str, dict[str, Any]] = {"hellaswag": HELLASWAG, "gsm8k": GSM8K}

_SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_AMOUNT = re.compile(r"^(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([KMBT]?)$")


def _amount(value: Any) -> Any:
    """1.4T, 160M, 300e9 (which YAML reads as text) as a number."""
    found = _AMOUNT.match(value.strip()) if isinstance(value, str) else None
    if found:
        return float(found[1]) * _SUFFIXES[found[2]]
    if isinstance(value, str):
        raise ValueError("it should be a number, as 1400000000, 1.4e9 or 1.4B")
    return value


def _version(value: Any) -> Any:
    """A version as results have it: 1 for 1.0."""
    return f"{value:g}" if isinstance(value, (int, float)) else value


Amount = Annotated[
    float,
    BeforeValidator(_amount),
    Field(gt=0, lt=1e30),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": _AMOUNT.pattern},
            ]
        }
    ),
]
Version = Annotated[
    StrictStr, BeforeValidator(_version), WithJsonSchema({"type": ["string", "number"]})
]
Link = Annotated[StrictStr, Field(pattern=r"^https?://[^\s<>\"']+$")]
Kind = Literal["base", "instruct"]
Control = Literal["untrained weights", "shuffled weights", "other"]


class Column(Section):
    """What all columns of scores have in common."""

    task: Name = Field(description="the lm-eval task, or group of tasks")
    name: Name | None = Field(
        None, description="what the column is called in data and file names; null: the task's name"
    )
    label: Name | None = Field(
        None, description="its heading on the pages; null: its name, or that of the reference"
    )
    version: Version | None = Field(
        None, description="the task's version that is accepted; null: the one most models have"
    )

    @property
    def key(self) -> str:
        """The column's name in data."""
        return self.name or self.task

    @property
    def heading(self) -> str:
        """The column's name for a reader."""
        return self.label or self.key


class ReferenceColumn(Column):
    """Alignment with a reference."""

    metric: Name = Field(
        "mnn",
        description="metric, and after a comma lm-eval's filter where it is not none, as results "
        "have it (mnn,mean_over_captions)",
    )
    captions: StrictStr | None = Field(
        None, description="fingerprint of the paired data that is accepted; null: as for version"
    )
    k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="neighbourhood size that is accepted; null: as for version"
    )
    protocol: Name | None = Field(
        None, description="protocol that is accepted; null: as for version"
    )
    pooling: Name | None = Field(None, description="pooling that is accepted; null: as for version")


class TaskColumn(Column):
    """What models can do."""

    metric: Name = Field(
        description="metric, and after a comma lm-eval's filter where it is not none "
        "(acc_norm; exact_match,strict-match)"
    )
    also: list[Name] = Field(
        [], description="other names of the same metric, as acc in lm-eval 0.3's GSM8K"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="examples in the prompt that are accepted; null: as for version"
    )
    chat_template: StrictBool = Field(
        False, description="take runs with a chat template or system instruction, and only those"
    )
    higher_is_better: StrictBool | None = Field(
        None, description="false for a loss; null: as the result files say"
    )
    chance: Annotated[float, Field(ge=0)] | None = Field(
        None, description="what guessing scores, for the row of chance levels"
    )


class Primary(Section):
    """The one hypothesis that was declared before looking."""

    reference: Name = Field(description="name of a reference's column")
    task: Name = Field(description="name of a task's column")


class Card(Section):
    """What is known of a model, and by whom it was stated."""

    name: Name = Field(description="the model as it was given to lm-eval")
    aliases: list[Name] = Field([], description="other names of it in result files")
    revision: Name | None = Field(
        None, description="the revision this card is of; null: every one without a card of its own"
    )
    title: Name | None = Field(None, description="its name on the pages; null: its name")
    family: Name | None = Field(
        None,
        description="models that share data and recipe; family statistics need every model's",
    )
    parameters: Amount | None = Field(
        None, description="number of parameters (70000000, 70M, 7e7); null: the result file's"
    )
    training_tokens: Amount | None = Field(None, description="tokens it was trained on (300B)")
    release_date: date | None = Field(None, description="year-month-day")
    kind: Kind | None = Field(None, description="whether it was tuned to follow instructions")
    licence: Name | None = Field(None, description="of the weights")
    link: Link | None = Field(None, description="where a reader finds it")
    control: Control | None = Field(
        None, description="this is a control: shown apart, in no correlation"
    )
    notes: Name | None = Field(None, description="what a reader should know of it")


class Filters(Section):
    """Which models are on the board; the others are listed as left out."""

    include: list[Name] = Field([], description="only these models (shell patterns, as org/*)")
    exclude: list[Name] = Field([], description="not these (shell patterns)")
    families: list[Name] = Field([], description="only models of these families")
    kind: Kind | None = Field(None, description="only these")
    least_parameters: Amount | None = Field(None, description="only models of at least so many")
    most_parameters: Amount | None = Field(None, description="only models of at most so many")
    only_with_card: StrictBool = Field(False, description="leave out models without a card")


class BoardConfig(Section):
    """A board."""

    title: Name = Field("Alignment leaderboard", description="its heading")
    about: Name | None = Field(None, description="what its rows are, a paragraph of Markdown")
    references: list[ReferenceColumn] = Field(
        min_length=1, description="alignment columns; the table is sorted by the primary one"
    )
    tasks: list[TaskColumn] = Field([], description="columns of what models can do")
    primary: Primary | None = Field(
        None, description="the one primary hypothesis; null: none was declared"
    )
    models: list[Card] = Field([], description="model cards")
    filters: Filters = Field(default_factory=Filters, description="which models are on the board")

    @model_validator(mode="after")
    def _consistent(self) -> BoardConfig:
        keys = [column.key for column in (*self.references, *self.tasks)]
        twice = _twice(keys)
        if twice is not None:
            raise ValueError(f"two columns are called {twice!r}; give one another 'name'")
        headings = _twice(column.heading for column in (*self.references, *self.tasks))
        if headings is not None:
            raise ValueError(f"two columns have the label {headings!r}")
        if self.primary:
            for part, columns in (("reference", self.references), ("task", self.tasks)):
                named = getattr(self.primary, part)
                known = [column.key for column in columns]
                if named not in known:
                    raise ValueError(
                        f"primary.{part} is {named!r}, which is no column; "
                        + suggestion(named, known)
                    )
        cards = [(name, card.revision) for card in self.models for name in names_of(card)]
        both = _twice(cards)
        if both is not None:
            at = f" at revision {both[1]}" if both[1] else ""
            raise ValueError(f"two model cards are of {both[0]!r}{at}")
        return self


def names_of(card: Card) -> list[str]:
    """All names of a card's model in result files."""
    return [card.name, *card.aliases]


def read_board(path: Path) -> BoardConfig:
    """Read a board's config.

    Raises:
        PrhEvalError: If the file cannot be read, or holds a mistake: one sentence on it.
    """
    content = read_yaml(path)
    try:
        return BoardConfig.model_validate(content)
    except ValidationError as error:
        raise PrhEvalError(f"{path}: {mistake(error, BoardConfig)}") from None


def _twice(values: Iterable[Hashable]) -> Any:
    """The first value that is there twice, or None."""
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
