"""Mean distance decay (Auto DragGAN, section 4.3.4): MDD(t) = MD(t) / MD(0) against wall time, one point by default.

The paper measures with each method's own tracker. Ours measures afterwards, off the clock, with the landmark model of
the run, or in generator features where there is none (see `ruler`); time is when a method had the code, and for the
last one when its image was there. DragBatch are those of `autodrag eval landmarks`, or without a landmark model pixels of
the flow to a perturbed image that moves them by at least 5 % of the image. Table: the median over drags.
"""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor

from autodrag.eval.detectors import Detector
from autodrag.eval.metrics import decay, mean_distance, quartiles
from autodrag.eval.plots import keep_picture, plot_decay, write_sheet
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Bench, Record, add_options, drag, finish, markdown, open_bench, run_drags, spread
from autodrag.eval.tasks import Pair, add_source_options, read_source

TIMES = tuple(float(f"{10 ** (step / 8):.6g}") for step in range(-24, 17))
"""Seconds at which curves are drawn: 1 ms to 100 s, eight for each power of ten."""
SHOWN = (0.01, 0.1, 1.0, 10.0)
"""Seconds at which the table shows the decay; each is one of TIMES."""


def evaluate(bench: Bench, detector: Detector | None, pairs: Sequence[Pair], points: tuple[int, ...]) -> list[Record]:
    """Runs what is missing of the curves; returns its records, with `times` and `distances` (px)."""

    def work(task: Record) -> Record:
        pair = pairs[task["pair"]]
        _, handles, targets = pair.drags(task["points"])
        moments: list[tuple[float, Tensor]] = []

        def keep(seconds: float, latent: Tensor) -> None:
            moments.append((seconds, latent))

        edited = drag(bench, task["method"], pair.latent, handles, targets, trace=keep)
        keep_picture(bench, task, edited)
        moments.append((edited.seconds, edited.latent))
        measure = make_ruler(bench, detector, pair, task["points"])
        curve = [(seconds, measure(latent)) for seconds, latent in thin(moments)]
        curve = [(seconds, distance) for seconds, distance in curve if distance is not None]
        measured = {"times": [s for s, _ in curve], "distances": [d for _, d in curve]}
        return {"seed": pair.seed, "initial": mean_distance(handles, targets)} | measured | edited.record()

    return run_drags(bench, points, len(pairs), work)


def thin(moments: Sequence[tuple[float, Tensor]]) -> list[tuple[float, Tensor]]:
    """The moments that a curve at TIMES shows, and the last: measuring all would take longer than the drag."""
    seconds = [moment[0] for moment in moments]
    shown = {bisect_right(seconds, time) - 1 for time in TIMES} | {len(moments) - 1}
    return [moments[index] for index in sorted(shown - {-1})]


def curves_of(records: Sequence[Record]) -> dict[str, list[list[float]]]:
    """Each method's curves at TIMES; drags of no length have none."""
    curves: dict[str, list[list[float]]] = {}
    for r in records:
        if r["initial"] > 0:
            curves.setdefault(r["method"], []).append(decay(r["times"], r["distances"], r["initial"], TIMES))
    return curves


def summarise(records: Sequence[Record]) -> list[Record]:
    """One row per number of points and method: quartiles of MDD at TIMES, at the end, and of the time to half."""
    rows = []
    for n in dict.fromkeys(r["points"] for r in records):
        of = [r for r in records if r["points"] == n]
        for name, curves in curves_of(of).items():
            bands = [list(quartiles(column)) for column in zip(*curves, strict=True)]
            half = next((time for time, (_, median, _) in zip(TIMES, bands, strict=True) if median <= 0.5), None)
            drags = [r for r in of if r["method"] == name and r["initial"] > 0]
            ends = [r["distances"][-1] / r["initial"] for r in drags if r["distances"]]
            row: Record = {"points": n, "method": name, "drags": len(drags), "mdd": bands, "half_s": half}
            row["end"] = list(quartiles(ends)) if ends else None
            row["seconds"] = list(quartiles([r["seconds"] for r in drags]))
            rows.append(row)
    return rows


def table(rows: Sequence[Record]) -> str:
    """The rows as a Markdown table: medians, at the end with quartiles."""
    columns = ["points", "method", *(f"MDD at {time:g} s" for time in SHOWN), "at the end (quartiles)", "half after, s"]
    lines = []
    for row in rows:
        line = [str(row["points"]), row["method"], *(f"{row['mdd'][TIMES.index(time)][1]:.2f}" for time in SHOWN)]
        line.append("–" if row["end"] is None else spread(row["end"], 2))
        line.append("–" if row["half_s"] is None else f"{row['half_s']:.3g}")
        lines.append([*line, spread(row["seconds"], 3)])
    return markdown([*columns, "seconds, median (quartiles)"], lines)


def main(argv: list[str]) -> int:
    """`autodrag eval mdd`."""
    parser = argparse.ArgumentParser(prog="autodrag eval mdd", description="How fast the distance to the target falls.")
    add_options(parser, steps=300, psi=0.7)
    add_source_options(parser)
    args = parser.parse_args(argv)

    bench = open_bench(args, ["eval", "mdd", *argv])
    source = read_source(args, bench)
    bench.claim("mdd", **source.setup)
    pairs = source.sample()
    records = evaluate(bench, source.detector, pairs, source.points)
    for n in source.points:
        of = [r for r in records if r["points"] == n]
        plot_decay(curves_of(of), TIMES, bench.out / f"decay-{n}.png", f"points: {n}, drags: {len(pairs)}")
        write_sheet(bench, pairs, of, bench.out / f"sheet-{n}.png")
    rows = summarise(records)
    finish(bench.out, rows, table(rows))
    return 0
