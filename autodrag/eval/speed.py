"""Time and memory of plain synthesis, of a refiner step, and of a whole edit by methods that take no steps.

Random weights serve where no checkpoint is named: time does not depend on what a network has learned. Within a row,
syntheses and steps alternate in one process, so that a slow minute of the machine hits both; the ratio of their medians
is what to quote. Every row has a process of its own, whose peak is the memory: the resident size on the CPU (weights
and libraries included), what torch has allocated on a GPU. Time excludes loading and the first call of everything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodrag.checkpoint import find_checkpoint, fingerprint, load_generator, load_learned
from autodrag.errors import AutodragError
from autodrag.eval.methods import Settings, make_methods
from autodrag.eval.metrics import quartiles
from autodrag.eval.run import Record, claim, finish, markdown, run_tasks, spread
from autodrag.infer.checks import check_device
from autodrag.infer.predict import LearnedNets, PredictConfig, make_drags, predict
from autodrag.infer.refine import RefineConfig, StepState, refine
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.predictor import Predictor, PredictorConfig
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Generator, GeneratorConfig
from autodrag.train.editor import fit_predictor

PRESETS = {"draggan": "draggan", "refiner": "default"}
"""Methods that work in steps, and their presets."""
ONE_SHOT = ("userlt", "predictor")
"""Methods that are measured as a whole edit; of a predictor random weights serve as well."""
SIZES = (128, 256, 512, 1024)
DTYPES = ("float32", "bfloat16")
_SYNTHESES = 3


@dataclass(frozen=True)
class Row:
    """What one process measures."""

    px: int
    method: str
    device: str
    dtype: str
    compiled: bool


def measure(row: Row, generator: Generator, folder: Path | None, *, rounds: int, steps: int) -> Record:
    """Quartiles of the seconds of plain synthesis and of one step, or one edit, and peak memory in MB."""
    device = check_device(row.device)
    generator = generator.to(device).freeze()
    if row.compiled:
        # Whole functions: blocks on their own would share one code object, and dynamo's limit of graphs for it.
        generator.features = torch.compile(generator.features)  # type: ignore[method-assign]
        generator.image = torch.compile(generator.image)  # type: ignore[method-assign]
    latent = generator.map(torch.randn(1, generator.config.z_dim, generator=_rng()).to(device))
    height, width = generator.config.image_size
    handle = torch.tensor([[width * 0.4, height * 0.4]], device=device)
    target = torch.tensor([[width * 0.8, height * 0.8]], device=device)
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    autocast: contextlib.AbstractContextManager[Any] = (
        torch.autocast(device.type, dtype=torch.bfloat16) if row.dtype == "bfloat16" else contextlib.nullcontext()
    )
    work = _steps(row, generator, steps, wait) if row.method in PRESETS else _edit(row, generator, folder, wait)
    synthesis: list[float] = []
    seconds: list[float] = []
    with autocast:
        for turn in range(rounds + 1):
            made = [_seconds(lambda: _synthesise(generator, latent), wait) for _ in range(_SYNTHESES)]
            done = work(latent, handle, target)
            if turn:  # the first turn warms up
                synthesis += made
                seconds += done
    plain, one = quartiles(synthesis), quartiles(seconds)
    return {
        "synthesis_s": list(plain),
        "work_s": list(one),
        "ratio": one[1] / plain[1],
        "measured": len(seconds),
        "memory_mb": _peak_mb(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


Work = Callable[[Tensor, Tensor, Tensor], list[float]]


def _steps(row: Row, generator: Generator, steps: int, wait: Callable[[], object]) -> Work:
    """Mean seconds of a step of a refiner that is not allowed to end before `steps`; the first also makes references.

    The mean, because not every step takes gradients.
    """
    preset = RefineConfig.preset(PRESETS[row.method], generator.config.image_size)
    config = replace(preset, steps=steps, patience=10**6, lost_confidence=0.0, stop_px=1e-3)
    basis = LatentBasis.of(generator, samples=1024)

    def work(latent: Tensor, handle: Tensor, target: Tensor) -> list[float]:
        marks: list[float] = []

        def on_step(state: StepState) -> None:
            wait()
            marks.append(time.perf_counter())

        refine(generator, latent, handle, target, config=config, basis=basis, callback=on_step)
        return [(marks[-1] - marks[1]) / (len(marks) - 2)]

    return work


def _edit(row: Row, generator: Generator, folder: Path | None, wait: Callable[[], object]) -> Work:
    """Seconds of a whole edit with its image."""
    if row.method == "predictor":
        return _prediction(generator, folder, wait)
    if folder is None:
        raise AutodragError(f"method {row.method!r} needs a checkpoint that has it; give --checkpoint")
    method = make_methods([row.method], generator, folder, Settings())[row.method]

    def work(latent: Tensor, handle: Tensor, target: Tensor) -> list[float]:
        return [_seconds(lambda: _synthesise(generator, method(latent, handle, target).latent), wait)]

    return work


def _prediction(generator: Generator, folder: Path | None, wait: Callable[[], object]) -> Work:
    """Seconds of a closed loop that makes all its rounds, and of the image from the features that it ends with.

    It begins, as in an open editor, with the features of the present image, which it has not looked at yet.
    """
    if folder is None:
        nets = random_nets(generator)
    else:
        nets = LearnedNets(*load_learned(folder, fingerprint(generator.state_dict())))
    nets.to(generator.mapping.w_avg.device)
    config = PredictConfig(stop_px=0.0, gain=0.0)

    @torch.inference_mode()
    def work(latent: Tensor, handle: Tensor, target: Tensor) -> list[float]:
        drags = make_drags(nets.predictor, handle, target)
        known = generator.features(latent, block=nets.predictor.config.track_block)

        def edit() -> None:
            found = predict(nets, generator, latent, drags, config=config, features=known)
            generator.image(found.latent, found.features)

        return [_seconds(edit, wait)]

    return work


def random_nets(generator: Generator) -> LearnedNets:
    """Random weights at the paper's depth and our width for it, 512."""
    g = generator.config
    net = fit_predictor(PredictorConfig(), generator)
    return LearnedNets(Predictor(net), Regularizer(RegularizerConfig(layers=g.latent_layers, w_dim=g.w_dim)))


