"""References by name and by path: where files are found, and what is said of wrong ones."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from reference_files import write_numbers

from prh_eval import resources
from prh_eval.errors import PrhEvalError
from prh_eval.references import registry
from prh_eval.references.registry import (
    load_reference,
    reference_files,
    reference_names,
    valid_references,
)
from prh_eval.schema import FeaturesReference, LanguageReference, ValuesReference, VisionReference

SHIPPED = resources.folder("references")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with nothing in it, in a process that has warned of nothing yet."""
    monkeypatch.delenv("PRH_EVAL_REFERENCES", raising=False)
    monkeypatch.chdir(tmp_path)
    registry._warn_once.cache_clear()
    yield tmp_path
    registry._warn_once.cache_clear()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings so far."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]


VISION: dict[str, Any] = {
    "kind": "vision",
    "description": "an encoder",
    "pairs": {"kind": "hub", "path": "owner/data"},
    "encoder": {"path": "owner/model", "token": "class", "preprocessing": "processor"},
    "licence": "CC0-1.0",
    "citation": "none",
}


def write(path: Path, content: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A reference's file; changes are dotted keys with ``__`` for the dot, None takes one out."""
    content = yaml.safe_load(yaml.safe_dump(content or VISION))
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = content
        for name in sections:
            section = section[name]
        if value is None:
            del section[last]
        else:
            section[last] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


# ------------------------------------------------------------------ shipped


def test_every_shipped_reference_is_found_and_valid(warnings: Callable[[], list[str]]) -> None:
    files = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    assert {"dinov2_giant", "cielab"} <= set(files)
    assert reference_names() == sorted(files)
    assert reference_files() == files
    for name in files:
        assert load_reference(name).name == name
    assert warnings() == []


def test_the_papers_reference() -> None:
    reference = load_reference("dinov2_giant")
    assert isinstance(reference, VisionReference)
    assert reference.encoder.path == "facebook/dinov2-giant"
    assert (reference.encoder.token, reference.encoder.norm) == ("class", "before")
    # The pretrained_cfg of timm's vit_giant_patch14_dinov2.lvd142m.
    prepare = reference.encoder.preprocessing
    assert prepare != "processor"
    assert (prepare.resize, prepare.crop, prepare.interpolation) == (518, 518, "bicubic")
    assert prepare.mean == (0.485, 0.456, 0.406)
    assert prepare.std == (0.229, 0.224, 0.225)
    pairs = reference.pairs.model_dump()
    assert (pairs["path"], pairs["revision"], pairs["split"]) == ("minhuh/prh", "wit_1024", "train")


# ------------------------------------------------------------------ finding


def test_the_working_folder_and_the_named_folders(
    place: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    expected = {
        "mine": write(place / "references" / "mine.yaml"),
        "ours": write(place / "shared" / "ours.yaml"),
        "tilde": write(place / "home" / "refs" / "tilde.yaml"),
        "relative": write(place / "sub" / "relative.yaml"),
    }
    named = ["", str(place / "shared"), "~/refs", "sub", ""]
    monkeypatch.setenv("PRH_EVAL_REFERENCES", os.pathsep.join(named))
    files = reference_files()
    assert {name: files[name] for name in expected} == expected
    assert set(files) == {*expected, *(path.stem for path in SHIPPED.glob("*.yaml"))}
    assert [load_reference(name).name for name in expected] == list(expected)
    assert list(files) == sorted(files)
    assert {path: each.name for path, each in valid_references().items()} == {
        path: name for name, path in files.items()
    }
    assert warnings() == []


def test_folders_within_and_files_of_editors_are_no_references(
    place: Path, warnings: Callable[[], list[str]]
) -> None:
    write(place / "references" / "good.yaml")
    write(place / "references" / "old" / "older.yaml")
    write(place / "references" / "folder.yaml" / "inner.yaml")
    write(place / "references" / "._good.yaml")
    (place / "references" / "notes.md").write_text("notes")
    (place / "references" / "good.yaml~").write_text("kind: ")
    assert reference_files().keys() - {p.stem for p in SHIPPED.glob("*.yaml")} == {"good"}
    assert warnings() == []


@pytest.mark.parametrize("name", ["other.yml", "other.YAML", "other.Yml"])
def test_another_ending_is_a_warning(
    place: Path, warnings: Callable[[], list[str]], name: str
) -> None:
    path = write(place / "references" / name)
    assert "other" not in reference_names()
    (sentence,) = warnings()
    assert str(path) in sentence and "ends in .yaml; rename it" in sentence


def test_named_folders_that_cannot_be_read_are_a_warning_each(
    place: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    (place / "file").write_text("")
    good = write(place / "good" / "mine.yaml")
    monkeypatch.setenv("PRH_EVAL_REFERENCES", os.pathsep.join(["missing", "file", "good"]))
    for _ in range(2):
        assert reference_files()["mine"] == good
    first, second = warnings()
    assert str(place / "missing") in first and "No such file" in first
    assert str(place / "file") in second and "Not a directory" in second
    assert all("PRH_EVAL_REFERENCES" in sentence for sentence in (first, second))


def test_the_earlier_file_stands_and_the_later_one_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("PRH_EVAL_REFERENCES", os.pathsep.join(["one", "two"]))
    taken = write(place / "references" / "cielab.yaml")
    first = write(place / "references" / "mine.yaml", encoder__path="the/first")
    second = write(place / "one" / "mine.yaml", encoder__path="the/second")
    third = write(place / "two" / "mine.yaml", encoder__path="the/third")
    for _ in range(2):
        assert reference_files()["mine"] == first
        assert reference_files()["cielab"] == SHIPPED / "cielab.yaml"
        mine = load_reference("mine")
        assert isinstance(mine, VisionReference) and mine.encoder.path == "the/first"
        assert isinstance(load_reference("cielab"), ValuesReference)
    sentences = warnings()
    assert len(sentences) == 3
    for ignored, kept in (
        (taken, SHIPPED / "cielab.yaml"),
        (second, first),
        (third, first),
    ):
        (sentence,) = [each for each in sentences if str(ignored) in each]
        assert f"{ignored} is ignored: {kept} has the same name" in sentence
        assert "rename" in sentence
    # By its path a file is read whatever its name.
    assert load_reference(second).encoder.path == "the/second"  # type: ignore[union-attr]


def test_a_broken_file_keeps_its_name_from_a_later_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("PRH_EVAL_REFERENCES", "one")
    broken = write(place / "references" / "mine.yaml", kind="vison")
    later = write(place / "one" / "mine.yaml")
    assert "mine" not in reference_names()
    assert len(warnings()) == 2
    assert any(f"{later} is ignored" in sentence for sentence in warnings())
    with pytest.raises(PrhEvalError, match="'kind' is 'vison'") as error:
        load_reference("mine")
    assert str(broken) in str(error.value)


def test_the_same_file_twice_is_no_conflict(
    place: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    # A checkout's own folder as ./references, a copy of it, a link to it, and a folder named twice.
    shutil.copytree(SHIPPED, place / "references")
    (place / "link").symlink_to(place / "references", target_is_directory=True)
    named = ["link", "references", str(SHIPPED), "references"]
    monkeypatch.setenv("PRH_EVAL_REFERENCES", os.pathsep.join(named))
    assert reference_files() == {path.stem: path for path in SHIPPED.glob("*.yaml")}
    assert warnings() == []


def test_a_copy_whose_own_paths_lead_elsewhere_is_a_conflict(
    place: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("PRH_EVAL_REFERENCES", "one")
    first = write(place / "references" / "mine.yaml", encoder__path="./model")
    copy = place / "one" / "mine.yaml"
    copy.parent.mkdir()
    shutil.copyfile(first, copy)
    assert reference_files()["mine"] == first
    (sentence,) = warnings()
    assert f"{copy} is ignored" in sentence


def test_a_broken_file_is_one_warning_and_hurts_no_other(
    place: Path, warnings: Callable[[], list[str]]
) -> None:
    good = write(place / "references" / "good.yaml")
    broken = write(place / "references" / "broken.yaml", encoder__token="clas")
    (place / "references" / "empty.yaml").touch()
    (place / "references" / "gone.yaml").symlink_to(place / "nowhere.yaml")
    for _ in range(3):
        assert reference_files()["good"] == good
        assert not {"broken", "empty", "gone"} & set(reference_names())
        load_reference("good")
    assert len(warnings()) == 3
    (sentence,) = [each for each in warnings() if str(broken) in each]
    assert sentence.startswith("a reference is left out: ")
    assert "'encoder.token' is 'clas'; did you mean 'class'?" in sentence
    with pytest.raises(PrhEvalError, match="did you mean 'class'"):
        load_reference("broken")
    with pytest.raises(PrhEvalError, match=r"gone\.yaml cannot be read: .*No such file"):
        load_reference("gone")


def test_a_file_that_was_mended_is_read_anew(place: Path) -> None:
    path = write(place / "references" / "mine.yaml", kind="vison")
    assert "mine" not in reference_names()
    write(path)
    assert "mine" in reference_names()
    path.unlink()
    assert "mine" not in reference_names()


def test_a_working_folder_that_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    (place / "here").rmdir()
    assert "cielab" in reference_names()
    monkeypatch.chdir(place)


def test_neither_torch_nor_a_hub_client_is_imported(place: Path) -> None:
    write(place / "references" / "mine.yaml")
    code = (
        "import sys\n"
        "from prh_eval.references.registry import reference_names\n"
        "from prh_eval.references.tasks import tasks_folder\n"
        "assert 'mine' in reference_names() and tasks_folder()\n"
        "heavy = {'torch', 'numpy', 'datasets', 'transformers', 'huggingface_hub', 'lm_eval'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = str(Path(registry.__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "PRH_EVAL_PLUGIN": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------ names


def test_unknown_names(place: Path) -> None:
    write(place / "references" / "my_encoder.yaml")
    with pytest.raises(PrhEvalError, match="'dinov2_gaint'; did you mean 'dinov2_giant'"):
        load_reference("dinov2_gaint")
    with pytest.raises(PrhEvalError, match="'my_encodr'; did you mean 'my_encoder'"):
        load_reference("my_encodr")
    with pytest.raises(PrhEvalError, match="unknown reference 'references/my_encoder'"):
        load_reference("references/my_encoder")
    with pytest.raises(PrhEvalError, match=r"no reference file 'nowhere/x\.yaml'"):
        load_reference("nowhere/x.yaml")
    with pytest.raises(PrhEvalError, match=r"'x\.yml' should end in \.yaml"):
        load_reference("x.yml")
    with pytest.raises(PrhEvalError, match=r"no reference file '~nobody-at-all/x\.yaml'"):
        load_reference("~nobody-at-all/x.yaml")


@pytest.mark.parametrize("name", ["my encoder", "-x", "x,y", "é", "x[1]", "x.yaml", "x*", "_x"])
def test_names_that_make_no_task(place: Path, warnings: Callable[[], list[str]], name: str) -> None:
    path = write(place / "references" / f"{name}.yaml")
    assert name not in reference_names()
    (sentence,) = warnings()
    assert f"{path}: a reference is called after its file, so {name!r} should" in sentence
    with pytest.raises(PrhEvalError, match="a reference is called after its file"):
        load_reference(path)


@pytest.mark.parametrize("name", ["a", "123", "1e3", "null", "A-b_c.d", "v1.5"])
def test_names_that_do(place: Path, name: str) -> None:
    path = write(place / "references" / f"{name}.yaml")
    assert reference_files()[name] == path
    assert load_reference(name).name == name


def test_a_name_whose_task_the_package_has_is_refused(
    place: Path, warnings: Callable[[], list[str]]
) -> None:
    path = write(place / "references" / "color.yaml")
    assert "color" not in reference_names()
    (sentence,) = warnings()
    for part in (str(path), "prh_align_color", "rename the file"):
        assert part in sentence
    with pytest.raises(PrhEvalError, match="prh_align_color, which comes with the package"):
        load_reference("color")


def test_the_files_of_the_packages_tasks_are_named_after_them() -> None:
    # Which is how a name that would make one of them is recognised.
    for path in resources.folder("tasks").glob("*.yaml"):
        assert f"\ntask: {path.stem}\n" in path.read_text(encoding="utf-8")


# ------------------------------------------------------------------ paths in a file


def test_paths_are_relative_to_the_file(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("HOME", "/at/home")

    def paths(**changes: Any) -> tuple[str, str]:
        reference = load_reference(write(folder / "sub" / "tiny.yaml", **changes))
        return reference.pairs.path, reference.encoder.path  # type: ignore[union-attr]

    # What may be a hub id is one, unless it is marked as a path.
    assert paths() == ("owner/data", "owner/model")
    for given, expected in {
        "./x": f"{folder}/sub/x",
        "../x/": f"{folder}/x",
        "..": str(folder),
        ".": f"{folder}/sub",
        "/an/absolute/one": "/an/absolute/one",
        "~/x": "/at/home/x",
        "x/../y": "x/../y",
        ".hidden/x": ".hidden/x",
    }.items():
        assert paths(pairs__path=given, encoder__path=given) == (expected, expected)
    # Elsewhere everything is a path.
    for kind in ("imagefolder", "table"):
        for given, expected in {
            "x": f"{folder}/sub/x",
            "x/y.csv": f"{folder}/sub/x/y.csv",
            "../x": f"{folder}/x",
            "/an/absolute/one": "/an/absolute/one",
            "~/x": "/at/home/x",
        }.items():
            assert paths(pairs={"kind": kind, "path": given})[0] == expected
            others: dict[str, Any] = {"features": {"path": given}}
            content = {**VISION, **others, "kind": "features"}
            del content["encoder"]
            features = load_reference(write(folder / "sub" / "f.yaml", content))
            assert isinstance(features, FeaturesReference)
            assert features.features.path == expected
            content = {**content, "kind": "values", "values": {"path": given, "columns": ["a"]}}
            del content["features"]
            values = load_reference(write(folder / "sub" / "v.yaml", content))
            assert isinstance(values, ValuesReference) and values.values != "cielab"
            assert values.values.path == expected


def test_a_file_in_the_working_folder_by_its_name(place: Path) -> None:
    write(place / "tiny.yaml", pairs={"kind": "table", "path": "x.csv"})
    reference = load_reference("tiny.yaml")
    assert reference.pairs.path == str(place / "x.csv")  # type: ignore[union-attr]


def test_a_path_that_cannot_be_one(place: Path) -> None:
    path = write(place / "tiny.yaml", pairs={"kind": "table", "path": "x\0y"})
    with pytest.raises(PrhEvalError, match=r"a path that cannot be one: .*null"):
        load_reference(path)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder__tokn": "class"}, "unknown key 'encoder.tokn'; did you mean 'token'?"),
        ({"famly": "x"}, "unknown key 'famly'; did you mean 'family'?"),
        ({"values": "cielab"}, "unknown key 'values'; valid: "),
        ({"pairs__column": "x"}, "unknown key 'pairs.column'; .*caption_column"),
        ({"encoder__preprocessing": {"size": 3}}, "unknown key 'encoder.preprocessing.size'; did"),
        ({"encoder__token": "clas"}, "'encoder.token' is 'clas'; did you mean 'class'?"),
        ({"encoder__dtype": "float23"}, "'encoder.dtype' is 'float23'; did you mean 'float32'?"),
        ({"encoder__loader": "tim"}, "'encoder.loader' is 'tim'; did you mean 'timm'?"),
        ({"encoder__layers": "block"}, "'encoder.layers' is 'block'; did you mean 'blocks'?"),
        ({"encoder__layers": ["a"]}, r"'encoder.layers\[0\]' is 'a'; .*integer"),
        ({"encoder__layers": [1, 1]}, "in 'encoder': layers should hold .* each once"),
        ({"encoder__preprocessing": "procesor"}, "is 'procesor'; did you mean 'processor'?"),
        ({"similarity": "cosin"}, "'similarity' is 'cosin'; did you mean 'cosine'?"),
        ({"kind": "vison"}, "'kind' is 'vison'; did you mean 'vision'?"),
        ({"kind": None}, "the key 'kind' is missing; .* vision, language, features, values"),
        ({"pairs__kind": "hubb"}, "'pairs.kind' is 'hubb'; did you mean 'hub'?"),
        ({"pairs__kind": None}, "the key 'pairs.kind' is missing; .*hub, imagefolder, table"),
        ({"pairs": None}, "the key 'pairs' is missing"),
        ({"encoder__path": None}, "the key 'encoder.path' is missing"),
        ({"licence": None}, "the key 'licence' is missing"),
        ({"encoder__revision": 123}, "'encoder.revision' is 123; .*string"),
        ({"parameters": "many"}, "'parameters' is 'many'; .*integer"),
        ({"version": "2"}, "'version' is '2'; .*number"),
        ({"version": 0}, "'version' is 0; .*greater than 0"),
        ({"encoder": 3}, "'encoder' is 3"),
        ({"pairs": "minhuh/prh"}, "'pairs' is 'minhuh/prh'|'pairs.kind'"),
        ({"name": "other"}, "the key 'name' is 'other'; .* 'tiny'"),
        ({"licence": 1, "citation": 2}, "'licence' is 1; .*first of 2 mistakes"),
        ({"licence": None, "license": "MIT"}, "unknown key 'license'; did you mean 'licence'"),
    ],
)
def test_mistakes_in_a_file(place: Path, changes: dict[str, Any], words: str) -> None:
    path = write(place / "tiny.yaml", **changes)
    with pytest.raises(PrhEvalError, match=words) as error:
        load_reference(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_files_that_are_right(place: Path) -> None:
    reference = load_reference(
        str(write(place / "tiny.yaml", family="tiny", parameters=5, name="tiny", version=2))
    )
    assert isinstance(reference, VisionReference)
    assert (reference.name, reference.version, reference.family) == ("tiny", 2, "tiny")
    encoder = {"path": "owner/model", "pooling": "mean"}
    language = load_reference(write(place / "text.yaml", kind="language", encoder=encoder))
    assert isinstance(language, LanguageReference)
    numbers = load_reference(write_numbers(place, "numbers", np.eye(3)))
    assert isinstance(numbers, FeaturesReference)
    assert numbers.similarity == "cosine"
