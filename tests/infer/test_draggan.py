"""The published loop: losses, tracker and loop, compared with plain implementations on resized maps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autodrag.infer.draggan import (
    DragganConfig,
    anchor_loss,
    draggan,
    handle_features,
    mask_loss,
    motion_supervision,
    track,
)
from autodrag.infer.open_image import OpenImage
from autodrag.infer.task import Control, Drag, DragResult, References, Start
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Generator, seed_z

IMAGE = (24, 24)
HANDLE, TARGET = torch.tensor([[12.0, 14.0]]), torch.tensor([[18.0, 11.0]])


def maps(seed: int = 0, size: int = 12) -> Tensor:
    return torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(seed))


# --- losses ----------------------------------------------------------------------------------------------------------


def test_motion_supervision_is_the_published_one() -> None:
    """DragGAN's code: resize the map to the image, mean L1 between a disk and the disk shifted by the unit vector."""
    points = torch.tensor([[10.0, 9.0], [15.0, 14.0], [4.0, 4.0]])
    targets = torch.tensor([[16.0, 13.0], [15.0, 8.0], [4.5, 4.0]])  # the last point is within 1 px and has no loss
    big = F.interpolate(maps(), IMAGE, mode="bilinear", align_corners=False)
    expected = torch.zeros([])
    for p, t in zip(points[:2], targets[:2], strict=True):
        direction = (t - p) / (t - p).norm()
        terms = []
        for row in range(24):
            for column in range(24):
                if (column * 24 / 23 - p[0]) ** 2 + (row * 24 / 23 - p[1]) ** 2 < 9:  # linspace(0, 24, 24)
                    x, y = column + direction[0], row + direction[1]
                    x0, y0 = int(x.floor()), int(y.floor())
                    a, b = x - x0, y - y0
                    value = (1 - b) * ((1 - a) * big[0, :, y0, x0] + a * big[0, :, y0, x0 + 1])
                    value = value + b * ((1 - a) * big[0, :, y0 + 1, x0] + a * big[0, :, y0 + 1, x0 + 1])
                    terms.append((big[0, :, row, column] - value).abs())
        expected = expected + torch.stack(terms).mean()
    found = motion_supervision(maps(), points, targets, IMAGE, radius=3)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("size", "radius", "centre"), [(512, 3, 256), (512, 3, 20), (64, 1, 32), (64, 1, 4)])
def test_the_supervised_disk_is_the_published_one(size: int, radius: int, centre: int) -> None:
    """The shifted positions alone get a gradient: those within the radius on the official `linspace(0, h, h)`."""
    features = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    point = torch.tensor([[float(centre), float(centre)]])
    motion_supervision(features, point, point + torch.tensor([32.0, 0.0]), (size, size), radius=radius).backward()
    axis = torch.linspace(0, size, size) - centre
    expected = (axis[:, None].square() + axis.square()).sqrt() < radius
    assert expected.sum() > 1 and features.grad is not None
    share = features.grad.abs().sum(dim=(0, 1)) / features.grad.abs().max()
    assert torch.equal(share.roll(-1, dims=1) > 1e-3, expected)


def test_an_empty_disk_is_the_nearest_pixel() -> None:
    features = maps(size=24).requires_grad_()
    motion_supervision(features, torch.tensor([[4.0, 4.0]]), torch.tensor([[20.0, 4.0]]), IMAGE, radius=0).backward()
    assert features.grad is not None
    share = features.grad.abs().sum(dim=(0, 1)) / features.grad.abs().max()
    assert (share > 1e-3).nonzero().tolist() == [[4, 5]]  # (row, column): one pixel to the right


def test_mask_loss_uses_only_the_fixed_region() -> None:
    before, after = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    fixed = torch.zeros(4, 4)
    fixed[:, 2:] = 1  # the left half may move
    assert float(mask_loss(after, before, fixed)) == pytest.approx(0.5)
    after[..., 2:] = 0  # then only the left half changes
    assert float(mask_loss(after, before, fixed)) == 0.0


