"""The prh-eval command: what it prints, what it returns, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prh_eval import __version__, cli
from prh_eval.errors import PrhEvalError

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_tasks_path_prints_the_folder_of_the_task_yamls(capsys):
    assert cli.main(["tasks-path"]) == 0
    printed = Path(capsys.readouterr().out.removesuffix("\n"))
    assert {"prh_align.yaml", "prh_align_color.yaml"} <= {
        path.name for path in printed.rglob("*.yaml")
    }


def test_module_and_version():
    done = run("-m", "prh_eval", "--version")
    assert (done.returncode, done.stdout) == (0, f"prh-eval {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        ([], ""),
        (["nonsense"], ""),
        (["--nonsense", "tasks-path"], ""),
        (["tasks-path", "nonsense"], " tasks-path"),
        (["align", "x", "y", "--nonsense", "1"], " align"),
        (["references", "build", "a", "--nonsense"], " references build"),
        (["leaderboard", "validate", "a", "--nonsense"], " leaderboard validate"),
    ],
)
def test_wrong_usage_exits_with_2_and_the_usage_of_the_command(arguments, program, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"usage: prh-eval{program} [-h]")
    assert f"\nprh-eval{program}: error: " in error
    assert "nonsense" in error or not arguments


def test_help_names_the_commands_and_imports_nothing_heavy():
    done = run(
        "-c",
        "import sys\n"
        "from prh_eval.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'numpy', 'lm_eval', 'pydantic'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n",
    )
    assert done.returncode == 0
    named = {line.split()[0] for line in done.stdout.splitlines() if line.startswith(" " * 4)}
    assert {"run", "tasks-path", "demo"} <= named
    assert done.stderr == "[]\n"


@pytest.fixture
def lm_eval(monkeypatch):
    """Stand in for lm-eval's command line; returns what it was called with."""
    import lm_eval.__main__

    from prh_eval import _plugin

    calls: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["prh-eval"])
    monkeypatch.setattr(_plugin, "register", lambda: calls.append(["registered"]))
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: calls.append(sys.argv))
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "hf", "--tasks", "prh_align"],
        ["ls", "tasks"],
        ["--help"],
        ["--version"],
        ["--", "run"],
        [],
    ],
)
def test_run_hands_all_arguments_to_lm_eval_after_registering(lm_eval, arguments):
    assert cli.main(["run", *arguments]) == 0
    assert lm_eval == [["registered"], ["lm-eval", *arguments]]


def raising(error: BaseException):
    def command(argv):
        raise error

    return command


def test_an_error_of_the_user_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_command", raising(PrhEvalError("k is 0, but must be 1 or more")))
    assert cli.main([]) == 2
    assert capsys.readouterr() == ("", "prh-eval: error: k is 0, but must be 1 or more\n")


def test_any_other_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "_command", raising(ZeroDivisionError("a fault of ours")))
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        cli.main([])


def test_ctrl_c_is_quiet(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_command", raising(KeyboardInterrupt()))
    assert cli.main([]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "prh_eval", "tasks-path"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
