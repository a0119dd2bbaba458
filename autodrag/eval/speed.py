"""Time and memory of a synthesis, of a refiner step, and of a whole edit with methods without steps.

Without a checkpoint, networks with random weights are measured, because the time does not depend on the weights. Within
a row, syntheses and steps alternate in one process, so that a temporary load on the machine affects both; compare rows
by the ratio of their medians. Each row runs in a separate process, whose peak memory is reported: the resident size on
a CPU (including weights and libraries), or the memory allocated by torch on a GPU. Times exclude loading and the first
calls.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodrag.acceleration import accelerate
from autodrag.arguments import ArgumentParser
from autodrag.checkpoint import find_checkpoint, fingerprint, load_editor, load_generator
from autodrag.errors import AutodragError
from autodrag.eval import log, results
from autodrag.eval.log import Record
from autodrag.eval.methods import Limits, make_methods
from autodrag.eval.run import finish
from autodrag.eval.tables import Columns, optional, quartiles, spread
from autodrag.infer.draggan import DragganConfig, draggan
from autodrag.infer.locate import LocateConfig, LocateProblem, take_step
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig, batch_of, predict
from autodrag.infer.task import Control, Drag, check_device
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.predictor import Predictor, PredictorConfig
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Generator, GeneratorConfig
from autodrag.progress import track
from autodrag.train.editor import fit_predictor

STEPWISE = ("draggan", "refine")
"""Methods measured per step."""
ONE_SHOT = ("userlt", "predict")
"""Methods measured per edit; `predict` can use random weights."""
SIZES = (128, 256, 512, 1024)
DTYPES = ("float32", "bfloat16")
_SYNTHESES = 3


@dataclass(frozen=True)
class Row:
    """One measurement."""

    px: int
    method: str
    device: str
    dtype: str
    compiled: bool


@dataclass(frozen=True)
class Extent:
    """Weights and number of repetitions."""

    checkpoint: str | None
    """Checkpoint folder; None: random weights."""
    channel_base: int
    """Channel base of random weights."""
    rounds: int
    """Number of repetitions of three syntheses and a drag."""
    max_steps: int
    """Number of steps per drag."""
    threads: int
    """Number of CPU threads of torch."""

    def open_generator(self, px: int) -> Generator:
        """The generator of the checkpoint, or a StyleGAN2 generator with random weights."""
        if self.checkpoint is not None:
            return load_generator(self.checkpoint)[0]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Generator(GeneratorConfig(resolution=px, channel_base=self.channel_base))


def measure(row: Row, extent: Extent) -> Record:
    """Quartiles of the seconds of a synthesis and of a step or edit, and peak memory in MB."""
    torch.set_num_threads(extent.threads)
    device = check_device(row.device)
    generator = extent.open_generator(row.px).to(device).freeze()
    if row.compiled:
        # Whole functions are compiled, because separate blocks would share one code object and its recompile limit.
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
    folder = None if extent.checkpoint is None else find_checkpoint(extent.checkpoint)
    if row.method in STEPWISE:
        work = _steps(row.method, generator, extent.max_steps, wait)
    elif row.method == "predict":
        work = _prediction(generator, folder, wait)
    else:
        assert folder is not None
        work = _edit(row.method, generator, folder, wait)
    synthesis: list[float] = []
    seconds: list[float] = []
    with autocast:
        for turn in range(extent.rounds + 1):
            plain = [_seconds(lambda: _synthesise(generator, latent), wait) for _ in range(_SYNTHESES)]
            done = work(latent, Drag(handle, target))
            if turn:  # the first round is a warm-up
                synthesis += plain
                seconds.append(done)
    plain_s, work_s = quartiles(synthesis), quartiles(seconds)
    return {
        "synthesis_s": list(plain_s),
        "work_s": list(work_s),
        "mean_work_s": sum(seconds) / len(seconds),
        "ratio": work_s[1] / plain_s[1],
        "measured": len(seconds),
        "memory_mb": _peak_mb(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


Work = Callable[[Tensor, Drag], float]
"""Runs a drag and returns the seconds of a step or an edit."""


def _steps(method: str, generator: Generator, steps: int, wait: Callable[[], object]) -> Work:
    """Mean seconds of a refiner step. The mean is used because not every step computes gradients.

    The first step is excluded, because it includes the computation of the references.
    """
    size, basis = generator.config.image_size, LatentBasis.of(generator, samples=1024)
    published = replace(DragganConfig.for_image(size), steps=steps, stop_px=1e-3)

    def work(latent: Tensor, drag: Drag) -> float:
        marks: list[float] = []

        def mark(_: object) -> None:
            wait()
            marks.append(time.perf_counter())

        image = OpenImage.of(generator, latent)
        if method == "draggan":
            draggan(image, drag, published, Control(callback=mark))
        else:  # without stop rules, which random weights would trigger immediately
            problem = LocateProblem(image, drag, LocateConfig.for_image(size), basis, None)
            state = problem.first_state()
            for _ in range(steps + 1):
                mark(state)
                state = take_step(problem, state)
        if len(marks) < 3:
            raise AutodragError(f"{method} ended after {len(marks) - 1} steps; at least two are needed")
        return (marks[-1] - marks[1]) / (len(marks) - 2)

    return work


def _edit(name: str, generator: Generator, folder: Path, wait: Callable[[], object]) -> Work:
    """Seconds of a whole edit, including its image."""
    method = make_methods([name], generator, folder, Limits())[name]
    return lambda latent, drag: _seconds(lambda: _synthesise(generator, method(latent, drag).latent), wait)


def _prediction(generator: Generator, folder: Path | None, wait: Callable[[], object]) -> Work:
    """Seconds of a closed loop with all rounds, including its image.

    As in an editor, the features of the current image are already computed, but the networks' memory is not.
    """
    editor = None if folder is None else load_editor(folder, fingerprint(generator.state_dict()))
    if editor is None:
        editor = random_editor(generator)
    accelerate(editor.to(generator.mapping.w_avg.device))
    config = PredictConfig(stop_px=0.0)

    @torch.no_grad()
    def work(latent: Tensor, drag: Drag) -> float:
        drags = batch_of(drag)
        features = OpenImage.of(generator, latent, editor).features

        def edit() -> None:
            found = predict(OpenImage.of(generator, latent, editor, features), drags, config)
            generator.image(found.latent, found.features)

        return _seconds(edit, wait)

    return work


def random_editor(generator: Generator) -> LearnedEditor:
    """A learned editor with random weights, with the paper's depth and width 512."""
    g = generator.config
    net = fit_predictor(PredictorConfig(), generator)
    return LearnedEditor(Predictor(net), Regularizer(RegularizerConfig(layers=g.latent_layers, w_dim=g.w_dim)))


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
    """Peak memory of this process in MB; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    try:
        import resource
    except ImportError:  # Windows has no module `resource`
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def measure_in_process(row: Row, extent: Extent) -> Record:
    """Run `measure` in a new process.

    Raises:
        AutodragError: the measurement failed; the message names the row.
    """
    name = f"{row.method} at {row.px} px on {row.device}"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, row, extent).result()
        except (AutodragError, RuntimeError) as error:  # RuntimeError: out of memory, or the process was killed
            message = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise AutodragError(f"{name} failed: {message}") from error


COLUMNS: Columns = {
    "px": lambda r: str(r["px"]),
    "device": lambda r: r["device"] + (" (compiled)" if r["compiled"] else ""),
    "dtype": lambda r: r["dtype"],
    "method": lambda r: r["method"] + (" step" if r["method"] in STEPWISE else " edit"),
    "plain synthesis, s": lambda r: spread(r["synthesis_s"], 4),
    "one step or edit, s": lambda r: spread(r["work_s"], 4),
    "mean, s": lambda r: f"{r['mean_work_s']:.4f}",
    "ratio": lambda r: f"{r['ratio']:.2f}",
    "peak memory, MB": lambda r: optional(r["memory_mb"], "d"),
}


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="autodrag eval speed", description="Time and memory of edits.")
    names = ",".join((*STEPWISE, *ONE_SHOT))
    parser.add_argument("--checkpoint", metavar="FOLDER", help="default: random weights, for all sizes of --sizes")
    parser.add_argument("--methods", default="draggan,refine,predict", help=f"comma-separated methods from {names}")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="image sizes for random weights, px")
    parser.add_argument("--devices", help="devices, such as cpu,cuda (default: cpu, and cuda if available)")
    parser.add_argument("--dtypes", default="float32", help=f"dtypes from {','.join(DTYPES)} (default: float32)")
    parser.add_argument("--compile", action="store_true", help="also measure compiled synthesis (torch.compile)")
    parser.add_argument(
        "--channel-base", type=int, default=32768, help="channel base of random weights (default: 32768)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of three syntheses and a drag (default: 3)")
    parser.add_argument("--max-steps", type=int, default=7, help="steps per drag (default: 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: one per core)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/eval-speed"), help="output folder; an earlier run there is resumed"
    )
    results.add_option(parser)
    return parser


def _rows(args: argparse.Namespace) -> list[Row]:
    """The rows described by the options. Raises AutodragError if a row cannot be measured."""
    methods, dtypes = args.methods.split(","), args.dtypes.split(",")
    for name in methods:
        if name not in (*STEPWISE, *ONE_SHOT):
            raise AutodragError(f"method {name!r} is unknown; expected some of {', '.join((*STEPWISE, *ONE_SHOT))}")
        if name == "userlt" and args.checkpoint is None:
            raise AutodragError(f"method {name!r} needs a trained checkpoint; give --checkpoint")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise AutodragError(f"--dtypes {dtype}: expected some of {', '.join(DTYPES)}")
    if args.rounds < 1 or args.max_steps < 3 or args.threads < 1:
        raise AutodragError(
            f"--rounds {args.rounds} --max-steps {args.max_steps} --threads {args.threads}: "
            "expected at least 1, 3 and 1"
        )
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
        one_shot = [name for name in methods if name in ONE_SHOT]
        make_methods(one_shot, generator, find_checkpoint(args.checkpoint), Limits())
    return [
        Row(px, method, device, dtype, compiled)
        for px in sizes
        for device in devices
        for dtype in dtypes
        for compiled in ((False, True) if args.compile else (False,))
        for method in methods
    ]


def main(argv: list[str]) -> int:
    """`autodrag eval speed`."""
    args = _parser().parse_args(argv)
    rows = _rows(args)
    extent = Extent(args.checkpoint, args.channel_base, args.rounds, args.max_steps, args.threads)
    log.claim(args.out, {"experiment": "speed"} | asdict(extent))
    keys = [asdict(row) for row in rows]
    found = log.find_records(args.out, keys)
    for row, key, record in track(list(zip(rows, keys, found, strict=True)), "eval speed", unit="row"):
        if record is None:
            log.append(args.out, key | measure_in_process(row, extent))
    records = [record for record in log.find_records(args.out, keys) if record is not None]
    finish(args, results.make_table("speed", ["autodrag", "eval", "speed", *argv], COLUMNS, records))
    return 0
