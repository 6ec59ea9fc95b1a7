"""Language features against the model called directly on each caption alone, without padding."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from features.language_zoo import (
    CAPTIONS,
    POSITIONS,
    VOCABULARY,
    WORDS,
    assert_close,
    plain_features,
    tiny_model,
    word_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ZOO
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.language import LanguageFeatures, language_features
from prh_eval.features.language_body import body
from prh_eval.features.language_pooling import pool


def features(model: nn.Module, captions: Any = CAPTIONS, **options: Any) -> LanguageFeatures:
    tokenizer = options.pop("tokenizer", None) or word_tokenizer()
    return language_features(model, tokenizer, captions, **{"progress": False, **options})


def shapes_seen(model: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of the batches that the input embedding will have seen.

    The first two are a small example, in which it is looked where hidden states pass.
    """
    shapes: list[tuple[int, ...]] = []
    body(model).get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: shapes.append(tuple(inputs[0].shape))
    )
    return shapes


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_every_family_agrees_with_the_model_itself(kind: str, pooling: str) -> None:
    model = tiny_model(kind)
    special = kind in {"bert", "roberta", "masked", "llama"}
    oracle = plain_features(model, word_tokenizer(special=special), CAPTIONS, pooling)
    # Two blocks, and the embedding output or, for Mamba, the state before the final norm.
    assert len(oracle) == 3
    for batch_size in (1, 2, 4, 64):
        for side in ("left", "right"):
            tokenizer = word_tokenizer(special=special, padding_side=side)
            result = features(model, tokenizer=tokenizer, pooling=pooling, batch_size=batch_size)
            assert_close(result.layers, oracle)
            assert not result.truncated
            assert result.batch_size == batch_size
            assert tokenizer.padding_side == side


def test_the_oracle_tells_left_padding_from_right() -> None:
    # Otherwise the agreement above would say little: learned positions must matter.
    model, tokenizer = tiny_model("gpt2"), word_tokenizer()
    ids = tokenizer(CAPTIONS[0])["input_ids"]
    padded, mask = torch.tensor([[0, 0, *ids]]), torch.tensor([[0, 0, *[1] * len(ids)]])
    with torch.no_grad():
        states = model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    shifted = states.hidden_states[-1][0, 2:].double().mean(0)
    oracle = plain_features(model, tokenizer, CAPTIONS[:1])[-1][0]
    assert (shifted - oracle).abs().max() > 0.05 * oracle.abs().max()


MODELS = {kind: tiny_model(kind) for kind in ("gpt2", "bert", "t5")}


@settings(max_examples=25)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    sentences=st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join),
        min_size=1,
        max_size=12,
    ),
    batch_size=st.integers(1, 9),
    shuffle=st.randoms(use_true_random=False),
)
def test_batches_and_order_change_nothing(
    kind: str, sentences: list[str], batch_size: int, shuffle: random.Random
) -> None:
    model, tokenizer = MODELS[kind], word_tokenizer()
    # Some captions twice, and one of them spelt otherwise but of the same tokens.
    captions = [*sentences, *sentences[:3], sentences[0].replace(" ", "   ")]
    shuffle.shuffle(captions)
    result = features(model, captions, batch_size=batch_size)
    assert_close(result.layers, plain_features(model, tokenizer, captions))
    first = {" ".join(caption.split()): i for i, caption in reversed([*enumerate(captions)])}
    for i, caption in enumerate(captions):
        for layer in result.layers:
            assert torch.equal(layer[i], layer[first[" ".join(caption.split())]])


# The distinct sequences have 15, 11, 6, 2, 2 and 1 tokens.
@pytest.mark.parametrize(
    ("batch_size", "shapes"),
    [
        (1, [(1, 15), (1, 11), (2, 6), (2, 2)]),
        (2, [(2, 15), (4, 6)]),
        (4, [(4, 15), (2, 2)]),
        (9, [(6, 15)]),
    ],
)
def test_each_distinct_sequence_runs_once_longest_first(
    batch_size: int, shapes: list[tuple[int, int]]
) -> None:
    model = tiny_model("gpt2")
    seen = shapes_seen(model)
    features(model, batch_size=batch_size)
    assert seen[2:] == shapes
    # The example is of two captions, cut short.
    assert seen[:2] == [(2, 8), (2, 8)]


