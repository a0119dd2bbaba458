"""The editor with a predictor: methods, previews, warm-up and sessions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeRefiner, set_clock
from learned import save_learned, tiny_nets

from autodrag import DragEditor
from autodrag.checkpoint import save_code
from autodrag.edits import Edit, Parameters, PointPair, read_edits
from autodrag.errors import AutodragError, CheckpointError
from autodrag.infer import task as task_module
from autodrag.infer import trust
from autodrag.infer.measure import detect_landmarks
from autodrag.nets.stylegan2 import Generator

DRAG: dict[str, Any] = {"handles": [[10, 12]], "targets": [[20, 14]]}
MASK = np.arange(32)[:, None].repeat(32, axis=1) >= 4
"""All but the uppermost rows may move."""


@pytest.fixture(scope="module")
def checkpoint(tiny_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a generator, a predictor and a regularizer. Read-only."""
    return save_learned(tmp_path_factory.mktemp("learned") / "tiny", tiny_generator, tiny_nets(tiny_generator))


@pytest.fixture
def editor(checkpoint: Path) -> DragEditor:
    """An editor with the image of seed 7 open."""
    editor = DragEditor.load(checkpoint, device="cpu")
    editor.open(seed=7)
    return editor


@pytest.fixture(autouse=True)
def keep_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks gain nothing; without this, every drag would fail and leave the image as it was."""
    monkeypatch.setattr(trust, "GAIN", -1e9)


def test_predictor_is_loaded_with_its_regularizer(editor: DragEditor) -> None:
    assert editor.can_predict
    assert editor.learned is not None and editor.learned.regularizer is not None


def test_method_predict(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    before = editor.image
    result = editor.drag(**DRAG, method="predict")
    assert not fake_refiner.calls
    assert (result.method, result.steps) == ("predict", 0) and 1 <= result.rounds <= 4
    assert result.reason in ("rounds", "arrived")
    assert not np.array_equal(result.image, before)
    assert np.array_equal(result.image, editor.render(editor.latent))
    assert result.latent.shape == (1, 8, 32) and torch.equal(result.latent, editor.latent)
    assert result.distances.tolist() == pytest.approx(np.linalg.norm(result.points - result.targets, axis=1).tolist())
    assert np.array_equal(editor.undo(), before)


def test_method_auto_refines_the_prediction(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    """A predictor with random weights does not arrive, so the refiner continues, starting halfway to the prediction."""
    start = editor.latent
    predicted = editor.drag(**DRAG, method="predict")
    editor.undo()
    result = editor.drag(**DRAG)
    (call,) = fake_refiner.calls
    assert (result.method, result.rounds, result.steps) == ("both", predicted.rounds, 5)
    assert call.start is not None
    torch.testing.assert_close(call.start.latent, (start + predicted.latent) / 2)
    halfway = (np.array(DRAG["handles"]) + predicted.points) / 2
    np.testing.assert_allclose(call.start.points.numpy(), halfway, atol=1e-5)
    assert torch.equal(call.image.latent, start)
    assert result.report()["method"] == "both"


def test_method_refine(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    start = editor.latent
    result = editor.drag(**DRAG, method="refine")
    assert (result.method, result.rounds) == ("refine", 0)
    assert fake_refiner.calls[0].start is None and torch.equal(fake_refiner.calls[0].image.latent, start)


def test_rounds(editor: DragEditor) -> None:
    assert editor.drag(**DRAG, method="predict", rounds=1).rounds == 1
    with pytest.raises(AutodragError, match="rounds is 0; expected at least 1"):
        editor.drag(**DRAG, method="predict", rounds=0)


@pytest.mark.parametrize(
    ("method", "said"), [("auto", "both"), ("both", "both"), ("predict", "predict"), ("refine", "refine")]
)
@pytest.mark.usefixtures("fake_refiner")
def test_methods_of_an_edit(editor: DragEditor, method: Any, said: str) -> None:
    parameters = Parameters(rounds=None if method == "refine" else 2)
    edit = Edit(
        drags=(PointPair(handle=(10.0, 12.0), target=(20.0, 14.0)),), seed=7, method=method, parameters=parameters
    )
    result = editor.apply(edit)
    assert result.method == said and result.rounds <= 2
    assert (result.rounds > 0) == (method != "refine")


@pytest.mark.parametrize("method", ["both", "auto"])
def test_masks_are_predicted_and_refined(editor: DragEditor, fake_refiner: FakeRefiner, method: str) -> None:
    predicted = editor.drag(**DRAG, mask=MASK, method="predict")
    editor.undo()
    start = editor.latent
    result = editor.drag(**DRAG, mask=MASK, method=method)
    assert (result.method, result.rounds) == ("both", predicted.rounds)
    call = fake_refiner.calls[-1]
    assert call.start is not None and call.drag.mask is None and len(call.image.layers) == 2
    torch.testing.assert_close(call.start.latent, (start + predicted.latent) / 2)


def test_soft_masks_are_refined(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    start = editor.latent
    result = editor.drag(**DRAG, mask=MASK, preset="draggan", outside="soft")
    assert (result.method, result.rounds) == ("refine", 0)
    call = fake_refiner.calls[-1]
    assert call.start is None and torch.equal(call.image.latent, start)
    assert call.drag.mask is not None and call.drag.mask.tolist() == MASK.tolist()


@pytest.mark.parametrize("method", ["predict", "both"])
def test_soft_masks_are_not_predicted(editor: DragEditor, fake_refiner: FakeRefiner, method: str) -> None:
    before = editor.image
    message = f"method '{method}'"
    for call in (editor.drag, editor.preview):
        with pytest.raises(AutodragError, match=message) as caught:
            call(**DRAG, mask=MASK, preset="draggan", outside="soft", method=method)
        assert "\n" not in str(caught.value)
    assert np.array_equal(editor.image, before) and not fake_refiner.calls
    with pytest.raises(AutodragError, match="nothing to undo"):
        editor.undo()


def test_mask_without_fixed_pixels_is_ignored(editor: DragEditor, fake_refiner: FakeRefiner) -> None:
    assert editor.drag(**DRAG, mask=np.ones((32, 32), dtype=bool)).method == "both"


def test_method_both_needs_a_predictor(tiny_checkpoint: Path, fake_refiner: FakeRefiner) -> None:
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    editor.open(seed=7)
    with pytest.raises(AutodragError, match=r"method 'both' needs a predictor, and .* has none"):
        editor.drag(**DRAG, method="both")
    assert not fake_refiner.calls and editor.drag(**DRAG).method == "refine"


@pytest.mark.usefixtures("fake_refiner")
def test_without_a_regularizer(tmp_path: Path, tiny_generator: Generator) -> None:
    """A predictor that was trained without one."""
    folder = save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator, regularizer=False))
    editor = DragEditor.load(folder, device="cpu")
    editor.open(seed=7)
    assert editor.learned is not None and editor.learned.regularizer is None
    assert editor.drag(**DRAG, method="predict").rounds >= 1


def test_missing_regularizer_is_refused(tmp_path: Path, tiny_generator: Generator) -> None:
    folder = save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator))
    (folder / "regularizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"predictor\.safetensors' was trained together with a regularizer, but"):
        DragEditor.load(folder, device="cpu")


def test_a_predictor_of_another_generator_is_refused(
    tmp_path: Path, tiny_generator: Generator, make_generator: Callable[..., Generator]
) -> None:
    from autodrag.checkpoint import save_generator

    folder = save_learned(tmp_path, tiny_generator, tiny_nets(tiny_generator))
    save_generator(folder, make_generator(seed=5))
    with pytest.raises(CheckpointError, match=r"regularizer\.safetensors' was trained on generator"):
        DragEditor.load(folder, device="cpu")


def test_preview_equals_the_drag_and_does_not_change_the_editor(editor: DragEditor) -> None:
    before, latent = editor.image, editor.latent
    preview = editor.preview(**DRAG)
    assert np.array_equal(editor.image, before) and torch.equal(editor.latent, latent)
    with pytest.raises(AutodragError, match="nothing to undo"):
        editor.undo()
    result = editor.drag(**DRAG, method="predict")
    torch.testing.assert_close(preview.latent, result.latent)
    assert np.abs(preview.image.astype(int) - result.image.astype(int)).max() <= 1
    np.testing.assert_allclose(preview.points, result.points, atol=1e-4)


def test_preview_starts_from_the_current_image(editor: DragEditor) -> None:
    first = editor.preview([[10, 12]], [[11, 12]])
    again = editor.preview(**DRAG, start=first)
    torch.testing.assert_close(again.latent, editor.preview(**DRAG).latent)


def test_masks_and_anchors_change_the_prediction(editor: DragEditor) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:20] = True
    plain, masked = editor.preview(**DRAG), editor.preview(**DRAG, mask=mask)
    held = editor.preview(**DRAG, anchors=[[28, 28]])
    assert not torch.allclose(plain.latent, masked.latent) and not torch.allclose(plain.latent, held.latent)
    assert held.points.shape == (1, 2)


def test_order_of_points_does_not_matter(editor: DragEditor) -> None:
    handles, targets = [[4, 4], [20, 9], [11, 25]], [[8, 4], [16, 9], [11, 20]]
    first = editor.preview(handles, targets)
    second = editor.preview(handles[::-1], targets[::-1])
    assert torch.equal(first.latent, second.latent) and np.array_equal(first.points, second.points[::-1])


@pytest.mark.parametrize(
    ("method", "preset"),
    [("predict", "default"), ("auto", "default"), ("both", "default"), ("auto", "draggan"), ("both", "draggan")],
)
def test_replayed_session_gives_the_same_image(
    tmp_path: Path, editor: DragEditor, checkpoint: Path, method: str, preset: Any
) -> None:
    editor.drag(**DRAG, mask=MASK, anchors=[[1, 2]], method=method, preset=preset, steps=4, budget_s=60.0)
    second = editor.drag([[20, 14]], [[22, 16]], method="both" if method == "auto" else method, rounds=2, steps=3)
    editor.save_session(tmp_path / "s.json")
    edits = read_edits(tmp_path / "s.json")
    second_method = "predict" if method == "predict" else "both"
    first_method = "refine" if (method, preset) == ("auto", "draggan") else second_method
    assert [edit.method for edit in edits] == [first_method, second_method]
    assert [edit.handles for edit in edits] == [[(10, 12)], [(20, 14)]]
    assert edits[1].parameters.rounds == second.rounds
    other = DragEditor.load(checkpoint, device="cpu")
    assert np.array_equal(other.load_session(tmp_path / "s.json"), editor.image)
    assert torch.equal(other.latent, editor.latent)


def test_replay_of_a_drag_that_used_up_its_budget(
    tmp_path: Path, editor: DragEditor, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prediction uses up the budget, so neither the drag nor its replay runs the refiner."""
    with monkeypatch.context() as patch:
        begin, ticks = time.monotonic(), iter(range(1, 10_000))
        set_clock(patch, lambda: begin + next(ticks), task_module)
        result = editor.drag(**DRAG, budget_s=1.0)
    assert (result.rounds, result.steps, result.reason) == (1, 0, "budget")
    editor.save_session(tmp_path / "s.json")
    other = DragEditor.load(checkpoint, device="cpu")
    assert np.array_equal(other.load_session(tmp_path / "s.json"), editor.image)


