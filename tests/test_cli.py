"""The command line: written files, messages, and exit codes of all errors."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeRefiner
from learned import save_learned, tiny_nets

from autodrag import cli
from autodrag.checkpoint import load_code, load_generator
from autodrag.cli import main
from autodrag.commands import batch as batch_command
from autodrag.commands.outcome import write_outcome
from autodrag.edits import schema
from autodrag.errors import AutodragError
from autodrag.images import read_image, write_png
from autodrag.infer.draggan import DragganConfig
from autodrag.infer.task import DragResult
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors

pytestmark = pytest.mark.usefixtures("fake_refiner")

DRAG = ["--seed", "7", "--drag", "10,12:20,14"]
FILES = ["after.png", "animation.gif", "animation.mp4", "annotated.png", "before.png"]
FILES += ["edit.json", "latent.safetensors", "result.json"]


@pytest.fixture
def drag(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., int]:
    """Run `autodrag drag` on the tiny checkpoint into tmp_path/out."""

    def run(*options: str) -> int:
        out = ["--out", str(tmp_path / "out"), "--no-animation", "--device", "cpu"]
        return main(["drag", "--checkpoint", str(tiny_checkpoint), *out, *options])

    return run


def edit(**changes: Any) -> str:
    """One edit as a JSON line."""
    return json.dumps({"seed": 7, "drags": [{"handle": [10, 12], "target": [20, 14]}], **changes})


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error, which must start with `error: `."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


# --- drag -----------------------------------------------------------------------------------------


def test_drag_writes_everything(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code = main(["drag", "--checkpoint", str(tiny_checkpoint), *DRAG, "--anchor", "1,1", "--out", str(out)])
    assert code == 0
    assert sorted(item.name for item in out.iterdir()) == sorted(FILES)
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress bar in a pipe
    assert "10,12 to 20,14: 0.50 px left ± " in captured.out
    assert "arrived after 5 steps" in captured.out
    result = json.loads((out / "result.json").read_text())
    assert result["image_size"] == {"width": 32, "height": 32}
    assert (result["seed"], result["psi"], result["noise"]) == (7, 0.7, "const")
    assert set(result["versions"]) == {"autodrag", "python", "torch"}
    assert set(result["timing_s"]) == {"open", "drag", "total"}
    (outcome,) = result["edits"]
    assert outcome["points"][0]["distance"] == 0.5
    assert outcome["points"][0]["landmark_distance"] is None
    assert read_image(out / "annotated.png").shape == (512, 1032, 3)
    assert not np.array_equal(read_image(out / "before.png"), read_image(out / "after.png"))
    config = load_generator(tiny_checkpoint)[0].config
    (layer,) = load_code(out / "latent.safetensors", config, generator=result["fingerprint"]).stack
    assert torch.isfinite(layer.latent).all()


def test_a_written_session_can_be_dragged_again(drag: Callable[..., int], tmp_path: Path) -> None:
    mask = np.full((32, 32, 3), 255, dtype=np.uint8)
    mask[:4] = 0
    write_png(tmp_path / "m.png", mask)
    assert drag(*DRAG, "--mask", str(tmp_path / "m.png"), "--psi", "0.5") == 0
    first = read_image(tmp_path / "out" / "after.png")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert drag("--edit", str(tmp_path / "moved" / "edit.json")) == 0
    assert np.array_equal(read_image(tmp_path / "out" / "after.png"), first)


def test_a_session_of_several_edits(drag: Callable[..., int], tmp_path: Path) -> None:
    item = {"drags": [{"handle": [10, 12], "target": [20, 14]}]}
    more = {"drags": [{"handle": [20, 14], "target": [5, 5]}], "parameters": {"keep_references": True}}
    (tmp_path / "s.json").write_text(json.dumps({"autodrag_session": 1, "edits": [{"seed": 7, **item}, more]}))
    assert drag("--edit", str(tmp_path / "s.json")) == 0
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["edits"]) == 2


def test_options_override_the_edit_file(drag: Callable[..., int], tmp_path: Path, fake_refiner: FakeRefiner) -> None:
    (tmp_path / "e.json").write_text(edit(parameters={"preset": "draggan", "steps": 2, "lr": 0.5}))
    assert drag("--edit", str(tmp_path / "e.json"), "--steps", "3", "--drag", "1,1:2,2", "--budget", "9") == 0
    call = fake_refiner.calls[-1]
    expected = DragganConfig.for_image((32, 32))
    assert call.config == dataclasses.replace(expected, steps=3, lr=0.5) and call.control.budget_s == 9.0
    assert call.drag.handles.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--steps", "1"], "also try more --steps"),
        (["--budget", "1e-6"], "also try a larger --budget"),
    ],
)
def test_a_drag_that_ends_far_away_says_what_to_try(
    drag: Callable[..., int],
    fake_refiner: FakeRefiner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    advice: str,
) -> None:
    def fall_short(*args: Any) -> DragResult:
        result = fake_refiner.locate(*args)
        reason: Any = "budget" if fake_refiner.calls[-1].control.budget_s else "steps"
        return dataclasses.replace(result, distances=result.distances + 7, reason=reason)

    assert drag(*DRAG) == 0
    assert "try" not in capsys.readouterr().out
    monkeypatch.setattr("autodrag.infer.drag.locate", fall_short)
    assert drag(*DRAG, *options) == 0
    assert advice in capsys.readouterr().out


def test_latents_start_an_edit(drag: Callable[..., int], tmp_path: Path) -> None:
    assert drag(*DRAG) == 0
    shutil.move(tmp_path / "out", tmp_path / "first")
    assert drag("--latent", str(tmp_path / "first" / "latent.safetensors"), "--drag", "3,3:5,5") == 0
    after, before = (read_image(tmp_path / name) for name in ("first/after.png", "out/before.png"))
    assert np.array_equal(after, before)


# --- bad input: one sentence, exit code 2 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "7"], "there are no points to drag; give at least one drag"),
        (["--drag", "32,5:1,1"], "handle 32,5 lies outside the image; x goes from 0 to 31, y from 0 to 31"),
        (["--drag", "5,5:-9,1"], "target -9,1 lies outside the image"),
        (["--drag", "nan,5:1,1"], "point 'nan,5' is not finite"),
        (["--drag", "1,2"], "'1,2' is not a drag; expected handle:target as x,y:x,y"),
        (["--drag", "1,2:3"], "'3' is not a point"),
        (
            ["--drag", "5,5:1,1", "--drag", "5.2,4.9:8,8"],
            "two handles lie on the pixel 5,5; remove one of them",
        ),
        (["--drag", "5,5:1,1", "--anchor", "5,5"], "anchor 5,5 lies on a handle"),
        (
            ["--drag", "5,5:1,1", "--mask", "{tmp}/small.png"],
            "is 16x16 px, and the image is 32x32; resize the mask",
        ),
        (
            ["--drag", "5,5:1,1", "--mask", "{tmp}/black.png"],
            "the mask is False everywhere; set True where the image may change",
        ),
        (["--drag", "5,5:1,1", "--mask", "{tmp}/none.png"], "none.png' does not exist"),
        (["--drag", "5,5:1,1", "--checkpoint", "nope"], "checkpoint 'nope' does not exist; available:"),
        (["--drag", "5,5:1,1", "--checkpoint", "{tmp}/broken"], "is corrupt or truncated"),
        (
            ["--drag", "5,5:1,1", "--checkpoint", "{tmp}/foreign"],
            "was trained on generator '0000000000000000'",
        ),
        (["--drag", "5,5:1,1", "--out", "{tmp}/black.png/out"], "Not a directory"),
        (["--drag", "5,5:1,1", "--seed", "-1"], "seed is -1; expected at least 0"),
        (["--drag", "5,5:1,1", "--seed", "1", "--latent", "x"], "--seed and --latent are both given"),
        (["--drag", "5,5:1,1", "--latent", "{tmp}/none.safetensors"], "none.safetensors' does not exist"),
        (["--drag", "5,5:1,1", "--psi", "nan"], "psi is nan; expected a finite number"),
        (["--drag", "5,5:1,1", "--psi", "1e9"], "psi is 1000000000.0; expected at most 2"),
        (["--drag", "5,5:1,1", "--latent", "x", "--psi", "0.5"], "--psi has no effect with --latent; leave it out"),
        (["--drag", "5,5:1,1", "--feature-block", "99"], "feature_block is 99; expected at most 8"),
        (["--drag", "5,5:1,1", "--lr", "1"], "lr 1 has no effect with the preset default; leave it out"),
        (
            ["--drag", "5,5:1,1", "--preset", "draggan", "--method", "predict"],
            "preset 'draggan' has no effect with the method predict; use refine or both",
        ),
        (["--drag", "-5,4:3,4"], "handle -5,4 lies outside the image; x goes from 0 to 31"),
        (["--anchor", "-5,4", "--drag", "5,5:1,1"], "anchor -5,4 lies outside the image"),
        (["--landmark", "nose"], "'nose' is not a landmark and its displacement; expected such as nose:+10,0"),
        (["--landmark", "nose:+5"], "'nose:+5' is not a landmark and its displacement; expected such as nose:+10,0"),
        (["--landmark", "nose:+5,0"], "has no landmark net; give pixels with --drag"),
        (["--drag", "5,5:1,1", "--label", "1"], "label 1 is given, but this generator has no classes"),
        (["--drag", "5,5:1,1", "--lr", "-1"], "lr is -1.0; expected greater than 0"),
        (["--drag", "5,5:1,1", "--device", "warp"], "device 'warp' cannot be used here; try --device cpu"),
        (["--edit", "{tmp}/none.json"], "none.json' does not exist"),
        (["--edit", "{tmp}/bad.json"], "bad.json': drags[0].target is missing; add it"),
        (["--edit", "{tmp}/predict.json"], "method 'predict' needs a predictor"),
    ],
)
def test_bad_input(
    drag: Callable[..., int],
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    write_png(tmp_path / "small.png", np.full((16, 16, 3), 255, dtype=np.uint8))
    write_png(tmp_path / "black.png", np.zeros((32, 32, 3), dtype=np.uint8))
    (tmp_path / "bad.json").write_text('{"seed": 1, "drags": [{"handle": [1, 2]}]}')
    (tmp_path / "predict.json").write_text(edit(method="predict"))
    shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    raw = (tmp_path / "broken" / "generator.safetensors").read_bytes()
    (tmp_path / "broken" / "generator.safetensors").write_bytes(raw[:-7])
    shutil.copytree(tiny_checkpoint, tmp_path / "foreign")
    save_tensors(
        tmp_path / "foreign" / "predictor.safetensors",
        {"a": torch.ones(1)},
        kind="predictor",
        config={},
        extra={"generator": "0" * 16},
    )
    assert drag(*(option.replace("{tmp}", str(tmp_path)) for option in options)) == 2
    assert sentence in said(capsys)
    assert not list((tmp_path / "out").glob("*"))


def test_numbers_of_handles_and_targets_differ(drag: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line a drag is a pair, so a handle without a target is not a drag."""
    assert drag("--drag", "1,2:") == 2
    assert said(capsys) == "error: '' is not a point; expected x,y in pixels, such as 60,70"


