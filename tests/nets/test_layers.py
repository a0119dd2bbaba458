"""Images in layers: nothing changes outside a mask, layers are shared and dropped, codes as tensors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.nets.layers import MAX_LAYERS, Layer, LayeredGenerator, Layers, Region
from autodrag.nets.stylegan2 import Features, Generator, seed_z

SIZE = (32, 32)


@pytest.fixture(scope="module")
def generator(make_generator: Callable[..., Generator]) -> Generator:
    return make_generator().freeze()


@pytest.fixture(scope="module")
def code(generator: Generator) -> Layers:
    """The image of one seed."""
    return Layers.of(latent(generator, 3))


def latent(generator: Generator, seed: int) -> Tensor:
    return generator.map(seed_z(seed, 32))


def box(top: int, bottom: int, left: int, right: int) -> Tensor:
    """A mask that is True in the rows top..bottom and the columns left..right, without the last ones."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


LEFT, RIGHT, MIDDLE = box(0, 32, 0, 12), box(0, 32, 20, 32), box(9, 24, 6, 22)


def within(generator: Generator, code: Layers, mask: Tensor | None, active: int = -1) -> LayeredGenerator:
    """An image for an edit with a mask."""
    kept, changing = code.split(mask)
    return LayeredGenerator(generator, changing, kept, active=active)


@torch.no_grad()
def draw(synthesis: LayeredGenerator, code: Tensor | None = None) -> Tensor:
    """The picture of a latent; None: before the edit."""
    return synthesis.image(synthesis.latent if code is None else code, Features(()))


def picture(generator: Generator, code: Layers) -> Tensor:
    return draw(LayeredGenerator(generator, code.stack))


def edited(generator: Generator, code: Layers, mask: Tensor | None, seed: int) -> Layers:
    """The code after an edit to the latent of a seed."""
    return within(generator, code, mask).moved(latent(generator, seed)).layers


# --- inside and outside of a mask ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [LEFT, MIDDLE, ~MIDDLE, box(5, 6, 7, 8), torch.rand(SIZE) > 0.5], ids=range(5))
@pytest.mark.parametrize("scale", [0.1, 1.0, 1000.0])
def test_outside_the_mask_nothing_changes(generator: Generator, code: Layers, mask: Tensor, scale: float) -> None:
    """To the last bit, for any latent of the edit."""
    synthesis, before = within(generator, code, mask), picture(generator, code)
    assert synthesis.background is not None and torch.equal(synthesis.background.picture, before)
    after = draw(synthesis, scale * latent(generator, 8))
    assert torch.equal(after[..., ~mask], before[..., ~mask])
    assert not torch.equal(after[..., mask], before[..., mask])


def test_features_outside_the_mask_are_those_before(generator: Generator, code: Layers) -> None:
    """Even beside the border: where a cell contains no pixel of the mask, in every block."""
    synthesis, other = within(generator, code, MIDDLE), latent(generator, 8)
    before, after = generator.features(synthesis.latent, block=3), synthesis.features(other, block=3)
    shares = Region(MIDDLE).shares
    assert [tuple(share.shape) for share in shares] == [(1, 1, n, n) for n in (4, 8, 16, 32)]
    for old, new, share in zip(before.outputs, after.outputs, shares, strict=True):
        outside = share[0, 0] == 0
        assert torch.equal(old[..., outside], new[..., outside])
        assert not torch.allclose(old[..., ~outside], new[..., ~outside])
    assert torch.equal(shares[-1][0, 0], MIDDLE.float())


def test_features_far_inside_follow_the_new_latent(generator: Generator, code: Layers) -> None:
    """With a mask that lacks one corner, the other corner is out of reach of the old features in the first blocks."""
    synthesis, other = within(generator, code, ~box(28, 32, 28, 32)), latent(generator, 8)
    blended, plain = synthesis.features(other, block=1), generator.features(other, block=1)
    torch.testing.assert_close(blended.outputs[1][..., :2, :2], plain.outputs[1][..., :2, :2])
    assert not torch.allclose(blended.outputs[1][..., -2:, -2:], plain.outputs[1][..., -2:, -2:])


