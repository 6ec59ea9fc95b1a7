"""Tables in the documentation are what the code says.

After a change, ``PRH_EVAL_WRITE_DOCS=1 pytest tests/test_docs.py`` writes them anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from tabulate import tabulate

from prh_eval import schema
from prh_eval.alignment.registry import METRICS
from prh_eval.cli import _parser, parse
from prh_eval.harness.options import PREFIX, TaskOptions
from prh_eval.leaderboard import config
from prh_eval.references.registry import load_reference

ROOT = Path(__file__).parents[1]


def table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def options() -> str:
    rows = []
    for name, field in TaskOptions.model_fields.items():
        default = "the task's" if field.is_required() else f"`{field.default}`"
        rows.append([f"`{PREFIX}{name}`", default, str(field.description)])
    return table(["key", "default", "meaning"], rows)


def metrics() -> str:
    rows = [
        [
            f"`{metric.name}`",
            "neighbours" if metric.needs == "graphs" else "features",
            metric.source,
        ]
        for metric in METRICS.values()
    ]
    return table(["metric", "compares", "source"], rows)


def tasks() -> str:
    rows = []
    for path in sorted((ROOT / "tasks").glob("prh_align*.yaml")):
        config = yaml.safe_load(re.sub(r"!function \S+", "x", path.read_text(encoding="utf-8")))
        reference = load_reference(config["metadata"]["prh_reference"])
        about = [f"`{config['task']}`", str(config["metadata"]["version"]), reference.description]
        rows.append([*about, f"k = {config['metadata']['prh_k']}"])
    return table(["task", "version", "reference", "neighbours"], rows)


def references() -> str:
    rows = []
    for path in sorted((ROOT / "references").glob("*.yaml")):
        reference = load_reference(path)
        size = f"{reference.parameters / 1e6:,.0f} M" if reference.parameters else ""
        about = [f"`{path.stem}`", reference.kind, reference.description, size]
        rows.append([*about, reference.licence])
    return table(["name", "kind", "what it is", "parameters", "licence"], rows)


def keys() -> str:
    """Every key that a reference's YAML may hold, from the models it is validated by."""
    return tables_of_keys(SECTIONS)


def board_keys() -> str:
    """Every key that a board.yaml may hold."""
    return tables_of_keys(BOARD_SECTIONS)


def tables_of_keys(sections: list[tuple[str, type[BaseModel], frozenset[str]]]) -> str:
    parts = []
    for title, model, left_out in sections:
        rows = []
        for name, field in model.model_fields.items():
            if name in left_out:
                continue
            given = field.is_required() or field.default_factory is not None
            default = "" if given else f"`{json.dumps(field.default)}`"
            forms, meaning = values(field.annotation), str(field.description)
            if (name, model) == ("kind", schema.VisionReference):
                fields = [kind.model_fields["kind"] for kind in KINDS]
                forms = " or ".join(values(each.annotation) for each in fields)
                meaning = "; ".join(str(each.description) for each in fields)
            if (name, model) == ("similarity", schema.VisionReference):
                default += '; `"euclidean"` for `values`'
            rows.append([f"`{name}`", forms, default, meaning])
        parts.append(f"#### {title}\n\n{table(['key', 'value', 'default', 'meaning'], rows)}")
    return "\n" + "\n\n".join(parts) + "\n"


def values(annotation: Any) -> str:
    """What a key may hold, in words."""
    return " or ".join(dict.fromkeys(_values(annotation)))


def _values(annotation: Any) -> list[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inner[0])
    if origin in (Union, UnionType):
        return [word for each in inner if each is not type(None) for word in _values(each)]
    if origin is Literal:
        return [f"`{value}`" for value in inner]
    if origin in (list, tuple):
        plural = {"number": "numbers", "whole number": "whole numbers", "text": "texts"}
        return ["list of " + plural.get(word, word) for word in _values(inner[0])]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["keys"]
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", date: "date"}
    return [words[annotation]]


