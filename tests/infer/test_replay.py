"""Graphs answer as their function does. They need a GPU; what keeps and forgets them is tested without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.eval.speed import random_nets
from autodrag.infer import replay
from autodrag.infer.predict import PredictConfig, make_drags, predict
from autodrag.infer.replay import MOST, Replays
from autodrag.nets.predictor import Drags
from autodrag.nets.stylegan2 import Generator, GeneratorConfig


class Fake:
    """Stands in for a recorded graph: counts its replays, and computes with the numbers that it holds."""

    made = 0
    last: Fake

    def __init__(self, function: Any, inputs: tuple[Tensor, ...]) -> None:
        Fake.made += 1
        Fake.last = self
        self.function, self.inputs = function, tuple(x.clone() for x in inputs)
        self.answer, self.graph, self.replays = function(*inputs), self, 0

    def replay(self) -> None:
        self.replays += 1
        self.answer.copy_(self.function(*self.inputs))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(replay, "_record", Fake)
    Fake.made = 0
    return Fake


def test_a_shape_is_recorded_when_it_comes_again(fake: type[Fake]) -> None:
    replays = Replays()

    def double(x: Tensor) -> Tensor:
        return 2 * x

    answers = [replays.call(double, torch.full((3,), float(k))) for k in range(4)]
    assert [float(a[0]) for a in answers] == [0, 2, 4, 6]  # no answer is written over by the next
    assert fake.made == 1 and fake.last.replays == 3  # all but the first
    replays.call(double, torch.zeros(3, dtype=torch.float64))
    replays.call(double, torch.zeros(4))
    assert fake.made == 1  # other inputs, for the first time
    replays.call(double, torch.zeros(4))
    assert fake.made == 2


def test_the_oldest_is_forgotten(fake: type[Fake]) -> None:
    replays = Replays()
    for size in range(1, MOST + 2):
        for _ in range(2):
            replays.call(torch.neg, torch.zeros(size))
    assert fake.made == MOST + 1
    replays.call(torch.neg, torch.zeros(2))
    assert fake.made == MOST + 1
    for _ in range(2):  # forgotten: computed as for the first time, then recorded
        replays.call(torch.neg, torch.zeros(1))
    assert fake.made == MOST + 2
    replays.clear()
    replays.call(torch.neg, torch.zeros(2))
    assert fake.made == MOST + 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_replayed_edits_are_the_computed_ones(autocast: bool) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(resolution=64, channel_base=2048)).cuda().freeze()
    nets = random_nets(generator)
    for net in (nets.predictor, nets.regularizer):
        assert net is not None
        torch.nn.init.normal_(net.head.weight, std=0.01)
    nets.to(torch.device("cuda"))
    latent = generator.map(torch.randn(5, 512).cuda())
    points = torch.rand(2, 5, 3, 2).cuda() * 60
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for count in (1, 3):
            given = Drags(points[0, :, :count], points[1, :, :count], torch.ones(5, count, dtype=torch.bool).cuda())
            with torch.inference_mode():
                maps = generator.features(latent, block=nets.predictor.config.feature_block).last
                tokens, known = nets.predictor.tokenise(maps, given)
                plain = nets.predictor.align(nets._decode(tokens, known, latent)[:, None], latent, given)[:, 0]
                for _ in range(3):  # computed, recorded, replayed
                    torch.testing.assert_close(nets.edit(latent, maps, given), plain)
                turned = Drags(given.handles.flip(0), given.targets.flip(0), given.valid)
                other = nets.edit(latent.flip(0), maps.flip(0), turned)
                torch.testing.assert_close(other.flip(0), plain, atol=1e-3, rtol=1e-3)
            with torch.no_grad():  # a graph of inference mode serves outside of it
                torch.testing.assert_close(nets.edit(latent, maps, given), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_closed_loop_on_a_gpu_ends_where_it_does_on_a_cpu() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(resolution=64, channel_base=2048)).freeze()
    nets = random_nets(generator)
    torch.nn.init.normal_(nets.predictor.head.weight, std=0.01)
    latent = generator.map(torch.randn(1, 512))
    ends: dict[str, list[Tensor]] = {}
    for device in ("cpu", "cuda"):
        where = torch.device(device)
        generator.to(where), nets.to(where)
        handle, target = (torch.tensor([place]).to(where) for place in ([20.0, 20.0], [40.0, 30.0]))
        drags = make_drags(nets.predictor, handle, target)
        for _ in range(3):
            found = predict(nets, generator, latent.to(where), drags, config=PredictConfig(stop_px=0.0, gain=0.0))
            ends.setdefault(device, []).append(found.latent.cpu())
    for one in ends["cuda"]:
        torch.testing.assert_close(one, ends["cpu"][0], atol=2e-2, rtol=2e-2)
