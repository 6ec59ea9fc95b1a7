"""The start-up hook against a small stand-in for lm-eval; test_packaging.py uses the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from reference_files import write_numbers

from prh_eval.references.tasks import tasks_folder

ROOT = Path(__file__).resolve().parents[1]
STATIC = str(ROOT / "tasks")
# Without -S the interpreter would run the hook of an installed prh_eval.
LIBRARIES = [entry for entry in sys.path if any(Path(entry or ".").glob("*.dist-info"))]

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
DISCOVERING = f'DISCOVERED = lambda defaults: ["/built-in"] * defaults + ["{STATIC}"]\n'


@pytest.fixture
def run(tmp_path: Path):
    """Run Python code in a process of its own that sees our package and a stand-in lm_eval."""

    def run(code: str, host: str = PLAIN + HOST, folder: Path = ROOT, **environment: str) -> tuple:
        package = tmp_path / "lm_eval" / "tasks"
        package.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").write_text(host)
        path = os.pathsep.join((str(tmp_path), str(folder), *LIBRARIES))
        done = subprocess.run(
            [sys.executable, "-S", "-c", textwrap.dedent(code)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "PRH_EVAL_REFERENCES": "", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.removeprefix("host imported\n").strip(), done.stderr

    return run


@pytest.fixture
def ours(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of all our tasks where there are no references but the package's."""
    monkeypatch.setenv("PRH_EVAL_REFERENCES", "")
    return str(tasks_folder())


SETUP = (
    "from pathlib import Path; from prh_eval import _plugin; _plugin.install(); "
    "from lm_eval.tasks import TaskManager\n"
)


@pytest.mark.parametrize(
    ("arguments", "scanned", "own"),
    [
        ("", ["/built-in", "OURS"], None),
        ("include_path=None", ["/built-in", "OURS"], None),
        ("include_path='/mine'", ["/built-in", "OURS", "/mine"], "/mine"),
        ("None, '/mine'", ["/built-in", "OURS", "/mine"], "/mine"),
        ("'INFO', ['/a', '/b']", ["/built-in", "OURS", "/a", "/b"], ["/a", "/b"]),
        ("include_path=('/a', '/b')", ["/built-in", "OURS", "/a", "/b"], ("/a", "/b")),
        ("include_path=Path('/mine')", ["/built-in", "OURS", "/mine"], Path("/mine")),
        ("include_path='/mine', include_defaults=False", ["/mine"], "/mine"),
        ("None, '/mine', False", ["/mine"], "/mine"),
        # What prh-eval tasks-path printed.
        ("include_path='OURS'", ["/built-in", "OURS"], "OURS"),
        ("include_path=['/a', 'OURS/.']", ["/built-in", "/a", "OURS/."], ["/a", "OURS/."]),
        # Who shows lm-eval the package's own tasks is shown the others.
        (f"include_path='{STATIC}'", ["/built-in", "OURS/references", STATIC], STATIC),
        (
            f"include_path=['/a', '{STATIC}/../tasks']",
            ["/built-in", "OURS/references", "/a", f"{STATIC}/../tasks"],
            ["/a", f"{STATIC}/../tasks"],
        ),
        (f"include_path='{ROOT}'", ["/built-in", "OURS/references", str(ROOT)], str(ROOT)),
    ],
)
def test_our_folder_stands_between_the_built_in_tasks_and_the_users(
    run, ours, arguments, scanned, own
):
    arguments = arguments.replace("OURS", ours)
    out, err = run(
        f"{SETUP}from pathlib import PosixPath, WindowsPath\n"
        f"manager = TaskManager({arguments})\nprint((manager.scanned, manager.include_path))"
    )
    assert out == str((scanned, own)).replace("OURS", ours)
    assert err == ""


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_switch_turns_the_hook_off(run, value):
    out, _ = run(SETUP + "print(TaskManager().scanned)", PRH_EVAL_PLUGIN=value)
    assert out == "['/built-in']"


@pytest.mark.parametrize("value", ["", "1", "on"])
def test_other_values_of_the_switch_leave_it_on(run, ours, value):
    out, _ = run(SETUP + "print(TaskManager().scanned)", PRH_EVAL_PLUGIN=value)
    assert out == str(["/built-in", ours])


