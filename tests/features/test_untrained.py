"""Untrained models of many families: what transformers itself makes, and what a sort undoes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import nn

from prh_eval.errors import PrhEvalError
from prh_eval.features import untrained
from prh_eval.features.untrained import architecture, refuse, reinitialized, shuffled

VOCABULARY = 150
MAKERS: list[Callable[[nn.Module, int], nn.Module]] = [reinitialized, shuffled]
FAMILIES = sorted(tiny_models.ZOO)


def model_of(kind: str, seed: int = 0) -> Any:
    return tiny_models.tiny_model(kind, VOCABULARY, seed=seed)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything in a model, copied."""
    tensors = [*model.named_parameters(remove_duplicate=False)]
    tensors += [*model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, of the same dtypes."""
    assert one.keys() == other.keys()
    return all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
        for name, tensor in one.items()
    )


def groups(model: nn.Module) -> set[frozenset[str]]:
    """The names of each tensor, which are several where it is tied."""
    found: dict[int, set[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        found.setdefault(tensor.data_ptr(), set()).add(name)
    return {frozenset(names) for names in found.values()}


@pytest.mark.parametrize("kind", FAMILIES)
def test_reinitialised_weights_are_those_transformers_makes(kind: str) -> None:
    model = model_of(kind)
    torch.manual_seed(5)
    expected = type(model)(model.config).eval()
    found = reinitialized(model, 5)
    assert type(found) is type(model) and not found.training
    assert same(state(found), state(expected))
    assert groups(found) == groups(model)
    trained = dict(model.named_parameters())
    assert not any(torch.equal(w, trained[name]) for name, w in found.named_parameters())


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "llama", "bert"])
def test_they_have_the_spread_that_the_configuration_says(kind: str) -> None:
    found = reinitialized(model_of(kind))
    std = found.config.init_std if kind == "opt" else found.config.initializer_range
    for name, parameter in found.named_parameters():
        weight = parameter.detach()
        if weight.ndim == 1:
            # Norms scale by 1 and shift by 0, as biases do.
            scales = "norm" in name.lower() or "ln_" in name
            assert weight.unique().tolist() == [float(scales and name.endswith("weight"))], name
        elif kind == "gpt2" and name.endswith("c_proj.weight"):
            # Smaller by the root of the number of residual additions.
            assert float(weight.std()) == pytest.approx(std / 2, rel=0.15), name
        else:
            assert float(weight.std()) == pytest.approx(std, rel=0.25), name


@pytest.mark.parametrize("kind", FAMILIES)
def test_shuffled_tensors_keep_their_values_each(kind: str) -> None:
    model = model_of(kind)
    found = shuffled(model, 3)
    assert type(found) is type(model) and not found.training
    assert groups(found) == groups(model)
    for (name, trained), own in zip(model.named_parameters(), found.parameters(), strict=True):
        assert own.shape == trained.shape
        assert torch.equal(own.flatten().sort().values, trained.flatten().sort().values), name
        assert not torch.equal(own, trained), name
    buffers = dict(found.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_each_tensor_has_an_order_of_its_own() -> None:
    model = model_of("llama")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.arange(weight.numel()).view_as(weight))
    orders = [tuple(weight.flatten().tolist()) for weight in shuffled(model).parameters()]
    assert len(set(orders)) == len(orders)


def test_shuffled_buffers_are_the_models_not_those_of_its_configuration() -> None:
    model = model_of("llama")
    model.model.rotary_emb.inv_freq.mul_(2)
    found: Any = shuffled(model)
    assert torch.equal(found.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    found.model.rotary_emb.inv_freq.zero_()
    assert model.model.rotary_emb.inv_freq.any()
    assert not torch.equal(
        reinitialized(model).model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    )


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_seed_decides_it_and_nothing_else_changes(
    make: Callable[[nn.Module, int], nn.Module], dtype: torch.dtype
) -> None:
    model = model_of("gpt2").to(dtype)
    before, config = state(model), model.config.to_dict()
    generator = torch.get_rng_state()
    first = make(model, 0)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.manual_seed(1234)
    assert same(state(make(model, 0)), state(first))
    assert not same(state(make(model, 1)), state(first))
    assert same(state(model), before)
    assert model.config.to_dict() == config
    assert {weight.dtype for weight in first.parameters()} == {dtype}
    with torch.no_grad():
        for weight in first.parameters():
            weight.zero_()
    assert same(state(model), before)


def test_dtypes_are_kept_tensor_by_tensor() -> None:
    model = model_of("llama").to(torch.bfloat16)
    model.model.norm.float()
    expected = [weight.dtype for weight in model.parameters()]
    assert len(set(expected)) == 2
    for make in MAKERS:
        assert [weight.dtype for weight in make(model, 0).parameters()] == expected


def test_a_model_put_on_several_devices_has_its_control_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    model.hf_device_map = {"model": 0, "lm_head": 1}
    sent = []
    monkeypatch.setattr(
        "accelerate.dispatch_model", lambda twin, **kwargs: sent.append(kwargs) or twin
    )
    reinitialized(model)
    skipped = model._skip_keys_device_placement
    assert sent == [{"device_map": model.hf_device_map, "skip_keys": skipped}]


@pytest.mark.parametrize("make", MAKERS)
def test_the_control_is_freed_with_its_last_name(
    make: Callable[[nn.Module, int], nn.Module],
) -> None:
    gc.disable()
    try:
        found = make(model_of("llama"), 0)
        ours = weakref.ref(found)
        del found
        assert ours() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------- what there is no control of


def quantized() -> nn.Module:
    model = model_of("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def adapted() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model_of("llama"), LoraConfig(r=2, target_modules=["q_proj"]))


def with_own_adapter() -> nn.Module:
    from peft import LoraConfig

    model = model_of("llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return model


def on_meta() -> nn.Module:
    return model_of("llama").to("meta")


def on_disk() -> nn.Module:
    model = model_of("llama")
    model.hf_device_map = {"model": 0, "lm_head": "disk"}
    return model


def other_structure() -> nn.Module:
    model = model_of("llama")
    del model.model.layers[1]
    return model


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (quantized, "quantised weights: load the model unquantised"),
        (adapted, "an adapter or wrapper: score the base model"),
        (with_own_adapter, "an adapter or wrapper: score the base model"),
        (on_meta, "offloaded weights: load the model without offloading"),
        (on_disk, "offloaded weights: load the model without offloading"),
        (other_structure, "makes a model of other tensors than it has"),
        (lambda: nn.Linear(2, 2), "a transformers PreTrainedModel is needed"),
    ],
)
def test_a_model_that_has_none(
    make: Callable[[nn.Module, int], nn.Module],
    broken: Callable[[], nn.Module],
    sentence: str,
) -> None:
    with pytest.raises(PrhEvalError, match=sentence):
        make(broken(), 0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_has_one(kind: str) -> None:
    refuse(model_of(kind))


def test_a_full_device_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(untrained, "_placed", full)
    for make in MAKERS:
        with pytest.raises(PrhEvalError, match="a second model, for which the device has no"):
            make(model_of("llama"), 0)


# ---------------------------------------------------------------- what tells architectures apart


def test_the_weights_and_the_file_do_not_count() -> None:
    one, other = model_of("llama"), model_of("llama", seed=1)
    other.config._name_or_path = "/elsewhere"
    other.config.transformers_version = "0"
    assert architecture(one) == architecture(other)


def test_class_configuration_and_dtype_count() -> None:
    models = [model_of("llama"), model_of("gpt2"), model_of("masked"), model_of("bert")]
    models.append(model_of("llama").to(torch.bfloat16))
    config = model_of("llama").config
    config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}
    models.append(transformers.LlamaForCausalLM(config))
    assert len({architecture(model) for model in models}) == len(models)
