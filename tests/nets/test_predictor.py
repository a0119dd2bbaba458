"""The predictor: parallel and stepwise decoding, causality, sets of points, and its inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autodrag.nets.predictor import PATCH, DragBatch, Predictor, PredictorConfig
from autodrag.points import sample

TINY = PredictorConfig(
    layers=8,
    w_dim=16,
    image_height=32,
    image_width=32,
    feature_block=2,
    feature_channels=6,
    feature_height=16,
    edit_layers=3,
    steps=4,
    width=24,
    heads=3,
    encoder_layers=1,
    decoder_layers=2,
    mlp_ratio=2.0,
    token_rows=8,
)
PAPER = replace(TINY, variant="paper")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(config: PredictorConfig = TINY) -> Predictor:
    """A predictor with a nonzero last layer."""
    torch.manual_seed(0)
    net = Predictor(config).eval()
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


def drags(count: int = 3, batch: int = 2, seed: int = 0, config: PredictorConfig = TINY) -> DragBatch:
    extent = torch.tensor([config.image_width, config.image_height])
    points = torch.rand(2, batch, count, 2, generator=torch.Generator().manual_seed(seed)) * extent - 0.5
    return DragBatch(points[0], points[1], torch.ones(batch, count, dtype=torch.bool))


def ahead(net: Predictor, maps: Tensor, what: DragBatch, latent: Tensor) -> Tensor:
    """Autoregressive decoding: w_1 ... w_n, (B, T, L, D)."""
    memory, codes = net.encode(maps, what), []
    for _ in range(net.config.steps):
        latent = net.next_code(memory, latent)
        codes.append(latent)
    return torch.stack(codes, dim=1)


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["default", "paper"])
def test_cached_decoding_equals_parallel_decoding(config: PredictorConfig) -> None:
    net, maps, what, codes = make(config), random(2, 6, 16, 16), drags(), random(2, 4, 8, 16)
    whole = net.decode(net.encode(maps, what), codes)
    memory = net.encode(maps, what)
    for k in range(4):
        torch.testing.assert_close(net.next_code(memory, codes[:, k]), whole[:, k], atol=1e-5, rtol=1e-5)
    assert memory.step == 4


def test_teacher_forcing_with_predicted_codes() -> None:
    """Teacher forcing with the network's own codes predicts the same codes."""
    net, maps, what, start = make(), random(2, 6, 16, 16), drags(), random(2, 8, 16)
    own = ahead(net, maps, what, start)
    forced = net.decode(net.encode(maps, what), torch.cat([start[:, None], own[:, :-1]], dim=1))
    torch.testing.assert_close(forced, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("later", [1, 2, 3])
def test_decoding_is_causal(later: int) -> None:
    net, codes = make(), random(2, 4, 8, 16)
    changed = codes.clone()
    changed[:, later] += 1
    maps, what = random(2, 6, 16, 16), drags()
    before, after = (net.decode(net.encode(maps, what), c) for c in (codes, changed))
    assert torch.equal(before[:, :later], after[:, :later])
    assert (before[:, later:, :3] - after[:, later:, :3]).abs().amax(dim=(0, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["default", "paper"])
def test_the_order_of_points_does_not_matter(config: PredictorConfig) -> None:
    net, maps, what, codes = make(config), random(2, 6, 16, 16), drags(5), random(2, 4, 8, 16)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = DragBatch(what.handles[:, order], what.targets[:, order], what.valid[:, order])
    first, second = (net.decode(net.encode(maps, d), codes) for d in (what, shuffled))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["default", "paper"])
def test_padding_does_not_matter(config: PredictorConfig) -> None:
    net, maps, what, codes = make(config), random(2, 6, 16, 16), drags(3), random(2, 4, 8, 16)
    noise = random(2, 2, 2, seed=5) * 1000
    padded = DragBatch(
        torch.cat([what.handles, noise], dim=1),
        torch.cat([what.targets, -noise], dim=1),
        torch.cat([what.valid, torch.zeros(2, 2, dtype=torch.bool)], dim=1),
    )
    first, second = (net.decode(net.encode(maps, d), codes) for d in (what, padded))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_batch_samples_are_independent() -> None:
    net, maps, what, codes = make(), random(2, 6, 16, 16), drags(), random(2, 4, 8, 16)
    alone = DragBatch(what.handles[1:], what.targets[1:], what.valid[1:])
    whole = net.decode(net.encode(maps, what), codes)
    torch.testing.assert_close(net.decode(net.encode(maps[1:], alone), codes[1:]), whole[1:], atol=1e-5, rtol=1e-5)


def test_untrained_network_predicts_no_motion() -> None:
    start = random(2, 8, 16)
    codes = ahead(Predictor(TINY), random(2, 6, 16, 16), drags(), start)
    assert torch.equal(codes, start[:, None].expand_as(codes))


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["default", "paper"])
def test_only_edit_layers_change(config: PredictorConfig) -> None:
    start = random(2, 8, 16)
    codes = ahead(make(config), random(2, 6, 16, 16), drags(), start)
    assert torch.equal(codes[:, :, 3:], start[:, None, 3:].expand(-1, 4, -1, -1))
    assert (codes[:, 0, :3] - start[:, :3]).abs().amax(dim=2).min() > 1e-3