def test_an_unchanged_latent_changes_nothing(generator: Generator, code: Layers) -> None:
    """To the last bit, in all features and in the picture."""
    synthesis = within(generator, code, MIDDLE)
    assert torch.equal(draw(synthesis), picture(generator, code))
    expected = generator.features(synthesis.latent, block=3)
    for old, new in zip(expected.outputs, synthesis.features(synthesis.latent, block=3).outputs, strict=True):
        assert torch.equal(old, new)


jumps = pytest.mark.xfail(
    strict=True,
    reason="coarse cells beside a mask mix two latents; a second mask reads them, and where masks overlap, the lower "
    "latent shows through along the border of the second mask",
)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(LEFT, id="the same"),
        pytest.param(box(8, 20, 2, 8), id="part of the first"),
        pytest.param(box(0, 32, 0, 26), id="larger"),
        pytest.param(RIGHT, id="apart", marks=jumps),
        pytest.param(MIDDLE, id="overlapping", marks=jumps),
    ],
)
def test_an_unchanged_second_edit_changes_nothing(generator: Generator, code: Layers, mask: Tensor) -> None:
    once = edited(generator, code, LEFT, 5)
    torch.testing.assert_close(draw(within(generator, once, mask)), picture(generator, once), atol=1e-5, rtol=1e-5)


def test_a_mask_that_is_true_everywhere_equals_the_generator(generator: Generator, code: Layers) -> None:
    synthesis, other = within(generator, code, torch.ones(SIZE, dtype=torch.bool)), latent(generator, 8)
    assert torch.equal(draw(synthesis, other), generator(other))
    for one, two in zip(
        synthesis.features(other, block=3).outputs, generator.features(other, block=3).outputs, strict=True
    ):
        assert torch.equal(one, two)


def test_without_a_mask_it_is_the_generator(generator: Generator) -> None:
    """For a batch, too."""
    batch = generator.map(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    synthesis = within(generator, Layers.of(batch), None)
    assert synthesis.background is None and torch.equal(synthesis.latent, batch)
    assert torch.equal(draw(synthesis, batch + 0.1), generator(batch + 0.1))


def test_a_picture_continues_from_known_features(generator: Generator, code: Layers) -> None:
    synthesis = within(generator, edited(generator, code, LEFT, 5), MIDDLE)
    other = latent(generator, 8)
    expected = draw(synthesis, other)
    for block in range(4):
        with torch.no_grad():
            found = synthesis.image(other, synthesis.features(other, block=block))
        assert torch.equal(found, expected)


def test_gradients_come_from_the_features_inside(generator: Generator, code: Layers) -> None:
    base = code.stack[0].latent.clone().requires_grad_(True)
    synthesis = within(generator, Layers.of(base), MIDDLE)
    moved = latent(generator, 8).requires_grad_(True)
    outputs = synthesis.features(moved, block=3).outputs
    for share, output in zip(Region(MIDDLE).shares, outputs, strict=True):
        inside = share[0, 0] > 0
        (gradient,) = torch.autograd.grad(output[..., inside].square().sum(), moved, retain_graph=True)
        assert gradient.abs().sum() > 0
        if not bool(inside.all()):
            (gradient,) = torch.autograd.grad(output[..., ~inside].square().sum(), moved, retain_graph=True)
            assert gradient.abs().sum() == 0
    outputs[-1].sum().backward()
    assert base.grad is None, "the background takes no part"
    assert synthesis.background is not None and not synthesis.background.picture.requires_grad
    assert not any(output.requires_grad for output in synthesis.background.features.outputs)


def test_an_image_that_was_shown_in_inference_mode_can_be_optimised(generator: Generator, code: Layers) -> None:
    """The editor shows images in inference mode; the refiner needs gradients through the same regions."""
    shown = edited(generator, code, MIDDLE, 5)
    with torch.inference_mode():
        synthesis = LayeredGenerator(generator, shown.stack)
        synthesis.image(synthesis.latent, synthesis.features(synthesis.latent, block=3))
        later = within(generator, shown, MIDDLE)
        assert later.background is not None
    moved = latent(generator, 8).requires_grad_(True)
    for each in (later, within(generator, shown, RIGHT)):
        known = each.features(moved, block=2)
        each.image(moved, known).square().sum().backward()
        assert moved.grad is not None and moved.grad.abs().sum() > 0


def test_threads_share_a_background(generator: Generator, code: Layers) -> None:
    """None sees a background with some layers missing."""
    deep = edited(generator, edited(generator, code, LEFT, 5), RIGHT, 6)
    expected = draw(within(generator, deep, MIDDLE))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            synthesis = within(generator, deep, MIDDLE)
            assert all(torch.equal(found, expected) for found in pool.map(draw, [synthesis] * 4))


def test_feather() -> None:
    """0 outside, 1 deep inside, steps of 1 / (width + 1) between; no transition at the border of the image."""
    feather = Region(LEFT).feather  # columns 0 to 11; the width is 1 px at 32 px
    assert feather[:, 12:].abs().max() == 0 and bool((feather[:, :11] == 1).all())
    torch.testing.assert_close(feather[:, 11], torch.full((32,), 0.5))
    large = torch.zeros(128, 128, dtype=torch.bool)
    large[20:100, 20:100] = True
    feather = Region(large).feather  # a width of 4 px
    torch.testing.assert_close(feather[60, 19:26], torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]))
    assert float(feather[~large].max()) == 0 and bool((feather[24:96, 24:96] == 1).all())


