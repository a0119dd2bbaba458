"""The published loop with other trackers and other blocks, as DragGAN's tables compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autodrag.infer.refine import RefineConfig, StepState, refine

from autodrag.errors import AutodragError
from autodrag.images import to_uint8
from autodrag.infer import refine as refiner
from autodrag.nets.stylegan2 import Generator, seed_z

IMAGE = (32, 32)
HANDLE, TARGET = torch.tensor([[12.0, 14.0]]), torch.tensor([[18.0, 11.0]])


@pytest.fixture(scope="module")
def generator(make_generator: Callable[..., Generator]) -> Generator:
    return make_generator().freeze()


@pytest.fixture(scope="module")
def latent(generator: Generator) -> torch.Tensor:
    return generator.map(seed_z(3, generator.config.z_dim))


def settings(**changes: object) -> RefineConfig:
    preset = replace(RefineConfig.preset("draggan", IMAGE), steps=3, lr=0.01, tracking_radius=4)
    return replace(preset, **changes)  # type: ignore[arg-type]


def test_without_tracking_every_step_pulls_at_the_first_place(generator: Generator, latent: torch.Tensor) -> None:
    states: list[StepState] = []
    config = settings(tracker="none")
    result = refine(generator, latent, HANDLE, TARGET, config=config, callback=states.append)
    assert all(torch.equal(state.points, HANDLE) for state in states) and result.reason == "steps"
    assert not torch.equal(result.latent, latent)
    confidences = [float(state.confidences) for state in states]
    assert confidences[0] == pytest.approx(1.0, abs=1e-5) and confidences[-1] < confidences[0]


def test_raft_follows_the_images(generator: Generator, latent: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for RAFT is shown the image before the drag and that of every step; its flow moves the handle."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        seen.append((first, second))
        return np.full((32, 32, 2), (len(seen), -0.5 * len(seen)), np.float32)

    asked: list[Path | None] = []

    def load(device: torch.device, weights: Path | None) -> object:
        asked.append(weights)
        return flow

    monkeypatch.setattr(refiner, "load_raft", load)
    states: list[StepState] = []
    config = settings(tracker="raft", raft_weights=Path("mine.pth"))
    refine(generator, latent, HANDLE, TARGET, config=config, callback=states.append)
    assert asked == [Path("mine.pth")]
    before = to_uint8(generator(latent))[0]
    for number, (state, (first, second)) in enumerate(zip(states, seen, strict=True), start=1):
        assert np.array_equal(first, before)
        assert np.abs(second.astype(int) - to_uint8(generator(state.latent))[0]).max() <= 1
        assert torch.allclose(state.points, HANDLE + torch.tensor([[number, -0.5 * number]]))


def test_raft_that_is_not_at_hand_is_one_sentence(generator: Generator, latent: torch.Tensor) -> None:
    with pytest.raises(AutodragError, match="RAFT needs"):
        config = settings(tracker="raft", raft_weights=Path("nowhere.pth"))
        refine(generator, latent, HANDLE, TARGET, config=config)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_nearest_feature_is_the_default_in_either_norm(
    generator: Generator, latent: torch.Tensor, norm: str
) -> None:
    a = refine(generator, latent, HANDLE, TARGET, config=settings(norm=norm))
    b = refine(generator, latent, HANDLE, TARGET, config=settings(norm=norm, tracker="nearest"))
    assert torch.equal(a.latent, b.latent)


def test_blocks_are_chosen_for_either_use(generator: Generator, latent: torch.Tensor) -> None:
    """Block 3 is the generator's last: naming it changes nothing; other blocks change what they are used for."""
    plain = refine(generator, latent, HANDLE, TARGET, config=settings())

    def run(**blocks: tuple[int, ...]) -> torch.Tensor:
        return refine(generator, latent, HANDLE, TARGET, config=settings(**blocks)).latent

    assert torch.equal(run(supervised_blocks=(3,), tracked_blocks=(9,)), plain.latent)
    assert torch.equal(run(supervised_blocks=(2,), tracked_blocks=(2,)), run_block(generator, latent, 2))
    changed = [run(supervised_blocks=(2,)), run(supervised_blocks=(2, 3)), run(supervised_blocks=(1,))]
    assert not any(torch.equal(a, plain.latent) for a in changed)


def run_block(generator: Generator, latent: torch.Tensor, block: int) -> torch.Tensor:
    return refine(generator, latent, HANDLE, TARGET, config=settings(feature_block=block)).latent


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "locate", "tracker": "none"}, "for the objective draggan alone"),
        ({"objective": "locate", "tracked_blocks": (2,)}, "for the objective draggan alone"),
        ({"supervised_blocks": (-1,)}, "expected blocks from 0 on"),
    ],
)
def test_bad_settings(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings(**changes)
