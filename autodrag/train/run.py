"""What every training run shares: typed configs from YAML and the command line, progress, resumable states."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch.utils.data import IterableDataset
from tqdm import tqdm

from autodrag.errors import AutodragError
from autodrag.memory import keep_memory

Config = TypeVar("Config")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives, and when it saves and stops."""

    folder: Path
    """Holds the resumable state (last.ckpt), TensorBoard logs, sample grids and the exported weights."""
    seed: int = 0
    """Seeds weights, data order and noise."""
    precision: str = "auto"
    """Lightning precision: bf16-mixed, 32-true, or auto: the first where the machine computes in bf16 by itself. A CPU
    that has to emulate it (AVX2) was 20 times slower in bf16 than in fp32, and one with AVX-512 but neither AMX nor
    AVX512_BF16 twice. Small nets keep a GPU waiting, and there the predictor of critters trained 1.7 times as fast in
    fp32."""
    accelerator: str = "auto"
    """Lightning accelerator: auto, cpu, gpu."""
    devices: int = 1
    """Processes on each machine, one per GPU; the batch is divided among all."""
    nodes: int = 1
    """Machines; start the same command on each with torchrun."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    save_minutes: float = 5.0
    """Minutes between two saved states."""
    max_minutes: float = 0.0
    """Stop, saved and exported, after so many minutes; 0 for no limit. The next run goes on from there."""
    log_steps: int = 50
    """Steps between two points of a curve, and between two lines where the output is not a terminal."""

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16-mixed", "32-true"):
            raise ValueError(f"precision {self.precision!r}: expected auto, bf16-mixed or 32-true.")
        if self.log_steps < 1 or self.save_minutes <= 0:
            raise ValueError("log_steps and save_minutes must be positive.")
        if self.devices < 1 or self.nodes < 1:
            raise ValueError(f"devices {self.devices}, nodes {self.nodes}: expected at least 1 of each.")


def parse_config(config: type[Config], command: str, argv: list[str]) -> Config:
    """`--config file.yaml` and `--group.field value` overrides to a config dataclass.

    Unknown keys and wrong types exit with code 2; values that do not go together raise AutodragError.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what fields say of themselves is their help
    parser = ArgumentParser(prog=f"autodrag train {command}", description=(config.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_class_arguments(config, None, sub_configs=False)
    given = parser.parse_args(argv)
    try:
        parsed = parser.instantiate(given)
    except ValueError as problem:
        raise AutodragError(str(problem)) from None
    return config(**{field.name: parsed[field.name] for field in dataclasses.fields(config)})  # type: ignore[arg-type]


def prepare_torch(config: RunConfig) -> None:
    """Process-wide settings of a training command: seeds, threads, denormals.

    A confident discriminator sends gradients so small that they are denormal numbers, on which a CPU computes many
    times slower: a run was seen to fall from 40 to 6 images a second. They are zero for any practical purpose.
    """
    # Lightning's notes on TPUs and on a logging service, and a deprecation inside of it, help nobody here.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*weights_only.*")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    keep_memory()
    L.seed_everything(config.seed, verbose=False)


def print_progress(done: int, total: int) -> None:
    """A line for every thousand pictures or so that were made ready."""
    if done % 1024 < 64 or done == total:
        print(f"pictures {done}/{total}", flush=True)


class SaveState(Callback):
    """Writes `last.ckpt` every few minutes and at the end: beside the old one first, then renamed over it.

    A kill at any moment therefore leaves a whole file. Stops the run when its minutes are used up.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.started = self.saved = time.monotonic()

    @property
    def path(self) -> Path:
        """The resumable state of the run."""
        return self.config.folder / "last.ckpt"

    def save(self, trainer: L.Trainer) -> None:
        """Saves now. A full disk leaves the earlier state as it was and raises AutodragError."""
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        except (OSError, RuntimeError) as problem:  # torch's writer of archives turns a full disk into a RuntimeError
            partial.unlink(missing_ok=True)
            raise AutodragError(f"{self.path} cannot be written ({problem}); free some space and resume.") from None
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.monotonic()
        over = bool(self.config.max_minutes) and now - self.started > 60 * self.config.max_minutes
        due = now - self.saved > 60 * self.config.save_minutes
        if trainer.world_size > 1:  # one clock decides for all processes
            over, due = trainer.strategy.broadcast((over, due))
        if over:
            trainer.should_stop = True
        elif due:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)


class Progress(Callback):
    """A bar with throughput and ETA on a terminal, a line every `log_steps` steps elsewhere; ends the run when done.

    The module counts its own steps in `step`, which a resumed run goes on from; Lightning's epochs mean nothing here.
    """

    def __init__(self, log_steps: int, batch: int, total_steps: int) -> None:
        self.log_steps, self.batch, self.total_steps = log_steps, batch, total_steps
        self.bar: tqdm[Any] | None = None
        self.first, self.started = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first, self.started = _step(pl_module), time.monotonic()
        trainer.should_stop = self.first >= self.total_steps  # else a run that was done before would never end
        if sys.stdout.isatty() and trainer.is_global_zero:
            self.bar = tqdm(total=self.total_steps * self.batch, initial=self.first * self.batch, unit="image")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = _step(pl_module)
        if step >= self.total_steps:
            trainer.should_stop = True
        numbers = {name: f"{float(value):.4g}" for name, value in trainer.logged_metrics.items()}
        if self.bar is not None:
            self.bar.update(self.batch)
            if step % self.log_steps == 0:
                self.bar.set_postfix(numbers)
        elif step % self.log_steps == 0 and trainer.is_global_zero:
            rate = (step - self.first) / (time.monotonic() - self.started)
            left = (self.total_steps - step) / rate / 60
            text = "  ".join(f"{name} {value}" for name, value in numbers.items())
            print(
                f"step {step}/{self.total_steps}  {rate * self.batch:.1f} images/s  {left:.0f} min left  {text}",
                flush=True,
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()


def _step(module: L.LightningModule) -> int:
    step = module.step
    assert isinstance(step, int)
    return step


class Steps(IterableDataset[int]):
    """The numbers of the steps that are left, for modules that draw their own samples."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.total))


def choose_precision(precision: str, accelerator: str) -> str:
    """Lightning's name of a precision, `auto` decided for this machine."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "32-true"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return "bf16-mixed" if _multiplies_bf16() else "32-true"
    return "32-true" if capability in ("DEFAULT", "NO AVX", "AVX2") else "bf16-mixed"


def _multiplies_bf16() -> bool:
    """Whether this x86 processor multiplies bf16 by itself, by AMX or AVX512_BF16; without, it is half as fast as fp32.

    A predictor of critters trained 1.4 times as fast with AVX512_BF16 alone as in fp32.
    """
    names = (
        "_is_amx_tile_supported",
        "_is_avx512_bf16_supported",
    )  # not public: where missing, bf16 is to be asked for
    return any(bool(known()) for known in (getattr(torch.cpu, name, None) for name in names) if known is not None)


def make_trainer(config: RunConfig, callbacks: list[Callback], *, batch: int, total_steps: int) -> L.Trainer:
    """A Lightning trainer for a stream that knows its own length: TensorBoard, progress, the given callbacks.

    The module must count its steps in `step`, before callbacks run.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    callbacks = [Progress(config.log_steps, batch, total_steps), *callbacks]
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="ddp" if config.devices * config.nodes > 1 else "auto",
            precision=choose_precision(config.precision, config.accelerator),  # type: ignore[arg-type]
            max_epochs=-1,
            callbacks=callbacks,
            logger=TensorBoardLogger(config.folder, name=None, version="logs"),
            log_every_n_steps=config.log_steps,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0].rstrip(".")
        raise AutodragError(
            f"accelerator {config.accelerator!r} with {config.devices} devices cannot be used ({reason}); choose others"
        ) from None


def run_trainer(trainer: L.Trainer, module: L.LightningModule, state: SaveState) -> None:
    """Trains from the saved state where there is one; AutodragError where that is of another network."""
    try:
        trainer.fit(module, ckpt_path=state.path if state.path.exists() else None, weights_only=False)
    except RuntimeError as problem:
        if "loading state_dict" not in str(problem):
            raise
        raise AutodragError(
            f"{state.path} was saved by a network of other sizes; remove it or choose another run.folder"
        ) from None
