"""What the text says: every number of the record, at its place, within 80 columns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sample_findings import record

from prh_eval.findings import Findings
from prh_eval.showing.read import Shown, read_file
from prh_eval.showing.text import ASCII, UNICODE, signs_for, text

OLD = Path(__file__).parent / "data" / "results_of_version_0.1.json"
SOURCE = "results_a.json"


def shown(of: dict[str, Any]) -> Shown:
    return Shown(Findings.model_validate(of), SOURCE, "prh_align")


def row(written: str, label: str) -> list[str]:
    """The cells of the first line that begins with a label."""
    line = next(x for x in written.splitlines() if x.strip().startswith(label))
    return re.split(r"\s{2,}", line.strip())


def lines_after(written: str, title: str) -> list[list[str]]:
    """The rows of the table below a title, up to the key of its bars or an empty line."""
    lines = written.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[start + 3 :]:
        if not line.strip() or line.strip()[0] in "░.":
            break
        rows.append(line.split())
    return rows


def test_score_and_chance() -> None:
    of = record()
    of["null"]["p"] = 0.0123456
    written = text(shown(of))
    score = of["score"]
    title = f"EleutherAI/pythia-160m × dinov2_giant: {score:.4f} ± 0.0062"
    assert written.splitlines()[0] == title
    assert row(written, "score ±")[1] == f"{score:.4f} ± 0.0062"
    low, high = score - 1.96 * 0.0062, score + 1.96 * 0.0062
    assert row(written, "95 % interval")[1] == f"{low:.4f} to {high:.4f}"
    chance = 10 / 1023
    assert row(written, "chance")[1] == f"{chance:.4f}"
    assert row(written, "above chance")[1] == f"{(score - chance) / (1 - chance):.4f}"
    threshold = of["null"]["values"][950]
    assert row(written, "threshold")[1] == f"{threshold:.4f}"
    assert row(written, "calibrated")[1] == f"{(score - threshold) / (1 - threshold):.4f}"
    assert row(written, "p ")[1] == "0.012"
    assert row(written, "z ")[1] == "41.3"
    for part in ("n = 1,024 items", "k = 10 neighbours", "protocol paper", "pooling mean"):
        assert part in written
    assert "162,322,944 parameters" in written
    assert f"{SOURCE}, task prh_align" in written


def test_controls_and_their_differences() -> None:
    of = record()
    written = text(shown(of))
    score = of["score"]

    def minus(value: float) -> str:
        return f"{'+' if score >= value else '−'}{abs(score - value):.4f}"

    beside = written[written.index("Beside it") :]
    assert row(beside, "best layer pair")[1:] == [
        f"{score:.4f} ± 0.0062",
        f"{of['layers'][0]}/{of['layers'][1]}, best of 4 × 3",
    ]
    for name, key in (
        ("cross-fitted", "cross_fitted"),
        ("last layer", "last"),
        ("embedding layer", "embedding"),
    ):
        value, stderr = of[key]["score"], of[key]["stderr"]
        assert row(beside, name)[1:3] == [f"{value:.4f} ± {stderr:.4f}", minus(value)]
    for name, key in (
        ("shared words", "shared_words"),
        ("shared tokens", "shared_tokens"),
        ("re-initialised", "reinitialized"),
        ("weights shuffled", "shuffled"),
        ("ceiling", "ceiling"),
    ):
        value = of["controls"][key]["score"]
        assert row(beside, name)[1:3] == [f"{value:.4f}", minus(value)]
    assert "dinov2_large" in beside
    a, b = of["layers"]
    assert f"Chosen by 10 halves of the items: {a}/{b} (7), {a - 1}/{b} (3)." in beside
    of["cross_fitted"]["layers"] = [[i, j] for i in range(4) for j in range(3)]
    assert "0/0 (1), 0/1 (1), 0/2 (1), 1/0 (1), 1/1 (1), 7 others." in " ".join(
        text(shown(of)).split()
    )
    of["cross_fitted"]["layers"] = [[i, j] for i in range(3) for j in range(2)]
    assert "2/0 (1), 1 other." in " ".join(text(shown(of)).split())


def test_curves_and_profile() -> None:
    of = record(layers=6)
    written = text(shown(of))
    profile = lines_after(written, "Layers")
    assert [line[:3] for line in profile] == [
        [str(layer), str(values.index(max(values))), f"{max(values):.4f}"]
        for layer, values in enumerate(of["layer_grid"])
    ]
    assert [line[-2:] for line in profile if line[-1] == "best"] == [["◀", "best"]]
    assert profile[of["layers"][0]][-1] == "best"
    by_k = lines_after(written, "Neighbourhood sizes")
    assert [int(line[0]) for line in by_k] == [point["k"] for point in of["k_curve"]]
    assert [float(line[1]) for line in by_k] == pytest.approx(
        [point["score"] for point in of["k_curve"]], abs=5.1e-5
    )
    assert [line[0] for line in by_k if line[-1] == "◀"] == ["10"]
    by_n = lines_after(written, "Numbers of items")
    assert [line[0] for line in by_n] == ["64", "128", "256", "512", "1,024"]
    assert [line[2] for line in by_n] == ["0.0120", "0.0085", "0.0060", "0.0042", "—"]
    assert [float(line[4]) for line in by_n] == pytest.approx(
        [point["chance"] for point in of["n_curve"]], abs=5.1e-5
    )


def test_bars_are_in_proportion_to_the_scores() -> None:
    of = record() | {"k_curve": [
        {"k": 1, "score": 0.1, "chance": 0.05},
        {"k": 2, "score": 0.4, "chance": 0.05},
        {"k": 3, "score": -0.1, "chance": 0.05},
        {"k": 4, "score": 0.205, "chance": 0.3},
    ]}  # fmt: skip
    bars = [line[3:] for line in lines_after(text(shown(of)), "Neighbourhood sizes")]
    assert bars == [["░" * 4 + "█" * 3], ["░" * 4 + "█" * 24], [], ["░" * 14 + "▎"]]
    plain = [line[3:] for line in lines_after(text(shown(of), ASCII), "Neighbourhood sizes")]
    assert plain == [["." * 4 + "#" * 3], ["." * 4 + "#" * 24], [], ["." * 14]]


def test_hubs_and_their_warning() -> None:
    of = record()
    written = text(shown(of))
    assert row(written, "skewness")[1:3] == ["1.84", "0.97"]
    assert row(written, "largest")[1:3] == ["8.4", "4.9"]
    assert row(written, "orphans")[1:3] == ["3.1 %", "1.2 %"]
    assert "carry 3.4 % of it" in written
    assert "Warning" not in written
    of["hubs"] |= {"without": 0.0987, "warning": "a few hubs carry the score: 10 of 1024\x1b"}
    written = text(shown(of))
    assert "carry 3.4 % of it; the score\n  without them is 0.0987." in written
    assert "\n  Warning: a few hubs carry the score: 10 of 1024.\n" in written + "\n"


@pytest.mark.parametrize("signs", [UNICODE, ASCII])
@pytest.mark.parametrize("layers", [(1, 1), (13, 12), (33, 40)])
def test_lines_fit_a_terminal(layers: tuple[int, int], signs: Any) -> None:
    of = record(*layers, n=1_000_000) | {"stderr": 9.77e-5}
    of["cross_fitted"]["layers"] = [[layers[0] - 1, min(i, layers[1] - 1)] for i in range(10)]
    written = text(shown(of), signs)
    assert max(map(len, written.splitlines())) <= 80
    assert written.isascii() == (signs is ASCII)
    assert (" +- 9.77e-05" in written) == (signs is ASCII)
    assert not any(line != line.rstrip() for line in written.splitlines())


def test_of_a_file_of_before_it_says_what_is_not_there() -> None:
    (old,) = read_file(OLD)
    written = text(old)
    assert row(written, "shared words")[1] == "0.0736"
    assert "Neighbourhood sizes" not in written and "Hubs" not in written
    lines = written.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Not in this record"))
    said = " ".join(lines[start:-1])
    for part in ("interval", "threshold", "cross-fitted", "curve over k", "curve over n", "hubs"):
        assert part in said
    assert lines[-1] == (
        "  prh-eval rescore cielab --models models/gpt2-64-step300 --output_path DIR"
    )
    assert "Not " not in text(shown(record()))


def test_what_could_not_be_computed() -> None:
    written = text(shown(record() | {"null": None, "cross_fitted": None}))
    assert written.splitlines()[-2:] == [
        "Not computed, for want of draws or of items: threshold and calibrated score, p,",
        "cross-fitted score.",
    ]


@pytest.mark.parametrize(("draws", "tested"), [(18, False), (19, True)])
def test_too_few_draws_have_no_threshold(draws: int, tested: bool) -> None:
    of = record()
    of["null"] |= {"draws": draws, "values": of["null"]["values"][:draws]}
    written = text(shown(of))
    for label in ("\n  threshold", "\n  calibrated"):
        assert (label in written) == tested
    assert f"(1 + re-pairings as high) / (1 + {draws})" in written
    assert ("items: threshold and calibrated score." in written) == (not tested)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("mutual_knn", "mutual_knn, k = 10 neighbours, protocol"),
        ("cknna", "cknna, k = 10 neighbours, protocol"),
        ("svcca", "svcca, 10 directions, protocol"),
        ("linear_cka", "linear_cka, protocol"),
    ],
)
def test_k_is_told_of_metrics_that_have_it(metric: str, says: str) -> None:
    assert says in text(shown(record() | {"metric": metric}))


def test_the_last_layer_of_another_metric_has_no_error() -> None:
    of = record() | {"metric": "linear_cka"}
    of["last"]["stderr"] = None
    assert row(text(shown(of)), "last layer")[1] == f"{of['last']['score']:.4f}"


def test_another_metric_needs_nothing_but_a_score() -> None:
    only = ("n", "k", "layers", "layer_grid", "reference", "model")
    of = {key: record()[key] for key in only} | {"metric": "cka", "score": -0.25}
    written = text(shown(of))
    assert row(written, "score")[1] == "−0.2500"
    assert "cka" in written and "chance" not in written and "Not in this" not in written


def test_signs_by_encoding() -> None:
    assert signs_for("utf-8") is UNICODE
    for encoding in ("ascii", "latin-1", "cp1252", "no such", None):
        assert signs_for(encoding) is ASCII
