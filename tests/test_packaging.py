"""Real installations, each in a virtual environment of its own, seen by the real lm-eval.

The environments borrow the libraries of the running one; of lm-eval they get a copy with one
built-in task folder, for scanning all of them takes seconds each time.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ["prh", "prh_align", "prh_align_color"]

# Prints the names that a TaskManager knows of ours, and where their YAML files lie.
LOOK = """
import sys
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=sys.argv[1:] or None)
print(*(name for name in manager.all_tasks if name.startswith("prh")))
for name in ("prh_align", "prh_align_color"):
    entry = manager.task_index.get(name)
    print(entry and entry.yaml_path.parent)
"""

# What an lm-eval does that discovers installed task packages (its pull request 4015).
DISCOVERY = """
        import importlib.metadata, importlib.util
        for point in importlib.metadata.entry_points(group="lm_eval.tasks"):
            try:
                spec = importlib.util.find_spec(point.value)
                all_paths.append(Path(list(spec.submodule_search_locations)[0]))
            except Exception as error:
                print("skipped", point.value, error)
        if include_path:
"""


@dataclass
class Environment:
    """A throw-away virtual environment without pip, plus the borrowed libraries."""

    folder: Path
    libraries: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, with_pip=False, symlinks=True)
        (self.site_packages / "libraries.pth").write_text(f"{self.libraries}\n")

    @property
    def scripts(self) -> Path:
        return self.folder / "bin"

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def run(self, *command: object, status: int = 0, **environment: str) -> str:
        """Run a program of this environment and return what it printed."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PRH_EVAL"))}
        path = os.pathsep.join((str(self.scripts), clean.get("PATH", "")))
        done = subprocess.run(
            [shutil.which(str(command[0]), path=path) or str(command[0]), *map(str, command[1:])],
            cwd=self.folder,
            env={**clean, "PATH": path, "VIRTUAL_ENV": str(self.folder), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, *arguments: object) -> None:
        """Run ``pip install`` for this environment, with no index and no dependencies."""
        pip = ("-m", "pip", "--python", self.scripts / "python", "--disable-pip-version-check")
        offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
        self.run(sys.executable, *pip, "install", *offline, *arguments)

    def names(self, *arguments: object, **environment: str) -> list[str]:
        """The names of ours that a TaskManager in this environment knows."""
        return self.run("python", "-c", LOOK, *arguments, **environment).splitlines()[0].split()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """The sdist, the wheel built from it, and under direct/ the wheel built from the sources."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", str(ROOT), "-o"]
    subprocess.run([*build, str(folder)], check=True, capture_output=True)
    subprocess.run([*build, str(folder / "direct"), "--wheel"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """Links to all that is installed here but this package, with a copy of lm-eval made small."""
    folder = tmp_path_factory.mktemp("libraries")
    installed = [Path(entry) for entry in sys.path if any(Path(entry).glob("*.dist-info"))]
    for entry in (entry for place in installed for entry in place.iterdir()):
        ours = entry.name.lower().startswith(("prh_eval", "_prh_eval", "__editable__", "lm_eval."))
        if not ours and entry.suffix != ".pth" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    (folder / "lm_eval").unlink(missing_ok=True)
    copy_lm_eval(folder)
    return folder


def copy_lm_eval(folder: Path) -> Path:
    """Copy lm-eval into a folder, of its task folders only ``arc``."""
    (source,) = importlib.util.find_spec("lm_eval").submodule_search_locations

    def left_out(place: str, names: list[str]) -> list[str]:
        if Path(place) != Path(source, "tasks"):
            return []
        return [n for n in names if n not in ("arc", "__pycache__") and Path(place, n).is_dir()]

    return Path(shutil.copytree(source, folder / "lm_eval", ignore=left_out))


@pytest.fixture(scope="module")
def regular(tmp_path_factory, libraries, wheel) -> Environment:
    """An environment with the wheel installed."""
    environment = Environment(tmp_path_factory.mktemp("regular"), libraries)
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def bare(tmp_path_factory, libraries) -> Environment:
    """An environment without this package."""
    return Environment(tmp_path_factory.mktemp("bare"), libraries)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_carries_the_package_its_resources_and_the_start_up_files(wheel):
    names = contents(wheel)
    for folder, packaged in (
        ("prh_eval", "prh_eval"),
        ("tasks", "prh_eval/resources_tasks"),
        ("references", "prh_eval/resources_references"),
    ):
        files = {
            f"{packaged}/{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files <= set(names)
    assert "prh_eval/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "prh_eval",
        "prh_eval_plugin.pth",
        "prh_eval_plugin.start",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_sdist_builds_the_same_wheel(distributions, wheel):
    (direct,) = (distributions / "direct").glob("*.whl")
    assert contents(direct) == contents(wheel)
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"tests", "tasks", "references", "plugin", "LICENSE", "README.md"} <= tops
    assert not tops & {".ci", "leaderboard"}


def test_without_the_package_lm_eval_knows_none_of_our_tasks(bare):
    assert bare.names() == []


def test_regular_install(regular):
    printed = regular.run("python", "-c", LOOK).splitlines()
    inside = str(regular.site_packages / "prh_eval" / "resources_tasks")
    assert printed == [" ".join(OURS), inside, inside]
    listed = regular.run("python", "-m", "lm_eval", "ls", "tasks")
    assert all(f"|{name} " in listed for name in OURS)
    regular.run("python", "-m", "lm_eval", "validate", "--tasks", "prh_align,prh_align_color,prh")


def test_switch(regular):
    assert regular.names(PRH_EVAL_PLUGIN="0") == []


def test_the_users_own_task_of_the_same_name_wins_with_lm_evals_warning(regular, tmp_path):
    (tmp_path / "mine.yaml").write_text("task: prh_align\ndataset_path: mine\n")
    printed = regular.run("python", "-c", LOOK, tmp_path)
    assert f"{tmp_path}\n" in printed
    assert printed.count("overrides existing task") == 1
    assert f"'prh_align' from {tmp_path / 'mine.yaml'} overrides existing task" in printed


@pytest.mark.parametrize(
    "launcher",
    [
        ("accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"),
        ("torch.distributed.run", "--nproc-per-node=1", "--master-port=0"),
    ],
    ids=["accelerate", "torchrun"],
)
def test_launchers(regular, launcher):
    listed = regular.run(
        "python", "-m", *launcher, "-m", "lm_eval", "ls", "tags", OMP_NUM_THREADS="1"
    )
    assert "|prh" in listed


def test_editable_install_reads_the_checkout_and_leaves_nothing_behind(tmp_path, libraries):
    environment = Environment(tmp_path / "editable", libraries)
    environment.install("--editable", ROOT)
    assert not (environment.site_packages / "prh_eval").exists()
    printed = environment.run("python", "-c", LOOK).splitlines()
    assert printed == [" ".join(OURS), str(ROOT / "tasks"), str(ROOT / "tasks")]
    pip = ("-m", "pip", "--python", environment.scripts / "python")
    environment.run(sys.executable, *pip, "uninstall", "--quiet", "--yes", "prh_eval")
    assert [entry.name for entry in environment.site_packages.iterdir()] == ["libraries.pth"]


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
@pytest.mark.parametrize("editable", [False, True], ids=["regular", "editable"])
def test_uv(tmp_path, libraries, wheel, editable):
    environment = Environment(tmp_path / "uv", libraries)
    offline = ("--offline", "--no-config", "--no-deps", "--no-build-isolation")
    what = ("--editable", ROOT) if editable else (wheel,)
    environment.run("uv", "pip", "install", *offline, *what)
    command = ("uv", "run", "--no-project", "--offline", "--no-config")
    printed = environment.run(*command, "python", "-c", LOOK).splitlines()
    inside = environment.site_packages / "prh_eval" / "resources_tasks"
    assert printed[:2] == [" ".join(OURS), str(ROOT / "tasks" if editable else inside)]


def test_editable_lm_eval(tmp_path, libraries, wheel):
    checkout = tmp_path / "checkout"
    copy_lm_eval(checkout)
    (checkout / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "lm_eval"\nversion = "0.4.13"\n'
        '[tool.hatch.build.targets.wheel]\ndev-mode-dirs = ["."]\n'
    )
    without = tmp_path / "without"
    without.mkdir()
    for entry in libraries.iterdir():
        if not entry.name.startswith("lm_eval"):
            (without / entry.name).symlink_to(entry)
    environment = Environment(tmp_path / "environment", without)
    environment.install("--editable", checkout)
    environment.install(wheel)
    where = environment.run("python", "-c", "import lm_eval; print(lm_eval.__file__)").strip()
    assert where == str(checkout / "lm_eval" / "__init__.py")
    assert environment.names() == OURS


def test_an_lm_eval_that_discovers_installed_tasks_registers_them_alone(regular, tmp_path):
    manager = copy_lm_eval(tmp_path) / "tasks" / "manager.py"
    source = manager.read_text()
    assert source.count("\n        if include_path:\n") == 1
    manager.write_text(source.replace("\n        if include_path:\n", DISCOVERY))
    inside = str(regular.site_packages / "prh_eval" / "resources_tasks")
    for switch in ("0", "1"):  # the entry point alone, then with the hook
        printed = regular.run(
            "python", "-c", LOOK, PYTHONPATH=str(tmp_path), PRH_EVAL_PLUGIN=switch
        )
        assert printed.splitlines() == [" ".join(OURS), inside, inside]  # and no warning


def test_where_start_up_files_are_not_read_prh_eval_run_registers(regular):
    path = os.pathsep.join((str(regular.site_packages), str(regular.libraries)))
    python = ("python", "-S", "-m")
    assert "prh" not in regular.run(*python, "lm_eval", "ls", "tags", PYTHONPATH=path)
    assert "|prh" in regular.run(*python, "prh_eval", "run", "ls", "tags", PYTHONPATH=path)


def test_target_install_works_through_the_fallbacks(bare, tmp_path, wheel):
    target = str(tmp_path / "target")
    bare.install("--target", target, wheel)
    assert bare.names(PYTHONPATH=target) == []
    folder = bare.run("python", "-m", "prh_eval", "tasks-path", PYTHONPATH=target).strip()
    assert folder == str(Path(target, "prh_eval", "resources_tasks"))
    assert bare.names(folder, PYTHONPATH=target) == OURS
    command = ("python", "-m", "prh_eval", "run", "ls", "tags")
    assert "|prh" in bare.run(*command, PYTHONPATH=target)


def test_the_prh_eval_script(regular):
    folder = regular.run("prh-eval", "tasks-path").strip()
    assert folder == str(regular.site_packages / "prh_eval" / "resources_tasks")
    assert "|prh" in regular.run("prh-eval", "run", "ls", "tags")