def test_siblings_drag_concurrently(editor: DragEditor) -> None:
    """Three threads with different images and points give the same results as sequential drags."""
    drags = [([[10 + k, 12], [20, 20 + k]], [[18, 14 + k], [20, 16]]) for k in range(3)]

    def work(k: int) -> list[Any]:
        own = editor.sibling()
        own.open(seed=k)
        results = [
            own.drag(*drags[k], method="both", steps=4),
            own.drag(*drags[k], mask=MASK, anchors=[[1, 2]], method="both", steps=4),
            own.drag(*drags[k], preset="draggan", steps=4, keep_references=True),
            own.preview(*drags[k]),
        ]
        return [(result.latent, result.image, result.points.tolist()) for result in results]

    expected = [work(k) for k in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            for found, alone in zip(pool.map(work, range(3)), expected, strict=True):
                for (latent, image, points), (latent_1, image_1, points_1) in zip(found, alone, strict=True):
                    assert torch.equal(latent, latent_1) and np.array_equal(image, image_1) and points == points_1


def test_siblings_share_the_networks(editor: DragEditor) -> None:
    other = editor.sibling()
    other.open(seed=7)
    assert other.learned is editor.learned
    torch.testing.assert_close(other.preview(**DRAG).latent, editor.preview(**DRAG).latent)


def test_prediction_in_bf16(checkpoint: Path, editor: DragEditor) -> None:
    fast = DragEditor.load(checkpoint, device="cpu", dtype=torch.bfloat16)
    fast.open(seed=7)
    exact, close = editor.drag(**DRAG, method="predict", rounds=1), fast.drag(**DRAG, method="predict", rounds=1)
    assert torch.isfinite(close.latent).all()
    assert float((exact.latent - close.latent).abs().mean()) < 0.1


def test_keep_references_after_a_prediction(editor: DragEditor) -> None:
    first = editor.drag(**DRAG, method="predict")
    assert first.references is not None and first.references.handles.tolist() == [[10, 12]]
    then = editor.drag(first.points, [[22, 16]], method="refine", steps=2, keep_references=True)
    assert then.references is first.references


BOTTOM = np.arange(32)[:, None].repeat(32, axis=1) >= 20
SECOND: dict[str, Any] = {"handles": [[8, 26]], "targets": [[12, 26]]}


def check_mask(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> None:
    """Something changed inside, and nothing outside."""
    changed = (before != after).any(axis=2)
    assert changed[mask].any() and not changed[~mask].any()


@pytest.mark.parametrize(
    ("method", "settings"),
    [("predict", {}), ("both", {"steps": 3}), ("both", {"steps": 3, "preset": "draggan", "lr": 0.05})],
    ids=["predict", "both", "both with draggan"],
)
def test_a_mask_is_exact_through_a_whole_session(
    editor: DragEditor, checkpoint: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    """Edits with a mask, the same mask and another mask; undo and redo; the saved session and the saved code."""
    images = [editor.image]
    for drag, mask in ((DRAG, MASK), (SECOND, MASK), (SECOND, BOTTOM), (DRAG, MASK)):
        result = editor.drag(**drag, mask=mask, method=method, **settings)
        check_mask(images[-1], result.image, mask)
        assert np.array_equal(editor.image, result.image) and np.array_equal(editor.render(editor.layers), result.image)
        images.append(result.image)
    assert [len(layers) for layers in editor.past] == [1, 2, 2, 3, 3]  # the third mask lies in the first
    for image in images[-2::-1]:
        assert np.array_equal(editor.undo(), image)
    for image in images[1:]:
        assert np.array_equal(editor.redo(), image)

    editor.save_session(tmp_path / "s.json")
    save_code(tmp_path / "code.safetensors", editor.layers, {"generator": editor.fingerprint})
    other = DragEditor.load(checkpoint, device="cpu")
    assert np.array_equal(other.load_session(tmp_path / "s.json"), images[-1])
    assert np.array_equal(other.open(latent=tmp_path / "code.safetensors"), images[-1])
    check_mask(images[-1], other.drag(**SECOND, mask=BOTTOM, method=method, **settings).image, BOTTOM)


def test_previews_respect_masks(editor: DragEditor) -> None:
    before = editor.image
    preview = editor.preview(**DRAG, mask=BOTTOM)
    check_mask(before, preview.image, BOTTOM)
    assert np.array_equal(editor.image, before)
    result = editor.drag(**DRAG, mask=BOTTOM, method="predict")
    assert np.array_equal(result.image, preview.image)
    check_mask(result.image, editor.preview(**SECOND, mask=MASK, method="predict", moving=True).image, MASK)


def test_keep_references_with_masks(editor: DragEditor) -> None:
    first = editor.drag(**DRAG, mask=MASK, method="predict")
    then = editor.drag(first.points, [[22, 16]], mask=MASK, method="both", steps=2, keep_references=True)
    last = editor.drag(then.points, [[22, 22]], mask=BOTTOM, method="predict", keep_references=True)
    assert first.references is then.references is last.references
    check_mask(first.image, then.image, MASK)
    check_mask(then.image, last.image, BOTTOM)


def test_shipped_predictor_reaches_the_targets() -> None:
    """An outdated or damaged file would be refused at loading, or leave more than half of the distance.

    Noses are dragged by 8 px along one axis and measured with a landmark net, which is independent of the tracker.
    """
    editor = DragEditor.load(Path(__file__).parents[2] / "checkpoints" / "critters", device="cpu")
    net = editor.landmarks
    assert editor.can_predict and net is not None
    nose = net.config.names.index("nose")
    shares = []
    for seed in range(8):
        handle = detect_landmarks(net, editor.open(seed=seed))[nose]
        offset = np.zeros(2)
        offset[seed % 2] = 8.0 if handle[seed % 2] < 32 else -8.0
        result = editor.drag(handle[None], (handle + offset)[None], method="predict")
        assert result.landmark_distances is not None and result.landmark_distances[0] is not None
        shares.append(result.landmark_distances[0] / 8)
    assert max(shares) <= 0.5, shares
