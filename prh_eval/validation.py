"""Files that a person writes: safe YAML in, a validated model out, or one sentence on a mistake."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from prh_eval.errors import PrhEvalError, suggestion

# The same language, read by C where PyYAML was built with it: lm-eval's start waits for our files.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """The safe loader, without its silent preference for the last of two equal keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key.value for key, _ in pairs]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands there twice",
                    problem_mark=pairs[position][0].start_mark,
                )
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a YAML file of keys and values; runs no code.

    Raises:
        PrhEvalError: If it cannot be read, is not safe YAML, has a key twice, or is no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise PrhEvalError(f"{path} cannot be read: {why}") from error
    # PyYAML's own conversions let other errors through, as of 2020-13-45 or !!bool x.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise PrhEvalError(f"{path}{line}: this is not YAML that can be read: {problem}") from None
    if not isinstance(content, dict):
        raise PrhEvalError(f"{path} should hold keys and values, as 'kind: vision'")
    return content


def mistake(error: ValidationError, model: Any, prefix: str = "") -> str:
    """One sentence about the first mistake that pydantic found.

    Args:
        error: What pydantic raised.
        model: The model that was validated, or a union of models with the discriminator ``kind``.
        prefix: What stands before every key in the file, as ``prh_``.

    Returns:
        The key, what is wrong with it, and what would be right, with the nearest valid name.
    """
    # A mistyped key is unknown and its right name is missing: the former says what to mend.
    details = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    count = f" (the first of {len(details)} mistakes)" if len(details) > 1 else ""
    return _sentence(details[0], model, prefix) + count


def _sentence(found: ErrorDetails, model: Any, prefix: str) -> str:
    key, section, choices = _place(found["loc"], model)
    kind = prefix + (f"{key}.kind" if key else "kind")
    key = prefix + key
    given = found["input"]
    shown = _short(given)
    match found["type"]:
        case "missing":
            return f"the key {key!r} is missing"
        case "extra_forbidden":
            name = key.rpartition(".")[2]
            return f"unknown key {key!r}; {suggestion(name, [prefix + f for f in section])}"
        case "union_tag_not_found":
            return f"the key {kind!r} is missing; it should be one of {', '.join(choices)}"
        case "union_tag_invalid":
            return f"the key {kind!r} is {found['ctx']['tag']!r}; " + suggestion(
                str(found["ctx"]["tag"]), choices
            )
        case "literal_error":
            valid = re.findall(r"'([^']+)'", found["ctx"]["expected"])
            return f"the key {key!r} is {shown}; {suggestion(str(given), valid)}"
        case "model_type" | "model_attributes_type":
            return f"the key {key!r} is {shown}; it should hold keys and values"
    message = found["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    message = message[:1].lower() + message[1:]
    if isinstance(given, dict) and found["type"] == "value_error":
        return f"in {key!r}: {message}" if key else message
    return f"the key {key!r} is {shown}; {message}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _place(location: Sequence[str | int], model: Any) -> tuple[str, list[str], list[str]]:
    """Where a mistake is: its dotted key, the keys known there, and the kinds to choose from.

    Pydantic's location also holds the tag by which it chose among several forms of a value; a file
    has no such key.
    """
    here = model
    key = ""
    section: list[str] = []
    for part in location:
        forms = _forms(here)
        if part in forms:
            here = forms[str(part)]
            continue
        if isinstance(part, int):
            key += f"[{part}]"
            here = next((get_args(e)[0] for e in _members(here) if get_origin(e) is list), None)
            continue
        fields = _fields(here)
        section = list(fields)
        key += f".{part}" if key else str(part)
        here = fields.get(part)
    return key, section, list(_forms(here))


def _fields(form: Any) -> Mapping[str, Any]:
    """The annotations of a model's fields, its own metadata (as a discriminator) included."""
    for each in _members(form):
        plain = get_args(each)[0] if get_origin(each) is Annotated else each
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            return {name: field.annotation for name, field in plain.model_fields.items()}
    return {}


def _forms(form: Any) -> dict[str, Any]:
    """The forms of a value that pydantic tells apart by a tag: a ``kind``, or a `pydantic.Tag`."""
    found: dict[str, Any] = {}
    members = _members(form)
    for each in members:
        tags = [m.tag for m in getattr(each, "__metadata__", ()) if isinstance(m, Tag)]
        plain = get_args(each)[0] if get_origin(each) is Annotated else each
        if tags:
            found[tags[0]] = plain
        elif len(members) > 1 and isinstance(plain, type) and issubclass(plain, BaseModel):
            kind = plain.model_fields.get("kind")
            if kind is not None:
                found[get_args(kind.annotation)[0]] = plain
    return found


def _members(form: Any) -> Sequence[Any]:
    if get_origin(form) is Annotated and not any(
        isinstance(each, Tag) for each in form.__metadata__
    ):
        form = get_args(form)[0]
    return get_args(form) if get_origin(form) in (Union, UnionType) else (form,)
