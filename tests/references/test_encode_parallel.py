"""Processes that share a reference give bit for bit what one gives, after a stopped run too."""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from features.language_zoo import tiny_model, word_tokenizer
from tiny_hub import make_dinov2
from torch import Tensor, multiprocessing

from prh_eval.features import sentences, vision
from prh_eval.features.parts import Parts
from references import encode_process


def saved(folder: Path) -> list[str]:
    """Encoders of every kind that can be loaded here."""
    make_dinov2(folder / "vision")
    for kind, name in (("gpt_neox", "language"), ("bert", "bert")):
        tiny_model(kind).save_pretrained(folder / name)
        word_tokenizer(special=kind == "bert").save_pretrained(folder / name)
    if importlib.util.find_spec("sentence_transformers") is None:
        return ["vision", "language"]
    library = importlib.import_module("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.models")
    parts = [modules.Transformer(str(folder / "bert")), modules.Pooling(16, "mean")]
    library.SentenceTransformer(modules=parts, device="cpu").save(str(folder / "sentence"))
    return ["vision", "language", "sentence"]


def stopped(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only part that the second of three processes has kept when it is stopped."""
    write = Parts.write

    def stop(parts: Parts, start: int, layers: Sequence[Tensor]) -> None:
        write(parts, start, layers)
        raise KeyboardInterrupt

    class Second:
        rank, world_size, device = 1, 3, torch.device("cpu")

        def all_gather(self, tensor: Tensor) -> Tensor:
            raise AssertionError

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stop)
        parts = Parts(folder / f"{kind}-parts")
        encode_process.made(kind, folder, processes=Second(), parts=parts)
    (part,) = (folder / f"{kind}-parts").iterdir()
    return part


def test_two_real_processes_go_on_after_one_of_three_and_give_the_bits_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (vision, sentences):  # to be put back at the end
        monkeypatch.setattr(module, "_PART", encode_process.PIECE)
    kinds = saved(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = {kind: encode_process.made(kind, tmp_path) for kind in kinds}
    kept = {kind: stopped(kind, tmp_path, monkeypatch) for kind in kinds}
    torch.set_num_threads(threads)
    times = {part: part.stat().st_mtime_ns for part in kept.values()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(encode_process.run, args=(2, port, str(tmp_path), kinds), nprocs=2)
    for kind in kinds:
        for rank in range(2):
            layers = torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True)
            assert len(layers) == len(alone[kind]) > 0
            assert all(map(torch.equal, layers, alone[kind]))
        parts = kept[kind].parent.glob("*.part.safetensors")
        starts = sorted(int(file.name[:9]) for file in parts)
        # What both have mapped is gone.
        assert not list(kept[kind].parent.glob("*.whole"))
        assert starts == [0, 2, 4]
        assert kept[kind].name.startswith("000000002")
    assert {part: part.stat().st_mtime_ns for part in kept.values()} == times