@torch.no_grad()
def _synthesise(generator: Generator, latent: Tensor) -> Tensor:
    return generator(latent)


def _seconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _peak_mb(device: torch.device) -> int | None:
    """Peak of this process, MB; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def open_generator(checkpoint: str | None, px: int, channel_base: int) -> Generator:
    """The generator of a checkpoint, or one of random weights in StyleGAN2's published shape."""
    if checkpoint is not None:
        return load_generator(checkpoint)[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(GeneratorConfig(resolution=px, channel_base=channel_base))


def table(records: list[Record]) -> str:
    """The records as a Markdown table."""
    columns = [
        "px",
        "device",
        "dtype",
        "method",
        "plain synthesis, s",
        "one step or edit, s",
        "ratio",
        "peak memory, MB",
    ]
    lines = [
        [
            str(r["px"]),
            r["device"] + (" (compiled)" if r["compiled"] else ""),
            r["dtype"],
            r["method"] + (" step" if r["method"] in PRESETS else " edit"),
            spread(r["synthesis_s"], 4),
            spread(r["work_s"], 4),
            f"{r['ratio']:.2f}",
            "–" if r["memory_mb"] is None else str(r["memory_mb"]),
        ]
        for r in records
    ]
    return markdown(columns, lines)


def _run(task: Record, args: argparse.Namespace) -> Record:
    """Measures a row in a new process."""
    options = ["--one", json.dumps(task), "--rounds", str(args.rounds), "--max-steps", str(args.max_steps)]
    options += ["--channel-base", str(args.channel_base)]
    options += [] if args.checkpoint is None else ["--checkpoint", args.checkpoint]
    command = [sys.executable, "-m", "autodrag.cli", "eval", "speed", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1].removeprefix("error: ")
        raise AutodragError(f"{task['method']} at {task['px']} px on {task['device']} failed: {said}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="autodrag eval speed", description="Time and memory of edits.")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="default: random weights at every size of --sizes")
    parser.add_argument(
        "--methods", default=",".join((*PRESETS, "predictor")), help=f"of {','.join((*PRESETS, *ONE_SHOT))}"
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="px, of random weights")
    parser.add_argument("--devices", help="such as cpu,cuda (default: cpu, and cuda where there is one)")
    parser.add_argument("--dtypes", default="float32", help=f"of {','.join(DTYPES)} (default: float32)")
    parser.add_argument("--compile", action="store_true", help="measure compiled synthesis too (torch.compile)")
    parser.add_argument("--channel-base", type=int, default=32768, help="of random weights (default: 32768)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of three syntheses and a drag (default: 3)")
    parser.add_argument("--max-steps", type=int, default=7, help="steps of each drag (default: 7)")
    parser.add_argument("--out", type=Path, default=Path("out/eval-speed"), help="an earlier run there is continued")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def _rows(args: argparse.Namespace) -> list[Record]:
    """Every row that the options ask for; an AutodragError where one cannot be measured."""
    methods, dtypes = args.methods.split(","), args.dtypes.split(",")
    for name in methods:
        if name not in (*PRESETS, *ONE_SHOT):
            raise AutodragError(f"method {name!r} is unknown; expected some of {', '.join((*PRESETS, *ONE_SHOT))}")
        if name == "userlt" and args.checkpoint is None:
            raise AutodragError(f"method {name!r} needs a checkpoint that has it; give --checkpoint")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise AutodragError(f"--dtypes {dtype}: expected some of {', '.join(DTYPES)}")
    if args.rounds < 1 or args.max_steps < 3:
        raise AutodragError(f"--rounds {args.rounds} --max-steps {args.max_steps}: expected at least 1 and 3")
    devices = (args.devices or ("cpu,cuda" if torch.cuda.is_available() else "cpu")).split(",")
    for device in devices:
        check_device(device)
    try:
        sizes = [int(text) for text in args.sizes.split(",")]
        for px in sizes:
            GeneratorConfig(resolution=px, channel_base=args.channel_base)
    except ValueError as error:
        raise AutodragError(f"--sizes {args.sizes} --channel-base {args.channel_base}: {error}") from error
    if args.checkpoint is not None:
        generator, _ = load_generator(args.checkpoint)
        sizes = [generator.config.resolution]
        make_methods(
            [name for name in methods if name in ONE_SHOT], generator, find_checkpoint(args.checkpoint), Settings()
        )
    return [
        {"px": px, "method": method, "device": device, "dtype": dtype, "compiled": compiled}
        for px in sizes
        for device in devices
        for dtype in dtypes
        for compiled in ((False, True) if args.compile else (False,))
        for method in methods
    ]


def main(argv: list[str]) -> int:
    """`autodrag eval speed`."""
    args = _parser().parse_args(argv)
    if args.one is not None:
        row = Row(**json.loads(args.one))
        generator = open_generator(args.checkpoint, row.px, args.channel_base)
        folder = None if args.checkpoint is None else find_checkpoint(args.checkpoint)
        print(json.dumps(measure(row, generator, folder, rounds=args.rounds, steps=args.max_steps)))
        return 0
    tasks = _rows(args)
    names = ("checkpoint", "channel_base", "rounds", "max_steps")
    claim(args.out, {"protocol": "speed"} | {name: getattr(args, name) for name in names})
    records = run_tasks(args.out / "drags.jsonl", tasks, lambda task: _run(task, args), unit="row")
    finish(args.out, records, table(records))
    return 0
