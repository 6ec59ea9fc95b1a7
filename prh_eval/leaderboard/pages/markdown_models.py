"""The models on the forge's page: their scores, what is known of them, and the columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prh_eval.leaderboard.board import Board, BoardColumn, Row
from prh_eval.leaderboard.pages.escaping import markdown, markdown_link
from prh_eval.leaderboard.pages.formats import MISSING, amount, score
from prh_eval.leaderboard.pages.markdown_blocks import folded, table
from prh_eval.leaderboard.pages.tabular import baselines
from prh_eval.leaderboard.scores import metric_key


def models(board: Board) -> Iterable[str]:
    """The section on the models: tables of scores, cards and columns."""
    yield "## Models"
    if not board.rows:
        yield "No model is on the board yet."
    alignment = board.of_kind("alignment")
    main = alignment[:1]
    others = [*board.of_kind("task"), *board.of_kind("bits per byte")]
    if board.rows or board.controls:
        yield _scores(board, [*main, *others], whole=True)
        yield _legend(board, main)
    if len(alignment) > 1 and (board.rows or board.controls):
        yield "### Alignment with the other references"
        yield _scores(board, alignment[1:], whole=False)
    yield from _cards(board)
    if board.columns:
        yield "### Columns"
        yield _columns(board.columns)
        yield _measured_on(alignment)


def _scores(board: Board, columns: Sequence[BoardColumn], *, whole: bool) -> str:
    """The table of scores; the whole one with layers, and what a model is beside them."""
    rows = (*board.rows, *board.controls)
    calibrated = {column.key for column in columns if _calibrated(column, rows)}
    headings, aligned = ["Model"], ["left"]
    if whole:
        headings = ["Tier", "Model", "Family", "Parameters"]
        aligned = ["right", "left", "left", "right"]
    widths = []
    for column in columns:
        of_column = _headings(column, column.key in calibrated, layers=whole)
        widths.append(len(of_column))
        headings += of_column
        aligned += ["right"] * len(of_column)
    if whole:
        headings.append("dtype")
        aligned.append("left")
    lines = []
    for row in rows:
        name = _name(row)
        line = [f"*{name}* ({markdown(row.control)})" if row.control else name]
        if whole:
            line = [_tier(row, columns[0]), *line, _known(row.family), amount(row.parameters)]
        for column in columns:
            line += _shown(row, column, column.key in calibrated, layers=whole)
        lines.append([*line, _known(row.dtype)] if whole else line)
    for label, values in baselines(board).items():
        if not any(column.key in values for column in columns):
            continue
        line = ["", f"*{label}*", "", ""] if whole else [f"*{label}*"]
        for column, width in zip(columns, widths, strict=True):
            value = values.get(column.key)
            line += ["" if value is None else score(value), *([""] * (width - 1))]
        lines.append([*line, ""] if whole else line)
    return table(headings, lines, aligned)


def _tier(row: Row, column: BoardColumn) -> str:
    if row.control:
        return ""
    cell = row.cells.get(column.key)
    return MISSING if cell is None or cell.tier is None else str(cell.tier)


def _headings(column: BoardColumn, calibrated: bool, *, layers: bool) -> list[str]:
    label = markdown(column.label)
    if column.kind != "alignment":
        shots = "" if column.n_shot is None or column.kind != "task" else f", {column.n_shot}-shot"
        better = "" if column.higher_is_better else " (lower is better)"
        return [f"{label}{shots}{better}"]
    beside = [*[f"{label}, calibrated"] * calibrated, *["Layer"] * layers]
    return [f"Alignment with {label}" if layers else label, *beside]


def _shown(row: Row, column: BoardColumn, calibrated: bool, *, layers: bool) -> list[str]:
    """A model's cells under `_headings`."""
    cell = row.cells.get(column.key)
    parts = [score(cell.value, cell.stderr) if cell else MISSING]
    if column.kind == "alignment":
        if calibrated:
            parts.append(score(cell.calibrated) if cell else MISSING)
        if layers:
            both = (cell.layer, cell.reference_layer) if cell else ()
            parts.append("/".join("?" if n is None else str(n) for n in both) if cell else MISSING)
    return parts


