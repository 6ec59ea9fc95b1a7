"""Captions' probabilities against the model's own logits, and what the head is spared."""

from __future__ import annotations

import logging
from array import array
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from accelerate import dispatch_model
from features.language_zoo import (
    CAPTIONS,
    POSITIONS,
    VOCABULARY,
    WORDS,
    tiny_model,
    word_tokenizer,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features import language_loss
from prh_eval.features.language import LanguageFeatures, language_features
from prh_eval.features.language_body import body
from prh_eval.features.language_loss import plan_scoring

PREFIX = 2  # what the tokenizer with special tokens begins with


def features(model: nn.Module, captions: Any = CAPTIONS, **options: Any) -> LanguageFeatures:
    tokenizer = options.pop("tokenizer", None) or word_tokenizer()
    options = {"progress": False, "prefix": PREFIX, "batch_size": 3, **options}
    return language_features(model, tokenizer, captions, **options)


def own_nats(model: nn.Module, captions: list[str], length: int | None = None) -> Tensor:
    """The oracle: lm-eval's rolling windows, and the whole model on each by itself; float64."""
    tokenizer, found = word_tokenizer(), []
    for caption in captions:
        ids, total = tokenizer(caption)["input_ids"], torch.zeros((), dtype=torch.float64)
        for pair in get_rolling_token_windows(ids, PREFIX, length or 10**6, 1):
            context, wanted = make_disjoint_window(pair)
            read = torch.tensor([[*context, *wanted][:-1]])
            with torch.no_grad():
                logits = model(input_ids=read).logits[0, -len(wanted) :]
            chosen = logits.double().log_softmax(-1).gather(1, torch.tensor(wanted)[:, None])
            total -= chosen.sum()
        found.append(total)
    return torch.stack(found)


def assert_near(got: Tensor | None, wanted: Tensor, share: float = 1e-5) -> None:
    assert got is not None
    assert got.dtype == torch.float64
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= share * wanted.abs().max()


CAUSAL = ["gpt2", "opt", "bloom", "gpt_neox", "llama", "mamba", "bart_decoder"]


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("special", [False, True])
def test_probabilities_are_those_of_the_models_own_logits(kind: str, special: bool) -> None:
    model = tiny_model(kind)
    wanted = own_nats(model, CAPTIONS)
    for batch_size in (1, 4, "auto"):
        tokenizer = word_tokenizer(special=special)
        result = features(model, tokenizer=tokenizer, batch_size=batch_size)
        assert_near(result.nats, wanted)
    # And the features are what they are without.
    plain = features(model, tokenizer=tokenizer, batch_size=4, prefix=None)
    asked = features(model, tokenizer=tokenizer, batch_size=4)
    assert plain.nats is None
    assert all(map(torch.equal, plain.layers, asked.layers))


SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}


