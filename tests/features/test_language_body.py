"""The part of a model that makes hidden states: adapters, wrappers, offloaded weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from features.language_zoo import (
    CAPTIONS,
    assert_close,
    plain_features,
    tiny_model,
    word_tokenizer,
)
from torch import nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.language import language_features
from prh_eval.features.language_body import body, input_device


def layers(model: nn.Module, batch_size: int = 3) -> list[torch.Tensor]:
    return language_features(
        model, word_tokenizer(), CAPTIONS, batch_size=batch_size, progress=False
    ).layers


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return bool((one[-1] - other[-1]).abs().max() > 0.01)


def awake(model: nn.Module) -> nn.Module:
    """An adapter starts as no change at all; random weights wake it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "GPT2Model"),
        ("llama", "LlamaModel"),
        ("opt", "OPTModel"),
        ("t5", "T5Stack"),
        ("bart", "BartEncoder"),
        ("bart_decoder", "BartDecoderWrapper"),
        ("bert", "BertModel"),
        ("mamba", "MambaModel"),
        ("headless", "GPTNeoXModel"),
    ],
)
def test_the_body_has_no_head(kind: str, name: str) -> None:
    assert type(body(tiny_model(kind))).__name__ == name


TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
LORA: dict[str, Any] = {"r": 2, **TASK}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", peft.LoraConfig(target_modules=["q_proj", "up_proj"], **LORA)),
        ("llama", peft.LoraConfig(target_modules=["q_proj"], use_dora=True, **LORA)),
        ("gpt_neox", peft.LoraConfig(target_modules=["query_key_value", "embed_in"], **LORA)),
        ("t5", peft.LoraConfig(target_modules=["q", "v"], r=2, task_type="SEQ_2_SEQ_LM")),
        ("llama", peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])),
        ("llama", peft.OFTConfig(target_modules=["q_proj"], r=0, oft_block_size=4)),
        (
            "llama",
            peft.LoraConfig(
                target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], **LORA
            ),
        ),
        ("llama", peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, **TASK)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.peft_type.value,
)
def test_injected_adapters_are_part_of_the_features(kind: str, config: peft.PeftConfig) -> None:
    base = tiny_model(kind)
    plain = layers(base)
    model = awake(peft.get_peft_model(copy.deepcopy(base), config))
    adapted = layers(model)
    assert_close(adapted, plain_features(model, word_tokenizer(), CAPTIONS))
    assert differ(adapted, plain)
    with model.disable_adapter():
        assert not differ(layers(model), plain)


def test_an_adapter_added_through_transformers_is_part_of_the_features() -> None:
    model = tiny_model("llama")
    plain = layers(model)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], **LORA))
    adapted = layers(awake(model))
    assert_close(adapted, plain_features(model, word_tokenizer(), CAPTIONS))
    assert differ(adapted, plain)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.PromptTuningConfig(num_virtual_tokens=2, **TASK), "PROMPT_TUNING"),
        (peft.PrefixTuningConfig(num_virtual_tokens=2, **TASK), "PREFIX_TUNING"),
        (
            peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, **TASK),
            "P_TUNING",
        ),
        (peft.PolyConfig(target_modules=["q_proj"], r=2, **TASK), "POLY"),
        (
            peft.LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5], **LORA),
            "activated LoRA",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_adapters_that_would_be_dropped_are_refused(config: peft.PeftConfig, kind: str) -> None:
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(PrhEvalError, match=f"adapter 'default' is of kind {kind}"):
        layers(model)


def test_mixtures_of_adapters_are_refused(tmp_path: Path) -> None:
    lora = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"], **LORA)
    )
    lora.save_pretrained(tmp_path)
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=16, xlora_depth=1, adapters={"one": str(tmp_path)}
    )
    base = tiny_model("llama")
    base.config.use_cache = False
    with pytest.raises(PrhEvalError, match="XLORA"):
        layers(peft.get_peft_model(base, config))


def test_a_model_from_elsewhere_is_refused() -> None:
    with pytest.raises(PrhEvalError, match="class Linear gives no hidden states"):
        layers(nn.Linear(2, 2))


def test_quantised_wrappers_are_looked_through() -> None:
    # GPTQModel and AutoGPTQ hold the transformers model as `model`; stand-ins, as both need a GPU.
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

    llama = tiny_model("llama")
    with pytest.raises(PrhEvalError, match="class Wrapper gives no hidden states"):
        layers(Wrapper(llama))
    Wrapper.__module__ = "gptqmodel.models.base"
    assert all(map(torch.equal, layers(Wrapper(llama)), layers(llama)))


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert"])
@pytest.mark.parametrize("where", ["cpu", "disk", "map"])
def test_offloaded_weights_run_where_accelerate_brings_them(
    kind: str, where: str, tmp_path: Path
) -> None:
    model = tiny_model(kind)
    oracle = plain_features(model, word_tokenizer(), CAPTIONS)
    if where == "cpu":
        cpu_offload(model, torch.device("cpu"))
    elif where == "disk":
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    else:
        names = [name for name, module in model.named_modules() if [*module.parameters(False)]]
        dispatch_model(
            model,
            {name: ("disk", "cpu")[i % 2] for i, name in enumerate(names)},
            main_device=torch.device("cpu"),
            offload_dir=str(tmp_path),
            force_hooks=True,
        )
    embedding = body(model).get_input_embeddings()
    assert embedding.weight.is_meta
    assert input_device(body(model)) == torch.device("cpu")
    assert_close(layers(model), oracle)


def test_weights_that_were_never_loaded_are_refused() -> None:
    with torch.device("meta"):
        model = tiny_model("gpt2")
    with pytest.raises(PrhEvalError, match="meta device"):
        layers(model)
