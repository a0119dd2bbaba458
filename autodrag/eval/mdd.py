"""Mean distance decay (Auto DragGAN, section 4.3.4): MDD(t) = MD(t) / MD(0) over wall time, with one point by default.

The paper uses each method's own tracker. This evaluation measures distances afterwards, outside the measured time, with
the landmark model of the run, or with generator features if there is no model (see `ruler`). The time of a code is the
time at which the method had computed it; the time of the last code includes its image. The drags are those of
`autodrag eval landmarks`. Without a landmark model, they are pixels of the optical flow to a perturbed image that move
by at least 5 % of the image height. The table shows medians over drags.
"""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from autodrag.eval.log import Record
from autodrag.eval.metrics import decay, mean_distance
from autodrag.eval.plots import plot_decay, write_sheet
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import MISSING, Columns, Measure, optional, quartiles
from autodrag.eval.tasks import Pair
from autodrag.nets.layers import Layers

TIMES = tuple(float(f"{10 ** (step / 8):.6g}") for step in range(-24, 17))
"""Times of the curves in seconds: 1 ms to 100 s, eight per decade."""
SHOWN = (0.01, 0.1, 1.0, 10.0)
"""Times of the table in seconds; a subset of TIMES."""


class DecayExperiment(Experiment):
    """Measure how fast the distance to the target decreases."""

    name = "mdd"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.measures = {"end": Measure("MDD at the end", 2), "seconds": Measure("seconds", 3)}

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        bench, drag = self.bench, pair.drag(points, self.bench.device)
        moments: list[tuple[float, Layers]] = []
        edited = bench.run(
            method,
            pair.latent.to(bench.device),
            drag,
            lambda seconds, latent: moments.append((seconds, Layers.of(latent))),
        )
        moments.append((edited.seconds, edited.code))
        ruler = make_ruler(bench, self.source.detector, pair, points)
        curve = [(seconds, ruler(code)) for seconds, code in thin(moments)]
        known = [(seconds, distance) for seconds, distance in curve if distance is not None]
        initial = mean_distance(drag.handles, drag.targets)
        record: Record = {"initial": initial, "times": [s for s, _ in known], "distances": [d for _, d in known]}
        record["end"] = known[-1][1] / initial if known and initial > 0 else None
        return record | edited.record(), edited.picture

    def extras(self, drags: list[Record], unedited: list[Record]) -> Record:
        bands = [list(quartiles(column)) for column in zip(*curves(drags), strict=True)]
        half = next((time for time, (_, median, _) in zip(TIMES, bands, strict=False) if median <= 0.5), None)
        return {"mdd": bands, "half_s": half}

    @property
    def extra_columns(self) -> Columns:
        columns: Columns = {f"MDD at {time:g} s, median": partial(_median_at, TIMES.index(time)) for time in SHOWN}
        return columns | {"half after, s": lambda row: optional(row["half_s"], ".3g")}

    def draw(self, out: Path, pairs: Sequence[Pair], records: Sequence[Record], points: int) -> None:
        names = dict.fromkeys(r["method"] for r in records)
        by_method = {name: curves([r for r in records if r["method"] == name]) for name in names}
        plot_decay(by_method, TIMES, out / f"decay-{points}.png", f"points: {points}, drags: {len(pairs)}")
        write_sheet(self.bench, out, pairs, records, points)


def _median_at(index: int, row: Record) -> str:
    return f"{row['mdd'][index][1]:.2f}" if row["mdd"] else MISSING


def thin(moments: Sequence[tuple[float, Layers]]) -> list[tuple[float, Layers]]:
    """Select the moments that a curve at TIMES shows, and the last. Measuring all would take longer than the drag."""
    seconds = [moment[0] for moment in moments]
    shown = {bisect_right(seconds, time) - 1 for time in TIMES} | {len(moments) - 1}
    return [moments[index] for index in sorted(shown - {-1})]


def curves(records: Sequence[Record]) -> list[list[float]]:
    """MDD at TIMES of all drags with a positive length."""
    return [decay(r["times"], r["distances"], r["initial"], TIMES) for r in records if r["initial"] > 0]


main = partial(evaluate, DecayExperiment)
"""`autodrag eval mdd`."""
