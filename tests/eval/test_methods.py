from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learned import save_learned, tiny_nets
from torch import Tensor

from autodrag.errors import AutodragError, CheckpointError
from autodrag.eval.methods import METHODS, Limits, MethodResult, check_names, digest, identities, make_methods
from autodrag.infer.task import Drag
from autodrag.nets.stylegan2 import Generator, seed_z


def test_the_published_stop_rule() -> None:
    limits = Limits()
    assert [limits.stop_px(n) for n in (1, 5, 6, 68)] == [1.0, 1.0, 2.0, 2.0]
    assert limits.overrides(6) == {"steps": 300, "stop_px": 2.0}
    assert Limits(None, "own").overrides(6) == {}
    assert Limits(10, 0.25).overrides(1) == {"steps": 10, "stop_px": 0.25}


@pytest.mark.parametrize("values", [{"steps": -1}, {"stop": 0.0}, {"stop": float("nan")}])
def test_bad_limits(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Limits(**values)


def test_names_are_checked() -> None:
    check_names(["none", "draggan"])
    with pytest.raises(AutodragError, match="method 'magic' is unknown; expected some of none, draggan"):
        check_names(["none", "magic"])
    with pytest.raises(AutodragError, match="'none' is given twice"):
        check_names(["none", "none"])


@pytest.mark.parametrize("name", ["userlt", "predict", "both"])
def test_error_names_the_checkpoint(name: str, tiny_generator: Generator, tiny_checkpoint: Path) -> None:
    with pytest.raises(AutodragError, match=str(tiny_checkpoint)):
        make_methods([name], tiny_generator, tiny_checkpoint, Limits())


def test_default_methods_are_all_that_the_checkpoint_supports(tiny_generator: Generator, tiny_checkpoint: Path) -> None:
    assert list(make_methods(None, tiny_generator, tiny_checkpoint, Limits())) == [
        "none",
        "draggan",
        "refine",
        "freedrag",
    ]


@pytest.mark.parametrize("name", ["draggan", "refine", "freedrag"])
def test_methods_respect_the_step_limit_and_report_their_steps(
    name: str, tiny_generator: Generator, tiny_checkpoint: Path
) -> None:
    latent = tiny_generator.map(seed_z(0, 32), psi=0.7)
    handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[20.0, 12.0]])
    method = make_methods([name], tiny_generator, tiny_checkpoint, Limits(steps=3, stop=0.01))[name]
    seen: list[tuple[float, Tensor]] = []
    result = method(latent, Drag(handles, targets), trace=lambda seconds, w: seen.append((seconds, w)))
    assert result.steps == 3 and result.reason == "steps"
    assert len(seen) == 4  # before each step, and at the end
    assert [s for s, _ in seen] == sorted(s for s, _ in seen)
    assert torch.equal(seen[0][1], latent) and not torch.equal(seen[-1][1], latent)
    assert torch.equal(result.latent[:, 6:], latent[:, 6:])


@pytest.mark.parametrize("regularizer", [True, False])
def test_predictor_runs_with_its_regularizer(tmp_path: Path, tiny_generator: Generator, regularizer: bool) -> None:
    save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator, regularizer=regularizer))
    latent, points = tiny_generator.map(seed_z(0, 32), psi=0.7), torch.tensor([[8.0, 8.0]])
    method = make_methods(["predict"], tiny_generator, tmp_path, Limits())["predict"]
    assert not torch.equal(method(latent, Drag(points, points + 8)).latent, latent)
    if regularizer:
        (tmp_path / "regularizer.safetensors").unlink()
        with pytest.raises(CheckpointError, match="was trained together with a regularizer"):
            make_methods(["both"], tiny_generator, tmp_path, Limits())


def test_method_none_does_nothing(tiny_generator: Generator, tiny_checkpoint: Path) -> None:
    latent = tiny_generator.map(seed_z(0, 32))
    points = torch.tensor([[8.0, 8.0]])
    result = METHODS["none"](tiny_generator, tiny_checkpoint, Limits())(latent, Drag(points, points + 4))
    assert result == MethodResult(latent, 0, "none")


def test_identities_change_with_networks_and_settings(tmp_path: Path) -> None:
    before = identities(tmp_path, (64, 64))
    assert set(before) == set(METHODS) and before == identities(tmp_path, (64, 64))
    assert before != identities(tmp_path, (128, 128))  # the presets differ
    (tmp_path / "predictor.safetensors").write_bytes(b"one")
    after = identities(tmp_path, (64, 64))
    assert {name for name in METHODS if after[name] != before[name]} == {"predict", "both"}
    (tmp_path / "predictor.safetensors").write_bytes(b"two")
    (tmp_path / "userlt.safetensors").write_bytes(b"one")
    again = identities(tmp_path, (64, 64))
    assert {name for name in METHODS if again[name] != after[name]} == {"predict", "both", "userlt"}
    assert digest(Limits(7)) == digest(Limits(7)) != digest(Limits(8))
