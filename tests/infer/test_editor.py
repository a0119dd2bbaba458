"""The editor without a predictor: opening, dragging, undo and redo, sessions, previews, siblings, errors."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeRefiner

from autodrag import DragEditor
from autodrag.checkpoint import save_code, save_generator
from autodrag.edits import Edit, Parameters, PointPair, read_edits
from autodrag.errors import AutodragError, CheckpointError, NothingToDo
from autodrag.images import to_uint8
from autodrag.infer import editor as editor_module
from autodrag.infer import trust
from autodrag.infer.draggan import DragganConfig
from autodrag.infer.task import DragResult
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Generator, seed_z
from autodrag.release import save_tensors

DRAG: dict[str, Any] = {"handles": [[10, 12]], "targets": [[20, 14]]}


@pytest.fixture
def editor(tiny_checkpoint: Path, fake_refiner: FakeRefiner) -> DragEditor:
    """An editor with the image of seed 7 open."""
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    editor.open(seed=7)
    return editor


def test_a_seed_gives_the_image_of_its_truncated_latent(editor: DragEditor) -> None:
    image = editor.open(seed=3, psi=0.5)
    with torch.no_grad():
        latent = editor.generator.map(seed_z(3, 32), psi=0.5)
        expected = to_uint8(editor.generator(latent))[0]
    assert np.array_equal(image, expected)
    assert image.shape == (32, 32, 3)
    assert torch.equal(editor.latent, latent)


def test_open_latent(editor: DragEditor) -> None:
    latent, image = editor.latent, editor.image
    editor.open(seed=1)
    assert np.array_equal(editor.open(latent=latent), image)
    with pytest.raises(AutodragError, match=r"latent has shape \(1, 2, 32\); expected finite values of \(1, 8, 32\)"):
        editor.open(latent=latent[:, :2])


def test_failed_open_keeps_the_current_image(editor: DragEditor) -> None:
    before = editor.image
    with pytest.raises(AutodragError, match="seed -1 is not usable"):
        editor.open(seed=-1)
    assert np.array_equal(editor.image, before)


def test_classes(make_generator: Callable[..., Generator]) -> None:
    editor = DragEditor(make_generator(c_dim=3), device="cpu")
    assert not np.array_equal(editor.open(seed=1, label=0), editor.open(seed=1, label=1))


def test_results(editor: DragEditor) -> None:
    before = editor.image
    result = editor.drag(**DRAG)
    assert np.array_equal(result.image, editor.image)
    assert not np.array_equal(result.image, before)
    assert torch.equal(result.latent, editor.latent)
    assert (result.points.tolist(), result.distances.tolist()) == ([[20.5, 14.0]], [0.5])
    assert (result.method, result.steps, result.reason) == ("refine", 5, "arrived")
    assert result.landmark_distances is None
    assert result.handles.tolist() == [[10.0, 12.0]] and result.targets.tolist() == [[20.0, 14.0]]


def test_all_arguments_are_passed_to_the_refiner(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[:, 5:] = True
    stop = threading.Event()
    editor.drag(
        **DRAG,
        mask=mask,
        anchors=[[1, 1]],
        preset="draggan",
        budget_s=2.5,
        steps=3,
        stop=stop,
        lr=0.1,
        edit_layers=4,
    )
    call = fake_refiner.calls[-1]
    region = call.image.layers.stack[-1].region
    assert region is not None and region.mask.tolist() == mask.tolist()
    assert call.drag.anchors is not None and call.drag.anchors.tolist() == [[1.0, 1.0]]
    assert call.drag.handles.tolist() == [[10.0, 12.0]]
    assert call.control.stop is stop and call.control.budget_s == 2.5
    expected = DragganConfig.for_image((32, 32))
    assert call.config == dataclasses.replace(expected, steps=3, lr=0.1, edit_layers=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"handles": [], "targets": []}, "there are no points"),
        ({"handles": [[99, 1]], "targets": [[1, 1]]}, "handle 99,1 lies outside"),
        ({**DRAG, "mask": np.zeros((32, 32), dtype=bool)}, "the mask is False everywhere"),
        ({**DRAG, "mask": np.ones((16, 32), dtype=bool)}, r"the mask has shape \(16, 32\)"),
        ({**DRAG, "anchors": [[10, 12]]}, "anchor 10,12 lies on a handle"),
        ({**DRAG, "lr": -1.0}, "lr is -1.0; expected greater than 0"),
        ({**DRAG, "speed": 3}, "speed is not a known field; did you mean space"),
        ({**DRAG, "method": "predict"}, "method 'predict' needs a predictor, and .* has none; train one"),
        ({**DRAG, "method": "fast"}, "method 'fast' is not known"),
        ({**DRAG, "rounds": 3}, "rounds 3 has no effect with method 'refine'"),
        ({**DRAG, "feature_block": 7}, "feature_block 7 does not exist; this generator has blocks 0 to 3"),
        ({**DRAG, "edit_layers": 9}, "edit_layers 9 is too large; this generator has 8 layers"),
        ({**DRAG, "lr": 0.1}, "lr 0.1 has no effect with the preset default"),
        ({**DRAG, "budget_s": -1.0}, "budget_s is -1.0; expected greater than 0"),
        ({**DRAG, "keep_references": True}, "keep_references needs a drag before this one"),
        ({**DRAG, "outside": "hard"}, "outside is 'hard'; expected 'exact' or 'soft'"),
    ],
)
def test_invalid_drags(editor: DragEditor, arguments: dict[str, Any], message: str) -> None:
    latent = editor.latent
    with pytest.raises(AutodragError, match=message):
        editor.drag(**arguments)
    assert torch.equal(editor.latent, latent)


def test_nothing_to_do(editor: DragEditor) -> None:
    with pytest.raises(NothingToDo):
        editor.drag([[1, 1]], [[1, 1]])


def test_an_image_must_be_open(tiny_checkpoint: Path) -> None:
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    with pytest.raises(AutodragError, match=r"no image is open; call open\(seed=7\) first"):
        editor.drag(**DRAG)


def test_undo_and_redo(editor: DragEditor) -> None:
    first = editor.image
    second = editor.drag(**DRAG).image
    third = editor.drag([[5, 5]], [[9, 9]]).image
    assert np.array_equal(editor.undo(), second)
    assert np.array_equal(editor.undo(), first)
    with pytest.raises(AutodragError, match="nothing to undo"):
        editor.undo()
    assert np.array_equal(editor.redo(), second)
    assert np.array_equal(editor.redo(), third)
    with pytest.raises(AutodragError, match="nothing to redo"):
        editor.redo()
    editor.undo()
    editor.drag([[7, 7]], [[9, 9]])
    with pytest.raises(AutodragError, match="nothing to redo"):  # a new drag deletes undone edits
        editor.redo()


def test_keep_references(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    editor.drag(**DRAG)
    editor.drag([[20, 14]], [[22, 16]])
    assert fake_refiner.calls[-1].drag.references is None
    editor.drag([[22, 16]], [[24, 18]], keep_references=True)
    assert fake_refiner.calls[-1].drag.references is not None


@pytest.mark.parametrize("opened_by", ["seed", "latent"])
def test_replayed_session_gives_the_same_image(
    tmp_path: Path, editor: DragEditor, tiny_checkpoint: Path, opened_by: str
) -> None:
    editor.open(seed=9, psi=0.6) if opened_by == "seed" else editor.open(latent=editor.latent * 0.9)
    mask = np.zeros((32, 32), dtype=bool)
    mask[4:, :] = True
    editor.drag(**DRAG, mask=mask, anchors=[[1, 2]], budget_s=60.0)
    editor.drag([[20, 14]], [[22, 16]], keep_references=True, steps=2)
    expected = editor.image
    editor.drag([[5, 5]], [[9, 9]])
    editor.undo()  # undone edits are not part of the session
    editor.save_session(tmp_path / "s.json")

    other = DragEditor.load(tiny_checkpoint, device="cpu")
    assert np.array_equal(other.load_session(tmp_path / "s.json"), expected)
    assert "budget_s" not in (tmp_path / "s.json").read_text()  # time limits cannot be replayed
    other.save_session(tmp_path / "again" / "s.json")
    assert np.array_equal(editor.load_session(tmp_path / "again" / "s.json"), expected)


def test_session_without_edits(editor: DragEditor, tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match=r"session .*s\.json' would be empty"):
        editor.save_session(tmp_path / "s.json")


def test_edits_are_checked(editor: DragEditor) -> None:
    edit = Edit(drags=(PointPair(handle=(10.0, 12.0), target=(20.0, 14.0)),), seed=1, parameters=Parameters(steps=2))
    assert editor.apply(edit).steps == 2
    with pytest.raises(AutodragError, match="method 'predict' needs a predictor"):
        editor.apply(edit.replaced(method="predict"))
    with pytest.raises(AutodragError, match="the edit was made for generator '0000000000000000'"):
        editor.apply(edit.replaced(fingerprint="0" * 16))


def test_an_edit_without_a_source_needs_an_open_image(tiny_checkpoint: Path) -> None:
    edit = Edit(drags=(PointPair(handle=(10.0, 12.0), target=(20.0, 14.0)),))
    with pytest.raises(AutodragError, match="names neither a seed nor a latent"):
        DragEditor.load(tiny_checkpoint, device="cpu").apply(edit)


def test_a_predictor_of_another_generator_is_refused(tmp_path: Path, tiny_generator: Generator) -> None:
    save_generator(tmp_path, tiny_generator)
    save_tensors(
        tmp_path / "predictor.safetensors",
        {"a": torch.ones(1)},
        kind="predictor",
        config={},
        extra={"generator": "0" * 16},
    )
    with pytest.raises(CheckpointError, match=r"predictor\.safetensors' was trained on generator '0000000000000000'"):
        DragEditor.load(tmp_path)


def test_dtypes(tiny_checkpoint: Path) -> None:
    exact = DragEditor.load(tiny_checkpoint, device="cpu").open(seed=1).astype(int)
    fast = DragEditor.load(tiny_checkpoint, device="cpu", dtype=torch.bfloat16).open(seed=1).astype(int)
    assert 0 < np.abs(exact - fast).mean() < 8
    with pytest.raises(AutodragError, match=r"dtype torch\.int8 is not supported"):
        DragEditor.load(tiny_checkpoint, device="cpu", dtype=torch.int8)


def test_real_drags_replay(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Without fakes: a few steps, a stop event, a drag that ends by itself, and the replay."""
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    before = editor.open(seed=7)
    states: list[DragResult] = []
    result = editor.drag(**DRAG, steps=4, callback=states.append)
    assert result.steps <= 4
    assert not np.array_equal(result.image, before)
    assert states[-1].latent.shape == result.latent.shape
    assert states[0].image.shape == (32, 32, 3)
    assert np.array_equal(editor.render(result.latent), result.image)

    stop = threading.Event()
    stop.set()
    assert editor.drag([[20, 14]], [[8, 8]], preset="draggan", stop=stop).reason == "stopped"
    editor.drag([[20, 14]], [[22, 16]], anchors=[[3, 3]], keep_references=True)
    editor.save_session(tmp_path / "s.json")
    expected = editor.image
    assert np.array_equal(DragEditor.load(tiny_checkpoint, device="cpu").load_session(tmp_path / "s.json"), expected)


