"""An open image: features, appearance and memory, layers, and the latents that can be opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learned import tiny_nets

from autodrag.checkpoint import fingerprint, save_code
from autodrag.errors import AutodragError, CheckpointError
from autodrag.infer.open_image import OpenImage, feature_block, opened_code, seed_latent
from autodrag.infer.task import References
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Generator, seed_z
from autodrag.tracking import appearance


def test_features_of_an_image(tiny_generator: Generator) -> None:
    latent = tiny_generator.map(seed_z(3, 32)).requires_grad_(True)
    image = OpenImage.of(tiny_generator, latent)
    expected = tiny_generator.features(latent, block=3)
    for block, output in enumerate(expected.outputs):
        torch.testing.assert_close(image.output(block), output)
        assert not image.output(block).requires_grad
    points = torch.tensor([[[10.0, 12.0], [3.0, 30.0]]])
    found = image.look(slice(1, 4)).at(points, (32, 32))
    for one, other in zip(found.features, appearance(expected.outputs[1:4], points, (32, 32)).features, strict=True):
        torch.testing.assert_close(one, other)


def test_given_features_are_used_if_they_contain_enough_blocks(tiny_generator: Generator) -> None:
    latent = tiny_generator.map(seed_z(3, 32))
    whole = tiny_generator.features(latent, block=3)
    assert OpenImage.of(tiny_generator, latent, known=whole).features is whole
    short = tiny_generator.features(latent, block=1)
    torch.testing.assert_close(OpenImage.of(tiny_generator, latent, known=short).output(3), whole.last)


def test_memory_of_the_networks(tiny_generator: Generator) -> None:
    latent = tiny_generator.map(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    editor = tiny_nets(tiny_generator)
    image = OpenImage.of(tiny_generator, latent, editor)
    expected = editor.open(latent, tiny_generator.features(latent, block=2).last)
    assert image.memory.map_tokens is not None and expected.map_tokens is not None
    torch.testing.assert_close(image.memory.map_tokens, expected.map_tokens)
    assert image.memory.clean is not None


def test_small_generators_use_their_last_block(tiny_generator: Generator) -> None:
    assert feature_block(tiny_generator.config) == 3 and feature_block(tiny_generator.config, 1) == 1


# --- layers ----------------------------------------------------------------------------------------------------------

POINT = torch.tensor([4.0, 4.0])
LEFT, RIGHT = torch.zeros(2, 32, 32, dtype=torch.bool)
LEFT[:, :12] = True
RIGHT[:, 20:] = True


def edited(image: OpenImage, mask: torch.Tensor) -> OpenImage:
    """The image after an edit with a mask."""
    opened = image.within(mask, POINT)
    return OpenImage(opened.synthesis.moved(opened.latent + 0.5), image.editor)


def test_an_image_without_layers_needs_no_other_one(tiny_generator: Generator) -> None:
    image = OpenImage.of(tiny_generator, tiny_generator.map(seed_z(3, 32)))
    assert image.within(None, POINT) is image
    assert OpenImage.of(tiny_generator, image.layers).layers.stack == image.layers.stack


def test_the_first_mask_puts_a_layer_over_the_image(tiny_generator: Generator) -> None:
    image = OpenImage.of(tiny_generator, tiny_generator.map(seed_z(3, 32)), tiny_nets(tiny_generator))
    opened = image.within(LEFT, POINT)
    assert opened.editor is image.editor and opened.latent is image.latent
    assert opened.features is image.features and opened.synthesis.background is image.rendered
    with torch.no_grad():
        assert torch.equal(image.rendered.picture, tiny_generator(image.latent))
    assert torch.equal(opened.rendered.picture, image.rendered.picture)


def test_the_same_mask_again_keeps_the_background(tiny_generator: Generator) -> None:
    image = OpenImage.of(tiny_generator, tiny_generator.map(seed_z(3, 32)))
    once = edited(image, LEFT)
    again = once.within(LEFT.clone(), POINT)
    assert again.synthesis.background is image.rendered and again.features is once.features
    other = once.within(RIGHT, POINT)
    assert other.synthesis.background is once.rendered and len(other.layers) == 3
    everywhere = once.within(None, POINT)
    assert everywhere.synthesis.background is None
    for one, two in zip(everywhere.features.outputs, once.features.outputs, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("x", "layer"), [(4.0, 1), (25.0, 0)])
def test_the_latent_is_that_of_the_layer_at_the_handle(tiny_generator: Generator, x: float, layer: int) -> None:
    once = edited(OpenImage.of(tiny_generator, tiny_generator.map(seed_z(3, 32))), LEFT)
    opened = once.within(None, torch.tensor([x, 8.0]))
    assert opened.latent is once.layers.stack[layer].latent


def test_the_origin_of_references(tiny_generator: Generator) -> None:
    image = OpenImage.of(tiny_generator, tiny_generator.map(seed_z(3, 32)))
    once = edited(image, LEFT)
    assert once.origin(None) is once
    assert once.origin(References(once.layers, POINT[None])) is once
    first = once.origin(References(image.layers, POINT[None]))
    assert first.layers.stack == image.layers.stack
    torch.testing.assert_close(first.output(3), image.output(3))


# --- opening ---------------------------------------------------------------------------------------------------------


def opened(generator: Generator, **options: Any) -> torch.Tensor:
    given: dict[str, Any] = {"seed": None, "psi": 0.7, "label": None, "latent": None}
    code = opened_code(generator, **(given | options), fingerprint=fingerprint(generator.state_dict()))
    (layer,) = code.stack
    return layer.latent


def test_latent_of_a_seed_is_truncated(tiny_generator: Generator) -> None:
    expected = tiny_generator.map(seed_z(3, 32), psi=0.5)
    assert torch.equal(opened(tiny_generator, seed=3, psi=0.5), expected)
    assert torch.equal(seed_latent(tiny_generator, 3, 0.5, None), expected)


def test_latents_from_tensors_and_files(tiny_generator: Generator, tmp_path: Path) -> None:
    latent = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    save_code(tmp_path / "l.safetensors", Layers.of(latent), {"generator": fingerprint(tiny_generator.state_dict())})
    assert torch.equal(opened(tiny_generator, latent=latent.double()), latent)
    assert torch.equal(opened(tiny_generator, latent=tmp_path / "l.safetensors"), latent)
    save_code(tmp_path / "other.safetensors", Layers.of(latent), {"generator": "a" * 16})
    with pytest.raises(CheckpointError, match="belongs to generator 'aaaaaaaaaaaaaaaa'"):
        opened(tiny_generator, latent=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a seed or a latent"),
        ({"seed": 1, "latent": "x"}, "give either a seed or a latent"),
        ({"seed": -1}, "seed -1 is not usable; expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed 4294967296 is not usable"),
        ({"seed": 1, "psi": float("nan")}, "psi nan is not usable; expected a number from -2 to 2"),
        ({"seed": 1, "psi": 2.5}, "psi 2.5 is not usable"),
        ({"seed": 1, "label": 0}, "label 0 is given, but this generator has no classes"),
        ({"latent": "nowhere.safetensors"}, "does not exist"),
        ({"latent": torch.zeros(1, 2, 32)}, r"latent has shape \(1, 2, 32\); expected finite values of \(1, 8, 32\)"),
        ({"latent": torch.full((1, 8, 32), float("nan"))}, "expected finite values"),
    ],
)
def test_invalid_sources(tiny_generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AutodragError, match=message):
        opened(tiny_generator, **arguments)


def test_classes(make_generator: Callable[..., Generator]) -> None:
    generator = make_generator(c_dim=3)
    with pytest.raises(AutodragError, match="label None is not a class of this generator; expected 0 to 2"):
        opened(generator, seed=1)
    with pytest.raises(AutodragError, match="label 3 is not a class"):
        opened(generator, seed=1, label=3)
    assert not torch.equal(opened(generator, seed=1, label=0), opened(generator, seed=1, label=1))
