"""Summaries of records, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autodrag.eval.log import Record

Columns = dict[str, Callable[[Record], str]]
"""Maps column titles to functions that format a cell from a row."""

MISSING = "–"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(25 %, median, 75 %) of values."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(shares).tolist()
    return low, middle, high


def summary(values: Sequence[float]) -> Record | None:
    """Count, mean, standard error of the mean (0 for one value) and quartiles; None without values."""
    if not values:
        return None
    count, mean = len(values), math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, count - 1)
    error = math.sqrt(variance / count)
    return {"count": count, "mean": mean, "standard_error": error, "quartiles": list(quartiles(values))}


@dataclass(frozen=True)
class Measure:
    """A record field that a table summarises."""

    title: str
    digits: int
    """Number of decimals."""
    factor: float = 1.0
    """Factor of the printed values; published tables multiply some metrics by 10 or 100."""
    spread: bool = True
    """Whether the table has a column with median and quartiles."""

    def columns(self, field: str) -> Columns:
        """Columns with mean and standard error, and with median and quartiles, of the `summary` in `row[field]`."""
        columns: Columns = {f"{self.title}, mean ± SE": lambda row: self._mean(row[field])}
        if self.spread:
            columns[f"{self.title}, median (quartiles)"] = lambda row: self._quartiles(row[field])
        return columns

    def _mean(self, values: Record | None) -> str:
        if values is None:
            return MISSING
        return f"{self._text(values['mean'])} ± {self._text(values['standard_error'])}"

    def _quartiles(self, values: Record | None) -> str:
        return (
            MISSING if values is None else spread([self.factor * value for value in values["quartiles"]], self.digits)
        )

    def _text(self, value: float) -> str:
        return f"{self.factor * value:.{self.digits}f}"


def cells(columns: Columns, rows: Sequence[Record]) -> list[list[str]]:
    """The cells of a table, row by row."""
    return [[cell(row) for cell in columns.values()] for row in rows]


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    rows = [" | ".join(line) for line in (titles, *lines)]
    rule = "|" + "---|" * len(titles)
    return "\n".join([f"| {rows[0]} |", rule, *(f"| {row} |" for row in rows[1:])]) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """Format (25 %, median, 75 %) as `median (low–high)`."""
    low, middle, high = values
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def optional(value: float | None, form: str) -> str:
    """Format a number with a format such as `.2f`; a dash for None."""
    return MISSING if value is None else format(value, form)
