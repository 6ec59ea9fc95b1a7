"""Files of features to align, their alignment by brute force, and processes that align them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from prh_eval import cli, layer_graphs
from prh_eval.aligning import Source, align_files
from prh_eval.processes import processes


def drawn(layers: int, n: int, dim: int, seed: int, shared: float = 1.0) -> list[Tensor]:
    """Float32 layers that have as much in common as ``shared`` says, with those of any seed."""
    common = np.random.default_rng(0).normal(size=(n, 6))
    generator = np.random.default_rng(seed)
    return [
        torch.from_numpy(
            shared * common @ generator.normal(size=(6, dim)) + generator.normal(size=(n, dim))
        ).float()
        for _ in range(layers)
    ]


def save(layers: Sequence[Tensor], path: Path) -> Path:
    named = {f"layer_{number}": layer.contiguous() for number, layer in enumerate(layers)}
    safetensors.torch.save_file(named, path)
    return path


def compared(layers: Sequence[Tensor], similarity: str = "cosine", clip: bool = True) -> list:
    """Layers in float64 as the paper compares them: clipped together, rows of length 1."""
    values = [layer.double().numpy() for layer in layers]
    if similarity == "euclidean":
        return values
    if clip:
        magnitudes = np.sort(np.concatenate([np.abs(x).ravel() for x in values]))
        limit = magnitudes[int(0.95 * len(magnitudes))]
        values = [x.clip(-limit, limit) for x in values]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in values]


def nearest(rows: np.ndarray, k: int) -> np.ndarray:
    """The k nearest others by distance; of rows of length 1 those by cosine."""
    distance = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


def brute_force_grid(x: Sequence[np.ndarray], y: Sequence[np.ndarray], k: int) -> np.ndarray:
    """The score of every layer pair, of layers as they are compared."""

    def share(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([len({*p} & {*q}) / k for p, q in zip(a, b, strict=True)]))

    others = [nearest(rows, k).tolist() for rows in y]
    return np.array([[share(nearest(rows, k).tolist(), other) for other in others] for rows in x])


# ---------------------------------------------------------------- what each process does


def align_and_print(folder: Path, rank: int) -> None:
    """The command, with what it prints in a file of each process."""
    os.environ["PRH_EVAL_CACHE"] = str(folder / "cache")
    search = layer_graphs.neighbor_graph

    def shared(*arguments: Any, **options: Any) -> Any:
        assert options["sharing"].world_size == 2
        return search(*arguments, **options)

    layer_graphs.neighbor_graph = shared
    with (folder / f"stdout_{rank}").open("w") as sys.stdout:
        status = cli.main(
            ["align", str(folder / "x.safetensors"), str(folder / "y.safetensors"), "--json"]
        )
        # Of graphs every process could say the result; one does.
        graphs = sorted((folder / "cache" / "aligned").glob("*.safetensors"))
        with processes("cpu") as group:
            if align_files(*(Source(str(path)) for path in graphs), processes=group):
                (folder / f"graphs_{rank}").touch()
    if status:
        sys.exit(status)


def align_on_two_machines(folder: Path, rank: int) -> None:
    """Each process is the first of its machine, and has files of its own."""
    os.environ["LOCAL_RANK"] = "0"
    os.environ["PRH_EVAL_CACHE"] = str(folder / "cache")
    sources = [Source(str(folder / f"{side}{rank}.safetensors")) for side in "xy"]
    with processes("cpu") as group:
        align_files(*sources, k=3, processes=group)


def build_reference(folder: Path, rank: int) -> None:
    """``references build`` of tiny.yaml, twice, with what it prints in a file of each process.

    Another file says how often its encoder was asked.
    """
    os.environ["PRH_EVAL_CACHE"] = str(folder / "cache")
    from prh_eval.references import build  # imports more than other scenarios need

    shared = build.shared_reference_artifact

    def checked(*arguments: Any, **options: Any) -> Any:
        artifact = shared(*arguments, **options)
        assert (artifact is None) == (rank > 0)
        return artifact

    build.shared_reference_artifact = checked
    encode = build.encode

    def counted(*arguments: Any, **options: Any) -> Any:
        with (folder / f"encoded_{rank}").open("a") as file:
            file.write("once\n")
        return encode(*arguments, **options)

    build.encode = counted
    command = ["references", "build", str(folder / "tiny.yaml"), "--device", "cpu"]
    with (folder / f"stdout_{rank}").open("w") as sys.stdout:
        status = cli.main([*command, "--workers", "0"]) or cli.main(command)
    if status:
        sys.exit(status)


def runs_out_of_memory(folder: Path, rank: int) -> None:
    """Process 1 has too little memory for the second layer, outside of what passes round."""
    search = layer_graphs.neighbor_graph
    searched = []

    def full(rows: Any, *arguments: Any, **options: Any) -> Any:
        searched.append(rows)
        if rank == 1 and len(searched) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")
        return search(rows, *arguments, **options)

    layer_graphs.neighbor_graph = full
    os.environ["PRH_EVAL_CACHE"] = str(folder / "cache")
    with (folder / f"stdout_{rank}").open("w") as sys.stdout:
        sys.exit(cli.main(["align", *(str(folder / f"{side}.safetensors") for side in "xy")]))
