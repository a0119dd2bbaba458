"""The refiner: the published loop against a plain version of it, and what every drag must hold to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.infer.refine import SKETCH, Origin, RefineConfig, Slopes, StepState, refine, take_slopes
from autodrag.infer.settings import ALONE
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Generator, seed_z
from autodrag.tracking import appearance, follow

IMAGE = (32, 32)
HANDLE, TARGET = torch.tensor([[12.0, 14.0]]), torch.tensor([[18.0, 11.0]])
Make = Callable[..., Generator]


@pytest.fixture(scope="module")
def generator(make_generator: Make) -> Generator:
    return make_generator().freeze()


@pytest.fixture(scope="module")
def latent(generator: Generator) -> torch.Tensor:
    return generator.map(seed_z(3, generator.config.z_dim))


def settings(name: str = "default", **changes: object) -> RefineConfig:
    return replace(RefineConfig.preset(name, IMAGE), **changes)  # type: ignore[arg-type]


def test_published_constants() -> None:
    """r1, r2, stop in px at 256, 512, 1024: 2/6/2, 3/12/2, 6/24/4; Adam 1e-3; mask weight 20; six layers; block 5."""
    for size, expected in ((256, (2, 6, 2.0)), (512, (3, 12, 2.0)), (1024, (6, 24, 4.0))):
        c = RefineConfig.preset("draggan", (size, size))
        assert (c.supervision_radius, c.tracking_radius, c.stop_px) == expected
        assert (c.lr, c.mask_weight, c.edit_layers, c.feature_block, c.space) == (1e-3, 20.0, 6, 5, "w+")
    with pytest.raises(ValueError, match="preset 'fast': expected default or draggan"):
        RefineConfig.preset("fast", IMAGE)


@pytest.mark.parametrize("name", ["draggan", "default"])
def test_an_objective_reads_the_settings_in_use_and_no_others(
    generator: Generator, latent: torch.Tensor, name: str
) -> None:
    asked: set[str] = set()

    class Watched(RefineConfig):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    config = Watched(**vars(settings(name, steps=3, stop_px=0.01)))
    known = set(vars(config))
    asked.clear()
    for mask in (None, torch.arange(IMAGE[1]).expand(IMAGE) > 8):
        refine(generator, latent, HANDLE, TARGET, config=config, mask=mask, anchors=torch.tensor([[2.0, 2.0]]))
    read = asked & known
    assert read <= set(config.in_use())
    assert {"steps", "mask_weight", "anchor_weight", *ALONE[config.objective]} - {"raft_weights"} <= read


def plain_draggan(
    generator: Generator, latent: torch.Tensor, mask: torch.Tensor | None, steps: int, config: RefineConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The official loop, written down plainly: resize the features to the image, track, supervise, step."""
    w = latent[:, :6].clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=config.lr)
    point, first, reference = HANDLE[0].clone(), None, torch.empty(0)
    for step in range(steps + 1):
        features = generator.features(torch.cat([w, latent[:, 6:]], dim=1), block=3).last
        big = F.interpolate(features, IMAGE, mode="bilinear", align_corners=False)
        if first is None:
            first = features.detach()
            reference = big[0, :, int(point[1]), int(point[0])].detach()
        r2 = config.tracking_radius
        x, y = int(point[0]), int(point[1])
        patch = big.detach()[0, :, max(0, y - r2) : y + r2 + 1, max(0, x - r2) : x + r2 + 1]
        index = int((patch - reference[:, None, None]).norm(dim=0).flatten().argmin())
        row, column = divmod(index, patch.shape[2])
        point = torch.tensor([max(0, x - r2) + column, max(0, y - r2) + row]).float()
        if step == steps:
            break
        way = TARGET[0] - point
        direction = way / (way.norm() + 1e-7)
        terms = []
        for py in range(32):
            for px in range(32):
                if (px - point[0]) ** 2 + (py - point[1]) ** 2 < config.supervision_radius**2:
                    qx, qy = px + direction[0], py + direction[1]
                    grid = torch.stack([qx / 31 * 2 - 1, qy / 31 * 2 - 1])[None, None, None]
                    there = F.grid_sample(big, grid, align_corners=True)[0, :, 0, 0]
                    terms.append((big[0, :, py, px].detach() - there).abs())
        loss = torch.stack(terms).mean()
        if mask is not None:
            fixed = 1 - F.interpolate(mask[None, None].float(), features.shape[2:], mode="area")
            loss = loss + config.mask_weight * ((features - first) * fixed).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([w.detach(), latent[:, 6:]], dim=1), point