def test_preview_does_not_change_the_image(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_module, "PREVIEW_S", 10.0)  # 0.1 s may be too short for a step on a loaded machine
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    before = editor.open(seed=7)
    first = editor.preview(**DRAG)
    then = editor.preview(**DRAG, start=first)
    assert np.array_equal(editor.image, before)
    assert not np.array_equal(first.image, before)
    assert then.references is not None
    assert np.array_equal(then.references.handles.numpy(), [[10, 12]])  # the appearance of the first preview's handles
    assert np.array_equal(editor.render(then.latent), then.image)
    with pytest.raises(AutodragError, match="nothing to undo"):
        editor.undo()


def test_siblings_have_separate_images(editor: DragEditor) -> None:
    other = editor.sibling()
    with pytest.raises(AutodragError, match="no image is open"):
        _ = other.image
    other.open(seed=8)
    before = editor.image
    other.drag(**DRAG)
    assert np.array_equal(editor.image, before) and other.generator is editor.generator
    with pytest.raises(AutodragError, match="nothing to undo"):
        editor.undo()


def test_history_is_restored(editor: DragEditor, tmp_path: Path) -> None:
    editor.drag(**DRAG)
    editor.drag([[20, 14]], [[22, 16]])
    editor.save_session(tmp_path / "s.json")
    image, past = editor.image, editor.past
    other = editor.sibling()
    assert np.array_equal(other.restore(read_edits(tmp_path / "s.json"), past), image)
    editor.undo()
    assert np.array_equal(other.undo(), editor.image)
    with pytest.raises(AutodragError, match="2 images do not belong to 2 edits; expected 3"):
        other.restore(read_edits(tmp_path / "s.json"), past[:2])


