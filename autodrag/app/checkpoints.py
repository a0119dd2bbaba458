"""The available checkpoints. Each is loaded once, at its first use, and shared by all sessions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from autodrag.app.config import AppConfig
from autodrag.app.frames import png, shrink
from autodrag.app.gate import Gate
from autodrag.checkpoint import GENERATOR_FILE, SHIPPED
from autodrag.errors import CheckpointError
from autodrag.infer.editor import DragEditor

THUMBNAILS = 1024
"""Maximum number of thumbnails in memory; each has a few kilobytes."""
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class Offer:
    """An available checkpoint."""

    name: str
    """Name of its folder."""
    path: Path
    """The folder."""


class Checkpoints:
    """Loads checkpoints by name, because a client must not name a path."""

    def __init__(self, config: AppConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._editors: OrderedDict[str, DragEditor] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, int, float, int | None], bytes] = OrderedDict()

    def offers(self) -> list[Offer]:
        """The available checkpoints, sorted by name. If a relative folder is missing, those beside the package."""
        folder = self._config.checkpoints
        if not folder.is_absolute() and not folder.is_dir():
            folder = next((root / folder for root in SHIPPED if (root / folder).is_dir()), folder)
        return [Offer(file.parent.name, file.parent) for file in sorted(folder.glob(f"*/{GENERATOR_FILE}"))]

    def choose(self, name: str | None) -> Offer:
        """The checkpoint with a name; None: critters if available, otherwise the first."""
        offers = self.offers()
        wanted = name or "critters"
        for offer in offers:
            if offer.name == wanted:
                return offer
        if name is None and offers:
            return offers[0]
        known = ", ".join(offer.name for offer in offers) or f"none in {str(self._config.checkpoints)!r}"
        raise CheckpointError(f"checkpoint {wanted[:100]!r} is not available; expected one of: {known}")

    def editor(self, name: str | None = None) -> DragEditor:
        """A new editor with the shared networks of a checkpoint, which are loaded if necessary."""
        offer = self.choose(name)
        with self._lock:
            lock = self._loading.setdefault(offer.name, threading.Lock())
        with lock:
            with self._lock:
                loaded = self._editors.get(offer.name)
            if loaded is None:
                loaded = DragEditor.load(offer.path, device=self._config.device)
                # Saved edits name the checkpoint relative to the parent folder, as all other commands do.
                loaded.checkpoint = f"{self._config.checkpoints.name}/{offer.name}"
                _warm(loaded)
        with self._lock:
            self._editors[offer.name] = loaded
            self._editors.move_to_end(offer.name)
            while len(self._editors) > self._config.loaded:  # sessions that still use it keep it in memory
                self._editors.popitem(last=False)
        return loaded.sibling()

    def thumbnail(self, name: str, seed: int, psi: float, label: int | None, gate: Gate) -> bytes:
        """PNG of a seed's image, at most `THUMBNAIL_PX` px wide and high."""
        key = (name, seed, psi, label)
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        editor = self.editor(name)
        with gate.turn():
            image = editor.open(seed, psi, label)
        data = png(shrink(image, THUMBNAIL_PX))
        with self._lock:
            self._thumbnails[key] = data
            while len(self._thumbnails) > THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return data


def _warm(editor: DragEditor) -> None:
    """Make a preview, because the first one of a process takes several times as long as the others."""
    height, width = editor.image_size
    editor.open(0, label=0 if editor.generator.config.c_dim else None)
    editor.preview([[width / 2, height / 2]], [[width / 2 + 1, height / 2]])