@pytest.mark.parametrize("masked", [False, True])
def test_draggan_is_the_published_loop(generator: Generator, latent: torch.Tensor, masked: bool) -> None:
    mask = None
    if masked:
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[4:28, 4:28] = True
    config = settings("draggan", steps=6, lr=0.01, supervision_radius=3, tracking_radius=4)
    expected, point = plain_draggan(generator, latent, mask, 6, config)
    result = refine(generator, latent, HANDLE, TARGET, config=config, mask=mask)
    assert result.steps == 6 and result.reason == "steps"
    assert torch.equal(result.points[0], point)
    assert torch.allclose(result.latent, expected, atol=2e-4)
    assert float((result.latent - latent).abs().max()) > 0.02  # it did move


def test_our_objective_arrives_on_the_shipped_generator() -> None:
    """Noses of critters go where they are dragged, as a landmark net sees it that knows nothing of the tracker."""
    folder = Path(__file__).parents[2] / "checkpoints" / "critters"
    critters = load_generator(folder)[0].freeze()
    net = load_landmarks(folder)
    assert net is not None
    nose = net.config.names.index("nose")
    left = []
    for seed in range(6):
        start = critters.map(seed_z(seed, critters.config.z_dim), psi=0.7)
        handle = net(critters(start)).points[0, nose : nose + 1]
        goal = handle + torch.tensor([[6.0 if float(handle[0, 0]) < 32 else -6.0, 0.0]])
        result = refine(critters, start, handle, goal, config=RefineConfig.preset("default", (64, 64)))
        seen = net(critters(result.latent)).points[0, nose]
        left.append(float((seen - goal[0]).norm()))
    assert sorted(left)[3] < 2.0  # of 6.0 px


@pytest.mark.parametrize("name", ["default", "draggan"])
@pytest.mark.parametrize("space", ["w", "w+"])
def test_only_the_edited_layers_change(generator: Generator, latent: torch.Tensor, name: str, space: str) -> None:
    config = settings(name, steps=2, edit_layers=4, space=space, lr=0.01)
    result = refine(generator, latent, HANDLE, TARGET, config=config)
    change = (result.latent - latent)[0]
    assert float(change[:4].abs().max()) > 0
    assert float(change[4:].abs().max()) == 0
    if space == "w":
        assert torch.allclose(change[0], change[3], atol=1e-6)


def test_layers_move_together_unless_a_mask_holds_something(generator: Generator, latent: torch.Tensor) -> None:
    """`auto`: one step in W for all edited layers; with a mask one for each."""
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[24:] = False
    apart = []
    for given in (None, torch.ones_like(mask), mask):
        result = refine(generator, latent, HANDLE, TARGET, config=settings(steps=3), mask=given)
        change = (result.latent - latent)[0, :6]
        assert float(change.abs().max()) > 0.01
        apart.append(float((change - change[0]).abs().max()))
    assert apart[0] < 1e-6 and apart[1] < 1e-6 and apart[2] > 0.01
    with pytest.raises(ValueError, match="space auto is for the objective locate alone; expected w or w"):
        settings("draggan", space="auto")


@pytest.mark.parametrize("space", ["w", "w+"])
def test_the_length_of_an_edit_is_counted_from_the_code_before_a_guess(
    generator: Generator, latent: torch.Tensor, space: str
) -> None:
    """Where lengths are dear, a guess is taken back; counted from the guess itself, it is kept."""
    basis = LatentBasis.of(generator)
    rng = torch.Generator().manual_seed(4)
    guess = latent.clone()
    guess[:, :6] += basis.offset(torch.randn(1, 1 if space == "w" else 6, latent.shape[2], generator=rng))
    handles, targets = torch.tensor([[10.0, 10.0]]), torch.tensor([[14.0, 10.0]])

    def away(before: torch.Tensor | None) -> float:
        config = settings(space=space, prior=1e4, steps=20, lost_confidence=0.0)
        result = refine(generator, guess, handles, targets, config=config, basis=basis, before=before)
        return float(basis.coordinates((result.latent - latent)[:, :6]).norm())

    whole = float(basis.coordinates((guess - latent)[:, :6]).norm())
    assert away(latent) < 0.1 * whole
    assert away(None) > 0.9 * whole


