from __future__ import annotations

import math
from typing import Any

import pytest

from autodrag.eval.tables import Columns, Measure, cells, markdown, optional, quartiles, spread, summary


def test_summary() -> None:
    """The values 1 to 5 have variance 2.5, so the standard error of the mean is sqrt(0.5)."""
    values = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert values is not None
    assert (values["count"], values["mean"], values["quartiles"]) == (5, 3.0, [2.0, 3.0, 4.0])
    assert values["standard_error"] == pytest.approx(math.sqrt(0.5))
    one = summary([7.0])
    assert one is not None and one["standard_error"] == 0.0
    assert summary([]) is None


def test_quartiles() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert spread((1.0, 2.0, 3.0), 1) == "2.0 (1.0–3.0)"


def test_columns_of_a_measure() -> None:
    """MSE is printed multiplied by 100."""
    columns = Measure("MSE", 1, factor=100.0).columns("mse")
    assert list(columns) == ["MSE, mean ± SE", "MSE, median (quartiles)"]
    rows: list[dict[str, Any]] = [{"mse": summary([0.01, 0.03])}, {"mse": None}]
    assert cells(columns, rows) == [["2.0 ± 1.0", "2.0 (1.5–2.5)"], ["–", "–"]]
    assert list(Measure("MSE", 1, spread=False).columns("mse")) == ["MSE, mean ± SE"]


def test_markdown() -> None:
    columns: Columns = {"a": lambda row: str(row["a"]), "b": lambda row: optional(row["b"], ".1f")}
    text = markdown(list(columns), cells(columns, [{"a": 1, "b": 0.25}, {"a": 2, "b": None}]))
    assert text == "| a | b |\n|---|---|\n| 1 | 0.2 |\n| 2 | – |\n"
