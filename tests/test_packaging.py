"""Real installations, each in a virtual environment of its own, used by the real lm-eval.

The environments borrow the libraries of the running one; of lm-eval they get a copy with one
built-in task folder, for scanning all of them takes seconds each time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference_files import write_captions, write_numbers
from tiny_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
STATIC = ["prh", "prh_align", "prh_align_color", "prh_color_choice"]
REFERENCES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["kind"]
    for path in (ROOT / "references").glob("*.yaml")
}
OURS = sorted(
    {
        *STATIC,
        *(f"prh_align_{name}" for name in REFERENCES),
        *(f"prh_{kind}" for kind in REFERENCES.values()),
    }
)

# Prints the names that a TaskManager knows of ours, where the package lies, and where YAMLs do.
LOOK = """
import importlib.util, sys
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=sys.argv[1:] or None)
print(*(name for name in manager.all_tasks if name.startswith("prh")))
package = importlib.util.find_spec("prh_eval")
print(package and package.submodule_search_locations[0])
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

    @property
    def tasks(self) -> str:
        """Where the package's own tasks lie once a TaskManager was made."""
        (folder,) = self.folder.glob("cache/tasks/*/package")
        return str(folder)

    def run(
        self, *command: object, status: int = 0, cwd: Path | None = None, **environment: str
    ) -> str:
        """Run a program of this environment and return what it printed."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PRH_EVAL"))}
        path = os.pathsep.join((str(self.scripts), clean.get("PATH", "")))
        done = subprocess.run(
            [shutil.which(str(command[0]), path=path) or str(command[0]), *map(str, command[1:])],
            cwd=cwd or self.folder,
            env={
                **clean,
                "PATH": path,
                "VIRTUAL_ENV": str(self.folder),
                "PRH_EVAL_CACHE": str(self.folder / "cache"),
                **environment,
            },
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


def listed_names(printed: str) -> set[str]:
    """The first column of the tables that ``lm_eval ls`` prints."""
    return {line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")}


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
    package = str(regular.site_packages / "prh_eval")
    assert printed == [" ".join(OURS), package, regular.tasks, regular.tasks]
    listed = regular.run("python", "-m", "lm_eval", "ls", "tasks")
    assert set(OURS) <= listed_names(listed)
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
    package = str(ROOT / "prh_eval")
    assert printed == [" ".join(OURS), package, environment.tasks, environment.tasks]
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
    package = (ROOT if editable else environment.site_packages) / "prh_eval"
    assert printed[:2] == [" ".join(OURS), str(package)]


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
    # The entry point alone, then with the hook, which adds the tasks of the references.
    for switch, names in (("0", STATIC), ("1", OURS)):
        printed = regular.run(
            "python", "-c", LOOK, PYTHONPATH=str(tmp_path), PRH_EVAL_PLUGIN=switch
        ).splitlines()
        assert printed[0].split() == names
        assert printed[2:4] == [inside, inside]
        assert not any("prh_align" in line for line in printed[4:])  # no warning of a task


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
    assert Path(folder, "package") == Path(bare.tasks)
    assert bare.names(folder, PYTHONPATH=target) == OURS
    command = ("python", "-m", "prh_eval", "run", "ls", "tags")
    assert "|prh" in bare.run(*command, PYTHONPATH=target)


def test_the_prh_eval_script(regular):
    folder = regular.run("prh-eval", "tasks-path").strip()
    assert Path(folder, "package") == Path(regular.tasks)
    assert "|prh" in regular.run("prh-eval", "run", "ls", "tags")


# ------------------------------------------------------------------ one YAML is all it takes

CAPTIONS = [f"the {i % 7} of {i} and {i * i % 11} with {i % 5}" for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CAPTIONS)


@pytest.fixture(scope="module")
def features(model: Path) -> np.ndarray:
    """(n, layers, width): the model's own, from the model called directly."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    body = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for caption in CAPTIONS:
            states = body(**tokenizer(caption, return_tensors="pt"), output_hidden_states=True)
            rows.append(torch.cat([state.mean(dim=1) for state in states.hidden_states]))
    return torch.stack(rows).numpy()


