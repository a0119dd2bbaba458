"""Graphs answer as their function does. They need a GPU; what keeps and forgets them is tested without one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.eval.speed import random_nets
from autodrag.infer.predict import PredictConfig, make_drags, predict
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Features, Generator, GeneratorConfig
from autodrag.replay import MOST, Replays


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
        for held, new in zip(self.answer, self.function(*self.inputs), strict=True):
            held.copy_(new)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(Replays, "_record", lambda self, function, inputs: Fake(function, inputs))
    Fake.made = 0
    return Fake


def double(x: Tensor) -> tuple[Tensor]:
    return (2 * x,)


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    return -x, x + 1


def test_a_shape_is_recorded_when_it_comes_again(fake: type[Fake]) -> None:
    replays = Replays()
    answers = [replays.call("double", double, torch.full((3,), float(k)))[0] for k in range(4)]
    assert [float(a[0]) for a in answers] == [0, 2, 4, 6]  # no answer is written over by the next
    assert fake.made == 1 and fake.last.replays == 3  # all but the first
    replays.call("double", double, torch.zeros(3, dtype=torch.float64))
    replays.call("double", double, torch.zeros(4))
    assert fake.made == 1  # other inputs, for the first time
    replays.call("double", double, torch.zeros(4))
    assert fake.made == 2


def test_functions_are_told_apart_by_name(fake: type[Fake]) -> None:
    replays = Replays()
    for k in (1.0, 2.0, 3.0):
        assert replays.call("double", double, torch.full((3,), k))[0].tolist() == [2 * k] * 3
        minus, more = replays.call("both", both, torch.full((3,), k))
        assert minus.tolist() == [-k] * 3 and more.tolist() == [k + 1] * 3
    assert fake.made == 2


def test_the_oldest_is_forgotten(fake: type[Fake]) -> None:
    replays = Replays()
    for size in range(1, MOST + 2):
        for _ in range(2):
            replays.call("double", double, torch.zeros(size))
    assert fake.made == MOST + 1
    replays.call("double", double, torch.zeros(2))
    assert fake.made == MOST + 1
    for _ in range(2):  # forgotten: computed as for the first time, then recorded
        replays.call("double", double, torch.zeros(1))
    assert fake.made == MOST + 2
    replays.clear()
    replays.call("double", double, torch.zeros(2))
    assert fake.made == MOST + 2


def test_a_generator_that_is_moved_or_copied_begins_anew(fake: type[Fake]) -> None:
    generator = Generator(GeneratorConfig(resolution=8, channel_base=64)).freeze()

    def ask(of: Generator) -> int:
        assert of._replays is not None
        of._replays.call("double", double, torch.zeros(2))
        return fake.made

    assert [ask(generator) for _ in range(3)] == [0, 1, 1]
    assert [ask(copy.deepcopy(generator)), ask(generator)] == [1, 1]
    generator.double()  # as every move, it replaces all tensors
    assert [ask(generator), ask(generator)] == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_replayed_synthesis_is_the_computed_one(autocast: bool) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(resolution=64, channel_base=2048)).cuda()
    latents = generator.map(torch.randn(6, 512).cuda()).detach().view(3, 2, 10, 512)

    def close(found: Tensor, expected: Tensor) -> None:  # within what TF32 and bf16 leave of products
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        generator.eval()
        plain = [(generator.features(w, block=3), generator(w)) for w in latents]  # not frozen: never replayed
        generator.freeze()
        for _ in range(3):  # computed, recorded, replayed
            for latent, (maps, image) in zip(latents, plain, strict=True):
                known = generator.features(latent, block=3)
                for one, expected in zip(known.outputs, maps.outputs, strict=True):
                    close(one, expected)
                close(generator(latent), image)
                close(generator.image(latent, known), image)
                close(generator.image(latent, Features(known.outputs[:2])), image)
        assert generator._replays is not None and any(generator._replays._known.values())
        generator.cpu()
        close(generator.cuda()(latents[0]), plain[0][1])  # no graph reads where the weights were
    latent = latents[0].clone().requires_grad_(True)
    generator(latent).sum().backward()  # with gradients it is computed as ever
    assert latent.grad is not None and bool(latent.grad.abs().sum() > 0)


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
            given = DragBatch(points[0, :, :count], points[1, :, :count], torch.ones(5, count, dtype=torch.bool).cuda())
            with torch.inference_mode():
                maps = generator.features(latent, block=nets.predictor.config.feature_block).last
                tokens, known = nets.predictor.tokenise(maps, given)
                plain = nets.predictor.align(nets._decode(tokens, known, latent)[0][:, None], latent, given)[:, 0]
                for _ in range(3):  # computed, recorded, replayed
                    torch.testing.assert_close(nets.edit(latent, maps, given), plain)
                turned = DragBatch(given.handles.flip(0), given.targets.flip(0), given.valid)
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