@pytest.mark.parametrize("name", ["default", "draggan"])
def test_points_and_latent_belong_together(generator: Generator, latent: torch.Tensor, name: str) -> None:
    states: list[StepState] = []
    result = refine(generator, latent, HANDLE, TARGET, config=settings(name, steps=5, lr=0.01), callback=states.append)
    assert [s.step for s in states] == list(range(len(states)))
    match = [s for s in states if torch.equal(s.latent, result.latent)]
    assert len(match) == 1
    assert torch.equal(match[0].points, result.points)
    assert torch.allclose((result.points - TARGET).norm(dim=1), result.distances)
    assert torch.allclose(match[0].render(), generator(result.latent), atol=1e-5)
    assert torch.equal(states[0].latent, latent)


def test_a_mask_keeps_the_rest(generator: Generator, latent: torch.Tensor) -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[6:22, 4:26] = True
    block = 3

    def change(given: torch.Tensor | None) -> float:
        # The shipped price on length holds everything back, masked or not; here the mask is to do it.
        config = settings(feature_block=3, prior=1.0)
        edited = refine(generator, latent, HANDLE, TARGET, config=config, mask=given).latent
        maps = [generator.features(x, block=block).last for x in (latent, edited)]
        return float((maps[1] - maps[0]).abs()[..., ~mask].mean())

    assert change(mask) < 0.7 * change(None)
    everything = torch.ones(32, 32, dtype=torch.bool)
    assert change(everything) == change(None)


