"""``prh-eval show``: a score with its error, chance, controls and curves, in text or a figure."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prh_eval.commands.arguments import positive
from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prh_eval.showing.read import Shown

logger = logging.getLogger(__name__)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``show``."""
    parser = commands.add_parser(
        "show",
        help="a score with its error, chance, controls and curves, as text and as a figure",
        description="Shows the alignments in a result file of lm_eval, the newest of each task by "
        "each metric in a folder of them, the one in a file that prh-eval align wrote, or those of "
        "a model whose graphs are in the cache with the references that are built, made anew.",
    )
    parser.add_argument(
        "what",
        metavar="FILE_OR_MODEL",
        help="a result file, of prh-eval align too; a folder of them; or a model as it was given "
        "to lm-eval, the last part of its path, or a file of its graphs",
    )
    parser.add_argument("--task", metavar="NAME", help="of a result file, only this task")
    parser.add_argument(
        "--reference", metavar="NAME", help="only with this reference; default: all there are"
    )
    parser.add_argument(
        "--k",
        type=positive,
        help="of a model in the cache, the neighbourhood size; default: 10",
    )
    parser.add_argument(
        "--protocol",
        default="paper",
        help="of a model in the cache, the preprocessing of the graphs to take; default: paper",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw one figure too: .png, .svg or .pdf"
    )
    parser.add_argument(
        "--json", action="store_true", help="for machines, in place of the text: a list"
    )
    parser.set_defaults(command=_show)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        from prh_eval.showing.figure import check_format

        check_format(arguments.plot)
    found = _found(arguments)
    print(_json(found) if arguments.json else _text(found))
    if arguments.plot is not None:
        from prh_eval.showing.figure import draw

        draw(found[0], arguments.plot)
        logger.info("The figure is in %s.", arguments.plot)
    return 0


def _found(arguments: argparse.Namespace) -> Sequence[Shown]:
    from prh_eval.showing.read import chosen, read_file, read_folder

    path = Path(arguments.what).expanduser()
    found = []
    if path.is_dir():
        found = read_folder(path)
    elif path.suffix == ".json" or (path.is_file() and path.suffix != ".safetensors"):
        found = read_file(path)
    if found:
        found = chosen(found, task=arguments.task, reference=arguments.reference, k=arguments.k)
        tasks = list(dict.fromkeys(str(each.task) for each in found))
        if len(tasks) > 1:
            _check_one(arguments, tasks, "--task should name one")
        metrics = [f"{each.findings.metric} in {each.source}" for each in found]
        _check_one(arguments, metrics, "the file of one should be named")
        return found
    if path.is_dir():
        from prh_eval.artifacts import kept_headers, models_named

        if not models_named(kept_headers("models"), arguments.what):
            raise PrhEvalError(
                f"no result file under {arguments.what} holds an alignment, as tasks of prh_eval "
                "write it"
            )
    if arguments.task:
        raise PrhEvalError(
            f"--task is of result files, and {arguments.what!r} is none; --reference chooses what "
            "a model's graphs are compared with"
        )
    from prh_eval.showing.kept import fitting_references, from_graphs

    name, protocol = arguments.what, arguments.protocol
    references = (
        [arguments.reference] if arguments.reference else fitting_references(name, protocol)
    )
    _check_one(arguments, references, "--reference should name one")
    return [from_graphs(name, each, k=arguments.k, protocol=protocol) for each in references]


def _check_one(arguments: argparse.Namespace, names: Sequence[str], right: str) -> None:
    """Refuse to draw several alignments into one figure."""
    if arguments.plot is not None and len(names) > 1:
        raise PrhEvalError(
            f"--plot draws one alignment and there are {len(names)}, {', '.join(names)}; {right}"
        )


def _text(found: Sequence[Shown]) -> str:
    from prh_eval.showing.text import signs_for, text

    encoding = sys.stdout.encoding or "ascii"
    every = "\n\n\n".join(text(each, signs_for(encoding)) for each in found)
    # Names may have letters that a terminal lacks.
    return every.encode(encoding, "replace").decode(encoding)


def _json(found: Sequence[Shown]) -> str:
    content = [
        {
            "source": each.source,
            "task": each.task,
            "findings": each.findings.model_dump(mode="json"),
        }
        for each in found
    ]
    return json.dumps(content, indent=2)
