"""What a request answers beside graphs: features, tokens, and the graphs of untrained models."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tiny_models import save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prh_eval.artifacts import kept_headers
from prh_eval.errors import PrhEvalError
from prh_eval.features import language
from prh_eval.features.untrained import CONTROLS, shuffled
from prh_eval.harness import requests
from prh_eval.harness.requests import CaptionNeighbors, CaptionSettings, caption_request
from prh_eval.harness.token_bags import kept_tokens
from prh_eval.store import GraphArtifact, read_artifact

N = 30
WORDS = ("red", "blue", "tall", "old", "small", "dog", "cat", "tree", "sky", "sea", "sun", "bird")
CAPTIONS = [[f"{WORDS[i % 12]} {WORDS[(5 * i + 1) % 12]} {i}"] for i in range(N)]
SEVERAL = [
    [*texts, f"way {i} of {WORDS[i * i % 12]}"][: 1 + i % 2] for i, texts in enumerate(CAPTIONS)
]
SETTINGS: dict[str, Any] = {
    "data": "made",
    "items": "items",
    "captions": "captions",
    "pooling": "mean",
    "protocol": "paper",
    "graph_k": 9,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one architecture."""
    place = tmp_path_factory.mktemp("models")
    texts = [text for captions in SEVERAL for text in captions] + [t for (t,) in CAPTIONS]
    return [save_model(place / str(seed), texts, kind="gpt2", seed=seed) for seed in range(2)]


@pytest.fixture
def lm(folders: list[Path]) -> HFLM:
    return loaded(folders[0])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of every model that is run."""
    seen: list[str] = []
    real = language.language_features

    def counting(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(model).__name__)
        return real(model, *args, **kwargs)

    monkeypatch.setattr(requests, "language_features", counting)
    return seen


def loaded(model: Any, **kwargs: Any) -> HFLM:
    return HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=8, **kwargs)


def ask(lm: HFLM, items: Sequence[list[str]] = CAPTIONS, **settings: Any) -> CaptionNeighbors:
    """The response to the first item's request."""
    return asked(lm, [(items, settings)])[0]


def asked(
    lm: HFLM, corpora: Sequence[tuple[Sequence[list[str]], dict[str, Any]]]
) -> list[CaptionNeighbors]:
    """The response to the first item's request of each corpus."""
    instances = []
    for items, settings in corpora:
        of_all = CaptionSettings(**{**SETTINGS, **settings})
        for position, captions in enumerate(items):
            metadata = ("task", position, 1)
            instances.append(caption_request({}, captions, of_all, metadata=metadata))
    answers = requests.neighbor_graphs(lm, instances, disable_tqdm=True)
    return [answer for answer in answers if answer.position == 0]


def same(one: GraphArtifact, other: GraphArtifact) -> bool:
    return torch.equal(one.graph.indices, other.graph.indices) and torch.equal(
        one.graph.tied, other.graph.tied
    )


