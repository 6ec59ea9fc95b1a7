"""Features that were made elsewhere, read from a file; no file runs code."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.schema import FeatureFile
from prh_eval.store import content_sha256

# Under this name the released code of arXiv 2405.07987 keeps its features, beside other things.
_RELEASED = "feats"
_DATA = "the paired data"
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_Content = dict[str, Any] | Any


def file_features(
    spec: FeatureFile, n: int | None = None, *, named_by: str = "'features.names'"
) -> list[Tensor]:
    """Read features from a ``.safetensors``, ``.npz``, ``.npy`` or ``.pt`` file.

    Of ``.safetensors``, ``.npy`` and ``.pt`` the tensors are views of the file, mapped into memory:
    values are read when they are used, so that a file may be larger than memory.

    A tensor (items, width) is a layer; a tensor (items, layers, width) is several. Of a ``.pt``
    that holds a dictionary with the key ``feats``, as the released code of Huh et al. 2024 writes
    it, this entry alone is read unless others are named.

    Args:
        spec: The file, and the names of the tensors to read.
        n: Number of items of the paired data; None: that of the file's first layer.
        named_by: What a person names the tensors with, for messages.

    Returns:
        One tensor (n, width_l) a layer on the CPU, of the type in which it is stored. Tensors in
        the order of ``spec.names``; without it in the order of their names, numbers within them in
        numerical order.

    Raises:
        PrhEvalError: If the file is missing, empty, cut short or holds code, a name is unknown or
            given twice, or a tensor has another shape, another number of items or no numbers of
            float16, bfloat16, float32 or float64.
    """
    return [layer for _, layer in named_features(spec, n, named_by=named_by)]


def named_features(
    spec: FeatureFile, n: int | None = None, *, named_by: str = "'features.names'"
) -> list[tuple[str, Tensor]]:
    """Read features as :func:`file_features` does, each layer with what it is called.

    Returns:
        Names and tensors: that of the tensor in the file, ``element 0`` in a list, ``tensor`` in a
        file of one without a name; ``NAME[:, 0]`` for a layer of a tensor that has several.

    Raises:
        PrhEvalError: As :func:`file_features`.
    """
    path = _existing(spec.path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PrhEvalError(
            f"the feature file {spec.path!r} ends in {path.suffix!r}; it should be one of "
            f"{', '.join(sorted(_READERS))}"
        )
    if not path.stat().st_size:
        raise PrhEvalError(f"the feature file {spec.path!r} is empty")
    try:
        content = reader(path, spec)
    except PrhEvalError:
        raise
    # The libraries raise errors of many types on a file that is cut or of another kind.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise PrhEvalError(
            f"the feature file {spec.path!r} cannot be read; it is cut short, damaged or no "
            f"{path.suffix} file: {why}"
        ) from error
    layers: list[tuple[str, Tensor]] = []
    for name, called, value in _chosen(content, spec, named_by):
        # Where nobody says how many items there are, the first layer does.
        items = (layers[0][1].shape[0], "the first layer") if n is None and layers else (n, _DATA)
        tensor = _tensor(value, called, spec, named_by)
        found = _layers(tensor, called, spec, *items)
        several = tensor.ndim == 3
        layers += [
            (f"{name}[:, {number}]" if several else name, layer)
            for number, layer in enumerate(found)
        ]
    if not layers:
        raise PrhEvalError(f"the feature file {spec.path!r} holds no tensor")
    return layers


def file_fingerprint(path: str) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Args:
        path: As a person wrote it.

    Raises:
        PrhEvalError: If there is no such file or it cannot be read.
    """
    try:
        return content_sha256(_existing(path))
    except OSError as error:
        raise PrhEvalError(f"the file {path!r} cannot be read: {error.strerror}") from error


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is not there"
        raise PrhEvalError(f"the file {path!r} {kind}; a path should name a file")
    return file


# ---------------------------------------------------------------- readers, by suffix


def _read_safetensors(path: Path, spec: FeatureFile) -> _Content:
    with safetensors.safe_open(path, framework="pt") as file:
        names = _wanted(file.keys(), spec)
        return {name: file.get_tensor(name) for name in names}


def _read_npz(path: Path, spec: FeatureFile) -> _Content:
    with zipfile.ZipFile(path):
        pass  # what is no archive, numpy would take for a pickle
    with _without_objects(spec), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in _wanted(file, spec)}


def _read_npy(path: Path, spec: FeatureFile) -> _Content:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)  # what has no magic bytes, numpy would take for a pickle
    with _without_objects(spec):
        # Copy on write: torch has no read-only tensors.
        return np.load(path, mmap_mode="c", allow_pickle=False)


