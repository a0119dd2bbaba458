"""What every protocol does: read its options, prepare the methods, run what is missing, write a table.

A run lives in a folder: `setup.json` says what was asked, `drags.jsonl` holds one line per drag, and the table is made
from those lines. Run again, it goes on where it was interrupted; further methods, points and pairs join what is there.
With other settings it is refused, and so is a method that is not what it was when its drags were measured. Times of
processes of different numbers of threads never meet in one folder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm import tqdm

from autodrag.checkpoint import find_checkpoint, load_generator, load_landmarks
from autodrag.edits import DEFAULT_CHECKPOINT
from autodrag.errors import AutodragError
from autodrag.eval.identity import identities
from autodrag.eval.jobs import default_jobs, read_share, run_shares, threads_each
from autodrag.eval.methods import METHODS, Method, Settings, Trace, check_names, make_methods
from autodrag.files import write_json, write_text
from autodrag.images import to_uint8
from autodrag.infer.checks import check_device
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.stylegan2 import Features, Generator, seed_z

Record = dict[str, Any]
"""One line of `drags.jsonl`: what was run and what came of it, as JSON values."""

MAX_PAIRS = 400_000
SEEDS_APART = 1_000_000


def add_options(
    parser: argparse.ArgumentParser, *, steps: int, psi: float, pairs: int = 200, choose: bool = True
) -> None:
    """The options of every protocol; `steps`, `psi` and `pairs` are its defaults, `choose` lets users name methods."""
    name = parser.prog.split()[-1]
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="FOLDER")
    if choose:
        parser.add_argument(
            "--methods", help=f"of {','.join(METHODS)} (default: all that the checkpoint can run, side by side)"
        )
    else:
        parser.set_defaults(methods="none")
    parser.add_argument("--pairs", type=int, default=pairs, help=f"how many tasks (default: {pairs})")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks; the same seed gives the same table")
    parser.add_argument("--psi", type=float, default=psi, help=f"truncation (default: {psi})")
    parser.add_argument("--label", type=int, help="class of a conditional generator")
    parser.add_argument(
        "--steps", default=str(steps), help=f"step limit of every method, or own (default: {steps}, as published)"
    )
    parser.add_argument(
        "--stop",
        default="paper",
        help="distance in px at which every method stops, or own; paper (the default): 1 for up to 5 points, else 2",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument(
        "--jobs", type=int, help="processes that share the pairs (default: one for each core on a CPU, else 1)"
    )
    parser.add_argument("--share", help=argparse.SUPPRESS)  # of one such process
    parser.add_argument("--out", type=Path, default=Path(f"out/eval-{name}"), help="an earlier run there is continued")


@dataclass(frozen=True)
class Bench:
    """What a protocol works with: a frozen generator, methods ready to run, and the tasks' settings."""

    generator: Generator
    fingerprint: str
    folder: Path
    """The checkpoint."""
    net: LandmarkNet | None
    """The checkpoint's own landmark net."""
    methods: dict[str, Method]
    identities: dict[str, str]
    """What each method is made of; those that are not run are named as well."""
    settings: Settings
    device: torch.device
    pairs: int
    seed: int
    psi: float
    label: int | None
    out: Path
    jobs: int = 1
    """Processes that share the pairs."""
    share: tuple[int, int] | None = None
    """(K, N) of one of N such processes, which runs pairs K, K + N, ... and leaves the tables to the command."""
    command: tuple[str, ...] = ()
    """Arguments of `autodrag` that made this bench."""

    @torch.no_grad()
    def latent(self, seed: int, psi: float | None = None) -> Float[Tensor, "1 L D"]:
        """W+ of a seed, as NVIDIA's code maps it, at the run's truncation or another."""
        return self.map(seed_z(seed, self.generator.config.z_dim), self.psi if psi is None else psi)

    @torch.no_grad()
    def map(self, z: Float[Tensor, "B Z"], psi: float) -> Float[Tensor, "B L D"]:
        """z to W+ on the run's device, with the run's class."""
        labels = None
        if self.label is not None:
            classes = self.generator.config.c_dim
            labels = torch.eye(classes, device=self.device)[self.label].expand(len(z), -1)
        return self.generator.map(z.to(self.device), labels, psi=psi)

    @torch.no_grad()
    def image(self, latent: Float[Tensor, "1 L D"], features: Features | None = None) -> Float[Tensor, "1 3 H W"]:
        """The image of a latent, clipped to [-1, 1]. features: of the latent, where they are known."""
        return self.generator.image(latent, features or Features(())).clamp(-1, 1)

    @property
    def base_seed(self) -> int:
        """Seed of the first image; runs of different seeds share no images."""
        return SEEDS_APART * (self.seed + 1)

    def tasks(self, points: Sequence[int], pairs: int) -> list[Record]:
        """Every drag of a run: pair by pair and method by method, so that a slow minute hits all methods alike."""
        return [{"method": name, "points": n, "pair": k} for n in points for k in range(pairs) for name in self.methods]

    def picture(self, task: Record) -> Path:
        """Where the result of a task is kept for the contact sheet."""
        return self.out / "images" / f"{task['method']}-{task['points']}-{task['pair']:02d}.png"

    def claim(self, protocol: str, **own: Any) -> None:
        """Makes `out` the folder of this run, or goes on with the one there; `own` is what its protocol adds.

        Raises:
            AutodragError: the run there has another set-up, or a method in it is not the same any more.
        """
        setup = {
            "protocol": protocol,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "psi": self.psi,
            "label": self.label,
            "steps": self.settings.steps,
            "stop": self.settings.stop,
            "threads": torch.get_num_threads(),
        }
        if self.share is not None:
            return  # the command that shares the run has claimed it
        claim(self.out, setup | own, self.identities, self.methods)