def test_a_long_caption_goes_alone_and_the_short_ones_together() -> None:
    model = tiny_model("gpt2")
    seen = shapes_seen(model)
    texts = [" ".join(WORDS[:15]), *(f"{one} {other}" for one in WORDS for other in WORDS[:5])]
    features(model, texts, batch_size=1)
    # 80 captions of two tokens, as many at a time as have no more tokens than the longest.
    assert seen[2:] == [(1, 15), *[(7, 2)] * 11, (3, 2)]


def test_the_head_never_runs() -> None:
    model = tiny_model("gpt_neox")
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    features(model)


def test_equal_bags_of_tokens_have_equal_bits_in_the_embedding_layer() -> None:
    captions = ["cat", "cat cat cat", "dog cat mat", "mat dog cat", "cat mat dog dog mat cat"]
    first = features(tiny_model("llama"), captions, batch_size=3).layers[0]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[2], first[3])
    assert torch.equal(first[2], first[4])
    assert not torch.equal(first[0], first[2])


def test_special_tokens_follow_the_tokenizer_unless_told() -> None:
    model = tiny_model("llama")
    with_special, without = word_tokenizer(special=True), word_tokenizer()
    for option, oracle in ((None, with_special), (True, with_special), (False, without)):
        result = features(model, tokenizer=with_special, add_special_tokens=option)
        assert_close(result.layers, plain_features(model, oracle, CAPTIONS))


class SlowTokenizer(transformers.PreTrainedTokenizer):
    """Words by number, in Python."""

    def __init__(self, **options: Any) -> None:
        self.words = word_tokenizer().get_vocab()
        super().__init__(pad_token="<pad>", unk_token="<unk>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.words)

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return next(word for word, number in self.words.items() if number == index)


def test_a_slow_tokenizer_gives_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2")
    assert_close(
        features(model, tokenizer=SlowTokenizer()).layers,
        plain_features(model, word_tokenizer(), CAPTIONS),
    )
    short = features(model, tokenizer=SlowTokenizer(), max_length=3)
    assert len(short.truncated) == 3
    fast = features(model, max_length=3)
    assert all(map(torch.equal, short.layers, fast.layers))


# Truncation


def cut_words(captions: list[str], length: int) -> list[str]:
    return [" ".join(caption.split()[:length]) for caption in captions]


def test_long_captions_are_cut_on_the_right_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = tiny_model("gpt2"), word_tokenizer()
    tokenizer.truncation_side = "left"
    captions = [*CAPTIONS, CAPTIONS[1]]
    with caplog.at_level(logging.WARNING):
        result = features(model, captions, tokenizer=tokenizer, max_length=5, batch_size=2)
    assert len(result.truncated) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "4 of 8 captions are longer than 5 tokens and were cut on the right"
    ]
    assert_close(result.layers, plain_features(model, tokenizer, cut_words(captions, 5)))
    assert tokenizer.truncation_side == "left"
    assert len(tokenizer(CAPTIONS[1])["input_ids"]) == 15


def test_only_the_first_process_warns(caplog: pytest.LogCaptureFixture) -> None:
    features(
        tiny_model("gpt2"), max_length=5, rank=1, world_size=2, all_gather=lambda t: t.repeat(2, 1)
    )
    assert not caplog.records


def test_cutting_keeps_the_special_tokens() -> None:
    model, tokenizer = tiny_model("bert"), word_tokenizer(special=True)
    result = features(model, tokenizer=tokenizer, max_length=6)
    assert_close(result.layers, plain_features(model, tokenizer, cut_words(CAPTIONS, 4)))


@pytest.mark.parametrize(
    ("kind", "tokenizer_limit", "max_length", "kept"),
    [
        ("gpt2", None, None, POSITIONS),
        ("gpt2", 7, None, 7),
        ("gpt2", 7, 100, 7),
        ("gpt2", 9, 4, 4),
        ("bert", None, 100, POSITIONS),
        # RoBERTa counts positions from its padding index + 1: 512 of 514 in the released models,
        # one less here, where the padding index is 0.
        ("roberta", None, POSITIONS, POSITIONS - 1),
        ("roberta", 5, None, 5),
        ("t5", None, None, 30),
        ("mamba", None, None, 30),
        ("mamba", None, 6, 6),
        # Rotary models can be asked for more than their configuration states.
        ("llama", None, 28, 28),
    ],
)
def test_the_smallest_known_limit_holds(
    kind: str, tokenizer_limit: int | None, max_length: int | None, kept: int
) -> None:
    model, tokenizer = tiny_model(kind), word_tokenizer(model_max_length=tokenizer_limit)
    caption = " ".join((WORDS * 2)[:30])
    seen = shapes_seen(model)
    result = features(model, [caption], tokenizer=tokenizer, max_length=max_length)
    assert seen[2:] == [(1, kept)]
    assert bool(result.truncated) == (kept < 30)


