"""What a task YAML's metadata and ``--metadata`` may say about an alignment task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prh_eval.alignment.preprocess import PROTOCOLS
from prh_eval.alignment.registry import METRICS
from prh_eval.alignment.report import DRAWS, DRAWS_ITEMS
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.features.language_pooling import Pooling
from prh_eval.validation import mistake

# lm-eval merges --model_args into the metadata of every task, so our keys carry a prefix.
PREFIX = "prh_"


class TaskOptions(BaseModel):
    """The settings of one alignment task; each is a metadata key with the prefix ``prh_``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str = Field(description="Name of a reference, or the path of its YAML file.")
    metric: str = Field("mutual_knn", description=f"One of {', '.join(METRICS)}.")
    k: int = Field(
        10, ge=1, description="Neighbourhood size; of svcca the number of directions of a layer."
    )
    protocol: str = Field("paper", description=f"One of {', '.join(PROTOCOLS)}.")
    pooling: Pooling = Field(
        "mean", description="Over a caption's tokens: their mean, or the last one."
    )
    caption: int | Literal["mean"] = Field(
        0,
        description="Which caption, from 0, where an item has several; or mean, the mean of the "
        "features of all of them.",
    )
    bits_per_byte: bool = Field(
        False, description="Also report the captions' bits per byte; needs the vocabulary head."
    )
    control: Literal["untrained"] | None = Field(
        None,
        description="untrained: also score the same architecture with weights that are initialised "
        "anew, and with each weight tensor shuffled; null: neither.",
    )
    draws: int | None = Field(
        None,
        ge=0,
        description="Random re-pairings of the items that tell what chance can do; 0 for none. By "
        f"default {DRAWS}, or none of more than {DRAWS_ITEMS:,} items, where each takes long.",
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(suggestion(name, METRICS))
        return name

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        if name not in PROTOCOLS:
            raise ValueError(suggestion(name, PROTOCOLS))
        return name

    @field_validator("caption", mode="before")
    @classmethod
    def _caption(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not number and value != "mean":
            raise ValueError("it should be the number of a caption, from 0, or mean")
        return value

    @property
    def filter(self) -> str:
        """What lm-eval calls a filter: the part of a score's name that says which captions."""
        if self.caption == "mean":
            return "mean_over_captions"
        return f"caption_{self.caption}" if self.caption else "none"

    def as_metadata(self) -> dict[str, Any]:
        """The same settings as metadata keys."""
        return {PREFIX + key: value for key, value in self.model_dump().items()}


def parse_options(metadata: Mapping[str, Any], task: str) -> TaskOptions:
    """Read the ``prh_`` keys of a task's metadata; all other keys belong to others.

    Args:
        metadata: The task YAML's metadata with ``--metadata`` and ``--model_args`` merged in.
        task: The task's name, for error messages.

    Returns:
        The validated options.

    Raises:
        PrhEvalError: On an unknown key, a wrong type or a value out of range.
    """
    ours = {key[len(PREFIX) :]: value for key, value in metadata.items() if key.startswith(PREFIX)}
    try:
        return TaskOptions.model_validate(ours)
    except ValidationError as error:
        raise PrhEvalError(f"task {task}: {mistake(error, TaskOptions, PREFIX)}") from None
