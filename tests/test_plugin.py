"""The start-up hook against a small stand-in for lm-eval; test_packaging.py uses the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASKS = str(ROOT / "tasks")

# What the hook relies on in lm_eval.tasks: the signature, include_path, task_index.
HOST = """
from pathlib import Path
from types import SimpleNamespace

print("host imported")


class TaskManager:
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path = include_path
        self.metadata = metadata
        own = include_path if isinstance(include_path, (list, tuple)) else [include_path]
        own = list(own) if include_path else []
        self.scanned = [str(path) for path in DISCOVERED(include_defaults) + own]
        self.task_index = {
            str(path): SimpleNamespace(yaml_path=path)
            for root in self.scanned
            for path in Path(root).glob("**/*.yaml")
        }
"""
PLAIN = 'DISCOVERED = lambda defaults: ["/built-in"] * defaults\n'
DISCOVERING = f'DISCOVERED = lambda defaults: ["/built-in"] * defaults + ["{TASKS}"]\n'


@pytest.fixture
def run(tmp_path: Path):
    """Run Python code in a process of its own that sees our package and a stand-in lm_eval."""

    def run(code: str, host: str = PLAIN + HOST, folder: Path = ROOT, **environment: str) -> tuple:
        package = tmp_path / "lm_eval" / "tasks"
        package.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").write_text(host)
        path = os.pathsep.join((str(tmp_path), str(folder)))
        done = subprocess.run(
            [sys.executable, "-S", "-c", textwrap.dedent(code)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.removeprefix("host imported\n").strip(), done.stderr

    return run


SETUP = "from prh_eval import _plugin; _plugin.install(); from lm_eval.tasks import TaskManager\n"


@pytest.mark.parametrize(
    ("arguments", "scanned", "own"),
    [
        ("", ["/built-in", TASKS], None),
        ("include_path=None", ["/built-in", TASKS], None),
        ("include_path='/mine'", ["/built-in", TASKS, "/mine"], "/mine"),
        ("None, '/mine'", ["/built-in", TASKS, "/mine"], "/mine"),
        ("'INFO', ['/a', '/b']", ["/built-in", TASKS, "/a", "/b"], ["/a", "/b"]),
        ("include_path=('/a', '/b')", ["/built-in", TASKS, "/a", "/b"], ("/a", "/b")),
        ("include_path=Path('/mine')", ["/built-in", TASKS, "/mine"], Path("/mine")),
        ("include_path='/mine', include_defaults=False", ["/mine"], "/mine"),
        ("None, '/mine', False", ["/mine"], "/mine"),
        (f"include_path='{TASKS}'", ["/built-in", TASKS], TASKS),
        (
            f"include_path=['/a', '{TASKS}/../tasks']",
            ["/built-in", "/a", f"{TASKS}/../tasks"],
            ["/a", f"{TASKS}/../tasks"],
        ),
        (f"include_path='{ROOT}'", ["/built-in", str(ROOT)], str(ROOT)),
    ],
)
def test_our_folder_stands_between_the_built_in_tasks_and_the_users(run, arguments, scanned, own):
    out, err = run(
        f"from pathlib import Path, PosixPath, WindowsPath\n{SETUP}"
        f"manager = TaskManager({arguments})\nprint((manager.scanned, manager.include_path))"
    )
    assert out == str((scanned, own))
    assert err == ""


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_switch_turns_the_hook_off(run, value):
    out, _ = run(SETUP + "print(TaskManager().scanned)", PRH_EVAL_PLUGIN=value)
    assert out == "['/built-in']"


@pytest.mark.parametrize("value", ["", "1", "on"])
def test_other_values_of_the_switch_leave_it_on(run, value):
    out, _ = run(SETUP + "print(TaskManager().scanned)", PRH_EVAL_PLUGIN=value)
    assert out == str(["/built-in", TASKS])


def test_register_ignores_the_switch(run):
    out, _ = run(SETUP + "_plugin.register(); print(TaskManager().scanned)", PRH_EVAL_PLUGIN="0")
    assert out == str(["/built-in", TASKS])


def test_a_host_that_is_imported_already_is_patched_at_once(run):
    out, _ = run(
        """
        from lm_eval.tasks import TaskManager
        from prh_eval import _plugin
        _plugin.install()
        print(TaskManager().scanned)
        """
    )
    assert out == str(["/built-in", TASKS])


def test_installing_twice_registers_once(run):
    out, _ = run(
        f"""
        import sys
        from prh_eval import _plugin
        before = len(sys.meta_path)
        _plugin.install(); _plugin.install()
        print(len(sys.meta_path) - before)
        {SETUP.strip()}
        patched = TaskManager.__init__
        _plugin.install()
        assert TaskManager.__init__ is patched
        print(TaskManager().scanned)
        """
    )
    assert out.replace("host imported\n", "") == "1\n" + str(["/built-in", TASKS])


def test_looking_for_the_host_without_importing_it_does_not_use_the_hook_up(run):
    out, _ = run(
        """
        import importlib.util, sys
        from prh_eval import _plugin
        _plugin.install()
        spec = importlib.util.find_spec("lm_eval.tasks")
        assert "lm_eval.tasks" not in sys.modules
        from lm_eval.tasks import TaskManager
        print(type(spec.loader).__name__, TaskManager().scanned)
        """
    )
    assert out == "SourceFileLoader " + str(["/built-in", TASKS])


def test_a_host_that_is_loaded_anew_is_patched_anew(run):
    out, _ = run(
        SETUP
        + """
