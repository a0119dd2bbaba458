"""Running an experiment: read the options, measure the missing drags, write the rows, the table and the plots.

An `Experiment` defines the source of its drags, the measurements of a drag, and the columns of its table; `evaluate`
runs it. Drags are independent tasks that `autodrag.parallel` distributes to processes. The main process writes each
record when it arrives.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import UInt8

from autodrag import parallel
from autodrag.arguments import ArgumentParser
from autodrag.eval import bench as bench_module
from autodrag.eval import log, results
from autodrag.eval.bench import Bench, open_bench
from autodrag.eval.log import Record
from autodrag.eval.methods import METHODS
from autodrag.eval.plots import SHEET_PAIRS, picture_path, write_sheet
from autodrag.eval.results import Table
from autodrag.eval.tables import Columns, Measure, summary
from autodrag.eval.tasks import Pair, Source, add_source_options, read_source
from autodrag.files import write_json, write_text
from autodrag.images import write_png
from autodrag.progress import track

Picture = UInt8[np.ndarray, "H W 3"]
Measured = tuple[Record, "np.ndarray | None"]
"""The record of a drag, and its image or None."""
Task = tuple[Record, Pair]
"""A dict with method, number of points and index of the pair, and the pair itself."""


class Experiment(ABC):
    """An experiment of `autodrag eval`. The class docstring is the description shown by `--help`."""

    name: ClassVar[str]
    steps: ClassVar[int] = 300
    """Default step limit."""
    psi: ClassVar[float] = 0.7
    pairs: ClassVar[int] = 200
    points: ClassVar[str] = "1"
    """Default numbers of points."""

    bench: Bench
    source: Source
    measures: dict[str, Measure]
    """Record fields that the table summarises, in the order of the columns."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Read the options and load everything. Raises AutodragError if something is missing.

        Subclasses set `measures`.
        """
        self.bench = open_bench(args)
        self.source = self.read_source(args)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of this experiment."""
        add_source_options(parser)

    def read_source(self, args: argparse.Namespace) -> Source:
        """The source of the drags: landmarks if there is a model, otherwise optical flow."""
        return read_source(args, self.bench)

    @property
    def setup(self) -> Record:
        """Further settings that a resumed run must share."""
        return {}

    @abstractmethod
    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        """Run a drag and measure its result."""

    def extras(self, drags: list[Record], unedited: list[Record]) -> Record:
        """Further fields of a row; `unedited` are the records of the method `none` for the same number of points."""
        return {}

    @property
    def extra_columns(self) -> Columns:
        """Columns of the fields of `extras`."""
        return {}

    def conclude(self, records: Sequence[Record]) -> None:  # noqa: B027  most experiments have none
        """Further output of a complete run, before its table; nothing by default."""

    def draw(self, out: Path, pairs: Sequence[Pair], records: Sequence[Record], points: int) -> None:
        """Draw the records of one number of points; by default a contact sheet."""
        write_sheet(self.bench, out, pairs, records, points)

    @property
    def columns(self) -> Columns:
        """All columns of the table."""
        columns: Columns = {"points": lambda row: str(row["points"]), "method": lambda row: str(row["method"])}
        for field, measure in self.measures.items():
            columns |= measure.columns(field)
        return columns | self.extra_columns

    def rows(self, records: Sequence[Record]) -> list[Record]:
        """One row per number of points and method."""
        groups: dict[tuple[int, str], list[Record]] = {}
        for record in records:
            groups.setdefault((record["points"], record["method"]), []).append(record)
        rows = []
        for (points, method), drags in groups.items():
            row: Record = {"points": points, "method": method, "drags": len(drags)}
            for field in self.measures:
                row[field] = summary([r[field] for r in drags if r.get(field) is not None])
            rows.append(row | self.extras(drags, groups.get((points, "none"), [])))
        return rows


