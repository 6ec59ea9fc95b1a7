"""Feature files that NumPy, safetensors and torch wrote, against what was written."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prh_eval.errors import PrhEvalError
from prh_eval.features.files import file_features, file_fingerprint, named_features
from prh_eval.schema import FeatureFile

N = 5


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def read(path: Path, n: int | None = N, names: list[str] | None = None) -> list[Tensor]:
    return file_features(FeatureFile(path=str(path), names=names), n)


def refusal(path: Path, n: int | None = N, names: list[str] | None = None) -> str:
    with pytest.raises(PrhEvalError) as caught:
        read(path, n, names)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(str(path)) in message
    return message


def assert_equal(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(got) == len(wanted)
    for layer, oracle in zip(got, wanted, strict=True):
        assert layer.dtype == oracle.dtype
        assert not layer.requires_grad
        assert torch.equal(layer, oracle)


def save_npz(tensors: Mapping[str, Tensor], path: Path) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})


def save_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(dict(tensors), path)


SAVE: dict[str, Callable[[Mapping[str, Tensor], Path], None]] = {
    ".npz": save_npz,
    ".safetensors": save_safetensors,
    ".pt": lambda tensors, path: torch.save(dict(tensors), path),
}


@settings(max_examples=30)
@given(
    suffix=st.sampled_from(sorted(SAVE)),
    numbers=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 20)), min_size=1, max_size=6, unique=True
    ),
    n=st.integers(1, 6),
    shuffle=st.randoms(use_true_random=False),
)
def test_layers_come_in_the_order_of_the_numbers_in_their_names(
    suffix: str,
    numbers: list[tuple[int, int]],
    n: int,
    shuffle: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("features") / f"f{suffix}"
    shuffle.shuffle(numbers)
    tensors = {f"block{a}.part{b}": drawn(n, i + 1, seed=i) for i, (a, b) in enumerate(numbers)}
    SAVE[suffix](tensors, path)
    assert_equal(read(path, n), [tensors[f"block{a}.part{b}"] for a, b in sorted(numbers)])
    names = list(tensors)[: max(1, len(tensors) - 1)]
    assert_equal(read(path, n, names), [tensors[name] for name in names])


def test_names_without_numbers_are_sorted_and_a_leading_zero_is_no_matter(tmp_path: Path) -> None:
    names = ["10", "9", "b", "a2", "a10", "a", "a02x", "A", "é1", "٣"]
    tensors = {name: drawn(N, i + 1) for i, name in enumerate(names)}
    save_safetensors(tensors, tmp_path / "f.safetensors")
    order = ["٣", "9", "10", "A", "a", "a2", "a02x", "a10", "b", "é1"]
    assert_equal(read(tmp_path / "f.safetensors"), [tensors[name] for name in order])


@pytest.mark.parametrize("suffix", sorted(SAVE))
def test_a_tensor_of_three_dimensions_is_several_layers(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    whole = drawn(N, 3, 4)
    SAVE[suffix]({"all": whole}, path)
    assert_equal(read(path), [whole[:, layer] for layer in range(3)])


def test_one_array_by_itself(tmp_path: Path) -> None:
    for number, shape in enumerate([(N, 3), (N, 2, 3)]):
        path = tmp_path / f"{number}.npy"
        array = drawn(*shape, dtype=torch.float64)
        np.save(path, array.numpy())
        assert_equal(read(path), [array] if len(shape) == 2 else [array[:, 0], array[:, 1]])


def test_arrays_of_other_layouts_are_the_same_numbers(tmp_path: Path) -> None:
    array = drawn(N, 3).numpy()
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array))
    np.save(tmp_path / "big_endian.npy", array.astype(">f4"))
    for name in ("fortran", "big_endian"):
        assert_equal(read(tmp_path / f"{name}.npy"), [torch.from_numpy(array)])


def test_the_released_layout(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    feats = drawn(N, 4, 6, dtype=torch.bfloat16)
    wanted = [feats[:, layer] for layer in range(4)]
    extra = {"num_params": 123, "mask": torch.ones(N, 2), "loss": torch.zeros(N), "bpb": 1.5}
    torch.save({"feats": feats, **extra}, path)
    assert_equal(read(path), wanted)
    assert_equal(read(path, names=["mask"]), [torch.ones(N, 2)])
    torch.save({"feats": [feats[:, 0], feats[:, 1]], "num_params": 1}, path)
    assert_equal(read(path), wanted[:2])


def test_plain_layouts_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    layers = [drawn(N, width, seed=width) for width in (3, 4, 2)]
    for content in (layers, tuple(layers), dict(enumerate(layers))):
        torch.save(content, path)
        assert_equal(read(path), layers)
    torch.save(torch.nn.Parameter(layers[0]), path)
    assert_equal(read(path), layers[:1])
    torch.save({0: layers[0]}, path, _use_new_zipfile_serialization=False)
    assert_equal(read(path), layers[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_value_changes(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[1e-7, 65504.0], [0.1, -3.0]], dtype=torch.float64).to(dtype)
    save_safetensors({"x": values}, tmp_path / "f.safetensors")
    torch.save(values, tmp_path / "f.pt")
    paths = [tmp_path / "f.safetensors", tmp_path / "f.pt"]
    if dtype != torch.bfloat16:
        np.save(tmp_path / "f.npy", values.numpy())
        paths.append(tmp_path / "f.npy")
    for path in paths:
        (layer,) = read(path, 2)
        assert layer.dtype == dtype
        assert layer.tolist() == values.tolist()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_layers_are_views_of_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    if suffix == ".npy":
        np.save(path, drawn(N, 2, 3, dtype=torch.float16).numpy())
    else:
        SAVE[suffix]({"x": drawn(N, 2, 3, dtype=torch.bfloat16), "y": drawn(N, 2)}, path)
    layers = read(path)
    mapped = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    for layer in layers:
        assert any(start <= layer.data_ptr() < stop for start, stop in mapped)
    # A view of a file is not a way to change it.
    content = path.read_bytes()
    layers[0][0, 0] = 7.0
    assert path.read_bytes() == content


# Code


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pt_with_code_is_refused_and_the_code_is_not_run(zipped: bool, tmp_path: Path) -> None:
    path, target = tmp_path / "f.pt", tmp_path / "ran"
    content = {"feats": drawn(N, 2, 3), "other": Attack(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "pickled objects" in message
    assert "safetensors" in message
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the attack would have worked"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_objects_are_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"f{suffix}", tmp_path / "ran"
    array = np.array([[Attack(target)]] * N, dtype=object)
    np.savez(path, x=array) if suffix == ".npz" else np.save(path, array)
    assert "pickled objects" in refusal(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_bare_pickle_is_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"f{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Attack(target)))
    refusal(path)
    assert not target.exists()


# Files that are not what they should be


def contents() -> dict[str, bytes]:
    """A good file of every kind."""
    tensor = drawn(N, 40)
    files = {}
    for suffix in (".npy", ".npz", ".pt", ".safetensors"):
        file = io.BytesIO()
        if suffix == ".npy":
            np.save(file, tensor.numpy())
        elif suffix == ".npz":
            np.savez(file, x=tensor.numpy())
        elif suffix == ".pt":
            torch.save({"x": tensor}, file)
        else:
            file.write(safetensors.torch.save({"x": tensor}))
        files[suffix] = file.getvalue()
    return files


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_cut_file_is_one_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    content = contents()[suffix]
    for length in [*range(1, 40), *range(40, len(content), 61), len(content) - 1]:
        path.write_bytes(content[:length])
        assert "cannot be read; it is cut short, damaged or no" in refusal(path)
    path.write_bytes(content)
    assert len(read(path)) == 1
    path.write_bytes(b"")
    assert "is empty" in refusal(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_file_of_another_kind_is_one_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    for other, content in {**contents(), ".txt": b"some words\n" * 30}.items():
        path.write_bytes(content)
        if other == suffix:
            read(path)
        else:
            refusal(path)


def test_paths_that_name_no_feature_file(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "f.npy")
    (tmp_path / "g.npy").mkdir()
    assert "is a folder" in refusal(tmp_path / "g.npy")
    (tmp_path / "f.h5").write_bytes(b"x")
    assert "ends in '.h5'; it should be one of .npy, .npz, .pt, .safetensors" in refusal(
        tmp_path / "f.h5"
    )


def test_a_home_folder_and_capitals_in_the_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with (tmp_path / "F.NPY").open("wb") as file:
        np.save(file, drawn(N, 2).numpy())
    assert_equal(file_features(FeatureFile(path="~/F.NPY"), N), [drawn(N, 2)])
    assert len(file_fingerprint("~/F.NPY")) == 64


# Content that does not fit


def test_counts_that_disagree_are_both_named(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    save_npz({"a": drawn(N, 3), "b": drawn(N + 2, 3)}, path)
    message = refusal(path)
    assert "the tensor 'b'" in message
    assert "7 items where the paired data has 5" in message


def test_the_first_layer_says_how_many_items_there_are(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    save_npz({"a": drawn(N, 3), "b": drawn(N, 2, 3)}, path)
    assert [tuple(layer.shape) for layer in read(path, None)] == [(N, 3)] * 3
    save_npz({"a": drawn(N, 3), "b": drawn(2, N, 3)}, path)
    assert "(items, layers, width), here (5, 2, 3)" in refusal(path, None)
    save_npz({"a": drawn(N, 3), "b": drawn(N + 2, 3)}, path)
    assert "7 items where the first layer has 5" in refusal(path, None)


def test_axes_in_another_order_are_told(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    np.save(path, np.ones((3, N, 4), dtype=np.float32))
    message = refusal(path)
    assert "(items, layers, width), here (5, 3, 4)" in message
    np.save(path, np.ones((3, 2, 4), dtype=np.float32))
    assert "3 items where the paired data has 5" in refusal(path)
    # Where both could be the items, the first dimension is.
    np.save(path, np.ones((N, N, 4), dtype=np.float32))
    assert len(read(path)) == N


@pytest.mark.parametrize("shape", [(), (N,), (N, 2, 3, 4)])
def test_other_numbers_of_dimensions_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones(shape, dtype=np.float32))
    assert f"has shape {shape}; it should be (items, width)" in refusal(tmp_path / "f.npy")


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64", "longdouble", "<U3"])
def test_arrays_of_other_types_are_refused(dtype: str, tmp_path: Path) -> None:
    array = np.ones((N, 2)).astype(dtype)
    np.save(tmp_path / "f.npy", array)
    message = refusal(tmp_path / "f.npy")
    assert f"is of type {array.dtype}; features should be saved as plain floating" in message


def test_tensors_of_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    torch.save(torch.ones(N, 2, dtype=torch.int32), path)
    assert "is of type torch.int32" in refusal(path)
    torch.save({"x": torch.ones(N, 2).to_sparse()}, path)
    assert "the tensor 'x' in the feature file" in refusal(path)
    torch.save([torch.ones(N, 2), "words"], path)
    assert "element 1 in the feature file" in refusal(path)
    torch.save({"x": torch.ones(N, 2), "count": 3}, path)
    assert "'features.names' should name" in refusal(path)
    assert_equal(read(path, names=["x"]), [torch.ones(N, 2)])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"f{suffix}"
        SAVE[suffix]({"x": torch.ones(N, 2).to(dtype)}, path)
        message = refusal(path)
        assert f"is of type {dtype}; features should be saved as plain floating" in message
        assert message.endswith("of 16, 32 or 64 bits")


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    for suffix, save in SAVE.items():
        path = tmp_path / f"f{suffix}"
        save({"a": drawn(N, 2), "b": drawn(N, 2)}, path)
        assert len(read(path, names=["b", "a"])) == 2
        assert "the tensor 'a' of the feature file" in refusal(path, names=["a", "b", "a"])
        assert "is named twice" in refusal(path, names=["a", "b", "a"])


def test_every_layer_has_a_name(tmp_path: Path) -> None:
    def names(path: Path) -> list[str]:
        return [name for name, _ in named_features(FeatureFile(path=str(path)))]

    path = tmp_path / "f.safetensors"
    save_safetensors({"b2": drawn(N, 2), "b10": drawn(N, 2, 3), "a": drawn(N, 1)}, path)
    assert names(path) == ["a", "b2", "b10[:, 0]", "b10[:, 1]"]
    torch.save([drawn(N, 2), drawn(N, 1, 3)], tmp_path / "f.pt")
    assert names(tmp_path / "f.pt") == ["element 0", "element 1[:, 0]"]
    for shape, expected in (((N, 2), ["tensor"]), ((N, 2, 3), ["tensor[:, 0]", "tensor[:, 1]"])):
        np.save(tmp_path / "f.npy", drawn(*shape).numpy())
        assert names(tmp_path / "f.npy") == expected


def test_unknown_names_name_the_nearest(tmp_path: Path) -> None:
    for suffix, save in SAVE.items():
        path = tmp_path / f"f{suffix}"
        save({"layer_1": drawn(N, 2), "layer_2": drawn(N, 2)}, path)
        assert "no tensor 'layr_1'; did you mean 'layer_1'?" in refusal(path, names=["layr_1"])


def test_names_where_there_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", drawn(N, 2).numpy())
    torch.save([drawn(N, 2)], tmp_path / "f.pt")
    for name in ("f.npy", "f.pt"):
        assert "should be left out" in refusal(tmp_path / name, names=["x"])


def test_nothing_in_the_file(tmp_path: Path) -> None:
    save_safetensors({}, tmp_path / "f.safetensors")
    torch.save([], tmp_path / "f.pt")
    np.savez(tmp_path / "f.npz")
    np.save(tmp_path / "f.npy", np.ones((N, 0, 3), dtype=np.float32))
    for suffix in ("safetensors", "pt", "npz", "npy"):
        assert "holds no tensor" in refusal(tmp_path / f"f.{suffix}")


# Fingerprints


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    content = b"x" * ((1 << 24) + 5)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(content)
        assert file_fingerprint(str(tmp_path / name)) == hashlib.sha256(content).hexdigest()
    with pytest.raises(PrhEvalError, match="is not there"):
        file_fingerprint(str(tmp_path / "c"))
