"""A board of drawn numbers for the tests of its pages: every kind of row, and every gap."""

from __future__ import annotations

import numpy as np

from prh_eval.leaderboard.associations import associations, trends
from prh_eval.leaderboard.board import AlignmentFacts, Board, BoardColumn, Cell, LeftOut, Row

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b `c` *d* _e_ [f](javascript:alert(1)) # g",
    '=HYPERLINK("http://x","y")',
    "line\nbreak </script> & \"quoted\" 'single'",
    "![x](y) $z$ \\ ~~s~~ <b>",
)


def sample_board(
    *, families: int = 7, of_each: int = 3, seed: int = 0, hostile: bool = False, **changes: object
) -> Board:
    """A board on which alignment and tasks both grow with size."""
    rng = np.random.default_rng(seed)
    facts = {"n": 1024, "k": 10, "protocol": "paper", "pooling": "mean", "chance": 10 / 1023}
    columns = (
        _alignment("prh_align", "DINOv2-giant", "dinov2_giant", facts),
        _alignment("prh_align_clip", "CLIP ViT-H", "clip_huge", facts),
        _task("hellaswag", "HellaSwag", "acc_norm", "none", 10, 0.25),
        _task("gsm8k", "GSM8K", "exact_match", "strict-match", 5, None),
        BoardColumn(
            **{
                **_task(
                    "prh_align:bits_per_byte", "bits per byte", "bits_per_byte", "none", 0, None
                ).model_dump(),
                "kind": "bits per byte",
                "higher_is_better": False,
                "task": "prh_align",
            }
        ),
    )
    rows = []
    for family in range(families):
        level = rng.normal()
        for member in range(of_each):
            size = 7e7 * 4**member * 2 ** float(rng.uniform(-0.5, 0.5))
            good = np.log10(size) - 7.5 + 0.4 * level + 0.2 * rng.normal()
            name = f"org{family}/model-{member}"
            if hostile and member == 0:
                name = HOSTILE[family % len(HOSTILE)]
            layers = 6 * (member + 1) + 1
            cells = {}
            for number, key in enumerate(("prh_align", "prh_align_clip")):
                value = float(0.09 + 0.02 * good + 0.004 * rng.normal() - 0.01 * number)
                profile = value - 0.05 * ((np.arange(layers) / layers - 0.6) ** 2)
                cells[key] = Cell(
                    value=round(value, 6),
                    stderr=0.005,
                    tier=member + 1,
                    date="2026-01-02T03:04:05",
                    file=f"{family}-{member}/results.json",
                    layer=int(profile.argmax()),
                    reference_layer=20,
                    last_layer=round(float(profile[-1]), 6),
                    last_layer_stderr=0.005,
                    profile=tuple(round(float(v), 6) for v in profile),
                )
            hellaswag = float(np.clip(0.25 + 0.2 * good + 0.03 * rng.normal(), 0.2, 0.95))
            cells["hellaswag"] = _cell(hellaswag, 0.0049, family, member)
            if (family, member) != (0, 1):
                gsm8k = float(np.clip(0.02 + 0.15 * good, 0, 1))
                cells["gsm8k"] = _cell(gsm8k, 0.006, family, member)
            if member:
                bits = float(1.4 - 0.15 * good + 0.02 * rng.normal())
                cells["prh_align:bits_per_byte"] = _cell(bits, None, family, member)
            rows.append(
                Row(
                    name=name,
                    model=name,
                    revision="main",
                    dtype="bfloat16",
                    adapter=None,
                    commit="0123456789abcdef",
                    backend="hf",
                    family=f"Family {family}",
                    parameters=round(size),
                    training_tokens=3e11 * (family + 1),
                    release_date=f"202{family % 6}-0{member + 1}-15",
                    kind="instruct" if member == 2 else "base",
                    licence="Apache-2.0",
                    link=f"https://example.org/{family}/{member}",
                    notes=None,
                    control=None,
                    cells=cells,
                    reproduce=(
                        f"lm_eval --model hf --model_args pretrained=m{family}{member} "
                        "--tasks prh_align,hellaswag",
                    ),
                )
            )
    rows.sort(key=lambda row: (-row.cells["prh_align"].value, row.name))
    control = rows[-1].model_copy(
        update={
            "name": "model-0, untrained",
            "control": "untrained weights",
            "family": None,
            "link": None,
            "cells": {"prh_align": rows[-1].cells["prh_align"].model_copy(update={"tier": None})},
        }
    )
    board = Board(
        title="Sample board",
        about="These rows are drawn numbers for tests.",
        columns=columns,
        rows=tuple(rows),
        controls=(control,),
        associations=associations(columns, rows, ("prh_align", "hellaswag")),
        trends=trends(columns, rows),
        left_out=(
            LeftOut(
                what="org/limited",
                reason="org/limited was run with limit 10, which is refused",
                files=("limited/results.json",),
            ),
        ),
        remarks=("org9/model was run in two versions; the scores are kept apart.",),
        files=22,
        config=True,
    )
    return board.model_copy(update=changes)


def by_other_metrics(board: Board, **metrics: tuple[str, float | None]) -> Board:
    """The board with another metric, and its chance, in columns that are given by their keys."""
    columns = []
    for column in board.columns:
        if column.key in metrics and column.alignment:
            metric, chance = metrics[column.key]
            facts = column.alignment.model_copy(update={"chance": chance})
            changes = {"metric": metric, "chance": chance, "alignment": facts}
            column = column.model_copy(update=changes)
        columns.append(column)
    return board.model_copy(update={"columns": tuple(columns)})


def _alignment(key: str, label: str, reference: str, facts: dict[str, object]) -> BoardColumn:
    return BoardColumn(
        key=key,
        label=label,
        kind="alignment",
        task=key,
        metric="mnn",
        filter="none",
        n_shot=None,
        version="1",
        higher_is_better=True,
        chance=10 / 1023,
        models=21,
        alignment=AlignmentFacts(
            reference=reference, data="minhuh/prh", captions="f" * 64, shared_words=0.07, **facts
        ),
    )


def _task(
    key: str, label: str, metric: str, filter_: str, n_shot: int, chance: float | None
) -> BoardColumn:
    return BoardColumn(
        key=key,
        label=label,
        kind="task",
        task=key,
        metric=metric,
        filter=filter_,
        n_shot=n_shot,
        version="1",
        higher_is_better=True,
        chance=chance,
        models=21,
        alignment=None,
    )


def _cell(value: float, stderr: float | None, family: int, member: int) -> Cell:
    return Cell(
        value=round(value, 6),
        stderr=stderr,
        tier=member + 1,
        date="2026-01-02T03:04:05",
        file=f"{family}-{member}/results.json",
    )
