"""Hidden states pooled where they are made: the bits of the stack, and no stack."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from features.language_zoo import (
    CAPTIONS,
    VOCABULARY,
    WORDS,
    assert_close,
    plain_features,
    tiny_model,
    word_tokenizer,
)
from tiny_models import ZOO
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from prh_eval.features.language import language_features
from prh_eval.features.language_body import body
from prh_eval.features.language_hooks import watching
from prh_eval.features.language_loss import Run
from prh_eval.features.language_pooling import Pooling
from prh_eval.features.language_reader import Reader

SEQUENCES = sorted(
    {tuple(ids) for ids in word_tokenizer()(CAPTIONS)["input_ids"]}, key=len, reverse=True
)
RUNS = [Run(array("i", sequence)) for sequence in SEQUENCES]


def reader(model: nn.Module, pooling: Pooling = "mean", dtype: torch.dtype | None = None) -> Reader:
    return Reader(body(model), pad_id=0, pooling=pooling, autocast_dtype=dtype, example=RUNS[-2:])


def count_stacks(model: nn.Module) -> list[bool]:
    """Whether each forward pass of the body was asked for its stack."""
    asked: list[bool] = []
    body(model).register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["output_hidden_states"]), with_kwargs=True
    )
    return asked


def stacked(model: nn.Module, sequences: Sequence[Sequence[int]], pooling: str) -> list[Tensor]:
    """The oracle: the body's own stack of the same padded batch, summed in float64."""
    longest = len(sequences[0])
    ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences])
    lengths = [len(sequence) for sequence in sequences]
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    with torch.inference_mode():
        states = body(model)(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
    rows = []
    for state in states:
        real = [item[:n].double() for item, n in zip(state, lengths, strict=True)]
        rows.append(
            torch.stack([r.mean(dim=0) if pooling == "mean" else r[-1] for r in real]).float()
        )
    return rows


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_is_pooled_without_a_stack_to_the_same_bits(
    kind: str, pooling: Pooling, dtype: torch.dtype
) -> None:
    model = tiny_model(kind).to(dtype)
    read = reader(model, pooling)
    asked = count_stacks(model)
    for batch in ([0], [0, 1], [0, 1, 2, 3, 4, 5], [3, 4]):
        got = read.features([RUNS[i] for i in batch])
        assert asked[-1] is False
        wanted = stacked(model, [SEQUENCES[i] for i in batch], pooling)
        assert len(got) == len(wanted) == 3
        assert all(map(torch.equal, got, wanted))
    # Where they pass is looked for once: in one pass with a stack.
    assert asked.count(True) == 1 + 4


def test_under_autocast_too() -> None:
    model = tiny_model("gpt_neox")
    read, asked = reader(model, dtype=torch.bfloat16), count_stacks(model)
    got = read.features(RUNS)
    assert asked == [True, False, False]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, got, stacked(model, SEQUENCES, "mean")))


def test_a_block_that_is_run_many_times_is_read_at_each() -> None:
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    model = transformers.AlbertForMaskedLM(config).eval()
    asked = count_stacks(model)
    result = language_features(model, word_tokenizer(), CAPTIONS, batch_size=3, progress=False)
    assert asked.count(True) == 1
    assert len(result.layers) == 5
    assert_close(result.layers, plain_features(model, word_tokenizer(), CAPTIONS))


@pytest.mark.parametrize("how", ["xlnet", "copied"])
def test_states_that_pass_nowhere_are_stacked(how: str) -> None:
    if how == "xlnet":  # its hidden states are transposed copies of what its blocks pass on
        config = transformers.XLNetConfig(
            vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32
        )
        torch.manual_seed(0)
        model: Any = transformers.XLNetLMHeadModel(config).eval()
    else:
        model = tiny_model("gpt2")

        def doubled(module: nn.Module, inputs: Any, output: Any) -> Any:
            if output.hidden_states is not None:
                output.hidden_states = tuple(2 * state for state in output.hidden_states)
            return output

        model.transformer.register_forward_hook(doubled)
    asked = count_stacks(model)
    result = language_features(model, word_tokenizer(), CAPTIONS, batch_size=3, progress=False)
    assert all(asked)
    assert_close(result.layers, plain_features(model, word_tokenizer(), CAPTIONS))


