"""Fingerprints of models: equal for equal weights, different for any other."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import tiny_model, word_tokenizer
from torch import nn

from prh_eval.features.identity import tokenizer_fingerprint, weights_fingerprint


def of(tensor: torch.Tensor) -> str | None:
    module = nn.Module()
    module.register_buffer("weights", tensor)
    return weights_fingerprint(module)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8]
)
def test_any_changed_element_changes_it(dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    tensor = torch.randint(-90, 90, (size,), generator=generator).to(dtype)
    assert of(tensor) == of(tensor.clone())
    for position in {0, size // 3, size - 1}:
        changed = tensor.clone()
        changed[position] += 1
        assert of(changed) != of(tensor)


def test_order_shape_dtype_and_name_count() -> None:
    tensor = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    shuffled = tensor.flatten()[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    assert of(shuffled.view(40, 50)) != of(tensor)
    assert of(tensor.T.contiguous()) != of(tensor)
    assert of(tensor.view(50, 40)) != of(tensor)
    assert of(tensor.view(torch.int32)) != of(tensor)
    assert weights_fingerprint(nn.ParameterDict({"a": tensor})) != weights_fingerprint(
        nn.ParameterDict({"b": tensor})
    )


def test_the_layout_in_memory_does_not_count() -> None:
    tensor = torch.randn(40, 50)
    assert of(tensor.T.contiguous().T) == of(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([True, False]),
        torch.randn(3, dtype=torch.complex64),
        torch.zeros(3).to(torch.float8_e4m3fn),
        torch.tensor(1.5),
        torch.empty(0),
    ],
)
def test_every_kind_of_tensor_has_one(tensor: torch.Tensor) -> None:
    assert of(tensor) is not None


def test_weights_that_cannot_be_read_have_none() -> None:
    with torch.device("meta"):
        assert weights_fingerprint(nn.Linear(2, 2)) is None


def test_models() -> None:
    model = tiny_model("gpt2", 20)
    assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
    assert weights_fingerprint(model) != weights_fingerprint(tiny_model("gpt2", 20, seed=1))


def test_tokenizers() -> None:
    first = tokenizer_fingerprint(word_tokenizer(["a b"]))
    assert tokenizer_fingerprint(word_tokenizer(["b a"])) == first
    assert tokenizer_fingerprint(word_tokenizer(["a c"])) != first
    padded = word_tokenizer(["a b"])
    padded.padding_side = "left"
    padded(["a b", "a"], padding=True)
    # What an earlier call left behind in a fast tokenizer is no part of it.
    assert tokenizer_fingerprint(padded) == first
