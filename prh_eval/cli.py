"""The ``prh-eval`` command: argparse subcommands, thin; imports what is heavy when it is used."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from prh_eval import __version__, demo
from prh_eval.commands import align, compare, leaderboard, pairs, plan, references, rescore, show
from prh_eval.errors import PrhEvalError, show_error

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``prh-eval`` command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, or 2 where the input is at fault (one sentence on stderr says why),
        130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    try:
        status = _command(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except PrhEvalError as error:
        show_error(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered must go somewhere, or the interpreter complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _command(argv: list[str]) -> int:
    if argv[:1] == ["run"]:  # everything after it is lm-eval's, --help included
        return _run(argv[1:])
    arguments = parse(argv)
    # A terminal may lack ± and letters of names, and what was computed is not to be lost by that.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    _show_log()
    status: int = arguments.command(arguments)
    return status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command; exits with the usage where they are wrong.

    ``leaderboard`` takes a folder and has subcommands too, which argparse cannot tell apart; each
    of them is therefore a command of two words.
    """
    words = " ".join(argv[:2])
    joined = [words, *argv[2:]] if words in leaderboard.SUBCOMMANDS else list(argv)
    return _parser().parse_args(joined)


class _Parser(argparse.ArgumentParser):
    """One that says itself what it does not know, with its own usage; subcommands have it too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="prh-eval",
        description="Alignment of language models with other encoders, as lm-eval tasks.",
    )
    parser.add_argument("--version", action="version", version=f"prh-eval {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="lm-eval's own command line with our tasks registered in the process",
        description="Everything after 'run' is handed to lm-eval.",
        add_help=False,
    )
    run.add_argument("arguments", nargs=argparse.REMAINDER)

    tasks_path = commands.add_parser(
        "tasks-path", help="print the task folder, for lm-eval's --include_path"
    )
    tasks_path.set_defaults(command=_tasks_path)

    demo_parser = commands.add_parser(
        "demo", help="train a ladder of tiny models, score them and write their board; no download"
    )
    demo.add_arguments(demo_parser)
    demo_parser.set_defaults(command=demo.run)

    for each in (references, pairs, compare, rescore, show, align, plan, leaderboard):
        each.add(commands)
    return parser


def _show_log() -> None:
    """Our own remarks on stderr, and of others' only warnings."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("prh_eval").setLevel(logging.INFO)


def _run(argv: list[str]) -> int:
    from prh_eval import _plugin

    _plugin.register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *argv]
    cli_evaluate()
    return 0


def _tasks_path(_: argparse.Namespace) -> int:
    from prh_eval.references.tasks import tasks_folder

    print(tasks_folder(lasting=True))
    return 0