# --- the stack of layers ---------------------------------------------------------------------------------------------


def masks_of(layers: tuple[Layer, ...] | Layers) -> list[Tensor | None]:
    stack = layers.stack if isinstance(layers, Layers) else layers
    return [None if layer.region is None else layer.region.mask for layer in stack]


def same_masks(found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    return len(found) == len(expected) and all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(found, expected, strict=True)
    )


def test_without_a_mask_all_layers_change(generator: Generator, code: Layers) -> None:
    two = edited(generator, code, LEFT, 5)
    assert two.split(None) == ((), two.stack)


def test_the_first_mask_adds_a_layer(generator: Generator, code: Layers) -> None:
    kept, changing = code.split(LEFT)
    assert kept == code.stack and same_masks(masks_of(changing), [LEFT])
    assert changing[0].latent is code.stack[0].latent
    after = edited(generator, code, LEFT, 5)
    assert len(after) == 2 and after.stack[0] is code.stack[0]
    assert torch.equal(after.stack[1].latent, latent(generator, 5))


def test_edits_with_the_same_mask_share_a_layer(generator: Generator, code: Layers) -> None:
    layers = code
    for seed in range(3):
        layers = edited(generator, layers, LEFT.clone(), seed)
        assert same_masks(masks_of(layers), [None, LEFT])
    kept, changing = layers.split(LEFT.clone())
    assert kept == (code.stack[0],) and changing[0].region is layers.stack[1].region
    assert torch.equal(changing[0].latent, latent(generator, 2))


def test_disjoint_masks_keep_both_regions(generator: Generator, code: Layers) -> None:
    left = edited(generator, code, LEFT, 5)
    both = edited(generator, left, RIGHT, 6)
    assert same_masks(masks_of(both), [None, LEFT, RIGHT])
    one, two, origin = (picture(generator, each) for each in (left, both, code))
    assert torch.equal(two[..., ~RIGHT], one[..., ~RIGHT]) and not torch.equal(two[..., RIGHT], one[..., RIGHT])
    assert torch.equal(one[..., ~LEFT], origin[..., ~LEFT]) and not torch.equal(one[..., LEFT], origin[..., LEFT])