@contextmanager
def _without_objects(spec: FeatureFile) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if not re.search("allow_pickle|Python objects", str(error)):
            raise
        raise _refused(spec, "save plain arrays of floats") from error


def _read_pt(path: Path, spec: FeatureFile) -> _Content:
    try:
        # What torch wrote before version 1.6 is no archive, and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except pickle.UnpicklingError as error:
        # Noise among the instructions; every other refusal is of an object.
        if "Unsupported operand" in str(error):
            raise
        raise _refused(spec, "save tensors only, as .safetensors or torch.save of them") from error
    if isinstance(content, dict) and spec.names is None and _RELEASED in content:
        return content[_RELEASED]
    return content


_READERS: dict[str, Callable[[Path, FeatureFile], _Content]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pt": _read_pt,
}


def _refused(spec: FeatureFile, instead: str) -> PrhEvalError:
    return PrhEvalError(
        f"the feature file {spec.path!r} holds pickled objects, which can run code when they are "
        f"read, so it was not; {instead}"
    )


# ---------------------------------------------------------------- from content to layers


def _wanted(names: Any, spec: FeatureFile) -> list[str]:
    """The names to read, in the order of the layers."""
    present = [str(name) for name in names]
    if spec.names is None:
        return sorted(present, key=_natural)
    for number, name in enumerate(spec.names):
        if name in spec.names[:number]:
            raise PrhEvalError(
                f"the tensor {name!r} of the feature file {spec.path!r} is named twice; each "
                "layer should be named once"
            )
        if name not in present:
            raise PrhEvalError(
                f"the feature file {spec.path!r} has no tensor {name!r}; "
                f"{suggestion(name, present)}"
            )
    return spec.names


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts block2 before block10; names that differ in leading zeros only stay apart."""
    pieces = re.split(r"(\d+)", name)
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def _chosen(content: _Content, spec: FeatureFile, named_by: str) -> list[tuple[str, str, Any]]:
    """What is to become layers, each with its name and how to call it in a message."""
    if isinstance(content, dict):
        named = {str(name): value for name, value in content.items()}
        return [(name, f"the tensor {name!r}", named[name]) for name in _wanted(named, spec)]
    if spec.names is not None:
        raise PrhEvalError(
            f"the feature file {spec.path!r} holds no names; {named_by} should be left out"
        )
    if isinstance(content, (list, tuple)):
        names = [f"element {number}" for number in range(len(content))]
        return list(zip(names, names, content, strict=True))
    return [("tensor", "the tensor", content)]


def _tensor(value: Any, name: str, spec: FeatureFile, named_by: str) -> Tensor:
    """A tensor of the same values."""
    where = f"{name} in the feature file {spec.path!r}"
    if isinstance(value, np.ndarray):
        kind: Any = value.dtype
        usable = kind.kind == "f" and kind.itemsize <= 8
    elif isinstance(value, Tensor):
        kind = value.dtype if value.layout == torch.strided else value.layout
        usable = kind in _TYPES
    else:
        raise PrhEvalError(
            f"{where} is of type {type(value).__name__}; it should be a tensor, or "
            f"{named_by} should name the tensors"
        )
    if not usable:
        raise PrhEvalError(
            f"{where} is of type {kind}; features should be saved as plain floating-point numbers "
            "of 16, 32 or 64 bits"
        )
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.asarray(value, dtype=kind.newbyteorder("=")))
    tensor: Tensor = value.detach()
    return tensor


def _layers(
    tensor: Tensor, name: str, spec: FeatureFile, n: int | None, stated_by: str
) -> Sequence[Tensor]:
    shape = tuple(tensor.shape)
    where = f"{name} in the feature file {spec.path!r} has shape {shape}"
    if tensor.ndim not in (2, 3):
        raise PrhEvalError(f"{where}; it should be (items, width) or (items, layers, width)")
    n = shape[0] if n is None else n
    if shape[0] != n and tensor.ndim == 3 and shape[1] == n:
        raise PrhEvalError(
            f"{where}, with the {n} items second; it should be (items, layers, width), here "
            f"{(n, shape[0], shape[2])}"
        )
    if shape[0] != n:
        raise PrhEvalError(
            f"{where}, so {shape[0]} items where {stated_by} has {n}; it should have one row "
            f"an item, in the order of {_DATA}"
        )
    return [tensor] if tensor.ndim == 2 else tensor.unbind(dim=1)
