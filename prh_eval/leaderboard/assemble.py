"""From scores and a config to a board."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.leaderboard.associations import associations, trends
from prh_eval.leaderboard.board import AlignmentFacts, Board, BoardColumn, LeftOut, known, number
from prh_eval.leaderboard.columns import (
    LOSSES,
    AnyColumn,
    Chosen,
    metrics_of,
    one_of_each,
)
from prh_eval.leaderboard.config import USUAL, BoardConfig, TaskColumn
from prh_eval.leaderboard.naming import row_names
from prh_eval.leaderboard.results import Results
from prh_eval.leaderboard.rows import (
    BITS_PER_BYTE,
    SHARED_WORDS,
    Beside,
    row_of,
    with_tiers,
)
from prh_eval.leaderboard.scores import MNN, Identity, Score, metric_key
from prh_eval.leaderboard.selection import select


def default_config(results: Results, tasks: Sequence[TaskColumn] = ()) -> BoardConfig:
    """Columns for a board without a config.

    They are every alignment task that was found, ``prh_align`` first, and of tasks those that were
    asked for; HellaSwag and GSM8K where none was. No hypothesis is primary, for none was declared.

    Args:
        results: What was found.
        tasks: What was asked for.

    Raises:
        PrhEvalError: If there is no alignment score.
    """
    found = {(s.task, s.filter) for s in results.scores if s.metric == MNN and s.record}
    if not found:
        others = _other_alignment(results)
        if others:
            raise PrhEvalError(
                f"none of the {results.files} result files has an mNN score: {others}"
            )
        raise PrhEvalError(
            f"none of the {results.files} result files has an alignment score; run lm_eval with "
            "--tasks prh_align, or another task of prh_eval, on the same models"
        )
    several = len({task for task, _ in found}) < len(found)
    references = [
        {"task": task, "metric": metric_key(MNN, filter_)}
        | ({"name": f"{task}:{filter_}"} if several and filter_ != "none" else {})
        for task, filter_ in sorted(found, key=lambda pair: (pair[0] != "prh_align", pair))
    ]
    chosen = [task.model_dump() for task in tasks] or list(USUAL.values())
    return BoardConfig.model_validate({"references": references, "tasks": chosen})


def _other_alignment(results: Results) -> str | None:
    """What to do about alignment scores of metrics that `default_config` does not take, if any."""
    found = {
        (score.task, score.metric_key)
        for score in results.scores
        if score.record and score.metric == score.record.metric_name != MNN
    }
    if not found:
        return None
    named = ", ".join(f"{task} ({metric})" for task, metric in sorted(found))
    metrics = " or ".join(f"metric: {metric}" for metric in sorted({metric for _, metric in found}))
    return (
        f"without a board.yaml only alignment by mnn is shown, and not that by another metric, of "
        f"{named}; references of a board.yaml can name {metrics}"
    )


def assemble(
    results: Results, config: BoardConfig | None = None, tasks: Sequence[TaskColumn] = ()
) -> Board:
    """Make a board.

    Args:
        results: What was found.
        config: Decides columns and models; None for `default_config`.
        tasks: For `default_config`.

    Raises:
        PrhEvalError: If no score is of a column of the board.
    """
    settings = config or default_config(results, tasks)
    primary = settings.primary
    first = primary.reference if primary else settings.references[0].key
    declared: list[AnyColumn] = [
        *sorted(settings.references, key=lambda column: column.key != first),
        *settings.tasks,
    ]
    selection = select(results.scores, declared, settings)
    if config:
        _check_metrics(declared, selection.every)
    cards, runs, chosen = selection.cards, selection.runs, selection.chosen
    left_out = [LeftOut(what=s.path, reason=s.reason, files=(s.path,)) for s in results.skipped]
    remarks = set()
    others = None if config else _other_alignment(results)
    if others:
        remarks.add(_sentence(f"{others[0].upper()}{others[1:]}"))
    for conflict in selection.conflicts:
        if conflict.kind == "limit":
            left_out.append(_left(conflict.model, conflict.sentence, conflict.files))
        else:
            remarks.add(_sentence(conflict.sentence))
    for identity, why in selection.outside.items():
        name = runs[identity].name
        files = sorted({s.file for s in selection.kept if s.model.identity == identity})
        left_out.append(_left(name, f"{name} is not taken: {why}", tuple(files)))
    for column in declared:
        for score, reason in chosen[column.key].refused:
            text = f"{score.model.name} on {column.heading} is not taken: {reason}"
            left_out.append(_left(score.model.name, text, (score.file,)))
    found: dict[Identity, dict[str, Score]] = {}
    for column in declared:
        for identity, score in one_of_each(column, chosen[column.key]).items():
            found.setdefault(identity, {})[column.key] = score
    if not found:
        raise PrhEvalError(
            f"none of the {results.files} result files has a score that the board takes "
            f"({', '.join(f'{column.task} {column.metric}' for column in declared)}); "
            "prh-eval leaderboard validate says why"
        )

    beside = Beside(selection.on_board)
    bits = _bits_per_byte(declared[0], found, beside)
    names = row_names({identity: (runs[identity], cards.of(runs[identity])) for identity in found})
    rows = [
        row_of(names[identity], runs[identity], cards.of(runs[identity]), scores, beside)
        for identity, scores in found.items()
    ]
    rows.sort(key=lambda row: (-row.cells[first].value if first in row.cells else 1, row.name))
    models = [row for row in rows if row.control is None]

    def models_with(key: str) -> int:
        return sum(key in row.cells for row in models)

    columns = [
        _column(column, chosen[column.key], models_with(column.key), beside) for column in declared
    ]
    columns = _labelled(columns, declared)
    if bits:
        columns.append(_bits_column(columns[0], bits, models_with(bits)))
    models = list(with_tiers(models, columns))
    empty = [f"No model has a score of {each.label}." for each in columns if not each.models]
    return Board(
        title=settings.title,
        about=settings.about,
        columns=tuple(columns),
        rows=tuple(models),
        controls=tuple(row for row in rows if row.control is not None),
        associations=associations(
            columns, models, (primary.reference, primary.task) if primary else None
        ),
        trends=trends(columns, models),
        left_out=tuple(sorted(left_out, key=lambda left: (left.what, left.reason))),
        remarks=(*sorted(remarks), *empty, *cards.unused(runs.values())),
        files=results.files,
        config=config is not None,
    )


def _check_metrics(columns: Sequence[AnyColumn], scores: Iterable[Score]) -> None:
    """Refuse a metric that no result of its task has."""
    found: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for score in scores:
        found[score.task].add((score.metric, score.filter))
    for column in columns:
        there = found[column.task]
        if there and not there & set(metrics_of(column)):
            keys = [metric_key(metric, filter_) for metric, filter_ in there]
            raise PrhEvalError(
                f"the column {column.key} is of the metric {column.metric!r}, which no result of "
                f"{column.task} has; {suggestion(column.metric, keys)}"
            )


# ---------------------------------------------------------------- columns


def _column(column: AnyColumn, chosen: Chosen, models: int, beside: Beside) -> BoardColumn:
    metric, filter_ = metrics_of(column)[0]
    task = column if isinstance(column, TaskColumn) else None
    first = chosen.scores[0] if chosen.scores else None
    facts = None if task else _alignment_facts(chosen.scores, beside)
    return BoardColumn(
        key=column.key,
        label=column.heading,
        kind="task" if task else "alignment",
        task=column.task,
        metric=metric,
        filter=filter_,
        n_shot=first.n_shot if first and task else None,
        version=(first.version if first else column.version) or "",
        higher_is_better=_higher_is_better(column, chosen.scores),
        chance=task.chance if task else (facts.chance if facts else None),
        models=models,
        alignment=facts,
    )


def _higher_is_better(column: AnyColumn, scores: Sequence[Score]) -> bool:
    """What the config says, else the result files; else that it is, unless it is named a loss."""
    stated = column.higher_is_better if isinstance(column, TaskColumn) else None
    found = {score.higher_is_better for score in scores} - {None}
    if stated is None:
        is_loss = metrics_of(column)[0][0] in LOSSES
        return next(iter(found)) is True if len(found) == 1 else not is_loss
    if found == {not stated}:
        raise PrhEvalError(
            f"the column {column.key} has higher_is_better: {str(stated).lower()}, and the result "
            f"files of {column.task} say the contrary of {column.metric}"
        )
    return stated


def _labelled(columns: Sequence[BoardColumn], declared: Sequence[AnyColumn]) -> list[BoardColumn]:
    """The columns, with the reference's name over an alignment column that has no other."""
    references = Counter(column.alignment.reference for column in columns if column.alignment)
    taken = {column.label for column in columns}
    return [
        column.model_copy(update={"label": column.alignment.reference})
        if column.alignment
        and (each.name, each.label) == (None, None)
        and references[column.alignment.reference] == 1
        and column.alignment.reference not in taken
        else column
        for column, each in zip(columns, declared, strict=True)
    ]