def open_bench(args: argparse.Namespace, command: Sequence[str] = ()) -> Bench:
    """Checks the shared options, loads the checkpoint and prepares the methods.

    command: arguments of `autodrag` that run the same again; without them one process does all.

    Raises:
        AutodragError: an unknown method, a method that misses something, or an option that cannot be used.
    """
    names = None if args.methods is None else args.methods.split(",")
    check_names(names or ())
    settings = read_settings(args.steps, args.stop)
    if not 1 <= args.pairs <= MAX_PAIRS:
        raise AutodragError(f"--pairs {args.pairs}: expected 1 to {MAX_PAIRS}")
    most = 2**32 // SEEDS_APART - 2
    if not 0 <= args.seed <= most:
        raise AutodragError(f"--seed {args.seed}: expected 0 to {most}")
    if not math.isfinite(args.psi):
        raise AutodragError(f"--psi {args.psi}: expected a number such as 0.7")
    device = check_device(args.device)
    share = read_share(args.share)
    if args.jobs is not None and args.jobs < 1:
        raise AutodragError(f"--jobs {args.jobs}: expected at least 1")
    jobs = 1 if share or not command else min(args.jobs or default_jobs(device.type), args.pairs)
    if device.type == "cpu" and (share or jobs > 1):
        torch.set_num_threads(threads_each(share[1] if share else jobs))
    folder = find_checkpoint(args.checkpoint)
    generator, identity = load_generator(folder)
    classes = generator.config.c_dim
    if (classes == 0) != (args.label is None) or (classes and not 0 <= args.label < classes):
        expected = f"0 to {classes - 1}" if classes else "none, since this generator has no classes"
        raise AutodragError(f"--label {args.label}: expected {expected}")
    generator.to(device).freeze()
    net = load_landmarks(folder)
    return Bench(
        generator=generator,
        fingerprint=identity,
        folder=folder,
        net=None if net is None else net.to(device),
        methods=make_methods(names, generator, folder, settings),
        identities=identities(folder, generator.config.image_size),
        settings=settings,
        device=device,
        pairs=args.pairs,
        seed=args.seed,
        psi=args.psi,
        label=args.label,
        out=args.out,
        jobs=jobs,
        share=share,
        command=tuple(command),
    )


def read_settings(steps: str, stop: str) -> Settings:
    """`--steps` (a number or own) and `--stop` (paper, own or px) as settings."""
    named: Literal["paper", "own"] | None = "paper" if stop == "paper" else "own" if stop == "own" else None
    try:
        return Settings(None if steps == "own" else int(steps), float(stop) if named is None else named)
    except ValueError as error:
        raise AutodragError(
            f"--steps {steps} --stop {stop}: expected a whole number or own, and paper, own or a distance in px"
        ) from error


@dataclass(frozen=True)
class Edited:
    """A drag that was run, and what a user waited for it."""

    latent: Float[Tensor, "1 L D"]
    image: Float[Tensor, "1 3 H W"]
    """In [-1, 1]."""
    picture: UInt8[np.ndarray, "H W 3"]
    seconds: float
    """Of the drag, of making the image, and of bringing it to the CPU as uint8; loading is excluded."""
    steps: int
    reason: str

    def record(self) -> Record:
        """The shared part of a line."""
        return {"seconds": self.seconds, "steps": self.steps, "reason": self.reason}


def drag(
    bench: Bench,
    name: str,
    latent: Tensor,
    handles: Tensor,
    targets: Tensor,
    *,
    mask: Bool[Tensor, "H W"] | None = None,
    trace: Trace | None = None,
) -> Edited:
    """Runs one drag of a method and times it."""
    started = time.perf_counter()
    outcome = bench.methods[name](latent, handles, targets, mask=mask, trace=trace)
    image = bench.image(outcome.latent, outcome.features)
    picture = to_uint8(image)[0]  # waits for the device
    seconds = time.perf_counter() - started
    return Edited(outcome.latent, image, picture, seconds, outcome.steps, outcome.reason)


def read_points(text: str, count: int) -> tuple[int, ...]:
    """`1,5,all` as numbers of points, each once and in this order; all is `count`, and the most there can be."""
    try:
        points = tuple(dict.fromkeys(count if part == "all" else int(part) for part in text.split(",")))
    except ValueError:
        points = (0,)
    if not all(1 <= n <= count for n in points):
        raise AutodragError(f"--points {text}: expected numbers from 1 to {count}, or all, such as 1,5,all")
    return points


