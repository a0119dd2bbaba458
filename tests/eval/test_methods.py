from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learned import save_learned, tiny_nets
from torch import Tensor

from autodrag.errors import AutodragError, CheckpointError
from autodrag.eval.methods import METHODS, Outcome, Settings, check_names, make_methods
from autodrag.nets.stylegan2 import Generator, seed_z


def test_the_published_stop_rule() -> None:
    settings = Settings()
    assert [settings.stop_px(n) for n in (1, 5, 6, 68)] == [1.0, 1.0, 2.0, 2.0]
    assert settings.overrides(6) == {"steps": 300, "stop_px": 2.0}
    assert Settings(None, "own").overrides(6) == {}
    assert Settings(10, 0.25).overrides(1) == {"steps": 10, "stop_px": 0.25}


@pytest.mark.parametrize("values", [{"steps": -1}, {"stop": 0.0}, {"stop": float("nan")}])
def test_bad_settings(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Settings(**values)


def test_names_are_checked() -> None:
    check_names(["none", "draggan"])
    with pytest.raises(AutodragError, match="method 'magic' is unknown; expected some of none, draggan"):
        check_names(["none", "magic"])
    with pytest.raises(AutodragError, match="'none' is named twice"):
        check_names(["none", "none"])


@pytest.mark.parametrize("name", ["userlt", "predictor", "hybrid"])
def test_a_missing_net_is_named(name: str, tiny_generator: Generator, tiny_checkpoint: Path) -> None:
    with pytest.raises(AutodragError, match=str(tiny_checkpoint)):
        make_methods([name], tiny_generator, tiny_checkpoint, Settings())


def test_by_default_all_that_can_run(tiny_generator: Generator, tiny_checkpoint: Path) -> None:
    assert list(make_methods(None, tiny_generator, tiny_checkpoint, Settings())) == [
        "none",
        "draggan",
        "refiner",
        "freedrag",
    ]


@pytest.mark.parametrize("name", ["draggan", "refiner", "freedrag"])
def test_methods_keep_to_the_steps_and_tell_what_they_do(
    name: str, tiny_generator: Generator, tiny_checkpoint: Path
) -> None:
    latent = tiny_generator.map(seed_z(0, 32), psi=0.7)
    handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[20.0, 12.0]])
    method = make_methods([name], tiny_generator, tiny_checkpoint, Settings(steps=3, stop=0.01))[name]
    seen: list[tuple[float, Tensor]] = []
    outcome = method(latent, handles, targets, trace=lambda seconds, w: seen.append((seconds, w)))
    assert isinstance(outcome, Outcome) and outcome.steps == 3 and outcome.reason == "steps"
    assert len(seen) == 4  # before each step, and at the end
    assert [s for s, _ in seen] == sorted(s for s, _ in seen)
    assert torch.equal(seen[0][1], latent) and not torch.equal(seen[-1][1], latent)
    assert torch.equal(outcome.latent[:, 6:], latent[:, 6:])


@pytest.mark.parametrize("regularizer", [True, False])
def test_a_predictor_runs_with_the_regularizer_that_it_was_trained_with(
    tmp_path: Path, tiny_generator: Generator, regularizer: bool
) -> None:
    save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator, regularizer=regularizer))
    latent, points = tiny_generator.map(seed_z(0, 32), psi=0.7), torch.tensor([[8.0, 8.0]])
    method = make_methods(["predictor"], tiny_generator, tmp_path, Settings())["predictor"]
    assert not torch.equal(method(latent, points, points + 8).latent, latent)
    if regularizer:
        (tmp_path / "regularizer.safetensors").unlink()
        with pytest.raises(CheckpointError, match="was trained together with a regularizer"):
            make_methods(["hybrid"], tiny_generator, tmp_path, Settings())


def test_none_does_nothing(tiny_generator: Generator, tiny_checkpoint: Path) -> None:
    latent = tiny_generator.map(seed_z(0, 32))
    points = torch.tensor([[8.0, 8.0]])
    outcome = METHODS["none"](tiny_generator, tiny_checkpoint, Settings())(latent, points, points + 4)
    assert outcome == Outcome(latent, 0, "none")
