"""The checkpoints on offer: each is loaded once, on first use, and shared by all sessions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from autodrag.app.config import AppConfig
from autodrag.app.frames import png, shrink
from autodrag.app.gate import Gate
from autodrag.checkpoint import GENERATOR_FILE, REPOSITORY
from autodrag.errors import CheckpointError
from autodrag.infer.editor import DragEditor

THUMBNAILS = 1024  # in memory; each is a few kilobytes
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class Offer:
    """A checkpoint that can be chosen."""

    name: str
    """Name of its folder."""
    path: Path
    """That folder."""


class Checkpoints:
    """Loads by name only: a client never names a path."""

    def __init__(self, config: AppConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._editors: OrderedDict[str, DragEditor] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, int, float, int | None], bytes] = OrderedDict()

    def offers(self) -> list[Offer]:
        """What is there, by name; the shipped checkpoints where the configured folder is the usual one and absent."""
        folder = self._config.checkpoints
        if not folder.is_absolute() and not folder.is_dir():
            folder = REPOSITORY / folder
        return [Offer(file.parent.name, file.parent) for file in sorted(folder.glob(f"*/{GENERATOR_FILE}"))]

    def choose(self, name: str | None) -> Offer:
        """The checkpoint of that name; None gives critters, or else the first."""
        offers = self.offers()
        wanted = name or "critters"
        for offer in offers:
            if offer.name == wanted:
                return offer
        if name is None and offers:
            return offers[0]
        known = ", ".join(offer.name for offer in offers) or f"none in {str(self._config.checkpoints)!r}"
        raise CheckpointError(f"checkpoint {wanted[:100]!r} is not among those on offer: {known}")

    def editor(self, name: str | None = None) -> DragEditor:
        """A new editor around the shared networks of a checkpoint; loads them if need be."""
        offer = self.choose(name)
        with self._lock:
            lock = self._loading.setdefault(offer.name, threading.Lock())
        with lock:
            with self._lock:
                loaded = self._editors.get(offer.name)
            if loaded is None:
                loaded = DragEditor.load(offer.path, device=self._config.device)
                # Saved edits name the checkpoint as every other tool does, from the folder above.
                loaded.checkpoint = f"{self._config.checkpoints.name}/{offer.name}"
                _warm(loaded)
        with self._lock:
            self._editors[offer.name] = loaded
            self._editors.move_to_end(offer.name)
            while len(self._editors) > self._config.loaded:  # sessions that use it keep it alive
                self._editors.popitem(last=False)
        return loaded.sibling()

    def thumbnail(self, name: str, seed: int, psi: float, label: int | None, gate: Gate) -> bytes:
        """A small PNG of a seed."""
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
    """The first drag of a process takes several times as long as the others; nobody shall wait for it."""
    height, width = editor.image_size
    editor.open(0, label=0 if editor.generator.config.c_dim else None)
    editor.preview([[width / 2, height / 2]], [[width / 2 + 1, height / 2]])
