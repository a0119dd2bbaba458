"""Shared parts of all trainings: typed configs, early errors, and states that survive kills and full disks."""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from autodrag.errors import AutodragError
from autodrag.train.base import (
    RunConfig,
    Steps,
    TrainingModule,
    check_batch,
    choose_precision,
    half_cosine,
    own_rows,
    parse_config,
    run_training,
)
from autodrag.train.predictor import PredictorTraining, Stage
from autodrag.train.regularizer import RegularizerTraining

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers


class Toy(TrainingModule):
    """A training that adds the index of every step to a number."""

    def __init__(
        self,
        total: int,
        size: int = 1,
        interrupt_at: int | None = None,
        interrupt_update_at: int | None = None,
        presses: int = 1,
    ) -> None:
        """Ctrl-C is pressed at the start of step `interrupt_at`, `presses` times in the update of the other step."""
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))
        self.total, self.interrupt_at, self.interrupt_update_at, self.presses = (
            total,
            interrupt_at,
            interrupt_update_at,
            presses,
        )
        self.seen: list[int] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(Steps(self.step, self.total), batch_size=None)

    def training_step(self, step: int, batch_idx: int) -> None:
        if step == self.interrupt_at:
            self.interrupt_at = None
            signal.raise_signal(signal.SIGINT)
        self.seen.append(int(step))
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(-(step + 1) * self.value.sum())
        with self.update():
            optimizer.step()  # type: ignore[union-attr]
            if step == self.interrupt_update_at:
                for _ in range(self.presses):
                    signal.raise_signal(signal.SIGINT)
            self.step += 1


def run(folder: Path, toy: Toy, **changes: Any) -> None:
    config = replace(RunConfig(folder, precision="32-true", accelerator="cpu", log_steps=1), **changes)
    run_training(toy, config, batch=2, total_steps=toy.total)


def test_every_step_runs_once_over_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Toy(6)
    run(tmp_path, first, max_minutes=1e-9)  # stops after one step
    second = Toy(6)
    run(tmp_path, second)
    assert (first.seen, second.seen) == ([0], [1, 2, 3, 4, 5])
    assert float(second.value.detach()) == sum(range(1, 7))
    assert "training: 6/6 steps, " in capsys.readouterr().out
    third = Toy(6)
    run(tmp_path, third)  # all steps are done
    assert (third.seen, third.step, float(third.value.detach())) == ([], 6, 21.0)


@pytest.mark.parametrize(
    ("pressed", "step"), [({"interrupt_at": 4}, 4), ({"interrupt_update_at": 4}, 5), ({"interrupt_at": 0}, 0)]
)
def test_ctrl_c_saves_a_whole_step_and_says_how_to_continue(tmp_path: Path, pressed: dict[str, int], step: int) -> None:
    handler = signal.getsignal(signal.SIGINT)
    said = f"interrupted at step {step} of 9; the state of step {step} is saved in '{tmp_path}/last.ckpt'; run the same"
    with pytest.raises(KeyboardInterrupt, match=re.escape(said)):
        run(tmp_path, Toy(9, **pressed))
    assert signal.getsignal(signal.SIGINT) is handler
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (saved["step"], float(saved["state_dict"]["value"])) == (step, sum(range(step + 1)))
    resumed = Toy(9)
    run(tmp_path, resumed)
    assert resumed.seen == list(range(step, 9)) and float(resumed.value.detach()) == sum(range(10))
    assert not list(tmp_path.glob("*.partial"))


def test_a_second_ctrl_c_keeps_the_last_saved_state(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="the state of step 3 is saved in"):
        run(tmp_path, Toy(9, interrupt_update_at=3, presses=2), save_minutes=1e-9)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["step"] == 3
    with pytest.raises(KeyboardInterrupt, match="nothing is saved yet"):
        run(tmp_path / "other", Toy(9, interrupt_update_at=3, presses=2))


@pytest.mark.parametrize("place", ["write", "replace"])
def test_full_disk_keeps_the_previous_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    run(tmp_path, Toy(3))
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(*_: object, **__: object) -> None:
        if place == "write":
            (tmp_path / "last.partial").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(L.Trainer, "save_checkpoint", full)
        else:
            patch.setattr(os, "replace", full)
        with pytest.raises(AutodragError, match=r"last\.ckpt' cannot be written: the disk is full; free some space"):
            run(tmp_path, Toy(5))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    resumed = Toy(5)
    run(tmp_path, resumed)
    assert resumed.seen == [3, 4]


