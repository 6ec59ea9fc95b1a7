"""Tables in the documentation are what the code says.

After a change, ``PRH_EVAL_WRITE_DOCS=1 pytest tests/test_docs.py`` writes them anew.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tabulate import tabulate

from prh_eval.cli import _parser
from prh_eval.harness.options import PREFIX, TaskOptions
from prh_eval.references import load_reference, reference_names

ROOT = Path(__file__).parents[1]


def table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def options() -> str:
    rows = []
    for name, field in TaskOptions.model_fields.items():
        default = "the task's" if field.is_required() else f"`{field.default}`"
        rows.append([f"`{PREFIX}{name}`", default, str(field.description)])
    return table(["key", "default", "meaning"], rows)


def tasks() -> str:
    rows = []
    for path in sorted((ROOT / "tasks").glob("*.yaml")):
        config = yaml.safe_load(re.sub(r"!function \S+", "x", path.read_text(encoding="utf-8")))
        reference = load_reference(config["metadata"]["prh_reference"])
        about = [f"`{config['task']}`", str(config["metadata"]["version"]), reference.description]
        rows.append([*about, f"k = {config['metadata']['prh_k']}"])
    return table(["task", "version", "reference", "neighbours"], rows)


def references() -> str:
    rows = []
    for name in reference_names():
        reference = load_reference(name)
        about = [f"`{name}`", reference.kind, reference.description, reference.licence]
        rows.append([*about, reference.similarity])
    return table(["name", "kind", "what it is", "licence", "similarity"], rows)


def commands() -> str:
    parser = _parser()
    (group,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    rows = [[f"`prh-eval {action.dest}`", str(action.help)] for action in group._choices_actions]
    return table(["command", "what it does"], rows)


BLOCKS: list[tuple[str, str, Callable[[], str]]] = [
    ("tasks/README.md", "options", options),
    ("README.md", "tasks", tasks),
    ("README.md", "references", references),
    ("README.md", "commands", commands),
]


@pytest.mark.parametrize(("file", "name", "generate"), BLOCKS, ids=[b[1] for b in BLOCKS])
def test_generated_table_is_current(file: str, name: str, generate: Callable[[], str]) -> None:
    path = ROOT / file
    text = path.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
    assert len(re.findall(pattern, text, flags=re.S)) == 1
    wanted = re.sub(pattern, lambda m: f"{m[1]}{generate()}\n{m[2]}", text, flags=re.S)
    if os.environ.get("PRH_EVAL_WRITE_DOCS"):
        path.write_text(wanted, encoding="utf-8")
    assert wanted == path.read_text(encoding="utf-8"), __doc__