def parse(kind: type[Experiment], argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of an experiment."""
    description = " ".join((kind.__doc__ or "").split())
    parser = ArgumentParser(prog=f"autodrag eval {kind.name}", description=description)
    out = f"out/eval-{kind.name}"
    bench_module.add_options(parser, steps=kind.steps, psi=kind.psi, pairs=kind.pairs, out=out)
    parser.add_argument(
        "--points", default=kind.points, help=f"numbers of points, such as 1,5,all (default: {kind.points})"
    )
    kind.add_options(parser)
    return parser.parse_args(argv)


def evaluate(kind: type[Experiment], argv: list[str]) -> int:
    """`autodrag eval NAME`."""
    torch.set_num_threads(1)  # as in the worker processes
    args = parse(kind, argv)
    experiment = kind(args)
    bench = experiment.bench
    setup = {
        "experiment": kind.name,
        "fingerprint": bench.fingerprint,
        "seed": bench.seed,
        "psi": bench.psi,
        "label": bench.label,
        "steps": bench.limits.steps,
        "stop": bench.limits.stop,
    }
    log.claim(args.out, setup | experiment.source.setup | experiment.setup, bench.identities, bench.methods)
    pairs = experiment.source.pairs(bench)
    measure_missing(experiment, pairs, args)
    records = complete_records(args.out, len(pairs))
    experiment.conclude(records)
    rows = experiment.rows(records)
    finish(args, results.make_table(kind.name, ["autodrag", "eval", kind.name, *argv], experiment.columns, rows))
    for points in experiment.source.points:
        experiment.draw(args.out, pairs, [r for r in records if r["points"] == points], points)
    return 0


def measure_missing(experiment: Experiment, pairs: Sequence[Pair], args: argparse.Namespace) -> None:
    """Run the drags that are missing in the log, and append their records in order of completion."""
    bench = experiment.bench
    # Methods alternate for each pair, so that a temporary load on the machine affects all methods equally.
    tasks: list[Record] = [
        {"method": method, "points": points, "pair": index}
        for points in experiment.source.points
        for index in range(len(pairs))
        for method in bench.methods
    ]
    found = log.find_records(args.out, tasks)
    missing: list[Task] = [(t, pairs[t["pair"]]) for t, record in zip(tasks, found, strict=True) if record is None]
    gpu = bench.device.type == "cuda"
    jobs = parallel.number_of_jobs(args.jobs, len(missing), gpu=gpu, engine=args.engine)
    make_worker: Callable[[], Callable[[Task], Measured]] = partial(
        open_worker, type(experiment), absolute(args, bench)
    )
    if jobs == 1 and args.engine == "joblib":
        make_worker = lambda: partial(run_task, experiment)  # noqa: E731
    measured = parallel.run_tasks(make_worker, missing, jobs=jobs, engine=args.engine, gpu=gpu)
    for record, picture in track(measured, f"eval {experiment.name}", total=len(missing), unit="drag"):
        if picture is not None:  # before the record, so that every record has its image
            write_png(picture_path(args.out, record), picture)
        log.append(args.out, record)


def absolute(args: argparse.Namespace, bench: Bench) -> argparse.Namespace:
    """Options with absolute paths, with which a process in another folder opens the same experiment."""
    values = {name: value.resolve() if isinstance(value, Path) else value for name, value in vars(args).items()}
    return argparse.Namespace(
        **values | {"checkpoint": str(bench.folder.resolve()), "methods": ",".join(bench.methods)}
    )


def open_worker(kind: type[Experiment], args: argparse.Namespace) -> Callable[[Task], Measured]:
    """Load an experiment in a worker process."""
    return partial(run_task, kind(args))


def run_task(experiment: Experiment, task: Task) -> Measured:
    """Measure one drag."""
    key, pair = task
    record, picture = experiment.measure(key["method"], pair, key["points"])
    return key | {"seed": pair.seed} | record, picture if key["pair"] < SHEET_PAIRS else None


def complete_records(out: Path, pairs: int) -> list[Record]:
    """The records of the first `pairs` pairs, of each method and number of points of which no pair is missing.

    Methods are in the order of `METHODS`, because parallel tasks end in any order.
    """
    keys = ("points", "method", "pair")
    found = {tuple(r[key] for key in keys): r for r in log.read_log(out) if all(key in r for key in keys)}
    groups = dict.fromkeys((points, method) for points, method, _ in found)
    names = list(METHODS)
    order: Callable[[str], int] = lambda name: names.index(name) if name in names else len(names)  # noqa: E731
    records = []
    for points in dict.fromkeys(points for points, _ in groups):
        for method in sorted({method for _, method in groups}, key=order):
            group = [found.get((points, method, index)) for index in range(pairs)]
            records += [record for record in group if record is not None] if None not in group else []
    return records


def finish(args: argparse.Namespace, table: Table) -> None:
    """Write a table as JSON and Markdown, and print it."""
    write_json(args.out / "table.json", table.rows)
    write_text(args.out / "table.md", table.markdown)
    results.report(table, args.results)
