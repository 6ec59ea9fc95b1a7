"""``prh-eval plan``, what it says, and docs/large-n.md, which shows what it says.

``PRH_EVAL_WRITE_DOCS=1 pytest tests/test_commands_plan.py`` writes the page's tables anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prh_eval.cli import main, parse
from prh_eval.costs import DEVICES, model_costs, reporting_bytes, reporting_seconds
from prh_eval.features.files import file_features
from prh_eval.schema import FeatureFile

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "large-n.md"
MILLION = ["--items", "1000000", "--layers", "25", "--dim", "1024"]


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["plan", *options]) == 0
    return capsys.readouterr().out


def test_json_has_the_model_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    other = ["--other-layers", "41", "--other-dim", "1536"]
    options = ["--device", "h100", "--gpus", "4", "--memory", "30GB", "--stored", "float32"]
    options += ["--efficiency", "0.25", "--k", "20", "--parameters", "7e9", "--tokens", "30"]
    content: dict[str, Any] = json.loads(planned(capsys, *MILLION, *other, *options, "--json"))
    given = {"processes": 4, "memory_bytes": 30 * 10**9, "stored": "float32", "efficiency": 0.25}
    total = 0.0
    for made, (layers, dim) in zip(content["models"], [(25, 1024), (41, 1536)], strict=True):
        costs = model_costs(1_000_000, layers, dim, 20, DEVICES["h100"], **given)
        assert made["feature_bytes"] == 1_000_000 * layers * dim * 4
        assert made["layer"]["peak_bytes"] == costs.search.peak_bytes <= 30 * 10**9
        assert made["writing_bytes"] == made["graph_bytes"] + 1_000_000 * (4 * layers + 5 * 20)
        assert made["layer"]["operations"] == costs.search.operations
        assert made["layer"]["seconds"] == costs.search_seconds
        assert made["search_seconds"] == layers * costs.search_seconds
        total += made["reading_seconds"] + made["search_seconds"]
    after = content["reporting_seconds"]
    assert content["reporting_seconds"] == reporting_seconds(1_000_000, 25, 41, 20)
    assert content["reporting_bytes"] == reporting_bytes(1_000_000, 20)
    assert content["seconds"] == pytest.approx(total + after)
    assert content["hours"] == pytest.approx(content["seconds"] / 3600)
    assert content["encoding"]["operations"] == 2 * 7e9 * 1_000_000 * 30
    assert content["encoding"]["seconds"] == pytest.approx(4.2e17 / (4 * 989e12 * 0.25))
    assert (content["device"], content["gpus"]) == ("NVIDIA H100 SXM", 4)


def test_the_table_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(planned(capsys, *MILLION, "--json"))
    text = planned(capsys, *MILLION)
    (model,) = content["models"]
    rows = dict(
        [cell.strip() for cell in re.split(r"  +", line.strip()) if cell]
        for line in text.split("---\n")[-1].split("\n\n")[0].splitlines()
    )
    assert rows["features on disk (float16)"] == "51.2 GB"
    assert rows["items on a side of a tile"] == f"{model['layer']['tile_items']:,}"
    assert float(rows["operations of a layer"].removesuffix(" PFLOP")) == pytest.approx(
        model["layer"]["operations"] / 1e15, rel=0.01
    )
    assert float(rows["memory of the device, in all"].removesuffix(" GB")) == pytest.approx(
        model["layer"]["peak_bytes"] / 1e9, rel=0.01
    )
    assert "a device receives of a layer" not in rows
    assert f"In all, estimated: {content['hours']:.3g} hours" in text
    assert "chance" not in text  # which there is of two models
    both = planned(capsys, *MILLION, "--other-layers", "1", "--other-dim", "2")
    after = (
        "Scores of all 25 layer pairs, their chance and errors, estimated: 66 s, in 650 MB beside"
    )
    assert after in both
    # Whatever is a time says that it is an estimate.
    for line in (text + both).splitlines():
        assert "estimated" in line.lower() or not re.search(r"\d (s|min|h|hours)\b", line), line


def test_small_and_large_numbers_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    small = planned(capsys, "--items", "1024", "--layers", "1", "--dim", "32", "--k", "1")
    assert "65.5 kB" in small
    assert "1 layer x 32" in small
    tiny = planned(capsys, "--items", "2", "--layers", "2", "--dim", "5", "--k", "1")
    assert "2 layers x 5" in tiny
    assert re.search(r"operations of a layer +[1-9]\d* FLOP\n", tiny)
    options = ["--items", "100000000", "--memory", "1TB", "--parameters", "1e12"]
    large = planned(capsys, *MILLION, *options)
    assert "5.12 TB" in large
    assert "4.00 ZFLOP" in large
    assert re.search(r"In all, estimated: (\d+) hours \(\1\.\d h\)", large)


def test_a_cpu_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prh_eval.costs._measured_flops", lambda: 2e11)
    text = planned(capsys, "--items", "10000", "--layers", "2", "--dim", "64", "--device", "cpu")
    assert "on this machine's CPU, " in text
    assert "50% of 0.2 TFLOP/s" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "1000000"], "--k must be below --items"),
        (["--device", "h20"], "did you mean 'h200'?"),
        (["--device", "cpu", "--gpus", "2"], "--gpus counts GPUs"),
        (["--other-layers", "3"], "--other-layers and --other-dim must be given together"),
        (["--other-dim", "3"], "--other-layers and --other-dim must be given together"),
        (["--memory", "1GB"], "of memory, where 1,000"),
        (["--gpus", "1000001"], "--gpus 1000001 is more than the 1000000 items"),
        (["--items", "2147483648"], "--items is more than the 2,147,483,647 items"),
        (["--items", "1e30"], "--items is more than the 2,147,483,647 items"),
        (["--device", "cuda:0"], "no device 'cuda:0' in the cost model; valid: a100, cpu, "),
        (["--tokens", "30"], "needs --parameters too"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *MILLION, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prh-eval: error: ")
    assert words in line


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--layers", "0", "should be a number from 1"),
        ("--items", "1.5", "should be a whole number from 1, as 1e6"),
        ("--items", "0", "should be a whole number from 1, as 1e6"),
        ("--items", "inf", "should be a whole number from 1, as 1e6"),
        ("--items", "nan", "should be a whole number from 1, as 1e6"),
        ("--items", "-3", "should be a whole number from 1, as 1e6"),
        ("--gpus", "0", "should be a number from 1"),
        ("--memory", "2XB", "should be a number of bytes, as 2GB"),
        ("--memory", "0", "should be a number of bytes, as 2GB"),
        ("--memory", "1e999", "should be a number of bytes, as 2GB"),
        ("--efficiency", "1.5", "above 0 and at most 1"),
        ("--efficiency", "0", "above 0 and at most 1"),
        ("--efficiency", "-1", "above 0 and at most 1"),
        ("--efficiency", "nan", "above 0 and at most 1"),
        ("--efficiency", "x", "above 0 and at most 1"),
        ("--parameters", "7B", "should be a number above 0, as 7e9"),
        ("--tokens", "nan", "should be a number above 0"),
    ],
)
def test_values_that_are_none_are_told(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *MILLION, option, value])
    assert words in capsys.readouterr().err


def test_items_may_be_written_as_powers_of_ten() -> None:
    shape = ["--layers", "1", "--dim", "1"]
    for text, items in (("1e6", 10**6), ("2.5E3", 2500), ("1000000", 10**6), ("1", 1)):
        assert parse(["plan", *shape, "--items", text]).items == items


def test_sizes_are_read_in_both_systems() -> None:
    for text, size in (
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("300mb", 3 * 10**8),
        ("64", 64),
        ("1KiB", 1024),
        ("2TB", 2 * 10**12),
        ("5e8", 5 * 10**8),
    ):
        assert parse(["plan", *MILLION, "--memory", text]).memory == size


# docs/large-n.md


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    pattern = r"(```bash\n(prh-eval plan [^\n]+)\n```\n\n```\n)(.*?)(```\n)"
    shown = re.findall(pattern, text, flags=re.S)
    assert len(shown) >= 2

    def current(match: re.Match[str]) -> str:
        return match[1] + planned(capsys, *shlex.split(match[2])[2:]) + match[4]

    wanted = re.sub(pattern, current, text, flags=re.S)
    if os.environ.get("PRH_EVAL_WRITE_DOCS"):
        PAGE.write_text(wanted, encoding="utf-8")
    assert wanted == PAGE.read_text(encoding="utf-8"), __doc__


def test_the_page_and_the_help_list_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    listed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert ", ".join(DEVICES) + " or cpu" in listed
    text = PAGE.read_text(encoding="utf-8")
    for device in DEVICES.values():
        peak, link = f"{device.flops / 1e12:.0f}", f"{device.link / 1e9:.0f}"
        assert f"| `{device.name}` | {device.label} | {peak} |" in text
        assert re.search(rf"\| {re.escape(device.label)} \|.*\| {link} \|\n", text)


def test_every_command_of_the_page_is_one() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:torchrun .*?|accelerate .*?)?-m prh_eval (.+)$", text, flags=re.M)
    lines += re.findall(r"^prh-eval (.+)$", text, flags=re.M)
    assert len(lines) >= 8
    for line in lines:
        parse(shlex.split(line))


def test_the_file_that_the_page_writes_is_read(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "N": "300", "LAYERS": "3", "DIM": "8"},
    )
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("*.safetensors")
    layers = file_features(FeatureFile(path=str(path)))
    assert [tuple(layer.shape) for layer in layers] == [(300, 8)] * 3
    values = np.stack([layer.numpy() for layer in layers])
    assert values.dtype == np.float16
    assert np.abs(values).min(axis=(1, 2)).max() < 1 and values.std(axis=(1, 2)).min() > 0.5
