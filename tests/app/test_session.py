"""One session without a server: an edit that fails changes nothing, and a preview has the settings of its edit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.serving import EDIT
from autodrag.app import session as session_module
from autodrag.app.config import AppConfig
from autodrag.app.frames import png
from autodrag.app.gate import Gate
from autodrag.app.session import Session
from autodrag.errors import AutodragError
from autodrag.infer import editor as editor_module
from autodrag.infer import predict as predict_module
from autodrag.infer import trust
from autodrag.infer.editor import DragEditor


def opened(editor: DragEditor, seed: int = 5) -> Session:
    session = Session("key", "address", editor, Gate(1), AppConfig())
    session.open(editor, seed, 0.7, None)
    return session


@pytest.fixture
def session(tiny_checkpoint: Path) -> Session:
    """The image of seed 5 of the tiny generator."""
    return opened(DragEditor.load(tiny_checkpoint, device="cpu"))


@pytest.fixture(scope="module")
def critters() -> DragEditor:
    """The shipped checkpoint, which has a predictor."""
    return DragEditor.load(Path(__file__).parents[2] / "checkpoints" / "critters", device="cpu")


def drag(session: Session, **document: Any) -> None:
    session.drag(session.read({**EDIT, **document}), threading.Event())


def snapshot(session: Session) -> tuple[Any, ...]:
    return session.state(), session.editor.image.tobytes(), session.editor.undone, list(session.moments)


def test_an_edit_whose_scene_cannot_be_built_changes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    drag(session)
    drag(session)
    edited = session.editor.image
    session.undo()
    before = snapshot(session)

    def broken(*_: Any) -> Any:
        raise ValueError("not finite")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="not finite"):
        patch.setattr(session_module, "scene_after", broken)
        drag(session)
    assert snapshot(session) == before
    session.redo()
    assert np.array_equal(session.editor.image, edited)


def test_an_edit_that_opens_another_image_and_fails_keeps_the_present_one(session: Session) -> None:
    drag(session)
    before = snapshot(session)
    with pytest.raises(AutodragError, match="outside the image"):
        drag(session, seed=8, drags=[{"handle": [1, 1], "target": [99, 1]}])
    assert snapshot(session) == before


def test_an_edit_that_opens_another_image_keeps_its_mask(session: Session) -> None:
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:, :16] = 255
    session.add_mask("half.png", png(mask))
    drag(session, seed=8, mask="half.png")
    assert session.scene.mask == "half.png" and session.mask("half.png") is not None
    assert session.opened == (8, 0.7, None)


def test_a_preview_uses_space_and_preset_of_its_edit(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_module, "PREVIEW_S", 60.0)  # the limit is the number of steps, on any machine
    monkeypatch.setattr(trust, "GAIN", -1e9)  # two steps gain little, and the image would stay as it was

    def preview(**parameters: Any) -> np.ndarray:
        edit = session.read({**EDIT, "parameters": {"steps": 2, **parameters}})
        latent: np.ndarray = session.preview(edit, None, moving=True).latent.numpy()
        return latent

    shared, separate = preview(space="w"), preview(space="w+")
    published = preview(space="w+", preset="draggan")
    assert not np.allclose(shared, separate) and not np.allclose(separate, published)
    drag(session, parameters={"steps": 2, "space": "w+"})
    assert np.allclose(session.editor.latent.numpy(), separate, atol=1e-5), "the edit ends where its preview did"


@pytest.mark.parametrize(
    ("method", "masked", "expected"),
    [("auto", False, "predict"), ("both", True, "predict"), ("auto", True, "predict"), ("refine", False, "refine")],
)
def test_a_preview_uses_the_method_of_its_edit(critters: DragEditor, method: str, masked: bool, expected: str) -> None:
    session = opened(critters.sibling())
    mask = np.full((64, 64, 3), 255, np.uint8)
    mask[50:] = 0
    session.add_mask("most.png", png(mask))
    document = {"drags": [{"handle": [25, 30], "target": [28, 30]}], "method": method}
    edit = session.read({**document, "mask": "most.png"} if masked else document)
    first = session.preview(edit, None, moving=True)
    assert first.method == expected
    assert session.preview(edit, first, moving=False).method == expected


def test_several_points_get_fewer_rounds_while_the_pointer_moves(
    critters: DragEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "GAIN", -1.0)  # a round without progress does not end the loop
    session = opened(critters.sibling(), seed=13)
    handles = [(25, 30), (40, 24), (20, 18), (44, 18), (32, 45)]
    pairs = [{"handle": [x, y], "target": [x + 4, y + 2]} for x, y in handles]

    def rounds(*, moving: bool, **document: Any) -> int:
        return session.preview(session.read({"drags": pairs, **document}), None, moving=moving).rounds

    assert (rounds(moving=True), rounds(moving=False)) == (3, 6)
    assert rounds(moving=True, parameters={"rounds": 1}) == 1, "a smaller limit of the edit holds"
    assert rounds(moving=True, drags=pairs[:1]) == 2
