"""What all trainings share: configs from YAML and the command line, the trainer, resumable states, optimiser steps.

After SIGKILL or on a full disk the last saved state remains. Ctrl-C saves the present state. A resumed run gives the
same weights, bit for bit, as an uninterrupted one: the module draws its samples from (seed, step) alone, counts its own
steps, and saves weights, average, optimiser and step together.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from autodrag.config_files import read_config
from autodrag.errors import AutodragError
from autodrag.files import is_disk_full
from autodrag.memory import keep_memory
from autodrag.nets.stylegan2 import Generator
from autodrag.progress import ProgressDisplay

Config = TypeVar("Config")
NetT = TypeVar("NetT", bound=nn.Module)


# ---------------------------------------------------------------------------------------------------------- configs


@dataclass(frozen=True)
class RunConfig:
    """Folder, seed, precision and machines of a run, and when it saves and stops."""

    folder: Path
    """Holds the resumable state (last.ckpt), TensorBoard logs, sample grids and the exported weights."""
    seed: int = 0
    """Seed of the weights and of every sample."""
    precision: str = "auto"
    """Lightning precision: bf16-mixed, 32-true, or auto. `auto` takes bf16 on machines that compute in it natively. A
    CPU that emulates bf16 with AVX2 was 20 times slower in it than in fp32, and a CPU with AVX-512 but without AMX and
    AVX512_BF16 twice. On a GPU, small networks such as the predictor of critters trained 1.7 times as fast in fp32."""
    accelerator: str = "auto"
    """Lightning accelerator: auto, cpu, gpu."""
    devices: int = 1
    """Processes on each machine, one per GPU. The batch is divided among all processes."""
    nodes: int = 1
    """Machines. Start the same command on each with torchrun."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's default."""
    save_minutes: float = 5.0
    """Minutes between two saved states."""
    max_minutes: float = 0.0
    """Minutes after which this run saves, exports and stops; 0: no limit. The next run continues from there."""
    log_steps: int = 50
    """Steps between two points of a curve. The progress display refreshes its losses as often."""

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16-mixed", "32-true"):
            raise ValueError(f"precision {self.precision!r}: expected auto, bf16-mixed or 32-true.")
        if self.log_steps < 1 or self.save_minutes <= 0:
            raise ValueError("log_steps and save_minutes must be positive.")
        if self.devices < 1 or self.nodes < 1:
            raise ValueError(f"devices {self.devices}, nodes {self.nodes}: expected at least 1 of each.")


@dataclass(frozen=True)
class Optimisation:
    """The optimisation of one network."""

    steps: int = 50_000
    """Steps in all."""
    batch: int = 64
    """Samples per step, over all processes."""
    lr: float = 1e-3
    """AdamW's learning rate after warm-up (the paper's). It decays to zero as a half cosine."""
    average_decay: float = 0.999
    """Decay of the moving average of the weights. The average is exported."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0:
            raise ValueError("expected steps >= 1, batch >= 1 and lr > 0.")


def parse_config(config: type[Config], command: str, argv: list[str]) -> Config:
    """The config of `autodrag train COMMAND`; see `read_config`."""
    return read_config(config, f"autodrag train {command}", argv)


def check_batch(batch: int, run: RunConfig) -> None:
    """Raises AutodragError if the batch cannot be divided evenly among the processes."""
    processes = run.devices * run.nodes
    if batch % processes:
        raise AutodragError(f"batch {batch} cannot be divided among {processes} processes; choose a multiple of it.")


# ---------------------------------------------------------------------------------------------------------- modules


class Steps(IterableDataset[int]):
    """The indices of the remaining steps, for modules that draw their own samples."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.total))


class TrainingModule(L.LightningModule):
    """Counts its steps in `step`, which is saved with the state. Optimisation is manual.

    A subclass changes weights, average and step inside `with self.update()`, so that a saved state is consistent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step = 0
        self.updating = False
        """Whether weights, average and step may belong to different steps."""
        self.interrupted = False
        """Whether Ctrl-C was pressed."""

    @contextlib.contextmanager
    def update(self) -> Iterator[None]:
        """Delays Ctrl-C to its end. After any exception inside, the state is not saved."""
        self.updating = True
        yield
        self.updating = False
        if self.interrupted and self.trainer.world_size == 1:
            raise KeyboardInterrupt

    def discard_step(self) -> None:
        """Restores what an interrupted step has changed outside of `update`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = int(checkpoint["step"])