def test_anchor_loss_uses_only_the_surroundings_of_anchors() -> None:
    anchors = torch.tensor([[6.0, 6.0]])
    assert float(anchor_loss(maps(), maps(), anchors, IMAGE, 2)) == 0.0
    changed = maps()
    changed[:, :, 9:, 9:] += 5  # far from the anchor
    assert float(anchor_loss(changed, maps(), anchors, IMAGE, 2)) == 0.0
    changed[:, :, :6, :6] += 5
    assert float(anchor_loss(changed, maps(), anchors, IMAGE, 2)) > 1.0


# --- tracker ---------------------------------------------------------------------------------------------------------


def test_tracker_equals_the_published_search() -> None:
    """DragGAN: resize the map to the image, and find the nearest feature to that of the handle in a window."""
    handles = torch.tensor([[5.0, 7.0], [22.0, 1.0]])
    last = torch.tensor([[6.4, 8.6], [21.0, 2.0]])
    found, _ = track(maps(1), handle_features(maps(), handles, IMAGE), last, IMAGE, radius=3)
    before, after = (F.interpolate(m, IMAGE, mode="bilinear", align_corners=False)[0] for m in (maps(), maps(1)))
    for k in range(2):
        wanted = before[:, int(handles[k, 1]), int(handles[k, 0])]
        x, y = (int(v) for v in last[k].round())
        window = [
            (float((after[:, row, column] - wanted).norm()), column, row)
            for row in range(max(0, y - 3), min(24, y + 4))
            for column in range(max(0, x - 3), min(24, x + 4))
        ]
        assert found[k].tolist() == list(min(window)[1:])


@pytest.mark.parametrize("shift", [(3, 0), (-2, 4), (0, 0)])
def test_shifted_pattern_is_found(shift: tuple[int, int]) -> None:
    picture = maps(size=24)
    moved = picture.roll((shift[1], shift[0]), dims=(2, 3))
    handle = torch.tensor([[11.0, 12.0]])
    found, confidence = track(moved, handle_features(picture, handle, IMAGE), handle, IMAGE, radius=5)
    assert found.tolist() == [[11.0 + shift[0], 12.0 + shift[1]]]
    assert float(confidence) == pytest.approx(1.0, abs=1e-5)


def test_unrelated_content_has_low_confidence() -> None:
    handle = torch.tensor([[11.0, 12.0]])
    _, confidence = track(maps(5) + 4.0, handle_features(maps(), handle, IMAGE), handle, IMAGE, radius=2)
    assert float(confidence) == 0.0


def test_window_is_clipped_at_the_border() -> None:
    handle = torch.tensor([[0.0, 23.0]])
    found, _ = track(maps(3), handle_features(maps(), handle, IMAGE), handle, IMAGE, radius=6)
    assert bool(((found >= 0) & (found <= 23)).all())


def test_tracking_does_not_depend_on_the_order_of_points() -> None:
    handles = torch.tensor([[5.0, 7.0], [20.0, 3.0], [9.0, 15.0]])
    order = torch.tensor([2, 0, 1])
    found, confidences = track(maps(1), handle_features(maps(), handles, IMAGE), handles, IMAGE, radius=4)
    others, again = track(maps(1), handle_features(maps(), handles[order], IMAGE), handles[order], IMAGE, radius=4)
    assert torch.equal(found[order], others)
    assert torch.allclose(confidences[order], again)


# --- loop ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(make_generator: Callable[..., Generator]) -> OpenImage:
    """A 32 px image."""
    generator = make_generator().freeze()
    return OpenImage.of(generator, generator.map(seed_z(3, 32)))


def config(**changes: Any) -> DragganConfig:
    return replace(DragganConfig.for_image((32, 32)), **({"steps": 3, "lr": 0.01} | changes))


def drag(handles: Any = HANDLE, targets: Any = TARGET, **options: Any) -> Drag:
    return Drag.of(handles, targets, (32, 32), **options)


def test_published_constants() -> None:
    """r1, r2, stop in px at 256, 512, 1024: 2/6/2, 3/12/2, 6/24/4; Adam 1e-3; mask weight 20; six layers; block 5."""
    for size, expected in ((256, (2, 6, 2.0)), (512, (3, 12, 2.0)), (1024, (6, 24, 4.0))):
        c = DragganConfig.for_image((size, size))
        assert (c.supervision_radius, c.tracking_radius, c.stop_px) == expected
        assert (c.lr, c.mask_weight, c.edit_layers, c.feature_block, c.space) == (1e-3, 20.0, 6, 5, "w+")