def test_register_ignores_the_switch(run, ours):
    out, _ = run(SETUP + "_plugin.register(); print(TaskManager().scanned)", PRH_EVAL_PLUGIN="0")
    assert out == str(["/built-in", ours])


def test_a_host_that_is_imported_already_is_patched_at_once(run, ours):
    out, _ = run(
        """
        from lm_eval.tasks import TaskManager
        from prh_eval import _plugin
        _plugin.install()
        print(TaskManager().scanned)
        """
    )
    assert out == str(["/built-in", ours])


def test_installing_twice_registers_once(run, ours):
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
    assert out.replace("host imported\n", "") == "1\n" + str(["/built-in", ours])


def test_looking_for_the_host_without_importing_it_does_not_use_the_hook_up(run, ours):
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
    assert out == "SourceFileLoader " + str(["/built-in", ours])


def test_a_host_that_is_loaded_anew_is_patched_anew(run, ours):
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
    assert out.replace("host imported\n", "") == "\n".join([str(["/built-in", ours])] * 2)


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


def test_subclasses_are_served_too(run, ours):
    out, _ = run(
        SETUP
        + """
class Mine(TaskManager):
    def __init__(self):
        super().__init__(include_path="/mine")
print(Mine().scanned)
"""
    )
    assert out == str(["/built-in", ours, "/mine"])


def test_adds_only_the_rest_where_the_host_discovers_our_entry_point_itself(run, ours):
    out, err = run(
        SETUP + "print(TaskManager().scanned, TaskManager(include_path='/mine').scanned)",
        host=DISCOVERING + HOST,
    )
    found = ["/built-in", STATIC, f"{ours}/references"]
    assert out == f"{found} {[*found, '/mine']}"
    assert err == ""


LIST = """
for _ in range(3):
    manager = TaskManager()
print(*sorted(path.stem for path in map(Path, manager.task_index)))
"""


def test_a_reference_file_in_the_working_folder_is_a_task(run, tmp_path):
    write_numbers(tmp_path / "references", "mine", np.eye(5))
    out, err = run(SETUP + LIST)
    assert {"prh_align_mine", "prh_align_cielab", "prh_align_color"} <= set(out.split())
    assert err == ""


def test_a_broken_reference_file_is_one_line_however_many_task_managers(run, tmp_path):
    write_numbers(tmp_path / "references", "mine", np.eye(5))
    write_numbers(tmp_path / "references", "bad", np.eye(5), kind="featurs")
    out, err = run(SETUP + LIST)
    assert "prh_align_mine" in out.split() and "prh_align_bad" not in out.split()
    assert err.count("\n") == 1
    assert f"{tmp_path}/references/bad.yaml: the key 'kind' is 'featurs'; did you mean" in err


@pytest.mark.parametrize(
    ("breaking", "reason"),
    [
        ("sys.modules['pydantic'] = None", "pydantic"),
        ("sys.modules['yaml'] = None", "yaml"),
        (
            "import prh_eval.references.tasks as t; t.valid_references = lambda: 1 / 0",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
@pytest.mark.parametrize("shown", [False, True])
def test_without_the_tasks_of_references_the_packages_own_are_there(run, breaking, reason, shown):
    out, err = run(
        f"import sys\n{breaking}\n{SETUP}for _ in range(3):\n    manager = TaskManager()\n"
        "print(manager.scanned)",
        host=(DISCOVERING if shown else PLAIN) + HOST,
    )
    assert out == str(["/built-in", STATIC])
    assert err.count("\n") == 1
    assert err.startswith("prh-eval: warning: tasks of reference files not registered with lm-eval")
    assert reason in err


def test_without_a_cache_folder_the_tasks_are_there_all_the_same(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    places = {"PRH_EVAL_CACHE": f"{tmp_path}/file/x", "TMPDIR": f"{tmp_path}/temporary"}
    out, err = run(SETUP + LIST, **places)
    assert "prh_align_cielab" in out.split()
    assert err == ""
    assert not list((tmp_path / "temporary").iterdir())


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