# --- masks -----------------------------------------------------------------------------------------------------------

LEFT, BOTTOM = np.zeros((2, 32, 32), dtype=bool)
LEFT[:, :24] = True
BOTTOM[18:] = True
SECOND: dict[str, Any] = {"handles": [[8, 26]], "targets": [[12, 26]]}


@pytest.fixture
def real(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> DragEditor:
    """An editor whose refiners are real, with the image of seed 7 open. Drags that gain little are kept."""
    monkeypatch.setattr(trust, "GAIN", -1e9)
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    editor.open(seed=7)
    return editor


def check_mask(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> None:
    """Something changed inside, and nothing outside."""
    changed = (before != after).any(axis=2)
    assert changed[mask].any() and not changed[~mask].any()


@pytest.mark.parametrize("settings", [{}, {"preset": "draggan", "lr": 0.05}], ids=["default", "draggan"])
def test_a_mask_is_exact_through_a_whole_session(
    real: DragEditor, tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Edits with a mask, the same mask and another mask; undo and redo; the saved session and the saved code."""
    images = [real.image]
    for drag, mask in ((DRAG, LEFT), (SECOND, LEFT), (SECOND, BOTTOM), (DRAG, LEFT)):
        result = real.drag(**drag, mask=mask, steps=3, **settings)
        check_mask(images[-1], result.image, mask)
        assert np.array_equal(real.image, result.image)
        assert np.array_equal(real.render(real.layers), result.image)
        assert np.array_equal(real.render(result.layers), result.image)
        images.append(result.image)
    assert [len(layers) for layers in real.past] == [1, 2, 2, 4, 5]
    assert all(np.array_equal(real.render(layers), image) for layers, image in zip(real.past, images, strict=True))
    for image in images[-2::-1]:
        assert np.array_equal(real.undo(), image)
    for image in images[1:]:
        assert np.array_equal(real.redo(), image)

    real.save_session(tmp_path / "s.json")
    save_code(tmp_path / "code.safetensors", real.layers, {"generator": real.fingerprint})
    other = DragEditor.load(tiny_checkpoint, device="cpu")
    assert np.array_equal(other.load_session(tmp_path / "s.json"), images[-1])
    check_mask(images[-1], other.drag(**SECOND, mask=BOTTOM, steps=3, **settings).image, BOTTOM)
    assert np.array_equal(other.open(latent=tmp_path / "code.safetensors"), images[-1])
    check_mask(images[-1], other.drag(**DRAG, mask=LEFT, steps=3, **settings).image, LEFT)
    other.save_session(tmp_path / "opened.json")
    expected = other.image
    assert np.array_equal(real.load_session(tmp_path / "opened.json"), expected)


def test_an_image_goes_on_after_undo(real: DragEditor) -> None:
    """The image that undo brings back has no stored background; its edits give the same result as before."""
    first = real.drag(**DRAG, mask=LEFT, steps=3).image
    second = real.drag(**SECOND, mask=BOTTOM, steps=3).image
    real.undo()
    assert np.array_equal(real.drag(**SECOND, mask=BOTTOM, steps=3).image, second)
    real.undo()
    check_mask(first, real.drag(**SECOND, mask=LEFT, steps=3).image, LEFT)


def test_a_drag_without_a_mask_moves_all_layers(real: DragEditor) -> None:
    first = real.drag(**DRAG, mask=LEFT, steps=3)
    before = real.layers
    result = real.drag(**DRAG, steps=3)
    changed = (first.image != result.image).any(axis=2)
    assert changed[LEFT].any() and changed[~LEFT].any()
    steps = [new.latent - old.latent for new, old in zip(real.layers.stack, before.stack, strict=True)]
    torch.testing.assert_close(steps[0], steps[1], atol=1e-5, rtol=1e-4)


def test_a_soft_mask_penalises_changes(real: DragEditor, tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = real.image
    result = real.drag(**DRAG, mask=BOTTOM, preset="draggan", outside="soft", steps=4)
    assert len(real.layers) == 1 and (result.image != before)[~BOTTOM].any()
    real.save_session(tmp_path / "s.json")
    assert read_edits(tmp_path / "s.json")[0].parameters.outside == "soft"
    other = DragEditor.load(tiny_checkpoint, device="cpu")
    assert np.array_equal(other.load_session(tmp_path / "s.json"), result.image)


def test_references_are_kept_across_masks(real: DragEditor) -> None:
    first = real.drag(**DRAG, mask=LEFT, steps=3)
    second = real.drag(first.points, [[22, 16]], mask=LEFT, steps=3, keep_references=True)
    third = real.drag(second.points, [[22, 20]], mask=LEFT | BOTTOM, steps=3, keep_references=True)
    assert first.references is second.references is third.references
    check_mask(second.image, third.image, LEFT | BOTTOM)


def test_previews_respect_masks(real: DragEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preview of the refiner continues from the previous one: in the same layer, and the background stays."""
    monkeypatch.setattr(editor_module, "PREVIEW_S", 10.0)
    before, start = real.image, None
    for target in (15, 18):
        start = real.preview([[10, 12]], [[target, 14]], mask=LEFT, start=start, steps=2)
        check_mask(before, start.image, LEFT)
        assert len(start.layers) == 2
    assert np.array_equal(real.image, before) and len(real.layers) == 1


def test_masks_in_bf16(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "GAIN", -1e9)
    editor = DragEditor.load(tiny_checkpoint, device="cpu", dtype=torch.bfloat16)
    before = editor.open(seed=7)
    for drag, mask in ((DRAG, LEFT), (SECOND, BOTTOM)):
        check_mask(before, editor.drag(**drag, mask=mask, steps=2).image, mask)
        before = editor.image


def test_a_history_with_masks_is_put_back(real: DragEditor, tmp_path: Path) -> None:
    real.drag(**DRAG, mask=LEFT, steps=2)
    real.drag(**SECOND, mask=BOTTOM, steps=2)
    real.save_session(tmp_path / "s.json")
    other = real.sibling()
    copies = [Layers.from_tensors(layers.tensors(), real.generator.config) for layers in real.past]
    assert np.array_equal(other.restore(read_edits(tmp_path / "s.json"), copies), real.image)
    assert np.array_equal(other.undo(), real.undo())
    check_mask(other.image, other.drag(**SECOND, mask=BOTTOM, steps=2).image, BOTTOM)