def plain_draggan(
    image: OpenImage, mask: np.ndarray | None, steps: int, config: DragganConfig
) -> tuple[Tensor, Tensor]:
    """The official loop in plain code: resize the features to the image, track, supervise, step."""
    generator, latent = image.synthesis.generator, image.latent
    w = latent[:, :6].clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=config.lr)
    point, first, reference = HANDLE[0].clone(), None, torch.empty(0)
    for step in range(steps + 1):
        features = generator.features(torch.cat([w, latent[:, 6:]], dim=1), block=3).last
        big = F.interpolate(features, (32, 32), mode="bilinear", align_corners=False)
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
        displacement = TARGET[0] - point
        direction = displacement / (displacement.norm() + 1e-7)
        terms = []
        for py in range(32):
            for px in range(32):
                if (px * 32 / 31 - point[0]) ** 2 + (py * 32 / 31 - point[1]) ** 2 < config.supervision_radius**2:
                    qx, qy = px + direction[0], py + direction[1]
                    grid = torch.stack([qx / 31 * 2 - 1, qy / 31 * 2 - 1])[None, None, None]
                    there = F.grid_sample(big, grid, align_corners=True)[0, :, 0, 0]
                    terms.append((big[0, :, py, px].detach() - there).abs())
        loss = torch.stack(terms).mean()
        if mask is not None:
            movable = torch.from_numpy(mask)[None, None].float()
            fixed = 1 - F.interpolate(movable, features.shape[2:], mode="area")
            loss = loss + config.mask_weight * ((features - first) * fixed).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([w.detach(), latent[:, 6:]], dim=1), point


@pytest.mark.parametrize("masked", [False, True])
def test_loop_equals_the_published_loop(image: OpenImage, masked: bool) -> None:
    mask = None
    if masked:
        mask = np.zeros((32, 32), dtype=bool)
        mask[4:28, 4:28] = True
    settings = config(steps=6, supervision_radius=3, tracking_radius=4)
    expected, point = plain_draggan(image, mask, 6, settings)
    result = draggan(image, drag(mask=mask), settings)
    assert result.steps == 6 and result.reason == "steps"
    assert result.points[0].tolist() == point.tolist()
    assert torch.allclose(result.latent, expected, atol=2e-4)
    assert float((result.latent - image.latent).abs().max()) > 0.02


@pytest.mark.parametrize("space", ["w", "w+"])
def test_only_the_edited_layers_change(image: OpenImage, space: Any) -> None:
    change = (draggan(image, drag(), config(edit_layers=4, space=space)).latent - image.latent)[0]
    assert float(change[:4].abs().max()) > 0 and float(change[4:].abs().max()) == 0
    if space == "w":
        assert torch.allclose(change[0], change[3], atol=1e-6)


def test_feature_block_changes_the_edit(image: OpenImage) -> None:
    latents = [draggan(image, drag(), config(feature_block=block)).latent for block in (3, 5, 2)]
    assert torch.equal(latents[0], latents[1])  # block 3 is the last one of this generator
    assert not torch.equal(latents[0], latents[2])


def test_the_mask_and_anchors_hold_the_features(image: OpenImage) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[6:22, 4:26] = True
    anchors = [[16.0, 28.0]]

    def changes(**options: Any) -> tuple[float, float]:
        edited = draggan(image, drag(**options), config(steps=12, stop_px=0.1)).latent
        change = (image.synthesis.generator.features(edited, block=3).last - image.output(3)).abs()
        return float(change[..., torch.from_numpy(~mask)].mean()), float(change[..., 28, 16].mean())

    fixed, anchor = changes()
    assert changes(mask=mask)[0] < 0.8 * fixed
    assert changes(anchors=anchors)[1] < 0.8 * anchor