def _alignment_facts(scores: Sequence[Score], beside: Beside) -> AlignmentFacts | None:
    record = scores[0].record if scores else None
    if record is None:
        return None
    # Of one layer pair: what is derived from its score, as a p-value, has another chance.
    own = scores[0].metric in (record.metric_name, f"{record.metric_name}_last_layer")
    # Of captions and reference alone, so that every file that has it has the same.
    shared = [found.value for score in scores if (found := beside(score, SHARED_WORDS))]
    return AlignmentFacts(
        reference=record.reference,
        data=record.data,
        captions=record.captions,
        n=record.n,
        k=record.k,
        protocol=record.protocol,
        pooling=record.pooling,
        chance=known(record.chance) if own else None,
        shared_words=number(max(shared)) if shared else None,
    )


def _bits_per_byte(
    column: AnyColumn, found: Mapping[Identity, dict[str, Score]], beside: Beside
) -> str | None:
    """Put bits per byte of the first reference's captions among the scores, where measured.

    Returns:
        The key of their column; None where no model has them.
    """
    key = f"{column.key}:{BITS_PER_BYTE}"
    measured = False
    for scores in found.values():
        bits = beside(scores[column.key], BITS_PER_BYTE) if column.key in scores else None
        if bits:
            scores[key] = bits
            measured = True
    return key if measured else None


def _bits_column(reference: BoardColumn, key: str, models: int) -> BoardColumn:
    return reference.model_copy(
        update={
            "key": key,
            "label": "bits per byte",
            "kind": "bits per byte",
            "metric": BITS_PER_BYTE,
            "higher_is_better": False,
            "chance": None,
            "models": models,
            "alignment": None,
        }
    )


def _left(what: str, reason: str, files: tuple[str, ...]) -> LeftOut:
    return LeftOut(what=what, reason=_sentence(reason), files=files)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