def claim(out: Path, setup: Record, identities: Mapping[str, str] | None = None, methods: Iterable[str] = ()) -> None:
    """Makes `out` the folder of a run, or goes on with the one there.

    Args:
        setup: what both must share, as JSON values.
        identities: what methods are made of now, by name; those that the folder knows must be the same.
        methods: names of those that join.
    """
    marker = out / "setup.json"
    setup = json.loads(json.dumps(setup))  # as it will be read
    identities, known = identities or {}, {}
    if marker.exists():
        try:
            there = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict) or not isinstance(there.get("methods"), dict):
            raise AutodragError(f"{str(marker)!r} does not say what was run; choose another --out or delete the folder")
        known = there["methods"]
        for name, value in setup.items():
            if there.get(name) != value:
                raise AutodragError(
                    f"{str(out)!r} holds a run with {name} {there.get(name)!r}, and this one has {value!r}; "
                    "choose another --out or delete it"
                )
        for name, identity in known.items():
            if identities.get(name, identity) != identity:
                raise AutodragError(
                    f"{str(out)!r} holds drags of the method {name!r} from before its networks or settings changed; "
                    "choose another --out or delete it"
                )
    write_json(marker, setup | {"methods": known | {name: identities[name] for name in methods}})


def run_drags(bench: Bench, points: Sequence[int], pairs: int, work: Callable[[Record], Record]) -> list[Record]:
    """Runs those drags of the first `pairs` pairs that the run's log lacks; returns all that it then holds of them.

    What was measured before, with other methods or numbers of points, is part of the answer where no pair is missing.
    A process that has a share of the run ends here (SystemExit): the tables are made by the command that started it.
    """
    log = bench.out / "drags.jsonl"
    tasks = bench.tasks(points, pairs)
    if bench.share is not None:
        index, count = bench.share
        run_tasks(log, [task for task in tasks if task["pair"] % count == index], work, alone=False)
        sys.exit(0)
    if bench.jobs > 1:
        missing = len(tasks) - len(_done(log, tasks))
        if missing > 1:
            run_shares(bench.command, min(bench.jobs, pairs), missing, log, "drag")
    run_tasks(log, tasks, work)
    held = {(r["points"], r["method"], r["pair"]): r for r in read_log(log) if {"points", "method", "pair"} <= r.keys()}
    records = []
    for n in dict.fromkeys(key[0] for key in held):
        for name in dict.fromkeys(key[1] for key in held):
            keys = [(n, name, k) for k in range(pairs)]
            if all(key in held for key in keys):
                records += [held[key] for key in keys]
    return records


def run_tasks(
    log: Path, tasks: Sequence[Record], work: Callable[[Record], Record], unit: str = "drag", *, alone: bool = True
) -> list[Record]:
    """Runs the tasks that `log` does not hold yet, a line of JSON for each; returns all their records in order.

    A task is a dict of what identifies it, and its record the task with what `work` returned. Lines of other tasks
    stay in the file and are left out of the answer. alone: no other process writes to the log, and none shows a bar.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    done = _done(log, tasks, mend=alone)
    fields = tuple(tasks[0]) if tasks else ()
    missing = [task for task in tasks if _key(task, fields) not in done]
    with log.open("a", encoding="utf-8") as lines:
        for task in tqdm(missing, unit=unit, disable=None if alone else True):
            record = task | work(task)
            lines.write(json.dumps(record, allow_nan=False) + "\n")
            lines.flush()
            done[_key(task, fields)] = record
    return [done[_key(task, fields)] for task in tasks]


def _done(log: Path, tasks: Sequence[Record], *, mend: bool = True) -> dict[str, Record]:
    """The records of those tasks that the log holds, by key."""
    fields = tuple(tasks[0]) if tasks else ()
    asked = {_key(task, fields) for task in tasks}
    records = (r for r in read_log(log, mend=mend) if all(field in r for field in fields))
    return {key: record for record in records if (key := _key(record, fields)) in asked}


def _key(record: Record, fields: tuple[str, ...]) -> str:
    return json.dumps([record[field] for field in fields])


def read_log(log: Path, *, mend: bool = True) -> list[Record]:
    """The records of a log without a last line that was cut off, which `mend` removes from the file."""
    if not log.exists():
        return []
    data = log.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if mend and len(whole) < len(data):
        with log.open("r+b") as stream:
            stream.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise AutodragError(f"line {number} of {str(log)!r} is not a JSON object; remove the line")
        records.append(record)
    return records


def finish(out: Path, rows: list[Record], text: str) -> None:
    """Writes the table as JSON and as Markdown, and prints it."""
    write_json(out / "table.json", rows)
    write_text(out / "table.md", text)
    print(text, end="")


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [columns, ["---"] * len(columns), *lines]
    text = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return text.replace("| --- " * len(columns) + "|", "|---" * len(columns) + "|")


def spread(values: Sequence[float], digits: int) -> str:
    """(25 %, median, 75 %) as `median (low–high)`."""
    low, middle, high = values
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