def test_target_on_handle_is_nothing_to_do(drag: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert drag("--drag", "5,5:5,5") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("nothing to do: every handle already lies on its target\n", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores file permissions")
def test_a_folder_without_write_permission(
    drag: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert drag(*DRAG, "--out", str(tmp_path / "closed" / "out")) == 2
    assert "Permission denied" in said(capsys)


def test_the_disk_is_full(
    drag: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert drag(*DRAG) == 2
    assert said(capsys) == f"error: '{tmp_path}/out/before.png' cannot be written: the disk is full; free some space"
    assert not list((tmp_path / "out").glob("*"))


def test_a_run_replaces_the_files_of_an_earlier_one(drag: Callable[..., int], tmp_path: Path) -> None:
    mask = np.full((32, 32, 3), 255, dtype=np.uint8)
    mask[:4] = 0
    write_png(tmp_path / "m.png", mask)
    assert drag(*DRAG, "--mask", str(tmp_path / "m.png")) == 0
    (tmp_path / "out" / "animation.gif").write_bytes(b"of an earlier run")
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    assert (tmp_path / "out" / "edit.mask-1.png").is_file()
    assert drag(*DRAG) == 0
    written = {item.name for item in (tmp_path / "out").iterdir()}
    assert written == {*FILES, "notes.txt"} - {"animation.gif", "animation.mp4"}


def test_interruption(
    drag: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    assert drag(*DRAG) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "COMMAND is missing; see autodrag --help"),
        (["darg"], "'darg' is not known; did you mean drag?"),
        (["fly"], "'fly' is not known; expected one of demo, app, drag, batch, sample"),
        (["drag", "--sede", "1"], "--sede is not an option of autodrag drag; did you mean --seed?"),
        (["drag", "--sede=1"], "--sede is not an option of autodrag drag; did you mean --seed?"),
        (["drag", "--xyzzy"], "--xyzzy is not an option of autodrag drag; see autodrag drag --help"),
        (["drag", "stray"], "unexpected argument 'stray'; see autodrag drag --help"),
        (["drag", "--seed"], "--seed: the value is missing; see autodrag drag --help"),
        (["drag", "--seed", "x"], "--seed 'x' cannot be read; expected a whole number"),
        (["drag", "--preset", "magic"], "--preset 'magic' is not known; expected one of default, draggan"),
        (["drag", "--method", "predct"], "--method 'predct' is not known; did you mean predict?"),
        (["convert", "x.pkl"], "--out is missing; see autodrag convert --help"),
        (["convert"], "file and --out are missing; see autodrag convert --help"),
        (["drag", "--psi", "x"], "--psi 'x' cannot be read; expected a number"),
        (
            ["eval", "landmarks", "--pears", "3"],
            "--pears is not an option of autodrag eval landmarks; did you mean --pairs?",
        ),
        (["eval", "speed", "--pairs", "3"], "--pairs is not an option of autodrag eval speed; see autodrag eval speed"),
        (
            ["eval", "samples", "--cuont", "3"],
            "--cuont is not an option of autodrag eval samples; did you mean --count?",
        ),
        (["train", "predicter"], "'predicter' is not known; did you mean predictor?"),
        (["eval", "--pairs", "3"], "'3' is not known; expected one of landmarks, paired"),
    ],
)
def test_usage_errors_give_one_sentence_with_a_hint(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert sentence in said(capsys)


@pytest.mark.parametrize("words", [[], ["train"], ["eval"]])
def test_help_describes_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    names = {**cli.COMMANDS, **cli.DESCRIPTIONS} if not words else cli.GROUPS[words[0]]
    for name, description in names.items():
        assert name in text and description.split()[0] in text
    if not words:
        return
    for name in names:
        module = cli.BASELINE_TRAININGS.get(name, f"autodrag.{words[0]}.{name}")
        assert importlib.util.find_spec(module) is not None


# --- batch ----------------------------------------------------------------------------------------


@pytest.fixture
def batch(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., int]:
    """Write lines to a JSONL file and run `autodrag batch` on it into tmp_path/out."""

    def run(lines: list[str], *options: str) -> int:
        (tmp_path / "edits.jsonl").write_text("\n".join(lines))
        words = ["batch", str(tmp_path / "edits.jsonl"), "--out", str(tmp_path / "out"), "--device", "cpu"]
        return main([*words, "--checkpoint", str(tiny_checkpoint), *options])

    return run


def statuses(folder: Path) -> list[str]:
    """Outcome of each line, from summary.json."""
    return [entry["status"] for entry in json.loads((folder / "summary.json").read_text())]


def test_a_bad_line_does_not_stop_the_rest(
    batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {"drags": [{"handle": [1, 1], "target": [1, 1]}]}
    lines = [
        edit(),
        "not json",
        "",
        edit(drags=[{"handle": [99, 1], "target": [1, 1]}]),
        edit(**still),
        edit(seed=8),
    ]
    lines.append('{"seed": ' + "1" * 2_000_000 + "}")
    lines.append(edit(mask="../m.png"))
    assert batch(lines) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "line 2: the edit is not JSON: Expecting value at line 1, column 1",
        "line 4: handle 99,1 lies outside the image; x goes from 0 to 31, y from 0 to 31",
        "line 7: the edit is larger than the limit of 1048576 bytes",
        "line 8: the edit: mask '../m.png' leaves the folder of the document; expected a path relative to that folder",
    ]
    assert captured.out == f"2 done, 0 kept from before, 1 with nothing to do, 4 failed; wrote {tmp_path / 'out'}\n"
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["00001", "00006", "summary.json"]
    assert json.loads((tmp_path / "out" / "00006" / "result.json").read_text())["seed"] == 8
    assert statuses(tmp_path / "out") == ["done", "failed", "failed", "nothing", "done", "failed", "failed"]


def test_interrupted_batch_resumes(
    batch: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_refiner: FakeRefiner
) -> None:
    lines = [edit(seed=seed) for seed in range(4)]

    def stop_at_the_third(editor: Any, outcome: Any, folder: Path, **options: Any) -> None:
        write_outcome(editor, outcome, folder, **options)
        if options["extra"]["line"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_command, "write_outcome", stop_at_the_third)
    assert batch(lines) == 130
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["00001", "00002"]
    monkeypatch.setattr(batch_command, "write_outcome", write_outcome)
    (tmp_path / "out" / ".00003.deadbeef.tmp").mkdir()  # as left behind by a killed process
    assert len(fake_refiner.calls) == 3
    assert batch(lines) == 0
    assert len(fake_refiner.calls) == 5  # only lines 3 and 4
    assert statuses(tmp_path / "out") == ["kept", "kept", "done", "done"]
    assert sorted(item.name for item in (tmp_path / "out").iterdir())[:2] == ["00001", "00002"]


def test_a_changed_line_or_setting_is_run_again(batch: Callable[..., int], tmp_path: Path) -> None:
    assert batch([edit(), edit(seed=2)]) == 0
    assert batch([edit(), edit(seed=3)]) == 0
    assert statuses(tmp_path / "out") == ["kept", "done"]
    assert json.loads((tmp_path / "out" / "00002" / "result.json").read_text())["seed"] == 3
    assert batch([edit(), edit(seed=3)], "--steps", "2") == 0
    assert statuses(tmp_path / "out") == ["done", "done"]


def test_a_batch_removes_the_results_of_an_earlier_one(batch: Callable[..., int], tmp_path: Path) -> None:
    assert batch([edit(), edit(seed=2), edit(seed=3)]) == 0
    (tmp_path / "out" / "2024").mkdir()  # of the user
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    assert batch([edit(), "no longer an edit"]) == 1
    assert statuses(tmp_path / "out") == ["kept", "failed"]
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["00001", "2024", "notes.txt", "summary.json"]


def test_batches_without_edits(batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch(["x", "y"]) == 2
    capsys.readouterr()
    assert batch(["", "  "]) == 2
    assert "holds no edits" in said(capsys)
    assert main(["batch", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "none.jsonl' does not exist" in said(capsys)


# --- with a predictor -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tiny_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint folder with a predictor of random weights."""
    return str(save_learned(tmp_path_factory.mktemp("learned"), tiny_generator, tiny_nets(tiny_generator)))


@pytest.mark.parametrize(
    ("options", "method", "rounds", "steps"),
    [
        (["--rounds", "1"], "both", 1, 5),
        (["--method", "auto", "--rounds", "1"], "both", 1, 5),
        (["--method", "both", "--rounds", "1", "--steps", "2"], "both", 1, 2),
        (["--method", "predict", "--rounds", "1"], "predict", 1, 0),
        (["--method", "refine"], "refine", 0, 5),
    ],
)
def test_methods(
    learned: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    method: str,
    rounds: int,
    steps: int,
) -> None:
    words = ["--checkpoint", learned, *DRAG, "--no-animation", "--device", "cpu"]
    assert main(["drag", *words, *options, "--out", str(tmp_path / "out")]) == 0
    (outcome,) = json.loads((tmp_path / "out" / "result.json").read_text())["edits"]
    assert (outcome["method"], outcome["rounds"], outcome["steps"]) == (method, rounds, steps)
    said = capsys.readouterr().out
    assert ("1 prediction" in said) == (rounds > 0) and "1 predictions" not in said
    first = read_image(tmp_path / "out" / "after.png")
    again = ["drag", "--edit", str(tmp_path / "out" / "edit.json"), "--checkpoint", learned, "--no-animation"]
    assert main([*again, "--device", "cpu", "--out", str(tmp_path / "again")]) == 0
    assert np.array_equal(read_image(tmp_path / "again" / "after.png"), first)


def test_animation_of_a_prediction(learned: str, tmp_path: Path) -> None:
    words = ["--checkpoint", learned, *DRAG, "--method", "predict", "--device", "cpu"]
    assert main(["drag", *words, "--out", str(tmp_path)]) == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(FILES)


def test_invalid_methods_and_rounds(drag: Callable[..., int], learned: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert drag(*DRAG, "--method", "predict") == 2
    assert "method 'predict' needs a predictor, and" in said(capsys)
    assert main(["drag", "--checkpoint", learned, *DRAG, "--rounds", "0", "--device", "cpu"]) == 2
    assert "rounds" in said(capsys)


def test_a_batch_with_a_predictor(batch: Callable[..., int], learned: str, tmp_path: Path) -> None:
    assert batch([edit(method="predict"), edit()], "--checkpoint", learned) == 0
    results = [json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in ("00001", "00002")]
    assert [result["edits"][0]["method"] for result in results] == ["predict", "both"]


def test_batch_option_overrides_the_method_of_lines(batch: Callable[..., int], learned: str, tmp_path: Path) -> None:
    lines = [edit(method="both"), edit()]
    assert batch(lines, "--checkpoint", learned) == 0
    assert batch(lines, "--checkpoint", learned, "--method", "predict") == 0
    assert statuses(tmp_path / "out") == ["done", "done"]
    results = [json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in ("00001", "00002")]
    assert [result["edits"][0]["method"] for result in results] == ["predict", "predict"]


# --- the other commands ---------------------------------------------------------------------------


def test_sample(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--checkpoint", str(tiny_checkpoint), "--columns", "2"]
    assert main([*words, "--seeds", "0-2,9", "--out", str(tmp_path / "s.png")]) == 0
    assert read_image(tmp_path / "s.png").shape == (94, 66, 3)  # two rows of 32 px and a caption
    sheet = read_image(tmp_path / "s.png")
    captions = [sheet[top : top + 14, left : left + 32] for top in (32, 80) for left in (0, 34)]
    assert all(caption.min() < 128 and caption[0].min() == 255 for caption in captions)  # black on white
    assert not np.array_equal(captions[0], captions[1])
    capsys.readouterr()
    for seeds in ("", "a", "3-1", "0-99999", "1-", "-1"):
        assert main([*words, f"--seeds={seeds}", "--out", str(tmp_path / "s.png")]) == 2
        assert "expected such as 0-31" in said(capsys)
    assert main([*words, "--out", str(tmp_path / "s.gif")]) == 2
    assert "does not end in .png" in said(capsys)


def test_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["render", "--size", "16", "--supersample", "1"]
    assert main([*words, "--count", "2", "--out", str(tmp_path / "grid.png")]) == 0
    assert read_image(tmp_path / "grid.png").shape == (16, 34, 3)
    assert main([*words, "--count", "2", "--parts", "--out", str(tmp_path / "samples")]) == 0
    truth = json.loads((tmp_path / "samples" / "landmarks.json").read_text())
    assert [sample["file"] for sample in truth["samples"]] == ["000000.png", "000001.png"]
    assert np.array(truth["samples"][0]["landmarks"]).shape == (len(truth["names"]), 2)
    assert read_image(tmp_path / "samples" / "000001.parts.png").max() < len(truth["parts"])
    grid = read_image(tmp_path / "grid.png")
    assert np.array_equal(grid[:, :16], read_image(tmp_path / "samples" / "000000.png"))
    capsys.readouterr()
    assert main([*words, "--count", "0", "--out", str(tmp_path / "grid.png")]) == 2
    assert "count 0 is not usable" in said(capsys)
    assert main([*words, "--count", "2", "--out", str(tmp_path / "samples")]) == 2
    assert "is not empty, and samples of two runs must not mix; name a new one" in said(capsys)


def test_info(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_checkpoint), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["image_size"], facts["latent"], facts["landmarks"]) == (
        {"width": 32, "height": 32},
        [8, 32],
        None,
    )
    assert main(["info", str(tiny_checkpoint)]) == 0
    assert "images       32x32 px, no classes" in capsys.readouterr().out
    assert main(["info", "nope"]) == 2
    assert "checkpoint 'nope' does not exist" in said(capsys)


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


def test_convert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pkl").write_bytes(b"no pickle")
    assert main(["convert", str(tmp_path / "x.pkl"), "--out", str(tmp_path / "c")]) == 2
    assert "x.pkl" in said(capsys)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_delegation(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    heard: list[list[str]] = []

    class Module:
        @staticmethod
        def main(argv: list[str]) -> int:
            heard.append(argv)
            return 3

    def import_module(name: str) -> type[Module]:
        heard.append([name])
        return Module

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert main([command, "landmarks", "--config", "x.yaml", "--steps=3", "--help"]) == 3
    assert heard == [[f"autodrag.{command}.landmarks"], ["--config", "x.yaml", "--steps=3", "--help"]]


def test_demo_needs_a_landmark_net(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path)]) == 2
    assert "has no landmark net; give pixels with --drag" in said(capsys)


@pytest.fixture
def with_landmarks(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint folder with a landmark net of random weights."""
    net = LandmarkNet(LandmarkConfig(resolution=32, width=8, depth=2, names=("nose", "chin")))
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = dataclasses.asdict(net.config)
    save_tensors(folder / "landmarks.safetensors", net.state_dict(), kind="landmarks", config=config)
    return folder


def test_demo(with_landmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--checkpoint", str(with_landmarks), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert "by the landmark net" in capsys.readouterr().out
    (point,) = json.loads((tmp_path / "out" / "result.json").read_text())["edits"][0]["points"]
    assert point["landmark_distance"] is not None
    assert main([*words, "--landmark", "tail"]) == 2
    assert "landmark 'tail' is not known; expected one of nose, chin" in said(capsys)


def test_landmarks_can_be_dragged_by_name(with_landmarks: Path, drag: Callable[..., int], tmp_path: Path) -> None:
    words = ["--checkpoint", str(with_landmarks), "--seed", "7", "--drag", "1,1:2,2"]
    assert drag(*words, "--landmark", "chin:-3,+2") == 0
    first, second = json.loads((tmp_path / "out" / "result.json").read_text())["edits"][0]["points"]
    assert first["handle"] == [1, 1]
    moved = np.subtract(second["target"], second["handle"])
    assert np.allclose(moved, [-3, 2], atol=1e-4)


def test_help_does_not_import_torch_and_survives_a_closed_pipe() -> None:
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "autodrag.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in listing.stdout for name in cli.COMMANDS)
    assert "torch" not in listing.stderr and "pydantic" not in listing.stderr
    piped = f"{sys.executable} -m autodrag.cli schema | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", piped], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_ctrl_c_ends_a_command_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autodrag.cli", "render", "--count", "100000", "--out", str(tmp_path / "samples")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("samples/*.png")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted")


def test_error_messages_are_printed_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise AutodragError("two\nlines")

    monkeypatch.setattr("autodrag.commands.schema.run", fail)
    assert main(["schema"]) == 2
    assert said(capsys) == "error: two lines"
