"""What a task YAML's metadata and ``--metadata`` may say about an alignment task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prh_eval.alignment.metrics import METRICS, metric
from prh_eval.alignment.preprocess import PROTOCOLS, protocol
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.features.language import Pooling

# lm-eval merges --model_args into the metadata of every task, so our keys carry a prefix.
PREFIX = "prh_"


class TaskOptions(BaseModel):
    """The settings of one alignment task; each is a metadata key with the prefix ``prh_``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str = Field(description="Name of a reference, or the path of its YAML file.")
    metric: str = Field("mutual_knn", description=f"One of {', '.join(METRICS)}.")
    k: int = Field(10, ge=1, description="Neighbourhood size.")
    protocol: str = Field("paper", description=f"One of {', '.join(PROTOCOLS)}.")
    pooling: Pooling = Field(
        "mean", description="Over a caption's tokens: their mean, or the last one."
    )
    caption: int = Field(0, ge=0, description="Which caption, where an item has several.")
    bits_per_byte: bool = Field(
        False, description="Also report the captions' bits per byte; needs the vocabulary head."
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        metric(name)
        return name

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        protocol(name)
        return name

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
    for name in ours:
        if name not in TaskOptions.model_fields:
            known = [PREFIX + field for field in TaskOptions.model_fields]
            raise PrhEvalError(
                f"task {task}: unknown option {PREFIX + name!r}; {suggestion(PREFIX + name, known)}"
            )
    try:
        return TaskOptions.model_validate(ours)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise PrhEvalError(f"task {task}: option {name!r} is missing in its metadata") from None
        given = first["input"]
        raise PrhEvalError(
            f"task {task}: option {name!r} is {given!r}; {_lower(first['msg'])}"
        ) from None


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
