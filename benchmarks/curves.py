"""The curves of a training run, from its TensorBoard logs.

    python benchmarks/curves.py runs/critters/generator --picture out/generator.png
    python benchmarks/curves.py runs/critters/predictor --results benchmarks/results/training.json \\
        --trained-by "autodrag train predictor --config configs/critters/predictor.yaml"

The table has the measurements on held-out drags. Make it on the machine that trained, at the commit that trained,
because it records both. Minutes count from the first logged value, with all pauses of a run that was resumed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autodrag.errors import AutodragError
from autodrag.eval import results
from autodrag.eval.log import Record
from autodrag.eval.tables import MISSING, Columns
from autodrag.files import replacing

HELD_OUT = "held-out/"


def read_logs(folder: Path) -> EventAccumulator:
    """All scalars of a run."""
    logs = folder / "logs"
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    if logs.is_dir():
        events.Reload()
    if not events.Tags()["scalars"]:
        raise AutodragError(f"{str(folder)!r} has no logs of a training; name the run.folder of one")
    return events


def held_out_rows(events: EventAccumulator) -> list[Record]:
    """One row for each measurement on held-out drags: step, minutes, and the share of the distance left."""
    names = [name for name in events.Tags()["scalars"] if name.startswith(HELD_OUT)]
    first = min(events.Scalars(name)[0].wall_time for name in events.Tags()["scalars"])
    rows: dict[int, Record] = {}
    for name in names:
        for point in events.Scalars(name):
            row = rows.setdefault(point.step, {"step": point.step, "minutes": (point.wall_time - first) / 60})
            row[name.removeprefix(HELD_OUT)] = point.value
    return [rows[step] for step in sorted(rows)]


def held_out_columns(rows: list[Record]) -> Columns:
    """Columns of those rows."""
    columns: Columns = {"step": lambda row: str(row["step"]), "minutes": lambda row: f"{row['minutes']:.1f}"}
    names = dict.fromkeys(name for row in rows for name in row if name not in columns)

    def column(name: str) -> Columns:
        return {name: lambda row: f"{row[name]:.1%}" if name in row else MISSING}

    for name in names:
        columns |= column(name)
    return columns


def draw(events: EventAccumulator, path: Path) -> None:
    """One panel per scalar, as logged and as a running mean."""
    import numpy as np
    from matplotlib.figure import Figure

    names = [name for name in sorted(events.Tags()["scalars"]) if name != "epoch"]
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = events.Scalars(name)
        values = np.array([point.value for point in points])
        steps = np.array([point.step for point in points])
        width = max(1, len(values) // 30)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(steps, values, alpha=0.3)
        axis.plot(steps[width - 1 :], smooth)
        axis.set(title=name, xlabel="optimiser steps")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80)


def main() -> None:
    """Prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw all scalars")
    parser.add_argument("--trained-by", metavar="COMMAND", help="the command of the training, for --results")
    results.add_option(parser)
    args = parser.parse_args()
    if (args.results is None) != (args.trained_by is None):
        raise AutodragError("--results and --trained-by belong together; give both or neither")
    events = read_logs(args.folder)
    if args.picture is not None:
        draw(events, args.picture)
    rows = held_out_rows(events)
    if not rows:
        if args.results is not None:
            raise AutodragError(f"{str(args.folder)!r} has no measurements on held-out drags; leave --results out")
        return
    words = ["python", "benchmarks/curves.py", str(args.folder)]
    table = results.make_table("training", words, held_out_columns(rows), rows)
    if args.trained_by is not None:
        table = replace(table, command=f"{args.trained_by}\n{table.command}")
    results.report(table, args.results)


if __name__ == "__main__":
    try:
        main()
    except AutodragError as error:
        sys.exit(f"error: {error}")
