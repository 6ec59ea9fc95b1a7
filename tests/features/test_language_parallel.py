"""Several processes give bit for bit what one gives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from features import language_process
from features.language_zoo import CAPTIONS, tiny_model, word_tokenizer
from torch import Tensor, multiprocessing, nn

from prh_eval.features.language import LanguageFeatures, language_features


class Ranks:
    """As many threads as ranks, whose `all_gather` waits for all of them."""

    def __init__(self, world_size: int, tokenizer: Any = None) -> None:
        self.world_size = world_size
        self.tokenizer = tokenizer or word_tokenizer()
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.slots: list[Tensor] = [torch.empty(0)] * world_size
        self.gathered: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def _all_gather(self, rank: int, tensor: Tensor) -> Tensor:
        self.slots[rank] = tensor
        self.barrier.wait()
        assert len({(part.dtype, part.shape) for part in self.slots}) == 1
        result = torch.cat(self.slots)
        if rank == 0:
            self.gathered.append((tensor.dtype, tuple(tensor.shape)))
        self.barrier.wait()
        return result

    def run(self, models: list[nn.Module], **options: Any) -> list[LanguageFeatures]:
        def one(rank: int) -> LanguageFeatures:
            return language_features(
                models[rank],
                self.tokenizer,
                CAPTIONS,
                rank=rank,
                world_size=self.world_size,
                all_gather=lambda tensor: self._all_gather(rank, tensor),
                progress=False,
                **options,
            )

        with ThreadPoolExecutor(self.world_size) as threads:
            return list(threads.map(one, range(self.world_size)))


def alone(kind: str, **options: Any) -> LanguageFeatures:
    return language_features(
        tiny_model(kind), word_tokenizer(), CAPTIONS, progress=False, **options
    )


def equal(one: LanguageFeatures, other: LanguageFeatures) -> bool:
    return len(one.layers) == len(other.layers) and all(map(torch.equal, one.layers, other.layers))


# CAPTIONS holds 6 distinct sequences: 4, 2 and 1 batches for up to 7 ranks.
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_rank_has_what_one_process_has(kind: str, world_size: int, batch_size: int) -> None:
    ranks = Ranks(world_size)
    models = [tiny_model(kind) for _ in range(world_size)]
    one = alone(kind, batch_size=batch_size)
    for result in ranks.run(models, batch_size=batch_size):
        assert equal(result, one)
        assert not result.truncated
    # Once a layer, float32, and no rank sends more than its share of batches.
    assert [dtype for dtype, _ in ranks.gathered] == [torch.float32] * 3
    assert all(shape[0] <= -(-6 // world_size) + batch_size for _, shape in ranks.gathered)


def test_the_work_is_shared() -> None:
    models = [tiny_model("gpt2") for _ in range(2)]
    seen: list[list[tuple[int, ...]]] = [[], []]
    for model, shapes in zip(models, seen, strict=True):
        model.transformer.wte.register_forward_pre_hook(
            lambda module, inputs, shapes=shapes: shapes.append(tuple(inputs[0].shape))
        )
    Ranks(2).run(models, batch_size=1)
    # Batches of the lengths 15; 11; 6 and 2; 2 and 1; dealt in turn, after the small example.
    assert [shapes[2:] for shapes in seen] == [[(1, 15), (2, 6)], [(1, 11), (2, 2)]]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("world_size", [2, 5])
def test_probabilities_are_those_of_one_process(world_size: int, special: bool) -> None:
    tokenizer = word_tokenizer(special=special)
    one = language_features(
        tiny_model("gpt2"), tokenizer, CAPTIONS, batch_size=1, prefix=2, progress=False
    )
    models = [tiny_model("gpt2") for _ in range(world_size)]
    ranks = Ranks(world_size, tokenizer)
    for result in ranks.run(models, batch_size=1, prefix=2):
        assert equal(result, one)
        assert torch.equal(result.nats, one.nats)


def test_auto_agrees_on_the_smallest_batch() -> None:
    models = [tiny_model("gpt2") for _ in range(3)]

    def full(module: nn.Module, inputs: Any) -> None:
        if inputs[0].numel() > 2 * 15:
            raise RuntimeError("CUDA out of memory. Tried to allocate a lot")

    models[1].transformer.wte.register_forward_pre_hook(full)
    results = Ranks(3).run(models, batch_size="auto")
    assert [result.batch_size for result in results] == [2, 2, 2]
    one = alone("gpt2", batch_size=2)
    assert all(equal(result, one) for result in results)


def test_two_real_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = [
        language_features(
            tiny_model("gpt_neox"),
            word_tokenizer(special=special),
            CAPTIONS,
            batch_size=2,
            prefix=2,
            progress=False,
        )
        for special in (False, True)
    ]
    torch.set_num_threads(threads)
    multiprocessing.spawn(language_process.run, args=(2, str(tmp_path), "gpt_neox"), nprocs=2)
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for tensors, wanted in zip(both, one, strict=True):
            assert len(tensors) == 4
            assert all(map(torch.equal, tensors, [*wanted.layers, wanted.nats]))
