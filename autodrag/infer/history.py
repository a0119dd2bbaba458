"""The history of one opened image: its codes, the edits between them, and which of them is the present one.

It computes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from autodrag.checkpoint import save_code
from autodrag.edits import Edit, Source, write_session
from autodrag.errors import AutodragError
from autodrag.images import write_png
from autodrag.infer.task import References
from autodrag.nets.layers import Layers


@dataclass(frozen=True)
class State:
    """An image of the history: its code, and the edit that led to it from the state before."""

    layers: Layers
    """The code."""
    edit: Edit | None = None
    """None for the opened image."""
    mask: Bool[np.ndarray, "H W"] | None = None
    """The edit's mask, True = may move."""
    references: References | None = None
    """What the edit's handles looked like, for an edit that goes on with them."""


class History:
    """States from the opened image on, with undo and redo; before the first `open` there are none."""

    def __init__(self) -> None:
        self._states: list[State] = []
        self._cursor = 0
        self._source = Source()

    def __bool__(self) -> bool:
        """Whether an image is open."""
        return bool(self._states)

    @property
    def present(self) -> State:
        """The state that the next edit starts from; AutodragError where no image is open."""
        if not self._states:
            raise AutodragError("no image is open; call open(seed=7) first")
        return self._states[self._cursor]

    @property
    def position(self) -> int:
        """Number of edits between the opened image and the present one."""
        return self._cursor

    @property
    def past(self) -> tuple[Layers, ...]:
        """The images from the opened one to the present one."""
        return tuple(state.layers for state in self._up_to_present())

    @property
    def undone(self) -> int:
        """How many edits `redo` can still bring back."""
        return max(0, len(self._states) - 1 - self._cursor)

    def open(self, layers: Layers, source: Source) -> None:
        """Forget everything and begin with the image that `source` names."""
        self._states, self._cursor, self._source = [State(layers)], 0, source

    def copy(self) -> History:
        """An independent history with the same states."""
        other = History()
        other._states, other._cursor, other._source = list(self._states), self._cursor, self._source
        return other

    def push(self, state: State) -> None:
        """What an edit led to is the present image; what was undone before is forgotten."""
        del self._states[self._cursor + 1 :]
        self._states.append(state)
        self._cursor += 1

    def undo(self) -> None:
        """Go back to the state before the last edit."""
        self._move(-1, "undo")

    def redo(self) -> None:
        """Take back the last undo."""
        self._move(+1, "redo")

    def go_to(self, position: int) -> None:
        """Make the state after `position` edits the present one."""
        assert 0 <= position < len(self._states)
        self._cursor = position

    @property
    def edits(self) -> list[Edit]:
        """The edits up to the present image, without source and mask."""
        return [state.edit for state in self._up_to_present() if state.edit is not None]

    def forget(self, keep: int, references: int) -> int:
        """Bound the memory of a long history; returns how many edits were dropped from its beginning.

        The last `keep` edits up to the present image stay, and references for the last `references` of them. The image
        before the first that stays becomes the opened one, which no seed names any more.
        """
        surplus = max(0, self._cursor - keep)
        if surplus:
            first = self._states[surplus]
            self._states = [State(first.layers), *self._states[surplus + 1 :]]
            self._cursor -= surplus
            self._source = Source(psi=self._source.psi)
        for index in range(max(0, self._cursor - references + 1)):
            self._states[index] = dataclasses.replace(self._states[index], references=None)
        return surplus

    def restore(self, edits: Sequence[Edit], past: Sequence[Layers], masks: Sequence[np.ndarray | None]) -> None:
        """Put a history back, with nothing undone and no references.

        Args:
            edits: as `read_edits` gives them; the first names the opened image.
            past: the opened image, then one for each edit.
            masks: one for each edit, (H, W) bool, True = may move.
        """
        states = [State(past[0])]
        for edit, layers, mask in zip(edits, past[1:], masks, strict=True):
            states.append(State(layers, edit.replaced(seed=None, latent=None, label=None, mask=None), mask))
        source = Source(**{name: getattr(edits[0], name) for name in Source.model_fields}) if edits else Source()
        self._states, self._cursor, self._source = states, len(edits), source

    def save(self, path: Path, *, checkpoint: str, fingerprint: str) -> None:
        """Write the edits that led to the present image as a session; masks and an opened latent go beside the file.

        Args:
            checkpoint, fingerprint: what the edits call the generator.
        """
        first, *states = self._up_to_present()
        edits = []
        for number, state in enumerate(states, start=1):
            assert state.edit is not None
            mask = None
            if state.mask is not None:
                mask = path.with_name(f"{path.stem}.mask-{number}.png")
                write_png(mask, np.repeat(state.mask[:, :, None], 3, axis=2).astype(np.uint8) * 255)
            edits.append(state.edit.replaced(checkpoint=checkpoint, mask=mask, psi=self._source.psi))
        if edits:
            seed, label, latent = self._source.seed, self._source.label, None
            if seed is None:
                latent = path.with_name(f"{path.stem}.latent.safetensors")
                save_code(latent, first.layers, {"generator": fingerprint})
            edits[0] = edits[0].replaced(fingerprint=fingerprint, seed=seed, label=label, latent=latent)
        write_session(path, edits)

    def _up_to_present(self) -> list[State]:
        return self._states[: self._cursor + 1] or [self.present]

    def _move(self, by: int, name: str) -> None:
        if not 0 <= self._cursor + by < len(self._states):
            raise AutodragError(f"there is nothing to {name}")
        self._cursor += by