def test_an_earlier_mask_again_keeps_the_layers_above(generator: Generator, code: Layers) -> None:
    """The upper layer reads features of the lower one, which therefore stays although a new layer hides it."""
    both = edited(generator, edited(generator, code, LEFT, 5), RIGHT, 6)
    kept, changing = both.split(LEFT)
    assert kept == both.stack
    assert same_masks(masks_of(changing), [LEFT]) and changing[0].latent is both.stack[1].latent
    before, after = picture(generator, both), picture(generator, edited(generator, both, LEFT, 7))
    assert torch.equal(after[..., ~LEFT], before[..., ~LEFT]) and not torch.equal(after[..., LEFT], before[..., LEFT])


def test_a_hidden_layer_is_dropped(generator: Generator, code: Layers) -> None:
    """A mask that contains the one before: its layer changes, and the one below it would be invisible."""
    small = edited(generator, code, box(4, 20, 4, 10), 5)
    kept, changing = small.split(LEFT)
    assert kept == (code.stack[0],) and same_masks(masks_of(changing), [LEFT, box(4, 20, 4, 10)])
    assert [layer.latent for layer in changing] == [layer.latent for layer in small.stack]
    again, _ = Layers((*kept, *changing)).split(LEFT)
    assert again == kept
    # A mask inside the one before changes the upper layer alone.
    kept, changing = edited(generator, code, LEFT, 5).split(box(4, 20, 4, 10))
    assert len(kept) == 2 and same_masks(masks_of(changing), [box(4, 20, 4, 10)])


def test_overlapping_masks_cut_the_layers(generator: Generator, code: Layers) -> None:
    before = edited(generator, code, LEFT, 5)
    kept, changing = before.split(MIDDLE)
    assert kept == before.stack and same_masks(masks_of(changing), [MIDDLE, LEFT & MIDDLE])
    assert [layer.latent for layer in changing] == [layer.latent for layer in before.stack]
    synthesis = LayeredGenerator(generator, changing, kept)
    first, after = picture(generator, before), draw(synthesis, latent(generator, 8))
    assert torch.equal(after[..., ~MIDDLE], first[..., ~MIDDLE])
    assert not torch.equal(after[..., MIDDLE], first[..., MIDDLE])


def test_too_many_layers_are_refused(code: Layers) -> None:
    def row(index: int) -> Tensor:
        return box(index, index + 1, 0, 32)

    upper = [Layer(code.stack[0].latent, Region(row(index))) for index in range(MAX_LAYERS - 1)]
    full = Layers((code.stack[0], *upper))
    assert len(full) == MAX_LAYERS
    message = "the image consists of 16 regions, and this mask would make more than 16 of them; use the last mask again"
    with pytest.raises(AutodragError, match=message):
        full.split(row(20))
    for allowed in (row(MAX_LAYERS - 2), None):
        kept, changing = full.split(allowed)
        assert len(kept) + len(changing) <= MAX_LAYERS


@pytest.mark.parametrize("active", [0, 1])
def test_an_edit_without_a_mask_moves_all_layers_by_the_same_change(
    generator: Generator, code: Layers, active: int
) -> None:
    before = edited(generator, code, LEFT, 5)
    synthesis = within(generator, before, None, active=active)
    assert synthesis.latent is before.stack[active].latent
    change = 0.3 * torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(2))
    after = synthesis.moved(synthesis.latent + change).layers
    assert [layer.region for layer in after.stack] == [layer.region for layer in before.stack]
    for old, new in zip(before.stack, after.stack, strict=True):
        torch.testing.assert_close(new.latent, old.latent + change)
    assert torch.equal(draw(synthesis, synthesis.latent + change), picture(generator, after))
    outside = draw(synthesis, synthesis.latent + change)[..., 14:]  # nothing is fixed
    torch.testing.assert_close(outside, generator(code.stack[0].latent + change)[..., 14:])