def commands() -> str:
    parser = _parser()
    (group,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    rows = []
    for action in group._choices_actions:
        inner = group.choices[action.dest]
        below = [a for a in inner._actions if isinstance(a, argparse._SubParsersAction)]
        if not below:
            rows.append([f"`prh-eval {action.dest}`", str(action.help)])
        for each in below[0]._choices_actions if below else []:
            rows.append([f"`prh-eval {action.dest} {each.dest}`", str(each.help)])
    return table(["command", "what it does"], rows)


KINDS = get_args(schema.Reference)
# What all kinds of reference have in common is said once, under the first heading.
COMMON = frozenset.intersection(*(frozenset(kind.model_fields) for kind in KINDS))

SECTIONS: list[tuple[str, type[BaseModel], frozenset[str]]] = [
    ("Every reference", schema.VisionReference, frozenset({"encoder"})),
    ("`encoder` of `kind: vision`", schema.VisionEncoder, frozenset()),
    ("`encoder.preprocessing`, where it is not `processor`", schema.Preprocessing, frozenset()),
    ("`encoder` of `kind: language`", schema.LanguageEncoder, frozenset()),
    ("`features` of `kind: features`", schema.FeatureFile, frozenset()),
    ("`kind: values`", schema.ValuesReference, COMMON),
    ("`values`, where it is a table", schema.ValueTable, frozenset()),
    ("`pairs` of `kind: hub`", schema.HubPairs, frozenset()),
    ("`pairs` of `kind: imagefolder`", schema.ImageFolderPairs, frozenset()),
    ("`pairs` of `kind: table`", schema.TablePairs, frozenset()),
    ("`pairs` of `kind: embedded`", schema.EmbeddedPairs, frozenset()),
]

BOARD_SECTIONS: list[tuple[str, type[BaseModel], frozenset[str]]] = [
    ("The board", config.BoardConfig, frozenset()),
    ("Each of `references`", config.ReferenceColumn, frozenset()),
    ("Each of `tasks`", config.TaskColumn, frozenset()),
    ("`primary`", config.Primary, frozenset()),
    ("Each of `models`", config.Card, frozenset()),
    ("`filters`", config.Filters, frozenset()),
]

BLOCKS: list[tuple[str, str, Callable[[], str]]] = [
    ("tasks/README.md", "options", options),
    ("tasks/README.md", "metrics", metrics),
    ("references/README.md", "keys", keys),
    ("docs/leaderboard.md", "keys", board_keys),
    ("README.md", "tasks", tasks),
    ("README.md", "references", references),
    ("README.md", "commands", commands),
]


IDS = [f"{file}-{name}" for file, name, _ in BLOCKS]


@pytest.mark.parametrize(("file", "name", "generate"), BLOCKS, ids=IDS)
def test_generated_table_is_current(file: str, name: str, generate: Callable[[], str]) -> None:
    path = ROOT / file
    text = path.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
    assert len(re.findall(pattern, text, flags=re.S)) == 1
    wanted = re.sub(pattern, lambda m: f"{m[1]}{generate()}\n{m[2]}", text, flags=re.S)
    if os.environ.get("PRH_EVAL_WRITE_DOCS"):
        path.write_text(wanted, encoding="utf-8")
    assert wanted == path.read_text(encoding="utf-8"), __doc__


PAGES = [
    ROOT / name
    for name in ("README.md", "references/README.md", "docs/leaderboard.md", "CONTRIBUTING.md")
]


def test_every_command_that_is_shown_is_one() -> None:
    shown = [
        line.split(" > ")[0].removesuffix("`")
        for page in PAGES
        for line in re.findall(r"(?:^|`|&& )(prh-eval [^`\n|]+)", page.read_text(), flags=re.M)
        if not line.startswith("prh-eval run") and "<" not in line
    ]
    assert len(shown) > 10
    for line in shown:
        try:
            parse(shlex.split(line)[1:])
        except SystemExit:
            # A command may be spoken of without what it is given, as in a table of commands.
            inside = _parser().format_help() if len(line.split()) < 4 else ""
            assert line.split()[1] in inside, line


def test_every_yaml_that_is_shown_is_valid() -> None:
    shown = [
        yaml.safe_load(block)
        for page in PAGES
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.S)
    ]
    boards = [content for content in shown if "references" in content]
    references = [content for content in shown if content not in boards]
    assert boards and len(references) > 5
    for board in boards:
        config.BoardConfig.model_validate(board)
    for reference in references:
        schema.REFERENCE.validate_python(reference)
