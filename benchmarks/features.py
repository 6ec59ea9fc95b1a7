"""Language features of a random GPT-2, against padded batches with the head and a bare forward.

With loss means with each caption's probability, given the token that it begins with.
"""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.common import Figure, Peak, Setting, main, speedup
from benchmarks.timing import added_memory, by_turns, in_fresh_process
from prh_eval.features.language import LanguageFeatures, language_features
from prh_eval.features.language_body import body

VOCABULARY = 50_257
LAYERS = 6
LONGEST, MEAN_LENGTH = 60, 20
PREFIX = "<eos>"
# Of the plain way: as the released code runs it, and the share of the captions that it is timed on
# where it takes minutes: all its batches are alike.
PLAIN_BATCH = 4
SHARE = 4
# Ours: of the longest captions.
BATCH = 16

P = ParamSpec("P")
T = TypeVar("T")
# Arguments of calls, positional and by name.
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


def made_captions(count: int, vocabulary: int) -> list[str]:
    """Captions of random words, 20 on average; the first has 60, the most."""
    draw = random.Random(0)
    lengths = [LONGEST] + [
        # Gamma, which is skewed as lengths of captions are.
        min(LONGEST, max(3, round(draw.gammavariate(5, MEAN_LENGTH / 5))))
        for _ in range(count - 1)
    ]
    return [" ".join(f"w{draw.randrange(vocabulary - 1)}" for _ in range(n)) for n in lengths]