def test_all_inputs_change_the_prediction() -> None:
    net, maps, what, start = make(), random(2, 6, 16, 16), drags(), random(2, 8, 16)
    answer = ahead(net, maps, what, start)
    for other in (
        ahead(net, maps + random(2, 6, 16, 16, seed=3), what, start),
        ahead(net, maps, replace(what, targets=what.targets + 4), start),
        ahead(net, maps, replace(what, targets=what.handles), start),  # anchors
    ):
        assert (answer - other).abs().max() > 1e-4


def test_only_the_default_variant_has_positions() -> None:
    """On a constant map, patches contain no position, so the paper's variant cannot distinguish two drags."""
    maps, start = torch.ones(1, 6, 16, 16), random(1, 8, 16)
    here = DragBatch(torch.full((1, 1, 2), 10.0), torch.full((1, 1, 2), 13.0), torch.ones(1, 1, dtype=torch.bool))
    there = replace(here, handles=here.handles + 6, targets=here.targets + 8)
    blind, seeing = make(PAPER), make()
    torch.testing.assert_close(ahead(blind, maps, here, start), ahead(blind, maps, there, start))
    assert (ahead(seeing, maps, here, start) - ahead(seeing, maps, there, start)).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(32, 32), (32, 16)])
def test_patches_are_sampled_around_the_points(size: tuple[int, int]) -> None:
    """The token of a handle is a linear map of the surrounding cells; here it selects one cell of the patch."""
    config = replace(PAPER, image_width=size[1], width=6, heads=1)
    net, maps = make(config), random(1, 6, 16, size[1] // 2)
    with torch.no_grad():
        net.handle_patch.weight.zero_()
        net.handle_patch.bias.zero_()
        net.kind.zero_()
        # Values are ordered by channel; the last cell of a patch is at the bottom right.
        last = PATCH**2 - 1
        net.handle_patch.weight[range(6), [PATCH**2 * c + last for c in range(6)]] = 1.0
    what = drags(4, batch=1, config=config)
    tokens, valid = net.tokenise(maps, what)
    expected = sample(maps, what.handles + 2.0 * (PATCH // 2), size)  # one cell is 2 px
    count = 8 * 8 * size[1] // 32  # map tokens come first
    torch.testing.assert_close(tokens[0, count : count + 4], expected[0].t(), atol=1e-5, rtol=1e-5)
    assert tokens.shape[1] == valid.shape[1] == count + 8


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["default", "paper"])
def test_gradients_reach_every_parameter(config: PredictorConfig) -> None:
    """Data-parallel training needs a gradient for every parameter."""
    net = make(config)
    codes = ahead(net, random(2, 6, 16, 16), drags(), random(2, 8, 16))
    codes.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(-0.5, 31.5), st.floats(-0.5, 31.5)), min_size=1, max_size=6))
def test_any_points_of_the_image_give_finite_codes(points: list[tuple[float, float]]) -> None:
    net = make()
    handles = torch.tensor([points])
    what = DragBatch(handles, handles.flip(1), torch.ones(1, len(points), dtype=torch.bool))
    codes = ahead(net, random(1, 6, 16, 16), what, random(1, 8, 16))
    assert torch.isfinite(codes).all()


def test_default_depths_are_those_of_the_paper() -> None:
    config = PredictorConfig()
    assert (config.encoder_layers, config.decoder_layers, config.steps, PATCH) == (6, 16, 5, 7)
    with torch.device("meta"):
        net = Predictor(config)
        points = torch.zeros(1, 3, 2)
        memory = net.encode(
            torch.zeros(1, 512, 128, 128), DragBatch(points, points, torch.ones(1, 3, dtype=torch.bool))
        )
    assert memory.mask is not None
    assert memory.mask.shape == (1, 1, 1, 16 * 16 + 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("edit_layers", 8, "edit_layers 8 of 8: some layers must stay"),
        ("heads", 7, "width 24 must be a multiple of heads 7"),
        ("decoder_layers", 0, "decoder_layers >= 1"),
        ("steps", 0, "steps >= 1"),
        ("token_rows", 3, "token_rows 3: expected 16 .rows of F. divided by a power of two"),
        ("token_rows", 32, "token_rows 32"),
        ("token_rows", 0, "token_rows 0"),
        ("feature_block", -1, "feature_block -1"),
        ("image_width", 0, "expected positive sizes"),
    ],
)
def test_invalid_sizes(field: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **{field: value})  # type: ignore[arg-type]


def test_layers_change_by_their_mean() -> None:
    net, start, codes = make(), random(2, 8, 16), random(2, 4, 8, 16, seed=1)
    codes[:, :, 3:] = start[:, None, 3:]
    aligned = net.align(codes, start)
    mean = codes[:, :, :3].mean(dim=2) - start[:, None, :3].mean(dim=2)
    for layer in range(3):
        torch.testing.assert_close(aligned[:, :, layer], start[:, None, layer] + mean)
    assert torch.equal(aligned[:, :, 3:], codes[:, :, 3:])
    assert torch.equal(make(PAPER).align(codes, start), codes), "the paper's layers change on their own"