def _calibrated(column: BoardColumn, rows: Sequence[Row]) -> bool:
    cells = (row.cells.get(column.key) for row in rows)
    return any(cell and cell.calibrated is not None for cell in cells)


def _name(row: Row) -> str:
    return markdown_link(row.name, row.link)


def _known(text: str | None) -> str:
    return MISSING if text is None else markdown(text)


def _legend(board: Board, main: Sequence[BoardColumn]) -> str:
    by = f" by alignment with {markdown(main[0].label)}" if main else ""
    items = [
        f"Sorted{by}, best first. Scores are as lm-eval prints them (an accuracy from 0 to 1), ± "
        f"one standard error; {MISSING} is not measured or not known.",
        "**Tier**: models of one tier cannot be told from its first by their errors (5 % level), "
        "which does not show that they are equal. The tiers of every column are in "
        "[leaderboard.csv](leaderboard.csv).",
    ]
    if main:
        items.append(
            "**Layer**: of the language model/of the reference; the pair of layers with the best "
            "alignment, which is the score. 0 is the embedding output."
        )
        rows = (*board.rows, *board.controls)
        given = any(_calibrated(column, rows) for column in board.of_kind("alignment"))
        items.append(
            "**Calibrated**: alignment corrected for chance."
            if given
            else "Calibrated alignment (corrected for chance) is not reported by these runs."
        )
    found = baselines(board)
    if "shared words" in found:
        items.append(
            "**Shared words**: what the words of the captions alone (TF-IDF) score against the "
            "reference."
        )
    if "chance" in found:
        items.append("**Chance**: what unrelated representations, or guesses, score.")
    return "\n".join(f"- {item}" for item in items)


def _cards(board: Board) -> Iterable[str]:
    """What else is known of the models."""
    rows = (*board.rows, *board.controls)
    facts = {
        "Kind": [_known(row.kind) for row in rows],
        "Released": [_known(row.release_date) for row in rows],
        "Training tokens": [amount(row.training_tokens) for row in rows],
        "Licence": [_known(row.licence) for row in rows],
        "lm-eval model": [_known(row.backend) for row in rows],
        "Revision": [_revision(row) for row in rows],
        "Adapter": [_known(row.adapter) for row in rows],
        "Notes": [_known(row.notes) for row in rows],
    }
    facts = {name: values for name, values in facts.items() if set(values) - {MISSING}}
    if facts:
        names = [_name(row) for row in rows]
        lines = [list(line) for line in zip(names, *facts.values(), strict=True)]
        right = [name == "Training tokens" for name in facts]
        aligned = ["left", *("right" if is_amount else "left" for is_amount in right)]
        yield from folded("More about the models", table(["Model", *facts], lines, aligned))


def _revision(row: Row) -> str:
    commit = f" ({markdown(row.commit[:7])})" if row.commit else ""
    return markdown(row.revision) + commit


def _columns(columns: Sequence[BoardColumn]) -> str:
    headings = ["Column", "lm-eval task", "Metric", "Few-shot", "Version", "Better", "Models"]
    lines = [
        [
            markdown(column.label),
            markdown(column.task),
            markdown(metric_key(column.metric, column.filter)),
            MISSING if column.n_shot is None else str(column.n_shot),
            markdown(column.version),
            "higher" if column.higher_is_better else "lower",
            f"{column.models:,}",
        ]
        for column in columns
    ]
    return table(headings, lines, [*["left"] * 3, "right", "right", "left", "right"])


def _measured_on(columns: Sequence[BoardColumn]) -> str:
    known = [(markdown(column.label), column.alignment) for column in columns if column.alignment]
    if not known:
        return ""
    headings = ["Alignment with", "Reference", "Data", "Fingerprint", "n", "k", "Protocol"]
    lines = [
        [
            label,
            markdown(facts.reference),
            markdown(facts.data),
            markdown(facts.captions[:12]),
            f"{facts.n:,}",
            str(facts.k),
            markdown(facts.protocol),
            markdown(facts.pooling),
        ]
        for label, facts in known
    ]
    aligned = [*["left"] * 4, "right", "right", "left", "left"]
    return f"What alignment was measured on:\n\n{table([*headings, 'Pooling'], lines, aligned)}"