def plain_features(model: Any, folder: Path, items: Sequence[list[str]]) -> list[np.ndarray]:
    """(n, width) a layer, from the model called on one caption at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for captions in items:
            encoded = [tokenizer(text, return_tensors="pt")["input_ids"] for text in captions]
            states = [model(input_ids=ids, output_hidden_states=True) for ids in encoded]
            pooled = [torch.stack([x[0].mean(dim=0) for x in s.hidden_states]) for s in states]
            rows.append(torch.stack(pooled).double().mean(dim=0).numpy())
    return list(np.stack(rows, axis=1))


def nearest(features: list[np.ndarray], k: int = 9) -> list[list[set[int]]]:
    """The k nearest of each item in each layer, in the protocol of the paper."""
    bound = np.sort(np.abs(np.stack(features)).ravel())[int(0.95 * sum(f.size for f in features))]
    found = []
    for layer in features:
        rows = layer.clip(-bound, bound)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        similarity = rows @ rows.T
        np.fill_diagonal(similarity, -np.inf)
        found.append([set(row[:k]) for row in np.argsort(-similarity, axis=1).tolist()])
    return found


def sets(graphs: GraphArtifact) -> list[list[set[int]]]:
    return [[set(row[:9]) for row in layer] for layer in graphs.graph.indices.tolist()]


# ---------------------------------------------------------------- untrained models


def test_the_reinitialised_one_is_what_transformers_makes(lm: HFLM, folders: list[Path]) -> None:
    found = ask(lm, control="untrained").controls["reinitialized"]
    torch.manual_seed(requests.CONTROL_SEED)
    config = AutoConfig.from_pretrained(folders[0])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    expected = nearest(plain_features(model, folders[0], CAPTIONS))
    agree = np.mean(
        [
            a == b
            for x, y in zip(sets(found), expected, strict=True)
            for a, b in zip(x, y, strict=True)
        ]
    )
    assert agree > 0.97  # but for ties


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_control_has_the_graphs_of_the_model_it_is(
    lm: HFLM, folders: list[Path], name: str
) -> None:
    answer = ask(lm, SEVERAL, control="untrained", pooling="last")
    model = CONTROLS[name](AutoModelForCausalLM.from_pretrained(folders[0]).float(), 0)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    direct = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=8)
    control = answer.controls[name]
    assert same(control, ask(direct, SEVERAL, pooling="last").graphs)
    assert not same(control, answer.graphs)
    header = {**answer.graphs.header, "kind": "control", "control": name, "seed": 0}
    if name == "reinitialized":
        header["weights"] = control.header["weights"]
        assert header["weights"] != answer.graphs.header["weights"]
    assert control.header == header


def test_nothing_of_the_models_own_depends_on_what_else_is_asked(
    lm: HFLM, cache_folder: Path
) -> None:
    plain = ask(lm)
    assert plain.controls == {} and plain.features is None
    (path,) = (cache_folder / "models").glob("*.safetensors")
    kept = read_artifact(path)
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    more = ask(lm, control="untrained", features=True, probabilities=True)
    assert same(more.graphs, plain.graphs) and more.graphs.header == plain.graphs.header
    assert [each.path for each in kept_headers("models")] == [path]
    assert same(read_artifact(path), kept) and read_artifact(path).header == kept.header
    assert all(torch.equal(lm.model.state_dict()[name], w) for name, w in weights.items())


def test_controls_are_computed_once(
    folders: list[Path], passes: list[str], cache_folder: Path
) -> None:
    first = ask(loaded(folders[0]), control="untrained")
    assert len(passes) == 3
    assert list(first.controls) == ["reinitialized", "shuffled"]
    passes.clear()
    again = ask(loaded(folders[0]), control="untrained", data="the same elsewhere")
    assert len(passes) == 1
    assert all(same(again.controls[name], first.controls[name]) for name in CONTROLS)
    assert all(again.controls[name].header == first.controls[name].header for name in CONTROLS)
    passes.clear()
    # Of the same architecture: what is drawn anew is the same.
    other = ask(loaded(folders[1]), control="untrained")
    assert len(passes) == 2
    assert same(other.controls["reinitialized"], first.controls["reinitialized"])
    assert not same(other.controls["shuffled"], first.controls["shuffled"])
    assert len(list((cache_folder / "controls").glob("*.safetensors"))) == 3
    assert len(kept_headers("models")) == 2


@pytest.mark.parametrize(
    "changed",
    [{"pooling": "last"}, {"protocol": "unclipped"}, {"graph_k": 8}, {"captions": "other"}],
)
def test_whatever_moves_a_graph_makes_them_anew(
    lm: HFLM, passes: list[str], changed: dict[str, Any]
) -> None:
    ask(lm, control="untrained")
    passes.clear()
    ask(lm, control="untrained", **changed)
    assert len(passes) == 3


def test_a_damaged_control_is_made_anew(
    lm: HFLM, passes: list[str], cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = ask(lm, control="untrained")
    (path,) = (cache_folder / "controls").glob("*shuffled*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    passes.clear()
    with caplog.at_level(logging.WARNING):
        again = ask(lm, control="untrained")
    assert "A control is made anew" in caplog.text
    assert len(passes) == 2
    assert same(again.controls["shuffled"], first.controls["shuffled"])
    assert same(read_artifact(path), first.controls["shuffled"])


def test_lm_evals_cache_has_them_too(
    lm: HFLM, passes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm.set_cache_hook(SimpleNamespace(dbdict={}))
    first = ask(lm, control="untrained")
    assert len(passes) == 3 and not same(first.controls["shuffled"], first.graphs)
    monkeypatch.setenv("PRH_EVAL_CACHE", str(tmp_path / "another"))
    passes.clear()
    again = ask(lm, control="untrained")
    assert passes == []
    assert same(again.graphs, first.graphs)
    assert all(same(again.controls[name], first.controls[name]) for name in CONTROLS)


def test_only_who_asked_has_them_and_tasks_share_the_passes(lm: HFLM, passes: list[str]) -> None:
    asks = {"control": "untrained"}
    mean = {"captions": "several"}
    found = asked(lm, [(CAPTIONS, {}), (CAPTIONS, asks), (SEVERAL, {**mean, **asks})])
    assert len(passes) == 3
    assert [sorted(answer.controls) for answer in found] == [[], sorted(CONTROLS), sorted(CONTROLS)]
    alone = ask(loaded(lm.pretrained), SEVERAL, control="untrained", captions="alone")
    assert all(same(alone.controls[name], found[2].controls[name]) for name in CONTROLS)


def test_one_model_is_held_beside_the_own(lm: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def counted(make: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any) -> Any:
            assert all(each() is None for each in made)
            model = make(*args)
            made.append(weakref.ref(model))
            return model

        return one

    for name, make in CONTROLS.items():
        monkeypatch.setitem(CONTROLS, name, counted(make))
    ask(lm, control="untrained")
    assert len(made) == 2 and all(each() is None for each in made)


def test_a_control_without_usable_features_is_left_out(
    lm: HFLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: Any, seed: int) -> Any:
        made = shuffled(model, seed)
        with torch.no_grad():
            next(made.parameters()).fill_(torch.nan)
        return made

    monkeypatch.setitem(CONTROLS, "reinitialized", broken)
    with caplog.at_level(logging.WARNING):
        found = ask(lm, control="untrained")
    assert list(found.controls) == ["shuffled"]
    assert "control reinitialized is left out" in caplog.text


def test_a_model_without_controls_is_refused_before_it_runs(lm: HFLM, passes: list[str]) -> None:
    lm.model.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(PrhEvalError, match="no untrained control of a model with quantised"):
        ask(lm, control="untrained")
    assert passes == []
    ask(lm)
    assert len(passes) == 1


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("items", [CAPTIONS, SEVERAL])
def test_features_are_those_of_the_items_before_preprocessing(
    lm: HFLM, folders: list[Path], items: list[list[str]]
) -> None:
    found = ask(lm, items, features=True).features
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32).eval()
    expected = plain_features(model, folders[0], items)
    assert found is not None and len(found) == len(expected) == 3
    for layer, wanted in zip(found, expected, strict=True):
        assert layer.dtype == torch.float32 and layer.device.type == "cpu"
        np.testing.assert_allclose(layer.numpy(), wanted, atol=1e-5 * np.abs(wanted).max())


def test_features_need_a_pass_whatever_is_cached(lm: HFLM, passes: list[str]) -> None:
    lm.set_cache_hook(SimpleNamespace(dbdict={}))
    first = ask(lm)
    again = ask(lm, features=True)
    assert len(passes) == 2
    assert again.features is not None and same(first.graphs, again.graphs)
    assert ask(lm).features is None
    assert len(passes) == 2


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("items", [CAPTIONS, SEVERAL])
def test_tokens_are_given_and_kept(
    folders: list[Path], items: list[list[str]], cache_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    wanted = [[tuple(tokenizer(text)["input_ids"]) for text in texts] for texts in items]
    # A cut caption has all its tokens nevertheless.
    answers = [ask(loaded(folder, max_length=2), items) for folder in folders]
    for answer in answers:
        assert answer.tokens == wanted
        assert kept_tokens(answer.graphs.header) == wanted
    assert len(list((cache_folder / "tokens").glob("*.npz"))) == 1


def test_tokens_that_were_not_kept(
    lm: HFLM, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = ask(lm).graphs.header
    (path,) = (cache_folder / "tokens").glob("*.npz")
    assert kept_tokens({**header, "tokenizer": "another"}) is None
    assert kept_tokens({**header, "pairs": {"captions": "others"}}) is None
    content = path.read_bytes()
    cut = [content[:length] for length in (0, 1, 40, len(content) - 1)]
    changed = [content[:i] + b"\xff" + content[i + 1 :] for i in (0, 60)]
    for damaged in (*cut, *changed, b"not a file of ours"):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert kept_tokens(header) is None
        assert "is damaged" in caplog.text
    path.unlink()
    caplog.clear()
    assert kept_tokens(header) is None
    assert not caplog.text


def test_responses_print_as_one_short_line(lm: HFLM) -> None:
    answer = ask(lm, control="untrained", features=True)
    assert str(answer).startswith("item 0: nearest in the last of 3 layers")
    assert len(repr(answer)) < 120
