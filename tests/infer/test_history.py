"""The history of an image on its own, without networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autodrag.checkpoint import load_code
from autodrag.edits import Edit, PointPair, Source, read_edits
from autodrag.errors import AutodragError
from autodrag.images import read_mask
from autodrag.infer.history import History, State
from autodrag.infer.task import References
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Generator

EDIT = Edit(drags=(PointPair(handle=(1.0, 2.0), target=(3.0, 4.0)),), anchors=((5.0, 6.0),), method="refine")
MASK = np.arange(8)[:, None].repeat(8, axis=1) >= 3


def code(value: float) -> Layers:
    """A latent with a recognisable value."""
    return Layers.of(torch.full((1, 8, 32), float(value)))


@pytest.fixture
def references() -> References:
    return References(code(1), torch.ones(1, 2))


@pytest.fixture
def history(references: References) -> History:
    """The image of seed 7 with latent 0, and three edits with latents 1, 2 and 3."""
    history = History()
    history.open(code(0), Source(seed=7, psi=0.6))
    for value in (1, 2, 3):
        history.push(State(code(value), EDIT, references=references))
    return history


def values(history: History) -> list[float]:
    """Values of the latents up to the current one."""
    return [float(layers.stack[0].latent[0, 0, 0]) for layers in history.past]


def test_empty_history() -> None:
    history = History()
    assert not history and history.undone == 0 and history.forget(5, 5) == 0
    for ask in (lambda: history.present, lambda: history.past):
        with pytest.raises(AutodragError, match=r"no image is open; call open\(seed=7\) first"):
            ask()
    for move, name in ((history.undo, "undo"), (history.redo, "redo")):
        with pytest.raises(AutodragError, match=f"there is nothing to {name}"):
            move()


def test_undo_and_redo(history: History) -> None:
    assert history and values(history) == [0, 1, 2, 3] and history.undone == 0
    history.undo()
    history.undo()
    assert values(history) == [0, 1] and history.undone == 2
    assert history.present.edit == EDIT
    history.redo()
    assert values(history) == [0, 1, 2] and history.undone == 1
    history.push(State(code(9), EDIT))
    assert values(history) == [0, 1, 2, 9] and history.undone == 0
    with pytest.raises(AutodragError, match="there is nothing to redo"):
        history.redo()
    assert values(history) == [0, 1, 2, 9]


def test_opening_an_image_clears_the_history(history: History) -> None:
    history.open(code(5), Source(seed=1))
    assert values(history) == [5]
    with pytest.raises(AutodragError, match="there is nothing to undo"):
        history.undo()


def test_oldest_edits_are_dropped(history: History, tmp_path: Path, tiny_generator: Generator) -> None:
    assert history.forget(keep=3, references=9) == 0 and values(history) == [0, 1, 2, 3]
    assert history.forget(keep=2, references=1) == 1 and values(history) == [1, 2, 3]
    kept = []
    for _ in range(2):
        kept.append(history.present.references is not None)
        history.undo()
    assert kept == [True, False], "only those of the last edit were to stay"
    assert history.present.edit is None and history.undone == 2
    history.redo()
    history.save(tmp_path / "s.json", checkpoint="c", fingerprint="f" * 16)
    (edit,) = read_edits(tmp_path / "s.json")
    assert (edit.seed, edit.latent, edit.psi) == (None, tmp_path / "s.latent.safetensors", 0.6)
    (layer,) = load_code(tmp_path / "s.latent.safetensors", tiny_generator.config, generator="f" * 16).stack
    assert torch.equal(layer.latent, torch.ones(1, 8, 32))


def test_dropping_edits_keeps_undone_edits(history: History) -> None:
    history.undo()
    assert history.forget(keep=1, references=0) == 1 and values(history) == [1, 2] and history.undone == 1
    history.redo()
    assert values(history) == [1, 2, 3]


def test_sessions(history: History, tmp_path: Path) -> None:
    history.push(State(code(4), EDIT, MASK))
    history.push(State(code(5), EDIT))
    history.undo()
    history.save(tmp_path / "s.json", checkpoint="c", fingerprint="f" * 16)
    edits = read_edits(tmp_path / "s.json")
    assert [edit.seed for edit in edits] == [7, None, None, None]
    assert [edit.fingerprint for edit in edits] == ["f" * 16, None, None, None]
    assert {(edit.checkpoint, edit.psi, edit.drags) for edit in edits} == {("c", 0.6, EDIT.drags)}
    assert [edit.mask for edit in edits] == [None, None, None, tmp_path / "s.mask-4.png"]
    assert np.array_equal(read_mask(tmp_path / "s.mask-4.png", (8, 8)), MASK)


def test_a_session_without_edits(tmp_path: Path) -> None:
    history = History()
    history.open(code(0), Source(seed=7))
    with pytest.raises(AutodragError, match=r"s\.json' would be empty"):
        history.save(tmp_path / "s.json", checkpoint="c", fingerprint="f" * 16)


def test_restore(history: History, tmp_path: Path) -> None:
    history.push(State(code(4), EDIT, MASK))
    history.save(tmp_path / "first.json", checkpoint="c", fingerprint="f" * 16)
    edits = read_edits(tmp_path / "first.json")
    other = History()
    other.restore(edits, history.past, [None, None, None, MASK])
    assert values(other) == [0, 1, 2, 3, 4] and other.undone == 0 and other.present.references is None
    other.save(tmp_path / "first.json", checkpoint="c", fingerprint="f" * 16)
    assert read_edits(tmp_path / "first.json") == edits
    other.undo()
    assert values(other) == [0, 1, 2, 3]


def test_restore_without_edits() -> None:
    history = History()
    history.restore([], [code(3)], [])
    assert values(history) == [3] and history.present.edit is None
