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
    """Reference features of the edit's handles, for a following edit with `keep_references`."""


class History:
    """A list of states with undo and redo, starting with the opened image. It is empty before the first `open`."""

    def __init__(self) -> None:
        self._states: list[State] = []
        self._cursor = 0
        self._source = Source()

    def __bool__(self) -> bool:
        """Whether an image is open."""
        return bool(self._states)

    @property
    def present(self) -> State:
        """The current state, from which the next edit starts. Raises AutodragError if no image is open."""
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
        """Number of edits that can be redone."""
        return max(0, len(self._states) - 1 - self._cursor)

    def open(self, layers: Layers, source: Source) -> None:
        """Clear the history and start with a new image."""
        self._states, self._cursor, self._source = [State(layers)], 0, source

    def copy(self) -> History:
        """An independent history with the same states."""
        other = History()
        other._states, other._cursor, other._source = list(self._states), self._cursor, self._source
        return other

    def push(self, state: State) -> None:
        """Append the result of an edit and make it the current state. Undone states are deleted."""
        del self._states[self._cursor + 1 :]
        self._states.append(state)
        self._cursor += 1

    def undo(self) -> None:
        """Return to the state before the last edit."""
        self._move(-1, "undo")

    def redo(self) -> None:
        """Revert the last undo."""
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
        """Limit the memory of a long history by dropping its oldest edits.

        The state before the first remaining edit becomes the opened image. It has no seed.

        Args:
            keep: number of edits to keep, up to the current image.
            references: number of these edits that keep their references.

        Returns:
            Number of dropped edits.
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
        """Write the edits up to the current image as a session file. Masks and the latent are written to its folder.

        The latent of the opened image is written only if the image has no seed.

        Args:
            path: the session file.
            checkpoint: checkpoint folder to store in the edits.
            fingerprint: fingerprint of the generator.
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