def made_tokenizer(vocabulary: int, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """One token a word, after one that every caption begins with if that is wanted."""
    words = [PREFIX, *(f"w{number}" for number in range(vocabulary - 1))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{PREFIX} $A", special_tokens=[(PREFIX, 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=PREFIX,
        pad_token=PREFIX,
        model_max_length=LONGEST + begins,
    )


def made_model(dim: int, vocabulary: int, device: torch.device) -> nn.Module:
    """A GPT-2 with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=dim,
        n_layer=LAYERS,
        n_head=max(1, dim // 64),
        n_positions=LONGEST + 1,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model.eval().to(device)


@torch.inference_mode()
def padded_with_head(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, captions: list[str], loss: bool = False
) -> tuple[Tensor, Tensor]:
    """Features (layers, n, dim) and, with loss, each caption's (n,), the plain way.

    Four captions at a time, all padded on the right to the longest, logits of every token, and
    hidden states stacked before they are pooled.
    """
    device = next(model.parameters()).device
    encoded = tokenizer(captions, padding="longest", return_tensors="pt").to(device)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    pooled, lost = [], [torch.empty(0)]
    for some, real in zip(
        torch.split(ids, PLAIN_BATCH), torch.split(mask, PLAIN_BATCH), strict=True
    ):
        output = model(some, attention_mask=real, output_hidden_states=True)
        stacked = torch.stack(output.hidden_states)
        weights = real[None, :, :, None]
        pooled.append(((stacked * weights).sum(dim=2) / weights.sum(dim=2)).cpu())
        if loss:
            logits = output.logits[:, :-1].float().transpose(1, 2)
            each = torch.nn.functional.cross_entropy(logits, some[:, 1:], reduction="none")
            lost.append((each * real[:, 1:]).sum(dim=1).cpu())
    return torch.cat(pooled, dim=1), torch.cat(lost)


def recorded_batches(model: nn.Module, tokens: int, run: Callable[[], object]) -> Calls:
    """What the model's body is called with while features of so many tokens are made."""
    calls: Calls = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, {**kwargs, "output_hidden_states": False}))

    hook = body(model).register_forward_pre_hook(record, with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    # The model may be tried on a few captions before all are read.
    batches: Calls = []
    while tokens > 0:
        batches.insert(0, calls.pop())
        tokens -= int(batches[0][1]["attention_mask"].sum())
    if tokens:
        raise ValueError("the last batches that were read are not all captions, each once")
    return batches


@torch.inference_mode()
def bare_forward(model: nn.Module, calls: Calls) -> None:
    """The same batches through the same body, and nothing kept."""
    part = body(model)
    for args, kwargs in calls:
        part(*args, **kwargs)


def run(setting: Setting, peak: Peak) -> list[Figure]:
    """Two widths, with fewer captions where the plain way takes minutes."""
    on_gpu = setting.device.type == "cuda"
    widths = [(32, 24, 24)] if setting.tiny else [(256, 1024, 128), (768, 192, 96)]
    figures = []
    for dim, count, count_with_loss in widths:
        figures += _width(setting, peak, dim, 1024 if on_gpu else count)
        figures += _with_loss(setting, dim, 1024 if on_gpu else count_with_loss)
    # So many that a batch's pooled rows are few beside all.
    return [*figures, _memory(setting, widths[0][0], 24 if setting.tiny else 4096)]


def vocabulary(setting: Setting) -> int:
    """Tokens that the model knows."""
    return 500 if setting.tiny else VOCABULARY


def extracted(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    captions: list[str],
    prefix: int | None = None,
) -> LanguageFeatures:
    """Features by this package."""
    return language_features(
        model, tokenizer, captions, batch_size=BATCH, prefix=prefix, progress=False
    )


def memory(
    way: str, dim: int, captions: list[str], vocabulary: int, batches: bytes, device: str
) -> int:
    """Bytes that one way adds to the model, its libraries and one caption."""
    torch_device = torch.device(device)
    model, tokenizer = made_model(dim, vocabulary, torch_device), made_tokenizer(vocabulary)
    calls = torch.load(io.BytesIO(batches), map_location=torch_device)
    extracted(model, tokenizer, captions[-1:])
    work: dict[str, Callable[[], object]] = {
        "bare": lambda: bare_forward(model, calls),
        "ours": lambda: extracted(model, tokenizer, captions),
        "padded": lambda: padded_with_head(model, tokenizer, captions[: 4 * PLAIN_BATCH]),
    }
    return added_memory(work[way], torch_device)


def block_weights(model: nn.Module) -> int:
    """Weights that every token is multiplied with, without the vocabulary head's."""
    return sum(p.numel() for name, p in model.named_parameters() if ".h." in name)


def more_operations(model: nn.Module, captions: list[str], *, loss: bool) -> float:
    """How many times as many operations the padded way takes, without attention's own."""
    # With loss each begins with one more.
    lengths = [len(caption.split()) + loss for caption in captions]
    blocks = block_weights(model)
    head = model.get_submodule("lm_head").get_parameter("weight").numel()
    padded = len(lengths) * max(lengths) * (blocks + head)
    return padded / (sum(lengths) * (blocks + head * loss))


def _width(setting: Setting, peak: Peak, dim: int, count: int) -> list[Figure]:
    model = made_model(dim, vocabulary(setting), setting.device)
    tokenizer = made_tokenizer(vocabulary(setting))
    captions = made_captions(count, vocabulary(setting))
    tokens = sum(len(caption.split()) for caption in captions)
    ours = functools.partial(extracted, model, tokenizer, captions)
    calls = recorded_batches(model, tokens, ours)
    # The longest is the first.
    sampled = captions if setting.device.type == "cuda" else captions[: count // SHARE]
    timed = by_turns(
        {
            "padded": lambda: padded_with_head(model, tokenizer, sampled),
            "ours": ours,
            "bare": lambda: bare_forward(model, calls),
        },
        setting.clock,
    )
    timed.seconds["padded"] *= count / len(sampled)
    features = torch.stack(timed.results["ours"].layers)
    difference = features[:, : len(sampled)] - timed.results["padded"][0]
    weights = block_weights(model)
    about = f"{count:,} captions ({tokens:,} tokens), {LAYERS}-layer GPT-2, D = {dim}"
    return [
        speedup(
            f"features D = {dim}",
            f"{about}, against padded batches of {PLAIN_BATCH} with the head",
            timed,
            plain="padded",
            # Two operations a weight and token, without attention's own.
            of_peak={"float32": 2 * tokens * weights / timed.seconds["ours"] / peak["float32"]},
            details={
                "captions": count,
                "tokens": tokens,
                "captions_timed_the_plain_way": len(sampled),
                "padded_operations_as_a_multiple": more_operations(model, captions, loss=False),
                "largest_difference": float(difference.abs().max()),
                "largest_magnitude": float(features.abs().max()),
            },
        ),
        Figure(
            f"features D = {dim} against a bare forward pass",
            f"{about}, speed as a share of a bare forward pass of the same batches",
            100 * timed.seconds["bare"] / timed.seconds["ours"],
            "%",
            {name: timed.seconds[name] for name in ("ours", "bare")},
            {name: timed.runs[name] for name in ("ours", "bare")},
            details={"batches": len(calls)},
        ),
    ]


def _with_loss(setting: Setting, dim: int, count: int) -> list[Figure]:
    model = made_model(dim, vocabulary(setting), setting.device)
    begins = made_tokenizer(vocabulary(setting), begins=True)
    plain = made_tokenizer(vocabulary(setting))
    captions = made_captions(count, vocabulary(setting))
    timed = by_turns(
        {
            "padded": lambda: padded_with_head(model, begins, captions, loss=True),
            "ours": lambda: extracted(model, begins, captions, prefix=0),
            "ours, read twice": lambda: extracted(model, plain, captions, prefix=0),
        },
        setting.clock,
    )
    features, loss = timed.results["padded"]
    mine = timed.results["ours"]
    what = (
        f"{count:,} captions, {LAYERS}-layer GPT-2, D = {dim}, with each caption's loss, against "
        f"padded batches of {PLAIN_BATCH}"
    )
    return [
        speedup(
            f"features D = {dim} with loss",
            what,
            timed,
            plain="padded",
            details={
                "captions": count,
                "padded_operations_as_a_multiple": more_operations(model, captions, loss=True),
                "largest_difference": float((torch.stack(mine.layers) - features).abs().max()),
                "largest_relative_difference_of_losses": float((mine.nats / loss - 1).abs().max()),
            },
        ),
        speedup(
            f"features D = {dim} with loss, read twice",
            what + ", where captions do not begin with the token that their loss is given: ours "
            "reads them a second time after it, the padded way once with it",
            timed,
            plain="padded",
            ours="ours, read twice",
        ),
    ]


def _this_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


def _memory(setting: Setting, dim: int, count: int) -> Figure:
    model = made_model(dim, vocabulary(setting), setting.device)
    captions = made_captions(count, vocabulary(setting))
    tokens = sum(len(caption.split()) for caption in captions)
    tokenizer = made_tokenizer(vocabulary(setting))
    batches = io.BytesIO()
    run = functools.partial(extracted, model, tokenizer, captions)
    torch.save(recorded_batches(model, tokens, run), batches)
    # A fresh process imports for seconds, and a tiny run's figures mean nothing anyway.
    process = _this_process if setting.tiny else in_fresh_process
    added = {
        way: process(
            memory,
            way,
            dim,
            captions,
            vocabulary(setting),
            batches.getvalue(),
            str(setting.device),
        )
        for way in ("bare", "ours", "padded")
    }
    pooled = 4 * (LAYERS + 1) * count * dim
    return Figure(
        f"features memory D = {dim}",
        f"memory of features beyond a bare forward pass of the same batches, D = {dim}, "
        f"{count:,} captions, in pooled arrays of all layers ({pooled / 2**20:.1f} MiB)",
        (added["ours"] - added["bare"]) / pooled,
        "arrays",
        details={"added_bytes": added, "pooled_bytes": pooled},
    )


if __name__ == "__main__":
    main("features", run)