class AveragedModule(TrainingModule, Generic[NetT]):
    """A network and its moving average. Subclasses compute the loss and call `take_step`."""

    weight_decay = 1e-2
    """AdamW's."""
    max_gradient_norm: float | None = 1.0
    """Gradients are clipped to this norm; None: they are not clipped."""

    def __init__(
        self, net: NetT, *, steps: int, lr: float, average_decay: float, generator: Generator | None = None
    ) -> None:
        """steps: of the whole training. generator: frozen, for the samples; it is moved with the module, not saved."""
        super().__init__()
        self.sources = [] if generator is None else [generator]  # in a list: no submodule of this one
        self.total_steps, self.lr, self.average_decay = steps, lr, average_decay
        self.net = net
        self.average = copy.deepcopy(net).requires_grad_(False)

    @property
    def generator(self) -> Generator:
        """The frozen generator."""
        return self.sources[0]

    def on_fit_start(self) -> None:
        for generator in self.sources:
            generator.to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up over 2 % of the steps and a half-cosine decay."""
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: half_cosine(step, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train_dataloader(self) -> DataLoader[Any]:
        """The remaining steps."""
        return DataLoader(Steps(self.step, self.total_steps), batch_size=None)

    def take_step(self, loss: Tensor) -> None:
        """Backward pass, optimiser, schedule and average.

        Raises AutodragError if the loss is not finite, before anything changes.
        """
        if not torch.isfinite(loss):
            raise AutodragError(
                f"the loss is not finite at step {self.step + 1}; the state saved before is kept. "
                "Resume with a lower lr."
            )
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.max_gradient_norm)
        with self.update():
            optimizer.step()
            schedule.step()
            self.step += 1
            average = get_ema_multi_avg_fn(min(self.average_decay, self.step / (self.step + 10)))
            average(list(self.average.parameters()), list(self.net.parameters()), self.step)

    def step_rng(self, seed: int) -> torch.Generator:
        """The random numbers of this step, which depend on (seed, step) alone."""
        return torch.Generator().manual_seed(seed * 1_000_003 + self.step)


def half_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: a warm-up over 2 % of the steps, then a half cosine to zero."""
    return min((step + 1) / max(1, steps // 50), 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))


def own_rows(batch: int, trainer: L.Trainer) -> slice:
    """The rows of a batch that belong to this process."""
    share = batch // trainer.world_size
    return slice(trainer.global_rank * share, (trainer.global_rank + 1) * share)


# -------------------------------------------------------------------------------------------------------- callbacks


class SaveState(Callback):
    """Writes `last.ckpt` every few minutes, at the end and after Ctrl-C. Stops the run after its minutes.

    The new state is written beside the old one and renamed over it, so that a kill at any time leaves a complete file.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.started = self.saved = time.monotonic()
        self.saved_step: int | None = None
        """Step of the last state that this run saved."""
        self.training = self.began = False

    @property
    def path(self) -> Path:
        """The resumable state of the run."""
        return self.config.folder / "last.ckpt"

    def save(self, trainer: L.Trainer) -> None:
        """Saves now. If the disk is full, the earlier state stays and AutodragError is raised."""
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        except (OSError, RuntimeError) as problem:  # torch raises RuntimeError when the disk is full
            partial.unlink(missing_ok=True)
            full = is_disk_full(problem)
            reason = "the disk is full; free some space" if full else f"{problem}; check the folder"
            again = ", and run the same command again to continue from the last saved state"
            raise AutodragError(
                f"'{self.path}' cannot be written: {reason}{again if self.path.exists() else ''}"
            ) from problem
        self.saved, self.saved_step = time.monotonic(), _step(trainer.lightning_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training = self.began = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        over = bool(self.config.max_minutes) and now - self.started > 60 * self.config.max_minutes
        due = now - self.saved > 60 * self.config.save_minutes
        interrupted = pl_module.interrupted
        if trainer.world_size > 1:  # one process decides for all
            over, due, interrupted = trainer.strategy.broadcast((over, due, interrupted))
        if interrupted:
            self.save(trainer)
            raise KeyboardInterrupt
        if over:
            trainer.should_stop = True
        elif due:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        self.training = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, TrainingModule)
        if not (isinstance(exception, KeyboardInterrupt) and self.training) or pl_module.updating:
            return
        # Several processes have saved together, in `on_train_batch_end`.
        if trainer.world_size == 1 and self.saved_step != _step(pl_module):
            pl_module.discard_step()
            self.save(trainer)


class Progress(Callback):
    """Displays the progress, and ends the run after `total_steps` of the module's own steps.

    Lightning's epochs have no meaning here.
    """

    def __init__(self, log_steps: int, batch: int, total_steps: int) -> None:
        self.log_steps, self.batch, self.total_steps = log_steps, batch, total_steps
        self.display: ProgressDisplay | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        first = _step(pl_module)
        trainer.should_stop = first >= self.total_steps  # otherwise a finished run would not stop
        if trainer.is_global_zero and not trainer.should_stop:
            self.display = ProgressDisplay("training", self.total_steps, done=first, output="stdout")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = _step(pl_module)
        if step >= self.total_steps:
            trainer.should_stop = True
        if self.display is not None:
            due = step % self.log_steps == 0  # reading the losses of a GPU waits for it
            self.display.update(step - self.display.done, self._note(trainer, self.display) if due else "")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.display is not None:
            self.display.print_line()
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _note(self, trainer: L.Trainer, display: ProgressDisplay) -> str:
        losses = (f"{name} {float(value):.4g}" for name, value in trainer.logged_metrics.items())
        return ", ".join([f"{display.rate * self.batch:.1f} images/s", *losses])

    def _close(self) -> None:
        if self.display is not None:
            self.display.close()
        self.display = None


def _step(module: L.LightningModule) -> int:
    step = module.step
    assert isinstance(step, int)
    return step


# ---------------------------------------------------------------------------------------------------------- running


def prepare_torch(config: RunConfig) -> None:
    """Process-wide settings of a training command: seeds, threads, denormals.

    The gradients of a confident discriminator are denormal numbers, on which a CPU computes many times more slowly: one
    run fell from 40 to 6 images a second. Flushing them to zero does not affect the training.
    """
    # Lightning's notes on TPUs and on a logging service, and a deprecation inside of it, do not concern users.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*weights_only.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # averages and frozen nets
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    keep_memory()
    L.seed_everything(config.seed, verbose=False)


def data_progress() -> Callable[[int, int], None]:
    """A function that displays how many pictures of a data set are prepared: (done, total)."""
    display: ProgressDisplay | None = None

    def show(done: int, total: int) -> None:
        nonlocal display
        if display is None:
            display = ProgressDisplay("preparing pictures", total, "picture", output="stdout")
        display.update(done - display.done)
        if done == total:
            display.close()

    return show


def choose_precision(precision: str, accelerator: str) -> str:
    """Lightning's name of a precision, with `auto` resolved for this machine."""
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
    """Whether this x86 processor multiplies bf16 natively (AMX or AVX512_BF16). Without, bf16 is half as fast as fp32.

    A predictor of critters trained 1.4 times as fast with AVX512_BF16 alone as in fp32.
    """
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not public, so they may be missing
    return any(bool(check()) for check in (getattr(torch.cpu, name, None) for name in names) if check is not None)


def make_trainer(config: RunConfig, callbacks: list[Callback], *, batch: int, total_steps: int) -> L.Trainer:
    """A Lightning trainer for a `TrainingModule`: TensorBoard, progress, and the given callbacks."""
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


def run_training(module: TrainingModule, config: RunConfig, *, batch: int, total_steps: int) -> L.Trainer:
    """Trains from the saved state if there is one, and returns the trainer.

    Raises:
        AutodragError: the saved state belongs to another network, the device does not exist, or the disk is full.
        KeyboardInterrupt: Ctrl-C; its message names the saved state.
    """
    state = SaveState(config)
    trainer = make_trainer(config, [state], batch=batch, total_steps=total_steps)
    try:
        with _ctrl_c_handled(module, trainer), _full_disk_in_one_sentence():
            trainer.fit(module, ckpt_path=state.path if state.path.exists() else None, weights_only=False)
    except SystemExit as ended:  # Lightning's answer to KeyboardInterrupt
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        if not trainer.is_global_zero:  # one process reports
            raise SystemExit(130) from None
        raise KeyboardInterrupt(_interruption(module, state, total_steps)) from None
    except (OSError, RuntimeError) as problem:
        if is_disk_full(problem):
            raise AutodragError(
                f"{str(config.folder)!r} cannot be written: the disk is full; free some space, and run the same "
                "command again to continue from the last saved state"
            ) from problem
        if "loading state_dict" not in str(problem):
            raise
        raise AutodragError(
            f"{state.path} was saved by a network of other sizes; remove it or choose another run.folder"
        ) from None
    return trainer


@contextlib.contextmanager
def _ctrl_c_handled(module: TrainingModule, trainer: L.Trainer) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt at once, or at the end of an update of the weights.

    Several processes save and end together after the step (`SaveState`). A second Ctrl-C does not wait.
    """
    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main thread only
        yield
        return

    def handle(*_: object) -> None:
        again, module.interrupted = module.interrupted, True
        if again or not (module.updating or trainer.world_size > 1):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _full_disk_in_one_sentence() -> Iterator[None]:
    """Suppresses the traceback of TensorBoard's thread on a full disk: the main thread raises the same error."""
    before = threading.excepthook

    def report(thrown: threading.ExceptHookArgs) -> None:
        if thrown.exc_value is None or not is_disk_full(thrown.exc_value):
            before(thrown)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


def _interruption(module: TrainingModule, state: SaveState, total_steps: int) -> str:
    """The message after Ctrl-C."""
    if state.saved_step is not None:
        saved = f"the state of step {state.saved_step} is saved in '{state.path}'"
    elif state.path.exists():
        saved = f"the state in '{state.path}' is unchanged"
    else:
        saved = "nothing is saved yet"
    place = f"at step {module.step} of {total_steps}" if state.began else "before the first step"
    return f"interrupted {place}; {saved}; run the same command again to continue"
