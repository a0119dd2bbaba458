"""One drag by any method: who works, with what time, from where, and anchored to what."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from autodrag.infer.refine import RefineConfig
from fakes import FakeRefiner, set_clock
from learned import tiny_nets
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.infer import drag as module
from autodrag.infer.drag import Outcome, choose_method, drag, warm_up
from autodrag.infer.predict import LearnedNets, PredictConfig, Prediction
from autodrag.nets.stylegan2 import Features, Generator

HANDLES, TARGETS = torch.tensor([[8.0, 8.0], [20.0, 12.0]]), torch.tensor([[14.0, 8.0], [20.0, 18.0]])
REFINER = RefineConfig(objective="locate", steps=7, stop_px=1.0, feature_block=2)


@pytest.fixture(scope="module")
def nets(tiny_generator: Generator) -> LearnedNets:
    return tiny_nets(tiny_generator)


@pytest.fixture(scope="module")
def latent(tiny_generator: Generator) -> Tensor:
    return tiny_generator.map(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    ("refine", "without", "with_one", "with_a_mask"),
    [
        (True, "refine", "refine", "refine"),
        ("auto", "refine", "both", "refine"),
        ("both", None, "both", "both"),
        (False, None, "predict", "predict"),
    ],
)
def test_methods_are_chosen(refine: Any, without: str | None, with_one: str, with_a_mask: str) -> None:
    assert choose_method(refine, can_predict=True, masked=False, checkpoint="c") == with_one
    assert choose_method(refine, can_predict=True, masked=True, checkpoint="c") == with_a_mask
    if without is not None:
        assert choose_method(refine, can_predict=False, masked=False, checkpoint="c") == without
    else:
        with pytest.raises(AutodragError, match=f"refine={refine!r} needs a predictor, which 'c' does not have yet"):
            choose_method(refine, can_predict=False, masked=False, checkpoint="c")


@pytest.mark.parametrize("refine", ["predict", "Both", None, 1])
def test_unknown_methods_are_refused(refine: Any) -> None:
    with pytest.raises(AutodragError, match=f"refine={refine!r} is not known; expected True, False, 'auto' or 'both'"):
        choose_method(refine, can_predict=True, masked=False, checkpoint="c")


class FakePredictor:
    """Leaves every point a given distance from its target, and remembers how it was called."""

    def __init__(self, left: float, seconds: float, clock: list[float]) -> None:
        self.left, self.seconds, self.clock = left, seconds, clock
        self.calls: list[dict[str, Any]] = []

    def __call__(self, nets: LearnedNets, generator: Generator, latent: Tensor, drags: Any, **options: Any) -> Any:
        self.calls.append({"drags": drags, **options})
        self.clock[0] += self.seconds
        away = torch.full(drags.handles.shape[:2], self.left)
        points = drags.targets + torch.tensor([self.left, 0.0])
        features = options["features"] or Features(())
        sure = torch.full_like(away, 0.8)
        return Prediction(latent + 1, points, away, sure, sure < 0.2, 3, self.seconds, features)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tiny_generator: Generator, nets: LearnedNets, latent: Tensor
) -> Callable[..., tuple[Outcome, FakePredictor]]:
    """Drag with a predictor that leaves the points so far from their targets; no clock but its own."""

    def run(left: float = 5.0, seconds: float = 0.0, **options: Any) -> tuple[Outcome, FakePredictor]:
        clock = [0.0]
        set_clock(monkeypatch, lambda: clock[0], module)
        predictor = FakePredictor(left, seconds, clock)
        monkeypatch.setattr(module, "predict", predictor)
        options = {"method": "both", "refiner": REFINER, "nets": nets, **options}
        return drag(tiny_generator, options.pop("nets"), latent, HANDLES, TARGETS, **options), predictor

    return run


Run = Callable[..., tuple[Outcome, FakePredictor]]


def test_the_refiner_goes_on_from_where_the_predictor_came_to(
    run: Run, fake_refiner: FakeRefiner, latent: Tensor
) -> None:
    outcome, _ = run(left=5.0)
    (call,) = fake_refiner.calls
    torch.testing.assert_close(call["latent"], latent + 0.5)  # halfway to the prediction, which is at 1
    torch.testing.assert_close(call["handles"], (HANDLES + TARGETS + torch.tensor([5.0, 0.0])) / 2)
    assert torch.equal(call["targets"], TARGETS)
    assert torch.equal(call["before"], latent)  # what the predictor did is part of the edit, and priced with it
    assert (outcome.rounds, outcome.steps, outcome.reason) == (3, 5, "arrived")
    assert outcome.distances.tolist() == [0.5, 0.5]  # the refiner's


def test_it_follows_what_the_handles_were_in_the_image_before(
    run: Run, fake_refiner: FakeRefiner, latent: Tensor
) -> None:
    run(left=5.0)
    known = fake_refiner.calls[0]["references"]
    assert torch.equal(known.handles, HANDLES)
    assert torch.equal(known.latent, latent)  # what a mask holds is the original, too
    run(left=5.0, references=known)
    assert fake_refiner.calls[1]["references"] is known


def test_the_prediction_stays_where_the_refiner_ends_farther_away(
    run: Run, fake_refiner: FakeRefiner, latent: Tensor
) -> None:
    slow = replace(REFINER, steps=0)  # it stays halfway
    outcome, _ = run(left=1.2, refiner=slow)
    assert torch.equal(outcome.latent, latent + 1) and outcome.distances.tolist() == pytest.approx([1.2, 1.2])
    assert (outcome.rounds, outcome.steps) == (3, 0) and outcome.references is not None
    held, _ = run(left=1.2, refiner=slow, anchors=torch.tensor([[1.0, 1.0]]))  # which a prediction holds loosely
    torch.testing.assert_close(held.latent, latent + 0.5)


def test_what_has_arrived_is_not_refined(run: Run, fake_refiner: FakeRefiner, latent: Tensor) -> None:
    outcome, _ = run(left=0.9)
    assert not fake_refiner.calls
    assert (outcome.rounds, outcome.steps, outcome.reason) == (3, 0, "arrived")
    assert torch.equal(outcome.latent, latent + 1)
    assert outcome.distances.tolist() == pytest.approx([0.9, 0.9])


def test_the_predictor_alone(run: Run, fake_refiner: FakeRefiner) -> None:
    far, predictor = run(left=5.0, method="predict", anchors=torch.tensor([[1.0, 1.0]]))
    assert (far.reason, far.steps) == ("rounds", 0)
    assert far.confidences.tolist() == pytest.approx([0.8, 0.8])
    assert far.points.shape == (2, 2)  # without the anchor
    assert predictor.calls[0]["drags"].handles.shape == (1, 3, 2)
    assert run(left=0.5, method="predict")[0].reason == "arrived"
    assert not fake_refiner.calls


def test_the_refiner_alone(run: Run, fake_refiner: FakeRefiner, latent: Tensor) -> None:
    outcome, predictor = run(method="refine", nets=None)
    assert not predictor.calls and torch.equal(fake_refiner.calls[0]["latent"], latent)
    assert (outcome.rounds, outcome.steps, outcome.features) == (0, 5, None)


@pytest.mark.parametrize("method", ["predict", "both", "auto"])
def test_no_predictor(run: Run, method: str) -> None:
    with pytest.raises(ValueError, match=f"method '{method}' needs a predictor"):
        run(method=method, nets=None)


def test_the_refiner_has_what_is_left_of_the_time(run: Run, fake_refiner: FakeRefiner) -> None:
    timed = replace(REFINER, budget_s=2.0)
    _, predictor = run(left=5.0, seconds=0.5, refiner=timed)
    assert predictor.calls[0]["config"].budget_s == 2.0
    assert fake_refiner.calls[0]["config"] == replace(timed, budget_s=1.5)
    outcome, _ = run(left=5.0, seconds=2.5, refiner=timed)
    assert len(fake_refiner.calls) == 1  # none was left
    assert (outcome.reason, outcome.steps) == ("budget", 0)


def test_a_stop_event_ends_the_drag_before_the_refiner(run: Run, fake_refiner: FakeRefiner) -> None:
    stop = threading.Event()
    stop.set()
    outcome, predictor = run(left=5.0, stop=stop)
    assert predictor.calls[0]["stop"] is stop
    assert not fake_refiner.calls and outcome.reason == "stopped"


def test_everything_reaches_both(run: Run, fake_refiner: FakeRefiner) -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    anchors, seen = torch.tensor([[1.0, 1.0]]), list[Any]()
    stop, settings = threading.Event(), PredictConfig(rounds=7)
    options = {"mask": mask, "anchors": anchors, "stop": stop, "callback": seen.append}
    _, predictor = run(left=5.0, predictor=settings, **options)
    (told,) = predictor.calls
    assert told["config"] == settings
    assert told["drags"].movable[0].sum() == 128 and told["drags"].targets[0, 2].tolist() == [1.0, 1.0]
    (call,) = fake_refiner.calls
    assert all(call[name] is options[name] for name in ("mask", "anchors", "stop"))
    assert len(seen) == 6


def test_with_true_networks_both_end_nearer_than_the_predictor(
    tiny_generator: Generator, nets: LearnedNets, latent: Tensor
) -> None:
    """Nothing is faked: random weights predict nonsense, which the refiner has to mend."""
    only = drag(tiny_generator, nets, latent, HANDLES[:1], TARGETS[:1], method="predict", refiner=REFINER)
    both = drag(tiny_generator, nets, latent, HANDLES[:1], TARGETS[:1], method="both", refiner=REFINER)
    assert float(both.distances.sum()) < float(only.distances.sum())
    assert both.rounds == only.rounds and both.steps > 0
    again = drag(tiny_generator, nets, latent, HANDLES[:1], TARGETS[:1], method="both", refiner=REFINER)
    assert torch.equal(both.latent, again.latent)
    image = tiny_generator.image(only.latent, only.features)  # type: ignore[arg-type]
    torch.testing.assert_close(image, tiny_generator(only.latent), atol=1e-4, rtol=1e-4)


def test_warming_up_leaves_no_trace(tiny_generator: Generator, nets: LearnedNets, latent: Tensor) -> None:
    state = torch.random.get_rng_state()
    before = drag(tiny_generator, nets, latent, HANDLES, TARGETS, method="predict", refiner=REFINER)
    warm_up(tiny_generator, nets)
    after = drag(tiny_generator, nets, latent, HANDLES, TARGETS, method="predict", refiner=REFINER)
    assert torch.equal(before.latent, after.latent)
    assert torch.equal(torch.random.get_rng_state(), state)