def test_a_limit_without_room_for_a_word_is_refused() -> None:
    with pytest.raises(PrhEvalError, match=r"max_length = 2 leaves no room .* at least 3"):
        features(tiny_model("bert"), tokenizer=word_tokenizer(special=True), max_length=2)


# Padding


@pytest.mark.parametrize("pad", [None, "<far>"])
def test_a_pad_token_that_the_model_lacks_does_no_harm(pad: str | None) -> None:
    model, tokenizer = tiny_model("gpt2"), word_tokenizer()
    oracle = plain_features(model, tokenizer, CAPTIONS)
    tokenizer.pad_token = pad
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
        assert tokenizer.pad_token_id == VOCABULARY
    assert_close(features(model, tokenizer=tokenizer, batch_size=4).layers, oracle)
    assert tokenizer.pad_token == pad


# Errors a person can cause


def test_a_caption_without_tokens_is_named() -> None:
    with pytest.raises(PrhEvalError, match=r"caption 1 \('  '\) has no token"):
        features(tiny_model("gpt2"), ["a cat", "  ", ""])


def test_no_caption_is_refused() -> None:
    with pytest.raises(PrhEvalError, match="no caption"):
        features(tiny_model("gpt2"), [])


def test_a_foreign_tokenizer_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(PrhEvalError, match=rf"caption 1 .* id {VOCABULARY} .* 0 to 19"):
        features(tiny_model("gpt2"), ["a cat", "a zebra"], tokenizer=tokenizer)


def test_an_unknown_pooling_names_the_nearest() -> None:
    with pytest.raises(PrhEvalError, match="did you mean 'mean'"):
        features(tiny_model("gpt2"), pooling="meen")


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": "auto", "max_batch_size": 0}, {"world_size": 2}]
)
def test_impossible_calls_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is below 1|all_gather is needed"):
        features(tiny_model("gpt2"), **options)


@pytest.mark.parametrize("broken", ["none", "shape"])
def test_a_model_without_hidden_states_of_every_token_is_refused(broken: str) -> None:
    model = tiny_model("gpt2")

    def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
        short = tuple(state[:, 1:] for state in output.hidden_states)
        output.hidden_states = None if broken == "none" else short
        return output

    model.transformer.register_forward_hook(spoil)
    with pytest.raises(PrhEvalError, match=r"gives no hidden states|hidden state 0 of GPT2Model"):
        features(model)


# The model is left as it was


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model = tiny_model("gpt2")
    oracle = plain_features(model, word_tokenizer(), CAPTIONS)
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    assert_close(features(model).layers, oracle)
    assert [module.training for module in model.modules()] == before
    model.transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        features(model)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("prefix", [None, 2])
def test_every_pass_is_in_inference_mode(prefix: int | None) -> None:
    model = tiny_model("gpt2")
    modes: list[bool] = []
    model.transformer.wte.register_forward_pre_hook(
        lambda module, inputs: modes.append(torch.is_inference_mode_enabled())
    )
    features(model, batch_size=4, prefix=prefix)
    # Two to find hidden states and two batches; three to try the head and two batches for it.
    assert modes == [True] * (4 if prefix is None else 9)
    assert not torch.is_inference_mode_enabled()


def test_features_are_ordinary_tensors() -> None:
    model = tiny_model("gpt2")
    layer = features(model).layers[0]
    assert not layer.is_inference()
    assert not layer.requires_grad
    assert all(weight.grad is None for weight in model.parameters())


# Precision


def test_low_precision_states_are_raised_before_the_mean() -> None:
    model = tiny_model("gpt_neox").to(torch.bfloat16)
    # One caption a batch runs exactly what the oracle runs, so only the mean could differ.
    for caption in CAPTIONS:
        oracle = plain_features(model, word_tokenizer(), [caption])
        for layer, wanted in zip(features(model, [caption]).layers, oracle, strict=True):
            assert layer.dtype == torch.float32
            assert torch.equal(layer, wanted.float())


def test_autocast_is_used_where_asked() -> None:
    model, captions = tiny_model("gpt_neox"), CAPTIONS[1:2]
    with torch.autocast("cpu", torch.bfloat16):
        oracle = plain_features(model, word_tokenizer(), captions)
    result = features(model, captions, autocast_dtype=torch.bfloat16)
    assert torch.equal(result.layers[-1], oracle[-1].float())
    assert not torch.equal(result.layers[-1], features(model, captions).layers[-1])