def test_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Toy(2))
    with pytest.raises(AutodragError, match=r"last\.ckpt was saved by a network of other sizes; remove it or choose"):
        run(tmp_path, Toy(2, size=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "abacus"}, "accelerator 'abacus' with 1 devices cannot be used"),
        pytest.param(
            {"accelerator": "gpu"},
            "accelerator 'gpu' with 1 devices cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available"),
        ),
    ],
)
def test_unavailable_accelerators(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AutodragError, match=message):
        run(tmp_path, Toy(1), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "8-bit"}, "precision '8-bit': expected auto, bf16-mixed or 32-true"),
        ({"log_steps": 0}, "log_steps and save_minutes must be positive"),
        ({"save_minutes": 0.0}, "must be positive"),
        ({"devices": 0}, "devices 0, nodes 1: expected at least 1"),
        ({"nodes": 0}, "nodes 0: expected at least 1"),
    ],
)
def test_invalid_run_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(folder=Path("x"), **changes)


def test_half_precision_needs_hardware_support(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert choose_precision("32-true", "gpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for capability, tiles, products, chosen in (
        ("AVX2", False, False, "32-true"),
        ("DEFAULT", False, False, "32-true"),
        ("AVX512", False, False, "32-true"),
        ("AVX512", False, True, "bf16-mixed"),
        ("AVX512", True, False, "bf16-mixed"),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda products=products: products)
        assert choose_precision("auto", "cpu") == choose_precision("auto", "auto") == chosen
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # a version of torch without this function
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_precision("auto", "cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, chosen in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=supported: has)
        assert choose_precision("auto", "auto") == chosen


def test_batch_must_be_divisible_by_the_number_of_processes() -> None:
    check_batch(12, RunConfig(folder=Path("x"), devices=3, nodes=2))
    with pytest.raises(AutodragError, match="batch 8 cannot be divided among 6 processes; choose a multiple"):
        check_batch(8, RunConfig(folder=Path("x"), devices=3, nodes=2))


def test_every_row_of_a_batch_belongs_to_one_process() -> None:
    class Rank(L.Trainer):
        world_size = 3
        global_rank = 0

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    rows = [list(range(12))[own_rows(12, Rank(rank))] for rank in range(3)]
    assert [row for part in rows for row in part] == list(range(12)) and {len(part) for part in rows} == {4}


def test_half_cosine_warms_up_and_ends_at_zero() -> None:
    factors = [half_cosine(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.5)  # warm-up takes 2 % of the steps, which are 2 steps
    assert max(factors) == factors[1] == pytest.approx(1.0, rel=1e-3)
    assert factors[50] == pytest.approx(0.5) and factors[100] == pytest.approx(0.0, abs=1e-9)


def test_fields_are_typed_and_overridden_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    stages = "[{steps: 3}, {lr: 1.0e-5, travel_share: [0.4, 1.0]}]"
    file.write_text(
        f"run: {{folder: runs/x}}\nnet: {{width: 64, heads: 4}}\ntraining: {{batch: 16, stages: {stages}}}\n"
    )
    words = ["--config", str(file), "--training.batch", "8", "--motion.psi", "[0.3, 0.8]"]
    parsed = parse_config(PredictorTraining, "predictor", words)
    assert (parsed.net.width, parsed.net.variant, parsed.training.batch) == (64, "default", 8)
    assert parsed.motion.psi == (0.3, 0.8)
    assert parsed.training.stages == (Stage(steps=3), Stage(lr=1e-5, travel_share=(0.4, 1.0)))
    one = parse_config(PredictorTraining, "predictor", [*words, "--training.stages", "[{steps: 7}]"])
    assert one.training.stages == (Stage(steps=7),)
    wrong = [["--training.speed", "1"], ["--net.width", "wide"], ["--net.variant", "best"], []]
    wrong += [["--training.stages", "[{speed: 1}]"], ["--training.stages", "[{steps: many}]"]]
    for words in (*(["--run.folder", "x", *w] if w else w for w in wrong), ["--config", str(tmp_path / "none.yaml")]):
        with pytest.raises(AutodragError):
            parse_config(PredictorTraining, "predictor", words)
    for words, message in (
        (["--net.heads", "7"], "width 512 must be a multiple of heads 7"),
        (["--training.stages", "[{lr: -1}]"], "lr > 0"),
        (["--training.stages", "[]"], "at least one stage"),
        (["--run.devices", "0"], "devices 0, nodes 1"),
    ):
        with pytest.raises(AutodragError, match=message):
            parse_config(PredictorTraining, "predictor", ["--run.folder", "x", *words])


def test_all_fields_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, name in ((RegularizerTraining, "regularizer"), (PredictorTraining, "predictor")):
        with pytest.raises(SystemExit) as ended:
            parse_config(kind, name, ["--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for words in (
            "--net.width",
            "--training.batch",
            "--run.save_minutes",
            "Minutes between two saved states",
            "Width of the tokens",
        ):
            assert words in text
