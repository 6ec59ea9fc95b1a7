"""A table of numbers, one row an item, as features of one layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prh_eval.errors import PrhEvalError
from prh_eval.schema import ValueTable
from prh_eval.tables import read_table


def table_values(spec: ValueTable, n: int) -> list[Tensor]:
    """Read columns of numbers from a CSV, JSONL or Parquet file.

    Args:
        spec: The file and its columns.
        n: Number of items of the paired data.

    Returns:
        One layer: float64, shape (n, columns), the columns in the order of ``spec.columns``.

    Raises:
        PrhEvalError: If the file is missing or cannot be read, a column is unknown, a value is
            missing or no finite number, or there are more or fewer than n rows.
    """
    path = Path(spec.path).expanduser()
    name = f"the table {spec.path!r}"
    columns = read_table(path, dict.fromkeys(spec.columns, "values.columns"), name).columns
    from_text = path.suffix.lower() == ".csv"
    values = torch.empty(n, len(spec.columns), dtype=torch.float64)
    for place, title in enumerate(spec.columns):
        column = columns[title]
        if len(column) != n:
            raise PrhEvalError(
                f"{name} has {len(column)} rows where the paired data has {n} "
                "items; it should have one row an item, in the same order"
            )
        numbers = [_number(value, from_text) for value in column]
        for row, number in enumerate(numbers):
            if number is None:
                shown = "missing" if column[row] in (None, "") else repr(column[row])
                raise PrhEvalError(
                    f"{name}: column {title!r} of row {row} (the first is 0) is "
                    f"{shown}; it should be a finite number"
                )
        values[:, place] = torch.tensor(numbers, dtype=torch.float64)
    return [values]


def _number(value: Any, from_text: bool) -> float | None:
    """The value as a finite number; None if it is none."""
    # Only where everything is text is text a number; True is none.
    if isinstance(value, str) != from_text or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
