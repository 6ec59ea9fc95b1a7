"""``prh-eval pairs check``: a report to read, an exit status to rely on."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pair_files import make_image_folder, write_reference_on

from prh_eval.commands import pairs
from prh_eval.errors import PrhEvalError


def run(*arguments: str) -> int:
    """What prh-eval does with these arguments after its name."""
    parser = argparse.ArgumentParser(prog="prh-eval")
    pairs.add(parser.add_subparsers())
    parsed = parser.parse_args(["pairs", "check", *arguments])
    status: int = parsed.command(parsed)
    return status


@pytest.fixture
def reference(tmp_path: Path) -> str:
    make_image_folder(tmp_path / "data", n=14)
    file = tmp_path / "mine.yaml"
    return str(write_reference_on(file, {"kind": "imagefolder", "path": "./data"}))


def test_a_report(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(reference) == 0
    assert (
        capsys.readouterr().out
        == f"""\
the folder '{tmp_path / "data"}' (metadata.jsonl)

items              14
captions per item  1
words per caption  4
images             14 of 14 can be read
image sizes        9 x 5 to 9 x 11 pixels

A run can use these pairs.
"""
    )


def test_a_report_of_mistakes(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    texts = [["a dog", "a wet dog"], ["a dog"], [""], *([f"text {i}"] for i in range(11))]
    make_image_folder(folder, n=14, text=texts)
    (folder / "0.png").unlink()
    assert run(reference) == 1
    assert (
        capsys.readouterr().out
        == f"""\
the folder '{folder}' (metadata.jsonl)

items              14
captions per item  1 to 2, 1.1 on average
words per caption  2 to 3, 2.1 on average
images             13 of 14 can be read
image sizes        9 x 5 to 9 x 11 pixels

Problems, which would stop a run:
  - 1 item has an empty caption: 2
  - 1 image cannot be read:
      item 0 ({folder}/0.png): there is no such file

Notes (duplicates stop nothing, and make no alignment: ties are shared):
  - 2 items share a caption with another: 'a dog' (0, 1)
"""
    )


def test_without_images(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "0.png").unlink()
    assert run(reference, "--no-images") == 0
    assert "images             not looked at" in capsys.readouterr().out
    assert run("cielab", "--no-images") == 0
    assert "images             none" in capsys.readouterr().out


def test_images_of_one_size(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (tmp_path / "data" / "0.png").read_bytes()
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(content)
    assert run(reference) == 0
    out = capsys.readouterr().out
    assert "image sizes        9 x 5 pixels\n" in out
    assert "14 items have the image of another, byte for byte: 0 = 1 = 2" in out


def test_for_machines(reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(reference, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is True
    assert report["captions"] == {"least": 1, "mean": 1.0, "most": 1}
    assert report["largest_image"] == [9, 11]


def test_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cielab") == 0
    out = capsys.readouterr().out
    assert out.startswith("xkcd_colors\n\nitems              949\n")
    assert out.endswith("A run can use these pairs.\n")


def test_bad_input_is_one_sentence(reference: str, tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match="cielab"):
        run("cielabb")
    (tmp_path / "data" / "metadata.jsonl").unlink()
    with pytest.raises(PrhEvalError, match=r"has no metadata\.jsonl"):
        run(reference)


def test_adding_it_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from prh_eval.commands import pairs; "
        "pairs.add(argparse.ArgumentParser().add_subparsers()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'datasets', 'PIL')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