# Pooling by itself


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 2**31))
def test_the_mean_is_that_of_float64(lengths: list[int], seed: int) -> None:
    hidden = torch.randn(
        len(lengths), max(lengths), 3, generator=torch.Generator().manual_seed(seed)
    )
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    real = [h[:n].numpy().astype(np.float64) for h, n in zip(hidden, lengths, strict=True)]
    wanted = np.stack([tokens.mean(axis=0) for tokens in real])
    assert np.allclose(pool(hidden, mask, "mean").numpy(), wanted, rtol=2**-23, atol=0)
    whole = torch.ones_like(mask)
    plain = pool(hidden, whole, "mean", padded=False)
    assert torch.equal(plain, pool(hidden, whole, "mean"))


def test_pooling_reads_real_tokens_only() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [6.0]], [[4.0], [float("nan")], [float("inf")]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[3.0], [4.0]]
    assert pool(hidden, mask, "last").tolist() == [[6.0], [4.0]]


def test_nan_at_a_real_token_is_kept() -> None:
    hidden = torch.tensor([[[1.0], [float("nan")]]])
    assert pool(hidden, torch.ones(1, 2, dtype=torch.int64), "mean").isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_mean_does_not_lose_small_terms(dtype: torch.dtype) -> None:
    # 2^15 - 2^15 + 1 over 3 tokens, in any order; 60000 + 60000 overflows float16.
    for values in ([32768, 1, -32768], [1, 32768, -32768], [60000, 60000, 60000]):
        hidden = torch.tensor(values, dtype=dtype).reshape(1, 3, 1)
        mean = pool(hidden, torch.ones(1, 3, dtype=torch.int64), "mean")
        exact = sum(hidden.double().flatten().tolist()) / 3
        assert mean.dtype == torch.float32
        assert mean.item() == torch.tensor(exact, dtype=torch.float32).item()


# Batch size "auto"


def memory_for(model: nn.Module, tokens: int) -> list[tuple[int, ...]]:
    """Make the model fail as CUDA does above so many tokens a batch; the shapes it was asked."""
    shapes = shapes_seen(model)

    def check(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.shape[:2].numel() > tokens:
            raise RuntimeError("CUDA out of memory. Tried to allocate a lot")

    model.get_input_embeddings().register_forward_hook(check)
    return shapes


def test_auto_takes_the_largest_batch_that_fits() -> None:
    model = tiny_model("gpt2")
    oracle = plain_features(model, word_tokenizer(), CAPTIONS)
    shapes = memory_for(model, 3 * 15)
    result = features(model, batch_size="auto", max_batch_size=5)
    assert 1 <= result.batch_size <= 3
    assert shapes[2] == (5, 15)
    assert_close(result.layers, oracle)


def test_auto_starts_at_the_maximum_and_no_higher_than_the_captions() -> None:
    assert features(tiny_model("gpt2"), batch_size="auto", max_batch_size=2).batch_size == 2
    assert features(tiny_model("gpt2"), batch_size="auto", max_batch_size=64).batch_size == 6


def test_auto_probes_the_longest_captions() -> None:
    model = tiny_model("gpt2")
    seen = shapes_seen(model)
    features(model, batch_size="auto", max_batch_size=2)
    assert seen[2] == (2, 15)


def test_a_caption_that_never_fits_is_one_sentence() -> None:
    model = tiny_model("gpt2")
    memory_for(model, 2 * 8)
    caption = " ".join((WORDS * 2)[:20])
    with pytest.raises(PrhEvalError, match=r"longest caption \(20 tokens\) does not fit"):
        features(model, [caption, *CAPTIONS], batch_size="auto")


def test_other_failures_are_not_taken_for_lack_of_memory() -> None:
    model = tiny_model("gpt2")
    model.transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        features(model, batch_size="auto")


# Progress


@pytest.mark.parametrize(
    ("progress", "rank", "shown"), [(True, 0, True), (True, 1, False), (False, 0, False)]
)
def test_one_progress_bar(
    progress: bool, rank: int, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor.repeat(2, 1)  # noqa: E731
    model = tiny_model("gpt2")
    features(model, batch_size=3, progress=progress, rank=rank, world_size=2, all_gather=gather)
    bar = capsys.readouterr().err
    assert ("Language features: 100%" in bar and "3/3" in bar) if shown else not bar
