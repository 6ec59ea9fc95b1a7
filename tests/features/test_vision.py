"""Features of many images: batches, threads, memory, and runs that are stopped and go on."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from features.ranks import Ranks
from PIL import Image
from tiny_hub import SIZE, cache_model, make_dinov2
from torch import Tensor, nn
from vision_zoo import noise

from prh_eval.errors import PrhEvalError
from prh_eval.features import vision
from prh_eval.features.parts import Parts
from prh_eval.features.vision import VisionModel, load_vision_model, vision_features
from prh_eval.features.vision_blocks import BlockModel
from prh_eval.schema import Preprocessing, VisionEncoder

SPEC = Preprocessing(
    resize=SIZE,
    crop=SIZE,
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def load(folder: Path | str, **changes: Any) -> VisionModel:
    values = {"path": str(folder), "token": "class", "preprocessing": SPEC, **changes}
    return load_vision_model(VisionEncoder(**values))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionModel:
    return load(make_dinov2(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [noise(20 + 3 * i, 50 - 2 * i, seed=i) for i in range(9)]


def close(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


class Counting(VisionModel):
    """An encoder whose layers tell which images it read: their number, and its square."""

    def __init__(self, most: int = 1000) -> None:
        self.commit, self.parameters, self.input = None, 0, {}
        self.most = most
        self.sizes: list[int] = []
        self.prepared: list[int] = []
        self.threads: set[int] = set()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> None:
        self.moved = device

    def prepare(self, image: Image.Image) -> Tensor:
        self.threads.add(threading.get_ident())
        self.prepared.append(number := image.width - 1)
        return torch.full((3, 2, 4), float(number))

    def read(self, pixels: Tensor) -> list[Tensor]:
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        numbers = pixels[:, 0, :1, 0]
        return [numbers, numbers.expand(-1, 2) ** 2]


class Numbered(Sequence[Image.Image]):
    """n images; the i-th has i + 1 columns, and one of them may be broken."""

    def __init__(self, n: int, broken: int | None = None) -> None:
        self.n, self.broken = n, broken

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, position: int) -> Image.Image:  # type: ignore[override]
        if position == self.broken:
            raise PrhEvalError(f"the image of item {position} cannot be read")
        return Image.new("L", (position + 1, 1))


def numbers(n: int) -> list[Tensor]:
    column = torch.arange(n, dtype=torch.float32)[:, None]
    return [column, column.expand(-1, 2) ** 2]


# ------------------------------------------------------------------ batches and threads


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_change_nothing(
    model: VisionModel, images: list[Image.Image], batch_size: int
) -> None:
    with torch.inference_mode():
        pixels = torch.stack([model.prepare(image) for image in images])
    close(vision_features(model, images, batch_size=batch_size, progress=False), model.read(pixels))


@pytest.mark.parametrize("workers", [None, 0, 1, 3])
@pytest.mark.parametrize("n", [1, 7, 300, 600])
def test_order_is_kept(n: int, workers: int | None) -> None:
    counting = Counting()
    features = vision_features(counting, Numbered(n), batch_size=7, workers=workers, progress=False)
    same(features, numbers(n))
    assert sorted(counting.prepared) == list(range(n))
    assert sum(counting.sizes) == n
    here = {threading.get_ident()}
    assert counting.threads == here if workers == 0 else not counting.threads & here
    assert len(counting.threads) <= (8 if workers is None else max(workers, 1))


def test_images_are_not_prepared_far_ahead() -> None:
    counting = Counting()
    seen: list[int] = []
    read = counting.read

    def watching(pixels: Tensor) -> list[Tensor]:
        seen.append(len(counting.prepared) - sum(counting.sizes))
        return read(pixels)

    counting.read = watching  # type: ignore[method-assign]
    vision_features(counting, Numbered(200), batch_size=5, workers=2, progress=False)
    assert max(seen) <= 5 + 2 + 2 * 5 + 1


def test_threads_are_gone_afterwards() -> None:
    before = threading.active_count()
    with pytest.raises(PrhEvalError, match="item 20 cannot"):
        vision_features(Counting(), Numbered(90, broken=20), workers=4, progress=False)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_keeps_its_sentence(workers: int) -> None:
    with pytest.raises(PrhEvalError) as error:
        vision_features(Counting(), Numbered(9, broken=4), workers=workers, progress=False)
    assert str(error.value) == "the image of item 4 cannot be read"


def test_the_device_is_handed_on() -> None:
    counting = Counting()
    vision_features(counting, Numbered(1), device="cuda:3", progress=False)
    assert counting.moved == "cuda:3"


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    vision_features(Counting(), Numbered(12))
    assert "12/12" in capsys.readouterr().err
    vision_features(Counting(), Numbered(12), progress=False)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------ several processes


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 300, 1300])
def test_processes_share_the_images(n: int, world_size: int) -> None:
    encoders = [Counting() for _ in range(world_size)]
    results = Ranks(world_size).run(
        lambda rank, **options: vision_features(
            encoders[rank], Numbered(n), batch_size=50, workers=1, progress=False, rank=rank,
            **options,
        )
    )  # fmt: skip
    for result in results:
        same(result, numbers(n))
    pieces = [range(start, min(start + 256, n)) for start in range(0, n, 256)]
    for rank, encoder in enumerate(encoders):
        share = [image for piece in pieces[rank::world_size] for image in piece]
        assert sorted(encoder.prepared) == share


# ------------------------------------------------------------------ memory


def test_out_of_memory_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    counting = Counting(most=2)
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        features = vision_features(counting, Numbered(9), batch_size=8, progress=False)
    assert counting.sizes == [8, 4, 2, 2, 2, 2, 1]
    assert "batches of 2 now" in caplog.text
    same(features, numbers(9))
    assert sorted(counting.prepared) == list(range(9))


def test_a_smaller_batch_stays_small() -> None:
    counting = Counting(most=3)
    same(vision_features(counting, Numbered(260), batch_size=4, progress=False), numbers(260))
    assert counting.sizes == [4, *[2] * 130]


def test_one_image_too_large() -> None:
    with pytest.raises(PrhEvalError, match=r"one image of 2 x 4 pixels does not fit .* of cpu"):
        vision_features(Counting(most=0), Numbered(3), progress=False)


def test_other_errors_are_not_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Counting, pixels: Tensor) -> list[Tensor]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Counting, "read", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        vision_features(Counting(), Numbered(3), progress=False)


def test_no_hidden_state_outlives_its_block(model: VisionModel) -> None:
    """While a block runs, what is alive of those before it is its own input and pooled rows."""
    assert isinstance(model, BlockModel)
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(block: nn.Module, args: Any, output: Any) -> None:
        made.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
        alive.append(sum(ref() is not None for ref in made))

    handles = [block.register_forward_hook(note) for block in model.loaded.blocks]
    layers = model.read(torch.randn(2, 3, SIZE, SIZE))
    for handle in handles:
        handle.remove()
    assert len(made) == len(layers) == 3
    assert max(alive) <= 2
    assert not any(ref() is not None for ref in made)
    assert all(layer.untyped_storage().nbytes() == 4 * layer.numel() for layer in layers)


# ------------------------------------------------------------------ parts


def test_a_stopped_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 2 * 256 + 50
    parts = Parts(tmp_path / "parts")
    with pytest.raises(PrhEvalError, match="item 300"):
        vision_features(Counting(), Numbered(n, broken=300), parts=parts, progress=False)
    counting = Counting()
    features = vision_features(counting, Numbered(n), parts=Parts(tmp_path / "parts"))
    same(features, numbers(n))
    assert sorted(counting.prepared) == list(range(256, n))
    assert f"{n}/{n}" in capsys.readouterr().err
    again = Counting()
    same(vision_features(again, Numbered(n), parts=parts, progress=False), numbers(n))
    assert again.prepared == []


def test_parts_in_the_middle_are_made_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts")
    vision_features(Counting(), Numbered(700), parts=parts, progress=False)
    files = sorted((tmp_path / "parts").iterdir())
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-5])
    counting = Counting()
    same(vision_features(counting, Numbered(700), parts=parts, progress=False), numbers(700))
    assert sorted(counting.prepared) == list(range(256, 512))


def test_a_part_of_another_length_is_made_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts")
    vision_features(Counting(), Numbered(260), parts=parts, progress=False)
    counting = Counting()
    same(vision_features(counting, Numbered(270), parts=parts, progress=False), numbers(270))
    assert sorted(counting.prepared) == list(range(256, 270))


def test_going_on_gives_the_same_bits(
    model: VisionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "_PART", 4)
    images = [noise(30 + i, 40, seed=i) for i in range(10)]
    whole = vision_features(model, images, batch_size=3, progress=False)
    parts = Parts(tmp_path / "parts")
    same(vision_features(model, images, batch_size=3, parts=parts, progress=False), whole)
    sorted((tmp_path / "parts").iterdir())[1].unlink()
    same(vision_features(model, images, batch_size=3, parts=parts, progress=False), whole)


# ------------------------------------------------------------------ loading


def test_loading(tmp_path: Path) -> None:
    folder = make_dinov2(tmp_path / "encoder")
    model = load(folder, dtype="bfloat16")
    assert model.device == torch.device("cpu")
    assert model.commit is None
    (features, *_) = vision_features(model, [noise(30, 30)], progress=False)
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())
    model.to("meta")
    assert model.device == torch.device("meta")


def test_the_commit_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache_model(tmp_path, make_dinov2(tmp_path / "encoder"), "someone/dinov2", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    # transformers 4 has a copy of it.
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", None, raising=False)
    assert load("someone/dinov2", revision=commit).commit == commit


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("facebook/dinov2-giant", "'facebook/dinov2-giant' .*HF_HUB_OFFLINE.*prh_align_color"),
        ("./no/such", "there is no folder './no/such'"),
        ("/no/such", "there is no folder '/no/such'"),
    ],
)
def test_what_cannot_be_loaded(path: str, words: str) -> None:
    with pytest.raises(PrhEvalError, match=words) as error:
        load(path, revision="abc")
    assert "revision 'abc'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match=r"could not be loaded: .*config\.json") as error:
        load(tmp_path)
    assert "HF_HUB_OFFLINE" not in str(error.value)