def test_what_a_mask_holds_weighs_as_much_beside_several_drags(generator: Generator, latent: torch.Tensor) -> None:
    """A drag that is given twice doubles the whole objective, not the share of its error alone."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[6:22, 4:26] = True
    elsewhere = generator.map(seed_z(4, generator.config.z_dim))
    losses = []
    for count in (1, 2):
        states: list[StepState] = []
        handles, targets = HANDLE.expand(count, 2), TARGET.expand(count, 2)
        for weight in (5000.0, 0.0):
            config = settings(feature_block=3, prior=0.0, steps=1, mask_weight=weight)
            known = Origin(latent, handles)
            kept = {"mask": mask, "references": known, "callback": states.append}
            refine(generator, elsewhere, handles, targets, config=config, **kept)  # type: ignore[arg-type]
        losses.append([state.loss for state in states if state.step == 0])
    (held, free), (held_twice, free_twice) = losses
    assert held > 1.1 * free
    assert free_twice == pytest.approx(2 * free) and held_twice == pytest.approx(2 * held)


@pytest.mark.parametrize("place", [(16.0, 18.0), (8.0, 20.0), (14.0, 22.0)])
def test_anchors_stay(generator: Generator, latent: torch.Tensor, place: tuple[float, float]) -> None:
    """What lay at an anchor is found there again, and a pixel away without it."""
    anchor = torch.tensor([place])
    before = generator.features(latent, block=3).outputs[1:]
    what = appearance(before, anchor[None], IMAGE)

    def away(given: torch.Tensor | None) -> float:
        # The shipped price on length holds everything back, anchored or not; here the anchor is to do it.
        edited = refine(generator, latent, HANDLE, TARGET, config=settings(prior=1.0), anchors=given).latent
        found, _ = follow(generator.features(edited, block=3).outputs[1:], what, IMAGE, near=anchor[None], pull=0.5)
        return float((found[0] - anchor).norm())

    assert away(anchor) < 0.5 * away(None)
    assert away(None) > 1


def test_stopping(generator: Generator, latent: torch.Tensor) -> None:
    event = threading.Event()

    def soon(state: StepState) -> None:
        if state.step == 2:
            event.set()

    result = refine(generator, latent, HANDLE, TARGET, config=settings("draggan"), stop=event, callback=soon)
    assert (result.reason, result.steps) == ("stopped", 2)


def test_another_thread_can_stop_it(generator: Generator, latent: torch.Tensor) -> None:
    event = threading.Event()
    timer = threading.Timer(0.2, event.set)
    timer.start()
    config = settings("draggan", steps=100_000, lr=1e-9)
    assert refine(generator, latent, HANDLE, TARGET, config=config, stop=event).reason == "stopped"


def test_budget(generator: Generator, latent: torch.Tensor) -> None:
    config = settings("draggan", budget_s=0.05, steps=100_000, lr=1e-9)
    result = refine(generator, latent, HANDLE, TARGET, config=config, callback=lambda _: time.sleep(0.02))
    assert result.reason == "budget"
    assert result.steps < 100


def test_steps_and_nothing_to_do(generator: Generator, latent: torch.Tensor) -> None:
    assert refine(generator, latent, HANDLE, TARGET, config=settings("draggan", steps=1)).steps == 1
    result = refine(generator, latent, HANDLE, HANDLE + 0.2, config=settings())
    assert (result.reason, result.steps) == ("arrived", 0)
    assert torch.equal(result.latent, latent)


def test_a_point_that_cannot_be_found_is_lost(generator: Generator, latent: torch.Tensor) -> None:
    other = generator.map(seed_z(99, generator.config.z_dim))
    sure = float(refine(generator, latent, HANDLE, TARGET, config=settings(steps=0)).confidences)
    config = settings(lost_confidence=sure - 0.01)  # as sure as in its own image
    assert refine(generator, latent, HANDLE, TARGET, config=config).reason != "lost"
    result = refine(generator, other, HANDLE, TARGET, config=config, references=Origin(latent, HANDLE))
    assert (result.reason, result.steps) == ("lost", 0)
    assert bool(result.lost.all()) and float(result.confidences) < sure - 0.01
    assert torch.equal(result.latent, other)


def test_references_can_be_kept(generator: Generator, latent: torch.Tensor) -> None:
    first = refine(generator, latent, HANDLE, TARGET, config=settings(steps=3))
    kept = refine(generator, first.latent, first.points, TARGET, config=settings(steps=0), references=first.references)
    anew = refine(generator, first.latent, first.points, TARGET, config=settings(steps=0))
    assert kept.references is first.references
    assert float(anew.confidences) > float(kept.confidences)  # anew: it looks exactly like itself


@pytest.mark.parametrize("name", ["default", "draggan"])
def test_the_order_of_points_does_not_matter(generator: Generator, latent: torch.Tensor, name: str) -> None:
    handles = torch.tensor([[12.0, 14.0], [20.0, 20.0], [6.0, 24.0]])
    targets = handles + torch.tensor([[3.0, -2.0], [-1.0, 2.5], [0.0, -3.0]])
    order = torch.tensor([2, 0, 1])
    config = settings(name, steps=3, lr=0.01)
    a = refine(generator, latent, handles, targets, config=config)
    b = refine(generator, latent, handles[order], targets[order], config=config)
    assert torch.allclose(a.latent, b.latent, atol=1e-3)
    assert torch.allclose(a.points[order], b.points, atol=1e-2)


def test_basis_whitens_the_latents(generator: Generator) -> None:
    basis = LatentBasis.of(generator)
    w = generator.mapping(torch.randn(4000, generator.config.z_dim, generator=torch.Generator().manual_seed(5)))
    coordinates = torch.linalg.solve(basis.directions, (w - basis.mean).t()).t()
    assert torch.allclose(coordinates.std(dim=0)[:8], torch.ones(8), atol=0.1)
    assert torch.allclose(basis.offset(coordinates) + basis.mean, w, atol=1e-3)


@pytest.mark.parametrize(
    "wrong", [dict(lr=0.0), dict(steps=-1), dict(budget_s=0.0), dict(edit_layers=0), dict(tracking_radius=0)]
)
def test_wrong_configs(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        RefineConfig(**wrong)  # type: ignore[arg-type]


def test_a_step_is_the_shortest_that_does_what_is_asked() -> None:
    """Against the normal equations solved in full, with and without what must not change, near and far."""
    rng = torch.Generator().manual_seed(0)
    jacobian, here = torch.randn(6, 40, generator=rng), torch.randn(40, generator=rng)
    errors, uphill = torch.randn(4, generator=rng), torch.randn(40, generator=rng)
    for held in (None, uphill):
        rows = jacobian if held is not None else jacobian[:4]
        slopes = Slopes(errors, rows, held, torch.tensor(2.0))
        m = 0.3 + 0.5 * 2.0
        lengths = errors.view(2, 2).norm(dim=1, keepdim=True)
        for reach in (100.0, 0.25 * float(lengths.min())):  # beyond both points, and short of either
            asked = -errors.view(2, 2) * (reach / lengths).clamp_max(1)
            part = 1.0 if reach == 100 else float(asked.norm() / errors.norm())
            down = jacobian[:4].t() @ asked.flatten() - part * (0.3 * here + (0 if held is None else held))
            expected = torch.linalg.solve(rows.t() @ rows + m * torch.eye(40), down)
            torch.testing.assert_close(slopes.step(here, reach, 0.3, 0.5), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reach", [100.0, 1.0, 0.1])
def test_short_steps_lead_where_long_ones_do(reach: float) -> None:
    """Where errors are linear the best edit is known: that of ridge regression. A price weighed in full beside a part
    of the way there would end far before it."""
    rng = torch.Generator().manual_seed(4)
    jacobian, start, prior = 3 * torch.randn(2, 12, generator=rng), torch.tensor([17.0, -9.0]), 5.0
    best = -jacobian.t() @ torch.linalg.solve(jacobian @ jacobian.t() + prior * torch.eye(2), start)
    here = torch.zeros(12)
    for _ in range(400):
        slopes = Slopes(start + jacobian @ here, jacobian, None, torch.tensor(1.0))
        here = here + slopes.step(here, reach, prior, 0.0)
    torch.testing.assert_close(here, best, atol=1e-3, rtol=1e-3)


def test_the_tracker_looks_where_a_step_should_have_led(
    generator: Generator, latent: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First near the handle; then ahead of where it was found, by the one px (of 32) that a step asks for."""
    near: list[torch.Tensor] = []
    found: list[torch.Tensor] = []

    def spy(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        near.append(options["near"][0])
        places, sure = follow(*args, **options)
        found.append(places[0].detach())
        return places, sure

    monkeypatch.setattr("autodrag.infer.refine.locate", spy)
    refine(generator, latent, HANDLE, TARGET, config=settings(steps=1, reuse=0, prior=0.01, damping=1e-6))
    torch.testing.assert_close(near[0], HANDLE)
    way = TARGET - found[0]
    torch.testing.assert_close(near[1], found[0] + way / way.norm(), atol=0.02, rtol=0)


def test_slopes_learn_from_a_step() -> None:
    """Broyden's update explains the step, changes nothing across it, and leaves slopes that were right alone."""
    rng = torch.Generator().manual_seed(2)
    true, guess, step, across = (torch.randn(n, generator=rng) for n in ((4, 9), (4, 9), 9, 9))
    across = across - step * (across @ step) / step.square().sum()
    before = torch.randn(4, generator=rng)
    after = before + true @ step
    learned = Slopes(before, guess, None, torch.tensor(1.0)).learn(step, after, stay=False)
    torch.testing.assert_close(learned.jacobian @ step, after - before)
    torch.testing.assert_close(learned.jacobian @ across, guess @ across)
    assert learned.errors.equal(after)
    right = Slopes(before, true, None, torch.tensor(1.0)).learn(step, after, stay=True)
    torch.testing.assert_close(right.jacobian, true)
    assert right.errors.equal(before)


def test_gradients_are_taken_once_in_two_steps(
    generator: Generator, latent: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def count(*args: Any) -> Slopes:
        taken.append(1)
        return take_slopes(*args)

    monkeypatch.setattr("autodrag.infer.refine.take_slopes", count)
    numbers = []
    for reuse, share in ((0, 1.0), (1, 0.6)):
        taken.clear()
        result = refine(generator, latent, HANDLE, TARGET, config=settings(reuse=reuse, steps=6, patience=9))
        assert 0 < len(taken) <= share * result.steps
        numbers.append(len(taken))
    assert numbers[1] < numbers[0]


def test_slopes_are_the_gradients_of_every_error() -> None:
    value = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    errors = torch.stack([value.square().sum(), value.sum(), value[0, 0, 0] * 3, value[0, 1].prod()]).view(2, 2)
    change = value.view(2, 5, 1).expand(2, 5, 4) * 0.5
    slopes = take_slopes(errors, change, value, torch.Generator().manual_seed(0))
    assert slopes.jacobian.shape == (4 + SKETCH, 10) and slopes.uphill is not None
    torch.testing.assert_close(slopes.jacobian[0], 2 * value.detach().flatten())
    torch.testing.assert_close(slopes.jacobian[1], torch.ones(10))
    torch.testing.assert_close(slopes.uphill, value.detach().flatten() * 4 * 0.25)
    # The sketch has, on average, the curvature of the whole: here 1 on the diagonal.
    many = [take_slopes(errors, change, value, torch.Generator().manual_seed(k)).jacobian[4:] for k in range(300)]
    curvature = torch.stack([rows.t() @ rows for rows in many]).mean(dim=0)
    torch.testing.assert_close(curvature, torch.eye(10), atol=0.15, rtol=0)
