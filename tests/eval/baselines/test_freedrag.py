"""FreeDrag: published formulas compared with values computed manually, and complete drags."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from autodrag.eval.baselines.freedrag import (
    FreeDragConfig,
    FreeDragState,
    difference,
    freedrag,
    line_candidates,
    next_points,
    read_patches,
    template_rate,
)
from autodrag.nets.stylegan2 import Generator, seed_z

IMAGE = (32, 32)
HANDLE, TARGET = torch.tensor([[12.0, 14.0]]), torch.tensor([[18.0, 14.0]])


def ramp(slope: float = 0.1) -> torch.Tensor:
    """A map with the value slope * x (px). L between two points is slope times their distance along x."""
    return (slope * torch.arange(32.0)).expand(1, 2, 32, 32)


def test_published_settings() -> None:
    c = FreeDragConfig.preset((512, 512))
    assert (c.expected, c.reach, c.lr, c.inner_steps, c.candidates) == (0.3, 3.0, 2e-3, 5, 10)
    assert (c.edit_layers, c.feature_block, c.mask_weight, c.steps, c.spacing) == (6, 5, 10.0, 300, 3.0)
    assert (c.stop_px, c.sign_off) == (1.0, 0.25)
    assert FreeDragConfig.preset((64, 64)).reach == 1.5
    with pytest.raises(ValueError, match="must be positive"):
        FreeDragConfig(expected=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        FreeDragConfig(inner_steps=0)


def test_l_scales_with_the_features(make_generator: Callable[..., Generator]) -> None:
    """Doubling the features doubles l; the other settings are those of the preset."""
    generator = make_generator()
    config = FreeDragConfig.fitted(generator, samples=2)
    assert replace(config, expected=0.3) == FreeDragConfig.preset(IMAGE)
    assert config == FreeDragConfig.fitted(generator, samples=2)
    maps = generator.features(generator.map(seed_z(0, 32), psi=0.7), block=3).last
    assert 0 < config.expected < float((maps.amax(dim=(2, 3)) - maps.amin(dim=(2, 3))).mean())
    block = generator.synthesis.blocks[3]
    block.register_forward_hook(lambda module, args, output: 2 * output)
    assert FreeDragConfig.fitted(generator, samples=2).expected == pytest.approx(2 * config.expected, rel=1e-4)


@pytest.mark.parametrize("expected", [0.3, 0.4])
def test_template_rate_at_02_l_and_08_l(expected: float) -> None:
    losses = torch.tensor([0.2, 0.8, -0.4]) * expected
    assert template_rate(losses, expected).tolist() == pytest.approx([0.5, 0.1, 0.9])
    by_hand = 1 / (1 + math.exp(math.log(9) / (0.6 * expected) * (0.0 - 0.2 * expected)))
    assert float(template_rate(torch.zeros(1), expected)) == pytest.approx(by_hand)


def test_candidates_are_equidistant_and_end_at_the_target() -> None:
    start, end = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[30.0, 40.0], [1.0, 3.0]])
    places = line_candidates(start, end, torch.tensor([5.0, 5.0]), 10)
    assert torch.allclose(places[0, 0], torch.tensor([0.3, 0.4]))
    assert torch.allclose(places[0, 9], torch.tensor([3.0, 4.0]))
    assert torch.allclose(places[1, 9], end[1])  # 2 px away, 5 px of reach
    assert torch.allclose(line_candidates(end, end, torch.ones(2), 3), end[:, None].expand(2, 3, 2))


def test_patches_are_nine_bilinear_samples() -> None:
    patch = read_patches(ramp(1.0), torch.tensor([[10.25, 8.0]]), IMAGE, 3.0)
    assert patch.shape == (1, 2, 9)
    assert patch[0, 0].tolist() == pytest.approx([7.25, 10.25, 13.25] * 3)
    assert float(difference(patch, patch + torch.tensor([[[1.0], [3.0]]]))) == pytest.approx(2.0)


def settings(**changes: object) -> FreeDragConfig:
    return replace(FreeDragConfig(expected=0.3, reach=4.0, spacing=1.0), **changes)  # type: ignore[arg-type]


def localise(first: float, last: float, at: float = 12.0) -> float:
    """x of the next position on the ramp, for a template from x = 12 and a point at x = `at`."""
    templates = read_patches(ramp(), HANDLE, IMAGE, 1.0)
    here = torch.tensor([[at, 14.0]])
    found = next_points(
        ramp(), templates, here, torch.tensor([[25.0, 14.0]]), torch.tensor([first]), torch.tensor([last]), IMAGE,
        settings(),
    )  # fmt: skip
    assert float(found[0, 1]) == 14.0
    return float(found[0, 0])


def test_point_moves_forward_below_half_l() -> None:
    # Candidates 12.4, 12.8, ... 16 differ by 0.04, 0.08, ... 0.4; closest to 0.3 are 0.28 (14.8) and 0.32 (15.2).
    assert localise(0.2, 0.1) in (pytest.approx(14.8), pytest.approx(15.2))
    assert localise(0.0, 0.1499, at=13.0) == pytest.approx(15.0)  # 13.4 ... 17: 15.0 differs by 0.3 exactly


def test_point_stays_while_the_difference_decreases() -> None:
    assert localise(0.4, 0.3) == 12.0


def test_point_moves_back_if_the_difference_does_not_decrease() -> None:
    # From 17 back to 13; of the candidates 13.8, 14.6, ... 21, the closest to the template at 12 is 13.8.
    assert localise(0.3, 0.3, at=17.0) == pytest.approx(13.8)
    # From 15 back to 11, then 11.8, 12.6, ... 19.
    assert localise(0.2, 0.5, at=15.0) == pytest.approx(11.8)


@pytest.fixture(scope="module")
def generator(tiny_generator: Generator) -> Generator:
    return tiny_generator


@pytest.fixture(scope="module")
def latent(generator: Generator) -> torch.Tensor:
    return generator.map(seed_z(3, generator.config.z_dim))


def scaled(generator: Generator, latent: torch.Tensor, **changes: object) -> FreeDragConfig:
    """Settings with l chosen for the feature differences of the random generator."""
    maps = generator.features(latent, block=3).last
    spread = float((read_patches(maps, HANDLE, IMAGE, 1.0) - read_patches(maps, TARGET, IMAGE, 1.0)).abs().mean())
    return replace(settings(expected=spread / 2, reach=1.0), **changes)  # type: ignore[arg-type]


def test_drag_moves_the_template_toward_the_target(generator: Generator, latent: torch.Tensor) -> None:
    states: list[FreeDragState] = []
    config = scaled(generator, latent, steps=60, lr=0.02)
    result = freedrag(generator, latent, HANDLE, TARGET, config=config, callback=states.append)
    assert [s.step for s in states] == list(range(result.steps + 1))
    assert torch.equal(states[0].latent, latent)
    assert torch.equal(states[-1].latent, result.latent)
    assert float((result.points - TARGET).norm()) < 3.0  # of 6
    assert float((result.latent - latent)[:, :6].abs().max()) > 0
    assert float((result.latent - latent)[:, 6:].abs().max()) == 0
    # The features at the point have become more similar to the handle's features.
    before, after = (generator.features(w, block=3).last for w in (latent, result.latent))
    wanted = read_patches(before, HANDLE, IMAGE, 1.0)
    there = [float(difference(read_patches(m, result.points, IMAGE, 1.0), wanted)) for m in (before, after)]
    assert there[1] < there[0]


def test_sub_motion_equals_the_formulas(generator: Generator, latent: torch.Tensor) -> None:
    """A plain implementation of five steps: localise with zero losses, then Adam on the mean L1 to the template."""
    config = scaled(generator, latent, steps=5, lr=0.01)
    w = latent[:, :6].clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.01)
    maps = generator.features(latent, block=3).last
    template = read_patches(maps, HANDLE, IMAGE, 1.0)
    places = [HANDLE + (j / 10) * torch.tensor([1.0, 0.0]) for j in range(1, 11)]
    off = [abs(float((read_patches(maps, p, IMAGE, 1.0) - template).abs().mean()) - config.expected) for p in places]
    point = places[off.index(min(off))]
    for _ in range(5):
        maps = generator.features(torch.cat([w, latent[:, 6:]], 1), block=3).last
        loss = (read_patches(maps, point, IMAGE, 1.0) - template).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = freedrag(generator, latent, HANDLE, TARGET, config=replace(config, sign_off=1e-9))
    assert result.steps == 5 and result.reason == "steps"
    assert torch.allclose(result.points, point)
    assert torch.allclose(result.latent[:, :6], w.detach(), atol=1e-5)


def test_point_at_its_target_is_finished(generator: Generator, latent: torch.Tensor) -> None:
    config = scaled(generator, latent, steps=40)
    result = freedrag(generator, latent, HANDLE, HANDLE + 0.4, config=config)
    assert result.reason == "arrived" and result.steps < 40
    assert float((result.points - HANDLE - 0.4).norm()) <= 1.0


def test_mask_preserves_the_fixed_region(generator: Generator, latent: torch.Tensor) -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[6:22, 4:26] = True

    def change(given: torch.Tensor | None, weight: float = 100.0) -> float:
        config = scaled(generator, latent, steps=30, lr=0.02, mask_weight=weight)
        edited = freedrag(generator, latent, HANDLE, TARGET, config=config, mask=given).latent
        maps = [generator.features(x, block=3).last for x in (latent, edited)]
        return float((maps[1] - maps[0]).abs()[..., ~mask].mean())

    assert change(mask) < 0.7 * change(None)
    assert change(torch.ones(32, 32, dtype=torch.bool)) == change(None)


def test_limits(generator: Generator, latent: torch.Tensor) -> None:
    config = scaled(generator, latent, steps=7)
    assert freedrag(generator, latent, HANDLE, TARGET, config=config).steps <= 7
    none = freedrag(generator, latent, HANDLE, TARGET, config=replace(config, steps=0))
    assert (none.steps, none.reason) == (0, "steps") and torch.equal(none.latent, latent)
    event = threading.Event()

    def soon(state: FreeDragState) -> None:
        if state.step == 2:
            event.set()

    config = replace(config, steps=100, sign_off=1e-9)
    result = freedrag(generator, latent, HANDLE, TARGET, config=config, callback=soon, stop=event)
    assert (result.reason, result.steps) == ("stopped", 2)


def test_result_does_not_depend_on_the_order_of_points(generator: Generator, latent: torch.Tensor) -> None:
    handles = torch.tensor([[12.0, 14.0], [20.0, 20.0], [6.0, 24.0]])
    targets = handles + torch.tensor([[3.0, -2.0], [-1.0, 2.5], [0.0, -3.0]])
    order = torch.tensor([2, 0, 1])
    config = scaled(generator, latent, steps=8)
    a = freedrag(generator, latent, handles, targets, config=config)
    b = freedrag(generator, latent, handles[order], targets[order], config=config)
    assert torch.allclose(a.latent, b.latent, atol=1e-4)
    assert torch.allclose(a.points[order], b.points, atol=1e-4)