@pytest.mark.parametrize("masks", [[LEFT], [LEFT, LEFT], [LEFT, RIGHT], [LEFT, MIDDLE], [LEFT, None, RIGHT]])
def test_the_code_after_an_edit_shows_its_picture(
    generator: Generator, code: Layers, masks: list[Tensor | None]
) -> None:
    for seed, mask in enumerate(masks):
        synthesis, goal = within(generator, code, mask), latent(generator, seed)
        result = draw(synthesis, goal)
        moved = synthesis.moved(goal.requires_grad_(True))
        code = moved.layers
        assert not any(layer.latent.requires_grad for layer in code.stack)
        assert torch.equal(draw(moved), result) and torch.equal(picture(generator, code), result)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(LEFT, id="the same"),
        pytest.param(None, id="none"),
        pytest.param(box(0, 32, 0, 26), id="larger"),
        pytest.param(RIGHT, id="apart", marks=jumps),
    ],
)
def test_frames_lead_from_one_image_to_the_next(generator: Generator, code: Layers, mask: Tensor | None) -> None:
    before = edited(generator, code, LEFT, 5)
    after = edited(generator, before, mask, 6)
    start, end = (picture(generator, before.toward(after, share)) for share in (0.0, 1.0))
    torch.testing.assert_close(end, picture(generator, after), atol=1e-5, rtol=1e-5)
    first = picture(generator, before)
    torch.testing.assert_close(start, first, atol=1e-5, rtol=1e-5)
    half = picture(generator, before.toward(after, 0.5))
    assert not torch.allclose(half, first, atol=1e-3) and not torch.allclose(half, end, atol=1e-3)
    if mask is not None:
        assert torch.equal(half[..., ~mask], first[..., ~mask])


def test_frames_between_codes_from_files(generator: Generator, code: Layers) -> None:
    """Layers of saved histories are equal, but not the same objects."""
    before = edited(generator, code, LEFT, 5)
    after = edited(generator, before, RIGHT, 6)
    copies = [Layers.from_tensors(each.tensors(), generator.config) for each in (before, after)]
    for share in (0.0, 0.4, 1.0):
        expected = picture(generator, before.toward(after, share))
        torch.testing.assert_close(picture(generator, copies[0].toward(copies[1], share)), expected)


def test_the_layer_at_a_point(generator: Generator, code: Layers) -> None:
    layers = edited(generator, edited(generator, code, LEFT, 5), RIGHT, 6)

    def at(x: float, y: float, code: Layers = layers) -> int:
        return code.at(torch.tensor([float(x), float(y)]))

    assert [at(0, 0), at(11.4, 31), at(11.6, 5), at(16, 16), at(20, 3), at(31, 31)] == [1, 1, 0, 0, 2, 2]
    assert at(-0.5, 31.4) == 1
    upper = Layers(layers.stack[1:])  # as after a split: no layer fills the whole image
    assert at(0, 0, upper) == 0 and at(25, 3, upper) == 1
    assert at(16, 16, upper) == 1 and at(99, -5, upper) == 1, "the uppermost, where none lies"


# --- files -----------------------------------------------------------------------------------------------------------


def test_tensors_and_back(generator: Generator, code: Layers) -> None:
    assert code.tensors().keys() == {"latent"}
    layers = edited(generator, edited(generator, edited(generator, code, LEFT, 5), RIGHT, 6), None, 7)
    tensors = layers.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "latent": (1, 8, 32),
        "upper": (2, 8, 32),
        "regions": (2, 32, 32),
    }
    assert set(tensors["regions"].unique().tolist()) == {0.0, 1.0}
    for each in (code, layers):
        back = Layers.from_tensors(each.tensors(), generator.config)
        assert same_masks(masks_of(back), masks_of(each))
        assert all(torch.equal(a.latent, b.latent) for a, b in zip(back.stack, each.stack, strict=True))
        assert torch.equal(picture(generator, back), picture(generator, each))