@pytest.fixture
def place(tmp_path: Path, features: np.ndarray) -> Path:
    """A folder with ./references: the model itself, a table of two of its numbers, a mistake."""
    folder = tmp_path / "references"
    write_numbers(folder, "itself", features, CAPTIONS)
    write_numbers(folder, "mistaken", features, CAPTIONS, famly="x")
    numbers = "\n".join(f"{a!r},{b!r}" for a, b in features[:, -1, :2].astype(float).tolist())
    (folder / "numbers.csv").write_text(f"a,b\n{numbers}\n")
    content = yaml.safe_load((folder / "itself.yaml").read_text())
    content |= {"kind": "values", "values": {"path": "numbers.csv", "columns": ["a", "b"]}}
    del content["features"]
    (folder / "two_numbers.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def scores(environment: Environment, model: Path, cwd: Path, *arguments: str, **variables: str):
    """Run ``lm_eval run``; its results, and what it printed."""
    printed = environment.run(
        *("python", "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={model},dtype=float32", "--output_path", "out"),
        *arguments,
        cwd=cwd,
        **variables,
    )
    (path,) = (cwd / "out").rglob("results_*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    shutil.rmtree(cwd / "out")
    return found, printed


def two_numbers_overlap(features: np.ndarray, k: int = 10) -> float:
    """The best layer's mean overlap with the two numbers, neighbours found one by one."""
    limit = np.sort(np.abs(features).ravel())[int(0.95 * features.size)]
    clipped = features.astype(float).clip(-limit, limit)
    clipped /= np.linalg.norm(clipped, axis=2, keepdims=True)
    table = features[:, -1, :2].astype(float)

    def nearest(rows: np.ndarray) -> list[set[int]]:
        distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        return [set(row[:k]) for row in np.argsort(distance, axis=1)]

    reference = nearest(table)
    return max(
        np.mean([len(a & b) / k for a, b in zip(nearest(layer), reference, strict=True)])
        for layer in clipped.transpose(1, 0, 2)
    )


def test_a_file_in_the_working_folder_is_listed_and_scored(regular, place, model, features):
    listed = regular.run("python", "-m", "lm_eval", "ls", "tasks", cwd=place)
    names = listed_names(listed)
    assert {"prh_align_itself", "prh_align_two_numbers", "prh_features", "prh_values"} <= names
    assert "prh_align_mistaken" not in names
    mistake = f"{place}/references/mistaken.yaml: unknown key 'famly'; did you mean 'family'?"
    assert listed.count(mistake) == 1
    tasks = ("prh_align_itself", "prh_align_two_numbers")
    found, printed = scores(regular, model, place, "--tasks", ",".join(tasks))
    assert printed.count(mistake) == 1
    itself, numbers = (found["results"][task] for task in tasks)
    assert itself["mnn,none"] == pytest.approx(1.0)
    assert numbers["mnn,none"] == pytest.approx(two_numbers_overlap(features), abs=1e-6)
    config = found["configs"]["prh_align_itself"]["metadata"]
    assert config["prh_reference"] == "itself"
    assert config["alignment"]["n"] == len(CAPTIONS)


def test_a_file_named_in_the_metadata(regular, place, model):
    metadata = json.dumps({"prh_reference": "references/itself.yaml", "prh_k": 4})
    arguments = ("--tasks", "prh_align", "--metadata", metadata)
    found, _ = scores(regular, model, place, *arguments)
    assert found["results"]["prh_align"]["mnn,none"] == pytest.approx(1.0)
    assert found["configs"]["prh_align"]["metadata"]["alignment"]["k"] == 4


def test_a_folder_named_in_the_environment_and_a_tag(regular, place, model):
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (place / "references" / "two_numbers.yaml").unlink()
    write_captions(place / "references" / "captions.csv", CAPTIONS)
    folders = {"PRH_EVAL_REFERENCES": os.pathsep.join((str(place / "references"), ""))}
    found, _ = scores(regular, model, elsewhere, "--tasks", "prh_features", **folders)
    assert found["results"]["prh_align_itself"]["mnn,none"] == pytest.approx(1.0)
    listed = regular.run("python", "-m", "lm_eval", "ls", "tasks", cwd=elsewhere)
    assert "prh_align_itself" not in listed_names(listed)
