"""Accelerated networks give the same results. The cache of CUDA graphs is also tested without a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.acceleration import MAX_GRAPHS, Graphs, accelerate
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.predictor import DragBatch, Predictor, PredictorConfig
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Features, Generator, GeneratorConfig


class FakeGraph:
    """Replaces a recorded graph. Counts replays, and writes the outputs into fixed tensors as a graph does."""

    n_recorded = 0
    last: FakeGraph

    def __init__(self, function: Any, inputs: tuple[Tensor, ...]) -> None:
        FakeGraph.n_recorded += 1
        FakeGraph.last = self
        self.function, self.inputs = function, tuple(x.clone() for x in inputs)
        self.outputs, self.graph, self.replays = function(*inputs), self, 0

    def replay(self) -> None:
        self.replays += 1
        for output, new in zip(self.outputs, self.function(*self.inputs), strict=True):
            output.copy_(new)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    monkeypatch.setattr(Graphs, "_record", lambda self, function, inputs: FakeGraph(function, inputs))
    FakeGraph.n_recorded = 0
    return FakeGraph


def double(x: Tensor) -> tuple[Tensor]:
    return (2 * x,)


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    return -x, x + 1


def test_graph_is_recorded_at_the_second_call(fake: type[FakeGraph]) -> None:
    graphs = Graphs()
    results = [graphs.call("double", double, torch.full((3,), float(k)))[0] for k in range(4)]
    assert [float(x[0]) for x in results] == [0, 2, 4, 6]  # later calls do not overwrite earlier results
    assert fake.n_recorded == 1 and fake.last.replays == 3  # all but the first call
    graphs.call("double", double, torch.zeros(3, dtype=torch.float64))
    graphs.call("double", double, torch.zeros(4))
    assert fake.n_recorded == 1  # first calls with other inputs
    graphs.call("double", double, torch.zeros(4))
    assert fake.n_recorded == 2


def test_functions_are_distinguished_by_name(fake: type[FakeGraph]) -> None:
    graphs = Graphs()
    for k in (1.0, 2.0, 3.0):
        assert graphs.call("double", double, torch.full((3,), k))[0].tolist() == [2 * k] * 3
        minus, more = graphs.call("both", both, torch.full((3,), k))
        assert minus.tolist() == [-k] * 3 and more.tolist() == [k + 1] * 3
    assert fake.n_recorded == 2


def test_least_recently_used_graph_is_dropped(fake: type[FakeGraph]) -> None:
    graphs = Graphs()
    for size in range(1, MAX_GRAPHS + 2):
        for _ in range(2):
            graphs.call("double", double, torch.zeros(size))
    assert fake.n_recorded == MAX_GRAPHS + 1
    graphs.call("double", double, torch.zeros(2))
    assert fake.n_recorded == MAX_GRAPHS + 1
    for _ in range(2):  # this graph was dropped: the first call computes, the second records
        graphs.call("double", double, torch.zeros(1))
    assert fake.n_recorded == MAX_GRAPHS + 2
    graphs.clear()
    graphs.call("double", double, torch.zeros(2))
    assert fake.n_recorded == MAX_GRAPHS + 2


def test_moved_or_copied_generator_has_no_graphs(fake: type[FakeGraph]) -> None:
    generator = Generator(GeneratorConfig(resolution=8, channel_base=64)).freeze()

    def recorded_after_call(generator: Generator) -> int:
        assert generator.graphs is not None
        generator.graphs.call("double", double, torch.zeros(2))
        return fake.n_recorded

    assert [recorded_after_call(generator) for _ in range(3)] == [0, 1, 1]
    assert [recorded_after_call(copy.deepcopy(generator)), recorded_after_call(generator)] == [1, 1]
    generator.double()  # replaces all tensors, as moving to another device does
    assert [recorded_after_call(generator), recorded_after_call(generator)] == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_replayed_synthesis_equals_direct_synthesis(autocast: bool) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(resolution=64, channel_base=2048)).cuda()
    latents = generator.map(torch.randn(6, 512).cuda()).detach().view(3, 2, 10, 512)

    def close(found: Tensor, expected: Tensor) -> None:  # tolerance of TF32 and bf16 products
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        generator.eval()
        plain = [(generator.features(w, block=3), generator(w)) for w in latents]  # not frozen, so not replayed
        generator.freeze()
        for _ in range(3):  # computed, recorded, replayed
            for latent, (maps, image) in zip(latents, plain, strict=True):
                known = generator.features(latent, block=3)
                for one, expected in zip(known.outputs, maps.outputs, strict=True):
                    close(one, expected)
                close(generator(latent), image)
                close(generator.image(latent, known), image)
                close(generator.image(latent, Features(known.outputs[:2])), image)
        assert generator.graphs is not None and any(generator.graphs._graphs.values())
        generator.cpu()
        close(generator.cuda()(latents[0]), plain[0][1])  # no graph reads the old weights
    latent = latents[0].clone().requires_grad_(True)
    generator(latent).sum().backward()  # graphs are not used with gradients
    assert latent.grad is not None and bool(latent.grad.abs().sum() > 0)


def random_editor(generator: Generator) -> LearnedEditor:
    """A small editor for a 64 px generator that predicts nonzero motion."""
    torch.manual_seed(0)
    sizes = {"layers": 10, "width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    config = PredictorConfig(
        image_height=64,
        image_width=64,
        feature_block=3,
        track_block=4,
        feature_channels=generator.config.channels(32),
        feature_height=32,
        token_rows=8,
        steps=2,
        **sizes,  # type: ignore[arg-type]
    )
    editor = LearnedEditor(Predictor(config), Regularizer(RegularizerConfig(**sizes)))  # type: ignore[arg-type]
    for net in (editor.predictor, editor.regularizer):
        assert net is not None
        torch.nn.init.normal_(net.head.weight, std=0.01)
    return editor


def drags_of(count: int, device: torch.device) -> DragBatch:
    points = torch.rand(2, 5, count, 2, generator=torch.Generator().manual_seed(count)).to(device) * 60
    return DragBatch(points[0], points[1], torch.ones(5, count, dtype=torch.bool, device=device))


def test_accelerated_editor_gives_the_same_results() -> None:
    generator = Generator(GeneratorConfig(resolution=64, channel_base=2048)).eval().requires_grad_(False)
    editor = random_editor(generator)
    latent = generator.map(torch.randn(5, 512))
    maps = generator.features(latent, block=3).last
    with torch.no_grad():
        plain = editor.edit(latent, maps, drags_of(3, latent.device))
    assert accelerate(editor) is editor and not editor.training
    fast = editor.edit(latent, accelerate(generator).features(latent, block=3).last, drags_of(3, latent.device))
    assert not fast.requires_grad
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_replayed_edits_equal_direct_edits(autocast: bool) -> None:
    generator = Generator(GeneratorConfig(resolution=64, channel_base=2048)).cuda().freeze()
    editor = random_editor(generator).cuda().eval().requires_grad_(False)
    latent = generator.map(torch.randn(5, 512).cuda())
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for count in (1, 3):
            given = drags_of(count, latent.device)
            with torch.inference_mode():
                maps = generator.features(latent, block=3).last
                plain = editor.edit(latent, maps, given)
                accelerate(editor)
                for _ in range(3):  # computed, recorded, replayed
                    torch.testing.assert_close(editor.edit(latent, maps, given), plain)
                    memory = editor.open(latent, maps)
                    torch.testing.assert_close(editor.edit(latent, maps, given, memory), plain)
                turned = DragBatch(given.handles.flip(0), given.targets.flip(0), given.valid)
                other = editor.edit(latent.flip(0), maps.flip(0), turned)
                torch.testing.assert_close(other.flip(0), plain, atol=1e-3, rtol=1e-3)
            with torch.no_grad():  # a graph recorded in inference mode also works outside it
                torch.testing.assert_close(editor.edit(latent, maps, given), plain)
            editor.graphs = None