def test_equal_masks_become_one_region_again(generator: Generator, code: Layers) -> None:
    one = Region(LEFT)
    layers = Layers((code.stack[0], *(Layer(latent(generator, seed), one) for seed in (1, 2))))
    _, first, second = Layers.from_tensors(layers.tensors(), generator.config).stack
    assert first.region is second.region
    _, first, second = layers.to("cpu").stack
    assert first.region is second.region


def test_the_largest_number_of_layers_is_that_of_split(generator: Generator, code: Layers) -> None:
    base, latents = code.stack[0].latent, torch.zeros(MAX_LAYERS, 8, 32)
    regions = torch.ones(MAX_LAYERS, *SIZE)
    tensors = {"latent": base, "upper": latents[1:], "regions": regions[1:]}
    assert len(Layers.from_tensors(tensors, generator.config)) == MAX_LAYERS
    with pytest.raises(AutodragError, match="K below 16"):
        Layers.from_tensors({"latent": base, "upper": latents, "regions": regions}, generator.config)


ONE, UPPER, REGIONS = torch.zeros(1, 8, 32), torch.zeros(2, 8, 32), torch.ones(2, *SIZE)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"it holds \[\]; expected latent, or latent, upper and regions"),
        ({"w": ONE}, r"it holds \['w'\]; expected latent"),
        ({"latent": ONE, "w": ONE}, r"it holds \['latent', 'w'\]"),
        ({"latent": ONE, "upper": UPPER}, r"it holds \['latent', 'upper'\]"),
        ({"upper": UPPER, "regions": REGIONS}, r"it holds \['regions', 'upper'\]"),
        ({"latent": ONE, "upper": UPPER, "regions": REGIONS, "w": ONE}, "it holds"),
        ({"latent": ONE[:, :7]}, r"its latent has shape \(1, 7, 32\); this generator needs \(1, 8, 32\)"),
        ({"latent": ONE[0]}, r"its latent has shape \(8, 32\)"),
        ({"latent": UPPER}, r"its latent has shape \(2, 8, 32\)"),
        ({"latent": torch.zeros([])}, r"its latent has shape \(\)"),
        ({"latent": ONE, "upper": UPPER[:0], "regions": REGIONS[:0]}, r"upper layers have shapes \(0, 8, 32\) and"),
        ({"latent": ONE, "upper": UPPER, "regions": REGIONS[:1]}, r"shapes \(2, 8, 32\) and \(1, 32, 32\); this"),
        ({"latent": ONE, "upper": UPPER, "regions": REGIONS[:, :16]}, r"and \(2, 16, 32\)"),
        ({"latent": ONE, "upper": UPPER[..., :8], "regions": REGIONS}, r"shapes \(2, 8, 8\) and"),
        ({"latent": ONE, "upper": torch.zeros([]), "regions": torch.zeros([])}, r"shapes \(\) and \(\)"),
        ({"latent": ONE, "upper": UPPER, "regions": torch.zeros([])}, r"shapes \(2, 8, 32\) and \(\)"),
    ],
)
def test_tensors_that_are_no_code(generator: Generator, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AutodragError, match=message):
        Layers.from_tensors(tensors, generator.config)


def test_narrow_images(make_generator: Callable[..., Generator]) -> None:
    """The shares of a mask have the sizes of the blocks, whatever the shape of the image."""
    narrow = make_generator(base_width=2).freeze()
    height, width = narrow.config.image_size
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, : width // 3] = True
    before = Layers.of(latent(narrow, 3))
    after = draw(within(narrow, before, mask), latent(narrow, 8))
    first = picture(narrow, before)
    assert width < height and torch.equal(after[..., ~mask], first[..., ~mask])
    assert not torch.equal(after[..., mask], first[..., mask])