def special_head(kind: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(**SIZE, **options)
    torch.manual_seed(0)
    name = kind.removesuffix("Text")
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "off", "on"),
    [
        (
            "Gemma2",
            {"head_dim": 8, "final_logit_softcapping": None},
            {"head_dim": 8, "final_logit_softcapping": 2.0},
        ),
        ("Cohere", {"logit_scale": 1.0}, {"logit_scale": 0.25}),
        ("Granite", {"logits_scaling": 1.0}, {"logits_scaling": 4.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_family_does_to_its_logits_is_done(
    kind: str, off: dict[str, Any], on: dict[str, Any]
) -> None:
    model = special_head(kind, **on)
    wanted = own_nats(model, CAPTIONS)
    assert_near(features(model).nats, wanted)
    plain = own_nats(special_head(kind, **off), CAPTIONS)
    assert (plain - wanted).abs().max() > 0.1 * wanted.abs().max()


def test_a_family_whose_body_has_another_name_runs_without_its_head() -> None:
    model = special_head("Llama4Text", head_dim=8, num_local_experts=2, intermediate_size_mlp=32)
    assert type(body(model)).__name__ == "Llama4TextModel"
    assert_near(features(model).nats, own_nats(model, CAPTIONS))


def test_adapters_of_the_head_count() -> None:
    config = peft.LoraConfig(
        target_modules=["q_proj", "lm_head"], r=2, task_type="CAUSAL_LM", init_lora_weights=False
    )
    base = tiny_model("llama")
    plain = own_nats(base, CAPTIONS)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, config).eval()
    wanted = own_nats(model, CAPTIONS)
    assert (plain - wanted).abs().max() > 0.01 * plain.abs().max()
    assert_near(features(model).nats, wanted)


@pytest.mark.parametrize("head", ["cpu", "disk"])
def test_a_model_that_is_spread_over_devices(head: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    wanted = own_nats(model, CAPTIONS)
    dispatch_model(
        model,
        {"model": "cpu", "lm_head": head},
        main_device=torch.device("cpu"),
        offload_dir=str(tmp_path),
        force_hooks=True,
    )
    # Accelerate brings inputs and weights together in a forward of its own.
    forward = vars(model.model)["forward"]
    assert_near(features(model).nats, wanted)
    assert vars(model.model)["forward"] is forward
    assert_near(own_nats(model, CAPTIONS), wanted)


def test_autocast_and_low_precision() -> None:
    model = tiny_model("gpt_neox")
    wanted = own_nats(model, CAPTIONS)
    rough = features(model, autocast_dtype=torch.bfloat16)
    assert_near(rough.nats, wanted, 0.05)
    assert not torch.equal(rough.nats, features(model).nats)
    with torch.autocast("cpu", torch.bfloat16):
        cast = own_nats(model, CAPTIONS)
    assert_near(rough.nats, cast, 0.02)
    assert_near(features(model.to(torch.bfloat16)).nats, wanted, 0.05)


# What is run


def seen_by(module: nn.Module) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda m, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("special", [False, True])
def test_the_head_sees_real_tokens_only_and_few_at_a_time(
    special: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_loss, "_CPU_LOGITS", 4 * VOCABULARY * 7)
    model = tiny_model("gpt2")
    head, embedding = seen_by(model.lm_head), seen_by(model.transformer.wte)
    result = features(model, tokenizer=word_tokenizer(special=special))
    assert_near(result.nats, own_nats(tiny_model("gpt2"), CAPTIONS))
    # Two tries on eight tokens.
    assert head[:2] == [(1, 8, 16)] * 2
    assert max(shape[1] for shape in head[2:]) == 7
    distinct = {tuple(ids) for ids in word_tokenizer()(CAPTIONS)["input_ids"]}
    assert sum(shape[1] for shape in head[2:]) == sum(map(len, distinct))
    # Three passes to try the head, two to find hidden states, two batches for the features; a pass
    # of their own, of two batches, for captions that do not begin with the prefix.
    assert len(embedding) == 3 + 2 + 2 + (0 if special else 2)


def test_equal_captions_have_equal_bits() -> None:
    captions = [*CAPTIONS, "the   cat sat on the mat", "a cat"]
    for special in (False, True):
        nats = features(
            tiny_model("gpt2"), captions, tokenizer=word_tokenizer(special=special), batch_size=2
        ).nats
        assert nats[0] == nats[3] == nats[8]
        assert nats[2] == nats[7]


def compact(sequences: list[tuple[int, ...]]) -> list[array[int]]:
    return [array("i", tokens) for tokens in sequences]


@settings(max_examples=30)
@given(
    texts=st.lists(st.lists(st.integers(3, 9), max_size=12).map(tuple), min_size=1, max_size=6),
    limit=st.none() | st.integers(1, 12),
    bos=st.booleans(),
    eos=st.booleans(),
)
# Two that are read alike and asked for other tokens.
@example(texts=[(3, 4), (3, 5)], limit=None, bos=False, eos=False)
def test_every_token_is_asked_for_once_as_lm_eval_would(
    texts: list[tuple[int, ...]], limit: int | None, bos: bool, eos: bool
) -> None:
    read = [(*[PREFIX][:bos], *text, *[1][:eos])[:limit] or (0,) for text in texts]
    sequences = list(dict.fromkeys(read))
    index = [sequences.index(tokens) for tokens in read]
    plan = plan_scoring(compact(texts), PREFIX, compact(sequences), index, limit)
    assert [tuple(run.tokens) for run in plan.sequences] == sequences
    windows = [(*run.tokens, None, *run.targets) for run in plan.windows]
    assert len(set(windows)) == len(windows)
    runs = [*plan.sequences, *plan.windows]
    for caption, text in enumerate(texts):
        found = []
        for run in [runs[number] for owner, number in plan.pairs if owner == caption]:
            for offset, target in enumerate(run.targets):
                found.append((tuple(run.tokens[: run.first + offset + 1]), target))
        wanted = []
        for context, following in get_rolling_token_windows(list(text), PREFIX, limit or 99, 1):
            before = context[: len(context) - len(following) + 1]
            for offset, target in enumerate(following):
                wanted.append(((*before, *following[:offset]), target))
        assert sorted(found) == sorted(wanted)


def test_long_captions_are_asked_for_whole(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2")
    captions = [*CAPTIONS, " ".join((WORDS * 5)[:61])]
    for special in (False, True):
        with caplog.at_level(logging.WARNING):
            result = features(model, captions, tokenizer=word_tokenizer(special=special))
        assert result.truncated == [7]
        assert_near(result.nats, own_nats(model, captions, POSITIONS))
        short = features(model, captions, tokenizer=word_tokenizer(special=special), max_length=5)
        assert_near(short.nats, own_nats(model, captions, 5))


def test_a_caption_of_special_tokens_alone_has_probability_one() -> None:
    nats = features(tiny_model("gpt2"), ["", "a cat"], tokenizer=word_tokenizer(special=True)).nats
    assert nats[0] == 0
    assert nats[1] > 0


# What cannot be asked


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("t5", "T5ForConditionalGeneration is a sequence-to-sequence model"),
        ("bart", "BartForConditionalGeneration is a sequence-to-sequence model"),
        ("headless", "GPTNeoXModel has none"),
        ("bert", "BertLMHeadModel reads what comes after a token"),
        ("roberta", "RobertaForCausalLM reads what comes after a token"),
        ("masked", "BertForMaskedLM reads what comes after a token"),
    ],
)
def test_models_that_give_no_probability_are_refused(kind: str, why: str) -> None:
    with pytest.raises(PrhEvalError, match=f"need a causal language model .*, and {why}"):
        features(tiny_model(kind))


def test_a_head_that_reads_more_than_the_last_hidden_state_is_refused() -> None:
    model = tiny_model("gpt2")
    plain = model.forward

    def peeking(input_ids: Tensor, **options: Any) -> Any:
        made = plain(input_ids=input_ids, **options)
        made.logits = made.logits + 9 * model.transformer.wte(input_ids)[..., :1]
        return made

    model.forward = peeking
    with pytest.raises(PrhEvalError, match="not made of its last hidden state alone"):
        features(model)


@pytest.mark.parametrize("prefix", [-1, VOCABULARY])
def test_a_prefix_that_the_model_lacks_is_refused(prefix: int) -> None:
    with pytest.raises(PrhEvalError, match=f"prefix {prefix} is no token of the model, 0 to 19"):
        features(tiny_model("gpt2"), prefix=prefix)