def test_values_decide_where_memory_alone_misleads() -> None:
    # A block that overwrites what it is handed, which was stacked before.
    model = tiny_model("llama")
    plain = model.model.layers[1].forward

    def tampering(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        hidden.mul_(2)
        return plain(hidden, *args, **kwargs)

    model.model.layers[1].forward = tampering
    wanted = stacked(model, SEQUENCES, "mean")
    asked = count_stacks(model)
    got = reader(model).features(RUNS)
    assert asked == [True, False, False]
    assert all(map(torch.equal, got, wanted))


def test_a_model_that_computes_otherwise_without_a_stack_is_given_one() -> None:
    model = tiny_model("gpt_neox")
    wanted = plain_features(model, word_tokenizer(), CAPTIONS)
    asked = count_stacks(model)
    model.gpt_neox.layers[0].register_forward_hook(
        lambda module, args, output: output if asked[-1] else 2 * output
    )
    result = language_features(model, word_tokenizer(), CAPTIONS, batch_size=3, progress=False)
    assert_close(result.layers, wanted)


def test_every_call_of_a_module_is_told_from_the_others() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()

        def forward(self, one: Tensor) -> Tensor:
            return self.same(input=self.same(one) + 1)

    model, seen = Twice(), {}
    with watching([model.same], lambda site, tensor: seen.update({site: tensor.item()})):
        model(torch.tensor(3.0))
    found = {(site.call, site.output, site.place): value for site, value in seen.items()}
    assert found == {(0, False, 0): 3, (0, True, 0): 3, (1, False, 0): 4, (1, True, 0): 4}


def test_hooks_are_gone_afterwards() -> None:
    model = tiny_model("gpt2")
    # Transformers puts hooks of its own in place when a stack is first asked for.
    stacked(model, SEQUENCES, "mean")
    count: Callable[[], int] = lambda: sum(  # noqa: E731
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )
    before = count()
    language_features(model, word_tokenizer(), CAPTIONS, progress=False, prefix=2)
    assert count() == before


# Memory


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made under it that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.storages[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.storages.values()))
        return made


def peak(layers: int, run: Callable[[nn.Module], Any]) -> int:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=layers, n_head=2, n_positions=512
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    run(model)
    with LiveBytes() as live:
        run(model)
    return live.peak


@pytest.mark.parametrize("again", [0, 40])
def test_beyond_a_batch_memory_is_that_of_the_features(again: int) -> None:
    dim, states, count = 64, 2, 1600
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=dim, n_layer=states - 1, n_head=2, n_positions=64
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    texts = [" ".join(words) for words in itertools.permutations(WORDS[:8], 4)]
    captions = [*texts[: count - again], *texts[:again]]
    with LiveBytes() as live:
        language_features(model, word_tokenizer(), captions, batch_size=8, progress=False)
    layer = count * dim * 4
    # A layer more would be needed to put one in order elsewhere.
    assert states * layer < live.peak < (states + 0.7) * layer


def test_memory_does_not_grow_with_a_stack() -> None:
    texts = [" ".join(CAPTIONS[1].split() * 20)[: 1000 + i] for i in range(8)]
    tokenizer = word_tokenizer()
    tokens = max(len(ids) for ids in tokenizer(texts)["input_ids"])

    def ours(model: nn.Module) -> None:
        language_features(model, tokenizer, texts, batch_size=4, progress=False)

    def theirs(model: nn.Module) -> None:
        stacked(model, tokenizer(texts[:4])["input_ids"][::-1], "mean")

    more, state = 12, 4 * tokens * 16 * 4
    # The measure sees a stack: a state of the batch more for each layer more.
    assert peak(2 + more, theirs) - peak(2, theirs) >= more * state
    # Ours grows by the pooled rows: those that are kept, those of a batch and those of the next.
    pooled = 8 * 16 * 4
    assert peak(2 + more, ours) - peak(2, ours) <= 3 * more * pooled < more * state / 20