def test_results_match_their_latents(image: OpenImage) -> None:
    states: list[DragResult] = []
    result = draggan(image, drag(), config(), Control(callback=states.append))
    assert [state.steps for state in states] == [0, 1, 2, 3]
    assert torch.equal(states[0].latent, image.latent) and torch.equal(states[-1].latent, result.latent)
    np.testing.assert_allclose(result.distances, np.linalg.norm(result.points - result.targets, axis=1), atol=1e-5)
    assert result.handles.tolist() == HANDLE.tolist() and not result.lost.any()
    assert all(np.array_equal(a.image, b.image) == (a is b) for a in states[:2] for b in states[:2])


def test_order_of_points_does_not_matter(image: OpenImage) -> None:
    handles = torch.tensor([[12.0, 14.0], [20.0, 20.0], [6.0, 24.0]])
    targets = handles + torch.tensor([[3.0, -2.0], [-1.0, 2.5], [0.0, -3.0]])
    order = torch.tensor([2, 0, 1])
    a = draggan(image, drag(handles, targets), config())
    b = draggan(image, drag(handles[order], targets[order]), config())
    assert torch.allclose(a.latent, b.latent, atol=1e-3)
    np.testing.assert_allclose(a.points[order.numpy()], b.points, atol=1e-2)


def test_start_from_another_latent(image: OpenImage) -> None:
    """The reference features are those of the open image."""
    latent = image.synthesis.generator.map(seed_z(9, 32))
    start = Start(latent, torch.tensor([[14.0, 13.0]]))
    states: list[DragResult] = []
    result = draggan(image, drag(), config(), Control(callback=states.append), start)
    assert torch.equal(states[0].latent, latent) and float(states[0].confidences[0]) < 0.9
    assert result.handles.tolist() == HANDLE.tolist()
    assert result.references is not None and result.references.layers.stack == image.layers.stack


def test_references_define_the_appearance(image: OpenImage) -> None:
    first = draggan(image, drag(), config())
    assert first.references is not None and torch.equal(first.references.handles, HANDLE)
    edited = OpenImage.of(image.synthesis.generator, first.latent)
    again = draggan(edited, drag(first.points, TARGET), config(steps=0))
    kept = draggan(edited, replace(drag(first.points, TARGET), references=first.references), config(steps=0))
    assert kept.references is first.references
    assert float(again.confidences[0]) > float(kept.confidences[0])  # the current image equals itself exactly


def test_references_define_the_fixed_region(image: OpenImage) -> None:
    """The mask loss compares features with the image of the references."""
    mask = np.zeros((32, 32), dtype=bool)
    mask[6:22, 4:26] = True
    other = References(Layers.of(image.synthesis.generator.map(seed_z(9, 32))), HANDLE)
    a, b = (draggan(image, replace(drag(mask=mask), references=r), config(steps=1)).latent for r in (None, other))
    assert not torch.equal(a, b)


def test_stopping(image: OpenImage) -> None:
    event = threading.Event()

    def stop(state: DragResult) -> None:
        if state.steps == 2:
            event.set()

    result = draggan(image, drag(), config(steps=300, stop_px=0.01), Control(stop=event, callback=stop))
    assert (result.reason, result.steps) == ("stopped", 2)


def test_stop_from_another_thread(image: OpenImage) -> None:
    event = threading.Event()
    threading.Timer(0.2, event.set).start()
    assert draggan(image, drag(), config(steps=100_000, lr=1e-9), Control(stop=event)).reason == "stopped"


def test_budget(image: OpenImage) -> None:
    control = Control(0.05, callback=lambda _: time.sleep(0.02))
    result = draggan(image, drag(), config(steps=100_000, lr=1e-9), control)
    assert result.reason == "budget" and result.steps < 100


def test_arrival(image: OpenImage) -> None:
    result = draggan(image, drag(HANDLE, HANDLE + 0.2), config())
    assert (result.reason, result.steps) == ("arrived", 0) and torch.equal(result.latent, image.latent)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"steps": -1},
        {"edit_layers": 0},
        {"tracking_radius": 0},
        {"supervision_radius": -1},
        {"feature_block": -1},
        {"stop_px": 0.0},
    ],
)
def test_invalid_configs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        DragganConfig(**wrong)
