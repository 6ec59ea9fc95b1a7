"""Result files to share: without what tells about the machine they were made on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.paths import is_folder, is_whole_path, last_part
from prh_eval.leaderboard.publish import replace
from prh_eval.leaderboard.results import Skipped, read_results
from prh_eval.leaderboard.scores import parse_model_args

# Libraries and hardware in a page of text, the commit of whatever folder lay above, and times since
# the machine was started. Versions that matter stand in keys of their own.
_OF_THE_MACHINE = ("pretty_env_info", "upper_git_hash", "start_time", "end_time")
# Where a task's config may name files; its prompts and patterns only look like it.
_WITH_PATHS = ("metadata", "dataset_path", "dataset_name", "dataset_kwargs")
# Arguments that may name a folder with weights.
_FOLDERS = ("pretrained", "peft", "delta", "tokenizer")


class Packed(NamedTuple):
    """What `pack` wrote.

    Attributes:
        files: Relative to its folder, with forward slashes.
        skipped: What looks like a result and is none, and values that cannot be.
    """

    files: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def shareable(data: Mapping[str, Any]) -> dict[str, Any]:
    """A result file's content without what tells about the machine.

    Left out are the description of hardware and libraries, the commit of the folder above lm-eval,
    and times since the machine was started; of every path the last part remains, also where a model
    was given by one. Results, versions, counts and prompts are as they were.

    Args:
        data: The content, as `json.loads` gives it; it is not changed.
    """
    args = parse_model_args(_dict(data.get("config")).get("model_args"))
    named = [data.get("model_name"), *(args.get(key) for key in _FOLDERS)]
    folders = {name for name in named if isinstance(name, str) and is_folder(name)}
    shared = {key: value for key, value in data.items() if key not in _OF_THE_MACHINE}
    config = data.get("config")
    if isinstance(config, dict):
        shared["config"] = _without_paths(config, folders)
        given = config.get("model_args")
        mended = _without_paths(args, folders)
        if isinstance(given, str) and mended != args:
            shared["config"]["model_args"] = ",".join(f"{k}={v}" for k, v in mended.items())
    if isinstance(data.get("configs"), dict):
        shared["configs"] = {
            task: {
                key: _without_paths(value, folders) if key in _WITH_PATHS else value
                for key, value in config.items()
            }
            if isinstance(config, dict)
            else config
            for task, config in data["configs"].items()
        }
    name = data.get("model_name")
    if isinstance(name, str) and name in folders:
        shared["model_name"] = last_part(name)
        if "model_name_sanitized" in data:
            shared["model_name_sanitized"] = _folder_name(shared["model_name"])
    return shared


def pack(folder: Path, output: Path) -> Packed:
    """Copy result files to a folder for each model, as `shareable` gives them.

    Args:
        folder: With lm-eval's result files, at any depth.
        output: Gets a folder for each model.

    Raises:
        PrhEvalError: If there are none, two models would have one name, a different file is in the
            way, or the output cannot be written.
    """
    results = read_results(folder)
    if not results.scores:
        raise PrhEvalError(f"{folder} holds no result file of lm-eval")
    names = {score.file: score.model.name for score in results.scores}
    shared_names: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for file, name in sorted(names.items()):
        short = last_part(name) if is_folder(name) else name
        if shared_names.setdefault(short, name) != name:
            raise PrhEvalError(
                f"the models {shared_names[short]!r} and {name!r} would both be called {short!r}; "
                "rename the folder of one in its result files, or pack them apart"
            )
        content = shareable(json.loads((folder / file).read_bytes()))
        place = f"{_folder_name(short)}/{Path(file).name}"
        packed = (json.dumps(content, indent=2) + "\n").encode()
        if files.setdefault(place, packed) != packed:
            raise PrhEvalError(
                f"two different files would be {output / place}, one of them {folder / file}; "
                "rename it"
            )
    before = dict(_there(output, files))
    for place, old in before.items():
        if old != files[place]:
            raise PrhEvalError(
                f"{output / place} is there and differs; remove it or pack elsewhere"
            )
    replace(output, {name: files[name] for name in files if name not in before}, before)
    return Packed(tuple(files), results.skipped)


def _there(folder: Path, names: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        try:
            yield name, (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise PrhEvalError(f"{folder / name} cannot be read: {error.strerror}") from error


def _folder_name(name: str) -> str:
    """A model's name as that of its folder, as lm-eval writes it; never one above."""
    writable = name.encode("utf-8", "replace").decode()  # JSON may hold half characters
    return re.sub(r"[\"<>:/|\\?*\[\]\s]+", "__", writable).lstrip(".") or "model"


def _without_paths(value: Any, folders: set[str]) -> Any:
    """A JSON value with the last parts of the paths in it, and of the given names of folders."""
    if isinstance(value, dict):
        return {
            # What it holds is hashed by readers, and names no folder of a machine.
            key: each if key == "made_from" else _without_paths(each, folders)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_without_paths(each, folders) for each in value]
    if not isinstance(value, str):
        return value
    return last_part(value) if value in folders or is_whole_path(value) else value


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
