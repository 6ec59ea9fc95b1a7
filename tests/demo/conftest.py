"""A stand-in for ``lm_eval``, whose behaviour hangs on the model's name or on files beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

_MAIN = """
import json, os, pathlib, sys, time

arguments = sys.argv[1:]
given = dict(zip(arguments[1::2], arguments[2::2]))
name = given["--model_args"].removeprefix("pretrained=models/")
assert arguments[0] == "run" and given["--tasks"] == "prh_align_color,prh_color_choice"
assert pathlib.Path("models").is_dir()
pathlib.Path(f"{name}.pid").write_text(str(os.getpid()))
print("on stdout"), print("on stderr", file=sys.stderr)
os.system("echo of a child")
if "sleeps" in name or pathlib.Path("all_sleep").exists():
    time.sleep(3600)
if "fails" in name or pathlib.Path("all_fail").exists():
    for line in range(100):
        print("line", line)
    sys.exit("ValueError: it went wrong")
results = {"prh_align_color": {"mnn,none": 0.25}, "prh_color_choice": {"acc,none": 0.5}}
if "half" in name:
    del results["prh_color_choice"]
variables = ["HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PRH_EVAL_CACHE"]
content = {
    "results": results,
    "versions": {},
    "config": {"model": "hf", "model_args": {"pretrained": f"models/{name}"}},
    "environment": {variable: os.environ.get(variable) for variable in variables},
}
folder = pathlib.Path(given["--output_path"], f"models__{name}")
folder.mkdir(parents=True)
(folder / "results_2026-01-01T00-00-00.5.json").write_text(json.dumps(content))
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with a package ``lm_eval``, to stand first on the path."""
    package = tmp_path / "stub" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(_MAIN)
    return package.parent
