"""Figures of a run: distance over time, decay of the distance, and a contact sheet of edits.

matplotlib is imported on use. Without it, a run writes its tables and reports the missing plots.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from autodrag.eval.bench import Bench
from autodrag.eval.log import Record
from autodrag.eval.tables import quartiles
from autodrag.eval.tasks import Pair
from autodrag.files import replacing
from autodrag.images import read_image, to_uint8, write_png
from autodrag.infer.draw import annotate, contact_sheet, enlarge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHEET_PAIRS = 32
"""Number of pairs on a contact sheet."""
CELL_PX = 192
HEADER_PX = 24
GAP_PX = 2


def plot_distances(records: Sequence[Record], path: Path, title: str) -> None:
    """Plot remaining distance over time (log axis): a dot per drag, and medians with quartiles per method."""
    opened = _open(path)
    if opened is None:
        return
    figure, axis = opened
    for index, name in enumerate(dict.fromkeys(r["method"] for r in records)):
        color = f"C{index}"
        drags = [r for r in records if r["method"] == name and r["distance"] is not None]
        if not drags:
            continue
        x, y = [r["seconds"] for r in drags], [r["distance"] for r in drags]
        (left, time, right), (low, distance, high) = quartiles(x), quartiles(y)
        axis.scatter(x, y, s=6, alpha=0.25, linewidths=0, color=color)
        across, along = [[time - left], [right - time]], [[distance - low], [high - distance]]
        axis.errorbar([time], [distance], along, across, fmt="o", capsize=3, color=color, label=name)
    axis.set(xscale="log", xlabel="seconds", ylabel="distance left, px", title=title)
    axis.set_ylim(bottom=0)
    axis.legend()
    _save(figure, path)


def plot_decay(curves: dict[str, list[list[float]]], times: Sequence[float], path: Path, title: str) -> None:
    """Plot MDD over time (log axis): the median curve of each method, and the band between its quartiles."""
    opened = _open(path)
    if opened is None:
        return
    figure, axis = opened
    for name, values in curves.items():
        low, middle, high = zip(*(quartiles(column) for column in zip(*values, strict=True)), strict=True)
        (line,) = axis.plot(times, middle, label=name)
        axis.fill_between(times, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axis.set(xscale="log", xlabel="seconds", ylabel="fraction of the distance left", title=title)
    axis.set_ylim(bottom=0)
    axis.legend()
    _save(figure, path)


def picture_path(out: Path, record: Record) -> Path:
    """File of a drag's image, for the contact sheet."""
    return out / "images" / f"{record['method']}-{record['points']}-{record['pair']:02d}.png"


def write_sheet(bench: Bench, out: Path, pairs: Sequence[Pair], records: Sequence[Record], points: int) -> None:
    """Write a contact sheet of the first pairs: the image before with its drags, followed by the result of each method.

    `records` belong to one number of points. Results show detected points in red and targets in blue. Results without
    detected points have no marks.
    """
    names = list(dict.fromkeys(r["method"] for r in records if r["method"] != "none"))
    by_task = {(r["method"], r["pair"]): r for r in records}
    cells: list[np.ndarray] = []
    for k in range(min(len(pairs), SHEET_PAIRS)):
        drag = pairs[k].drag(points, torch.device("cpu"))
        before = to_uint8(bench.image(pairs[k].latent.to(bench.device)))[0]
        cells.append(annotate(before, handles=drag.handles, targets=drag.targets, least=CELL_PX))
        for name in names:
            record = by_task[name, k]
            found = record.get("found")
            after = read_image(picture_path(out, record))
            if found is None:
                cells.append(enlarge(after, CELL_PX))
            else:
                cells.append(annotate(after, handles=found, targets=drag.targets, least=CELL_PX))
    width = len(names) + 1
    repeats = max(1, 12 // width)
    sheet = contact_sheet(cells, columns=width * repeats, gap=GAP_PX)
    shown = min(width * repeats, len(cells))
    labels = _labels((["before", *names] * repeats)[:shown], cells[0].shape[1], sheet.shape[1])
    write_png(out / f"sheet-{points}.png", np.concatenate([labels, sheet]))


def _labels(names: Sequence[str], cell: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A white strip with a name above each column."""
    strip = np.full((HEADER_PX, width, 3), 255, dtype=np.uint8)
    for index, name in enumerate(names):
        place = (index * (cell + GAP_PX) + 4, HEADER_PX - 7)
        cv2.putText(strip, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _open(path: Path) -> tuple[Figure, Axes] | None:
    """Create a figure without changing the global state of matplotlib; None if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"{path.name} is skipped: it needs matplotlib (pip install 'autodrag[eval]')", file=sys.stderr)
        return None
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its advice about the cache of fonts, if the home folder is missing or read-only
    try:
        from matplotlib.figure import Figure
    finally:
        logger.setLevel(level)

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
