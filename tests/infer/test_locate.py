"""The default refiner: steps compared with normal equations and ridge regression, linear model, complete drags."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autodrag import tracking
from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.infer import locate as module
from autodrag.infer.locate import Evaluation, LinearModel, LocateConfig, linearise, locate
from autodrag.infer.open_image import OpenImage
from autodrag.infer.task import Control, Drag, DragResult, References, Start
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Features, Generator, seed_z
from autodrag.tracking import appearance, follow

IMAGE = (32, 32)
HANDLE, TARGET = torch.tensor([[12.0, 14.0]]), torch.tensor([[18.0, 11.0]])


@pytest.fixture(scope="module")
def image(make_generator: Callable[..., Generator]) -> OpenImage:
    generator = make_generator().freeze()
    return OpenImage.of(generator, generator.map(seed_z(3, 32)))


@pytest.fixture(scope="module")
def basis(image: OpenImage) -> LatentBasis:
    return LatentBasis.of(image.synthesis.generator)


@pytest.fixture
def run(image: OpenImage, basis: LatentBasis) -> Callable[..., DragResult]:
    """Refine the image; keyword arguments are fields of the config, `given` the task."""

    def run(
        given: Drag | None = None,
        opened: OpenImage = image,
        control: Control | None = None,
        start: Start | None = None,
        **changes: Any,
    ) -> DragResult:
        config = replace(LocateConfig.for_image(IMAGE), **changes)
        return locate(opened, given or drag(), config, basis, control, start)

    return run


Run = Callable[..., DragResult]


def drag(handles: Any = HANDLE, targets: Any = TARGET, **options: Any) -> Drag:
    return Drag.of(handles, targets, IMAGE, **options)


# --- complete drags --------------------------------------------------------------------------------------------------


def test_drags_arrive_on_the_shipped_generator() -> None:
    """Noses of critters reach their targets according to a landmark net, which is independent of the tracker."""
    folder = Path(__file__).parents[2] / "checkpoints" / "critters"
    critters = load_generator(folder)[0].freeze()
    net, basis = load_landmarks(folder), LatentBasis.of(critters)
    assert net is not None
    nose = net.config.names.index("nose")
    left = []
    for seed in range(6):
        opened = OpenImage.of(critters, critters.map(seed_z(seed, critters.config.z_dim), psi=0.7))
        handle = net(critters(opened.latent)).points[0, nose : nose + 1]
        goal = handle + torch.tensor([[6.0 if float(handle[0, 0]) < 32 else -6.0, 0.0]])
        task = Drag.of(handle, goal, (64, 64))
        result = locate(opened, task, LocateConfig.for_image((64, 64)), basis)
        seen = net(critters(result.latent)).points[0, nose]
        left.append(float((seen - goal[0]).norm()))
    assert sorted(left)[3] < 2.0  # of 6 px


@pytest.mark.parametrize("space", ["w", "w+"])
def test_only_the_edited_layers_change(run: Run, image: OpenImage, space: str) -> None:
    change = (run(steps=2, edit_layers=4, space=space).latent - image.latent)[0]
    assert float(change[:4].abs().max()) > 0 and float(change[4:].abs().max()) == 0
    if space == "w":
        assert torch.allclose(change[0], change[3], atol=1e-6)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_layers_move_together_in_w(run: Run, image: OpenImage, space: str) -> None:
    change = (run(steps=3, space=space).latent - image.latent)[0, :6]
    assert float(change.abs().max()) > 0.01
    assert (float((change - change[0]).abs().max()) < 1e-6) == (space == "w")


@pytest.mark.parametrize("space", ["w", "w+"])
def test_length_of_an_edit_is_measured_from_the_open_image(
    run: Run, image: OpenImage, basis: LatentBasis, space: str
) -> None:
    """With a large penalty on the length, the result returns from a distant start to the open image."""
    rng = torch.Generator().manual_seed(4)
    guess = image.latent.clone()
    guess[:, :6] += basis.offset(torch.randn(1, 1 if space == "w" else 6, guess.shape[2], generator=rng))
    task = drag([[10.0, 10.0]], [[14.0, 10.0]])
    whole = float(basis.coordinates((guess - image.latent)[:, :6]).norm())

    def length(opened: OpenImage, start: Start | None) -> float:
        # With the references of the start, the point is tracked with high confidence and is not lost.
        known = replace(task, references=References(Layers.of(guess), task.handles))
        result = run(known, opened, start=start, space=space, prior=1e4, steps=20)
        return float(basis.coordinates((result.latent - image.latent)[:, :6]).norm())

    assert length(image, Start(guess, task.handles)) < 0.1 * whole
    assert length(OpenImage.of(image.synthesis.generator, guess), None) > 0.9 * whole


def test_results_match_their_latents(run: Run, image: OpenImage) -> None:
    states: list[DragResult] = []
    result = run(control=Control(callback=states.append), steps=5)
    assert [state.steps for state in states] == list(range(len(states)))
    assert torch.equal(states[0].latent, image.latent)
    (match,) = [state for state in states if torch.equal(state.latent, result.latent)]
    assert np.array_equal(match.points, result.points)
    assert float(result.distances.sum()) == min(float(state.distances.sum()) for state in states)
    np.testing.assert_allclose(result.distances, np.linalg.norm(result.points - result.targets, axis=1), atol=1e-5)
    with torch.no_grad():
        pixels = image.synthesis.generator(result.latent)
    expected = (pixels[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5
    assert np.abs(match.image - expected.numpy()).max() < 1.5
    assert result.features is not None
    torch.testing.assert_close(result.features.last, image.synthesis.generator.features(result.latent, block=3).last)


@pytest.mark.parametrize("place", [(16.0, 18.0), (8.0, 20.0), (14.0, 22.0)])
def test_anchors_do_not_move(run: Run, image: OpenImage, place: tuple[float, float]) -> None:
    """The content of an anchor stays in place. Without the anchor it moves by more than a pixel."""
    anchor = torch.tensor([place])
    reference = appearance(image.features.outputs[1:], anchor[None], IMAGE)

    def drift(anchors: Tensor | None) -> float:
        edited = run(drag(anchors=anchors), prior=1.0).latent
        maps = image.synthesis.generator.features(edited, block=3).outputs[1:]
        found, _ = follow(maps, reference, IMAGE, near=anchor[None], pull=0.5)
        return float((found[0] - anchor).norm())

    assert drift(anchor) < 0.5 * drift(None)
    assert drift(None) > 1


def test_results_do_not_contain_anchors(run: Run) -> None:
    result = run(drag(anchors=[[28.0, 28.0]]), steps=2)
    assert result.points.shape == (1, 2) and result.lost.shape == result.confidences.shape == (1,)


def test_stopping(run: Run) -> None:
    event = threading.Event()

    def stop(state: DragResult) -> None:
        if state.steps == 2:
            event.set()

    result = run(control=Control(stop=event, callback=stop), stop_px=0.01)
    assert (result.reason, result.steps) == ("stopped", 2)


def test_budget(run: Run) -> None:
    result = run(control=Control(1e-6))
    assert (result.reason, result.steps) == ("budget", 0)


def test_steps_and_points_near_their_targets(run: Run, image: OpenImage) -> None:
    result = run(steps=1)
    assert (result.reason, result.steps) == ("steps", 1)


def test_short_drags_move(run: Run, image: OpenImage) -> None:
    """They are shorter than the stop distance, and end within half their length."""
    result = run(drag(HANDLE, HANDLE + 0.2))
    assert result.steps > 0 and not torch.equal(result.latent, image.latent)
    assert result.reason != "arrived" or result.distances[0] <= 0.1 * 2**0.5 + 1e-6


def test_refiner_stops_without_progress(run: Run) -> None:
    result = run(prior=1e6, steps=1000)
    assert result.reason == "stalled" and result.steps < 20


def test_point_with_low_confidence_is_lost(run: Run, image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    other = OpenImage.of(image.synthesis.generator, image.synthesis.generator.map(seed_z(99, 32)))
    own = float(run(steps=0).confidences[0])
    monkeypatch.setattr(module, "LOST_CONFIDENCE", own - 0.01)
    assert run().reason != "lost"
    result = run(replace(drag(), references=References(image.layers, HANDLE)), other)
    assert (result.reason, result.steps) == ("lost", 0)
    assert result.lost.all() and float(result.confidences[0]) < own - 0.01
    assert torch.equal(result.latent, other.latent)


def test_lost_point_is_ignored(run: Run, image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of two points is not found, the edit equals that of the other point."""
    real = tracking.follow

    def hides_the_second(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        points, confidences = real(*args, **options)
        if confidences.shape[1] == 2:
            confidences = torch.cat([confidences[:, :1], torch.zeros(1, 1)], dim=1)
        return points, confidences

    monkeypatch.setattr(module, "follow", hides_the_second)
    pair = run(drag([HANDLE[0].tolist(), [24.0, 24.0]], [TARGET[0].tolist(), [20.0, 20.0]]), steps=4)
    assert pair.lost.tolist() == [False, True] and pair.reason != "lost"
    alone = run(steps=4)
    # The weight of the lost point is 0, but the point is still part of the mean that scales the damping.
    shares = [float((r.latent - image.latent).norm()) for r in (pair, alone)]
    assert shares[0] == pytest.approx(shares[1], rel=0.3)
    assert pair.distances[0] < 6.0


def test_references_define_the_appearance(run: Run, image: OpenImage) -> None:
    first = run(steps=3)
    assert first.references is not None and torch.equal(first.references.handles, HANDLE)
    edited = OpenImage.of(image.synthesis.generator, first.latent)
    again = run(drag(first.points, TARGET), edited, steps=0)
    kept = run(replace(drag(first.points, TARGET), references=first.references), edited, steps=0)
    assert kept.references is first.references
    assert float(again.confidences[0]) > float(kept.confidences[0])  # the current image equals itself exactly


def test_order_of_points_does_not_matter(run: Run) -> None:
    handles = torch.tensor([[12.0, 14.0], [20.0, 20.0], [6.0, 24.0]])
    targets = handles + torch.tensor([[3.0, -2.0], [-1.0, 2.5], [0.0, -3.0]])
    order = torch.tensor([2, 0, 1])
    a, b = run(drag(handles, targets), steps=3), run(drag(handles[order], targets[order]), steps=3)
    assert torch.allclose(a.latent, b.latent, atol=1e-3)
    np.testing.assert_allclose(a.points[order.numpy()], b.points, atol=1e-2)


def test_tracker_searches_near_the_expected_positions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """First near the handle, then one px (of 32) from the last position toward the target."""
    near: list[Tensor] = []
    found: list[Tensor] = []
    real = tracking.follow

    def spy(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        near.append(options["near"][0])
        points, confidences = real(*args, **options)
        found.append(points[0].detach())
        return points, confidences

    monkeypatch.setattr(module, "follow", spy)
    monkeypatch.setattr(module, "DAMPING", 1e-6)
    run(steps=1, prior=0.01)
    torch.testing.assert_close(near[0], HANDLE)
    displacement = TARGET - found[0]
    torch.testing.assert_close(near[1], found[0] + displacement / displacement.norm(), atol=0.02, rtol=0)


def test_stop_distance_scales_with_the_image() -> None:
    assert [LocateConfig.for_image((size, size)).stop_px for size in (64, 512, 1024)] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    "wrong",
    [{"steps": -1}, {"edit_layers": 0}, {"feature_block": -1}, {"stop_px": 0.0}, {"prior": -1.0}],
)
def test_invalid_configs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LocateConfig(**wrong)


# --- one step --------------------------------------------------------------------------------------------------------


def test_step_solves_the_damped_normal_equations() -> None:
    """For points nearer and farther than the reach."""
    rng = torch.Generator().manual_seed(0)
    jacobian, edit = torch.randn(4, 40, generator=rng), torch.randn(40, generator=rng)
    errors = torch.randn(4, generator=rng)
    model = LinearModel(errors, jacobian, torch.tensor(2.0))
    m = 0.3 + 0.5 * 2.0
    lengths = errors.view(2, 2).norm(dim=1, keepdim=True)
    for reach in (100.0, 0.25 * float(lengths.min())):
        wanted = -errors.view(2, 2) * (reach / lengths).clamp_max(1)
        share = 1.0 if reach == 100 else float(wanted.norm() / errors.norm())
        right = jacobian.t() @ wanted.flatten() - share * 0.3 * edit
        expected = torch.linalg.solve(jacobian.t() @ jacobian + m * torch.eye(40), right)
        torch.testing.assert_close(model.solve(edit, reach, 0.3, 0.5), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reach", [100.0, 1.0, 0.1])
def test_short_steps_converge_to_ridge_regression(reach: float) -> None:
    """With linear errors the best edit is known. Without the share of the prior's gradient, short steps end before."""
    rng = torch.Generator().manual_seed(4)
    jacobian, start, prior = 3 * torch.randn(2, 12, generator=rng), torch.tensor([17.0, -9.0]), 5.0
    best = -jacobian.t() @ torch.linalg.solve(jacobian @ jacobian.t() + prior * torch.eye(2), start)
    edit = torch.zeros(12)
    for _ in range(400):
        model = LinearModel(start + jacobian @ edit, jacobian, torch.tensor(1.0))
        edit = edit + model.solve(edit, reach, prior, 0.0)
    torch.testing.assert_close(edit, best, atol=1e-3, rtol=1e-3)


def test_broyden_update() -> None:
    """The update reproduces the step, has no effect orthogonal to the step, and does not change an exact Jacobian."""
    rng = torch.Generator().manual_seed(2)
    true, guess, step, across = (torch.randn(n, generator=rng) for n in ((4, 9), (4, 9), 9, 9))
    across = across - step * (across @ step) / step.square().sum()
    before = torch.randn(4, generator=rng)
    after = before + true @ step
    learned = LinearModel(before, guess, torch.tensor(1.0)).updated(step, after, accepted=True)
    torch.testing.assert_close(learned.jacobian @ step, after - before)
    torch.testing.assert_close(learned.jacobian @ across, guess @ across)
    assert learned.errors.equal(after)
    exact = LinearModel(before, true, torch.tensor(1.0)).updated(step, after, accepted=False)
    torch.testing.assert_close(exact.jacobian, true)
    assert exact.errors.equal(before)


def test_jacobian_is_reused_in_every_second_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def count(at: Evaluation) -> LinearModel:
        computed.append(1)
        return linearise(at)

    monkeypatch.setattr(module, "linearise", count)
    monkeypatch.setattr(module, "PATIENCE", 99)
    assert run(steps=6).steps == 6
    assert 0 < len(computed) <= 3


def test_linear_model_contains_the_gradients_of_all_errors() -> None:
    value = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    errors = torch.stack([value.square().sum(), value.sum(), value[0, 0, 0] * 3, value[0, 1].prod()])
    none = torch.zeros(0)
    model = linearise(Evaluation(value, torch.zeros(1, 2, 5), Features(()), torch.zeros(2, 2), none, errors, 0.0))
    assert model.jacobian.shape == (4, 10)
    torch.testing.assert_close(model.jacobian[0], 2 * value.detach().flatten())
    torch.testing.assert_close(model.jacobian[1], torch.ones(10))
    torch.testing.assert_close(model.scale, model.jacobian.square().sum(dim=1).mean())