import importlib, sys
del sys.modules["lm_eval.tasks"]
from lm_eval.tasks import TaskManager as anew
assert anew is not TaskManager
print(anew().scanned)
print(importlib.reload(sys.modules["lm_eval.tasks"]).TaskManager().scanned)
"""
    )
    assert out.replace("host imported\n", "") == "\n".join([str(["/built-in", TASKS])] * 2)


def test_the_signature_and_the_users_errors_stay_the_hosts_own(run):
    out, err = run(
        SETUP
        + """
import inspect
print(list(inspect.signature(TaskManager).parameters))
try:
    TaskManager(nonsense=1)
except TypeError as error:
    print(error)
"""
    )
    assert out.splitlines() == [
        "['verbosity', 'include_path', 'include_defaults', 'metadata']",
        "TaskManager.__init__() got an unexpected keyword argument 'nonsense'",
    ]
    assert err == ""


def test_subclasses_are_served_too(run):
    out, _ = run(
        SETUP
        + """
class Mine(TaskManager):
    def __init__(self):
        super().__init__(include_path="/mine")
print(Mine().scanned)
"""
    )
    assert out == str(["/built-in", TASKS, "/mine"])


def test_steps_aside_where_the_host_discovers_our_entry_point_itself(run):
    out, err = run(
        SETUP + "print(TaskManager().scanned, TaskManager(include_path='/mine').scanned)",
        host=DISCOVERING + HOST,
    )
    assert out == f"{['/built-in', TASKS]} {['/built-in', TASKS, '/mine']}"
    assert err == ""


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("class TaskManager:\n    def __init__(self): pass\n", "takes no include_path"),
        ("", "has no attribute 'TaskManager'"),
        (
            "class TaskManager:\n"
            "    task_index = {}\n"
            "    def __init__(self, include_path=None, include_defaults=True):\n"
            "        assert not isinstance(include_path, list), 'no lists any more'\n",
            "no lists any more",
        ),
        (
            "class TaskManager:\n    def __init__(self, include_path=None): pass\n",
            "unexpected keyword argument 'include_defaults'",
        ),
    ],
)
def test_a_host_that_has_changed_is_left_alone_with_one_warning(run, host, reason):
    out, err = run(
        """
        from prh_eval import _plugin
        _plugin.install()
        import lm_eval.tasks
        if hasattr(lm_eval.tasks, "TaskManager"):
            lm_eval.tasks.TaskManager(); lm_eval.tasks.TaskManager()
        print("went on")
        """,
        host=host,
    )
    assert out == "went on"
    assert err.count("\n") == 1
    assert err.startswith("prh-eval: warning: tasks not registered with lm-eval (")
    assert reason in err
    assert "prh-eval tasks-path" in err


def test_a_missing_task_folder_is_one_warning(run, tmp_path):
    package = tmp_path / "broken" / "prh_eval"
    package.mkdir(parents=True)
    for name in ("__init__.py", "_plugin.py", "resources.py"):
        (package / name).write_bytes((ROOT / "prh_eval" / name).read_bytes())
    out, err = run(SETUP + "print(TaskManager().scanned)", folder=tmp_path / "broken")
    assert out == "['/built-in']"
    assert err.count("\n") == 1
    assert "no task YAML in" in err


def test_a_host_that_fails_to_import_fails_as_without_the_hook(run):
    out, err = run(
        """
        from prh_eval import _plugin
        _plugin.install()
        for _ in range(2):
            try:
                import lm_eval.tasks
            except RuntimeError as error:
                print(error)
        """,
        host="raise RuntimeError('broken host')",
    )
    assert out == "broken host\nbroken host"
    assert err == ""


def test_other_missing_modules_stay_missing(run):
    out, _ = run(
        """
        from prh_eval import _plugin
        _plugin.install()
        try:
            import lm_eval.nothing
        except ModuleNotFoundError as error:
            print(error)
        """
    )
    assert out == "No module named 'lm_eval.nothing'"


def test_the_hook_imports_nothing_that_costs(run):
    out, _ = run(
        """
        import os, sys
        before = set(sys.modules)
        import prh_eval._plugin
        prh_eval._plugin.install()
        print(sorted(set(sys.modules) - before))
        """
    )
    assert out == "['prh_eval', 'prh_eval._plugin']"


@pytest.mark.parametrize("missing", [["_plugin.py"], ["_plugin.py", "__init__.py"], None])
def test_the_start_up_line_is_silent_where_the_package_is_half_removed(run, tmp_path, missing):
    remains = tmp_path / "remains"
    if missing is None:
        remains.mkdir()
    else:
        (remains / "prh_eval").mkdir(parents=True)
        for name in {"_plugin.py", "__init__.py", "resources.py"} - set(missing):
            (remains / "prh_eval" / name).write_bytes((ROOT / "prh_eval" / name).read_bytes())
    (line,) = (ROOT / "plugin" / "prh_eval_plugin.pth").read_text().splitlines()
    assert line.startswith("import ")  # other lines would be taken for folders
    out, err = run(f"exec({line!r})\nprint('started')", folder=remains)
    assert (out, err) == ("started", "")


def test_the_start_up_files_name_the_hook():
    import pkgutil

    from prh_eval import _plugin

    files = {path.name: path.read_text() for path in (ROOT / "plugin").iterdir()}
    assert set(files) == {"prh_eval_plugin.pth", "prh_eval_plugin.start"}
    # PEP 829: each line of a .start file is pkg.mod:callable, as pkgutil.resolve_name takes it.
    (line,) = files["prh_eval_plugin.start"].splitlines()
    assert pkgutil.resolve_name(line) is _plugin.install
