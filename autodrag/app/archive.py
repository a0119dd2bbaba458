"""Sessions as files: export and import by clients, and saving on the server.

An exported session is the common session file, or a zip of it with its masks and opened latent. A saved session also
holds the latents of its history and the scene of each image, so that it is restored without computing, bit for bit.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from autodrag.app.gate import Gate, Stopped, Stopwatch
from autodrag.app.models import EditOutcome, PointState, Scene
from autodrag.app.session import Session, check_latent, outcome_of, scene_after
from autodrag.edits import Edit, read_edits
from autodrag.errors import AutodragError
from autodrag.files import replacing, write_json
from autodrag.images import read_mask, write_png
from autodrag.infer.editor import DragEditor
from autodrag.infer.task import DragResult
from autodrag.nets.layers import Layers
from autodrag.release import load_tensors, save_tensors

SESSION, PAST, STATE = "session.json", "past.safetensors", "state.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_FILES = 512
MAX_DOCUMENT = 256 * 2**10
MAX_UNPACKED = 64 * 2**20


def export(session: Session) -> tuple[bytes, str]:
    """Export the session up to the present image; returns the file and its suffix, json or zip."""
    if session.present == 0:
        raise AutodragError("the session would be empty; make an edit first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        session.editor.save_session(folder / SESSION)
        files = sorted(folder.iterdir())
        if len(files) == 1:
            return files[0].read_bytes(), "json"
        return _zipped(files), "zip"


def unpack(data: bytes, folder: Path) -> Path:
    """Write an uploaded session file, or the files of an uploaded zip, to `folder`; returns the session file's path.

    Raises:
        AutodragError: no session, too many bytes or files, or file names with folders.
    """
    if not data.startswith(b"PK"):
        (folder / SESSION).write_bytes(data)
        return folder / SESSION
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_FILES:
                raise AutodragError(f"the zip holds {len(members)} files, more than the limit of {MAX_FILES}")
            for member in members:
                if not NAME.fullmatch(member.filename):
                    raise AutodragError(f"the zip holds {member.filename[:100]!r}; expected plain file names only")
                with archive.open(member) as stream:
                    content = stream.read(MAX_UNPACKED - total + 1)
                total += len(content)
                if total > MAX_UNPACKED:
                    raise AutodragError(f"the zip holds more than {MAX_UNPACKED} bytes; expected a session")
                (folder / member.filename).write_bytes(content)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise AutodragError(f"the zip cannot be read ({error}); export the session again") from error
    documents = sorted(folder.glob("*.json"))
    if len(documents) != 1:
        raise AutodragError(f"the zip holds {len(documents)} JSON files; expected one, the session")
    return documents[0]


def replay(
    session: Session,
    path: Path,
    choose: Callable[[str], DragEditor],
    gate: Gate,
    stop: threading.Event,
) -> None:
    """Replay a session file in `session`. If the replay fails, the session stays unchanged.

    Args:
        choose: returns an editor for a checkpoint's name.

    Raises:
        Stopped: `stop` was set.
        AutodragError: the file cannot be replayed on this server.
    """
    if path.stat().st_size > MAX_DOCUMENT:
        raise AutodragError(f"the session file has more than {MAX_DOCUMENT} bytes, which is this server's limit")
    edits = read_edits(path)
    if len(edits) > session.config.history:
        raise AutodragError(f"the session has {len(edits)} edits, more than this server's {session.config.history}")
    if any(max(len(edit.drags), len(edit.anchors)) > session.config.points for edit in edits):
        raise AutodragError(f"an edit has more points than this server's limit of {session.config.points}")
    first = edits[0]
    if first.seed is None and first.latent is None:
        raise AutodragError("the first edit names neither a seed nor a latent; give it a seed")
    editor = choose(Path(first.checkpoint).name)
    clock = Stopwatch(session.config.replay_s)

    def step(state: DragResult) -> None:
        if stop.is_set():
            raise Stopped
        if clock.spent():
            raise AutodragError(f"the replay took more than {session.config.replay_s:g} s; open a shorter session")
        with clock.paused():
            gate.breathe()

    with gate.turn(stop):
        images = [editor.open(first.seed, first.psi, first.label, first.latent)]
        check_latent(editor)
        scenes: list[tuple[Scene, EditOutcome | None]] = [(Scene(), None)]
        masks: dict[str, np.ndarray] = {}
        for number, edit in enumerate(edits, start=1):
            if number > 1 and (edit.seed is not None or edit.latent is not None):
                raise AutodragError(f"edit {number} opens another image; expected one image for each session")
            name = None
            if edit.mask is not None:
                name = f"mask-{number}.png"
                masks[name] = read_mask(edit.mask, editor.image_size)
            follow = edit.replaced(seed=None, latent=None, label=None)
            result = editor.apply(follow, callback=step)
            asked = _scene(edit, name)
            scenes[-1] = (asked, scenes[-1][1])
            scenes.append((scene_after(asked, result, editor.image_size), outcome_of(result)))
            images.append(result.image)
        session.adopt(editor, (first.seed, first.psi, first.label), images, scenes, masks)


def save(session: Session, path: Path) -> None:
    """Save everything that `restore` needs, up to the present image. A failed write leaves no partial file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if session.present:
            session.editor.save_session(folder / SESSION)
        past = {
            f"{number}.{name}": tensor
            for number, layers in enumerate(session.editor.past)
            for name, tensor in layers.tensors().items()
        }
        save_tensors(folder / PAST, past, kind="past", config={})
        moments = session.moments[: session.present + 1]
        for mask in {moment.scene.mask for moment in moments} - {None}:
            assert mask is not None
            pixels = session.mask(mask)
            assert pixels is not None
            write_png(folder / f"scene-{mask}", np.repeat(pixels[:, :, None], 3, axis=2).astype(np.uint8) * 255)
        write_json(
            folder / STATE,
            {
                "autodrag_kept": 1,
                "checkpoint": Path(session.editor.checkpoint).name,
                "opened": session.opened,
                "scenes": [moment.scene.model_dump() for moment in moments],
                "outcomes": [moment.outcome and moment.outcome.model_dump() for moment in moments],
            },
        )
        data = _zipped(sorted(folder.iterdir()))
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def restore(session: Session, path: Path, choose: Callable[[str], DragEditor], gate: Gate) -> None:
    """Restore a saved session into `session`, which is new."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        edits = read_edits(folder / SESSION) if (folder / SESSION).is_file() else []
        editor = choose(state["checkpoint"])
        past = _past(folder / PAST, editor)
        scenes = [
            (Scene.model_validate(scene), None if outcome is None else EditOutcome.model_validate(outcome))
            for scene, outcome in zip(state["scenes"], state["outcomes"], strict=True)
        ]
        masks = {
            file.name.removeprefix("scene-"): read_mask(file, editor.image_size) for file in folder.glob("scene-*")
        }
        seed, psi, label = state["opened"]
        with gate.turn():
            if edits or seed is None:
                editor.restore(edits, past)
            else:
                editor.open(seed, psi, label)
            images = [editor.render(layers) for layers in past]
            session.adopt(editor, (seed, psi, label), images, scenes, masks)


def _past(path: Path, editor: DragEditor) -> list[Layers]:
    """The images of a saved history."""
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_tensors(path, kind="past")[0].items():
        number, name = key.split(".", 1)
        numbered.setdefault(int(number), {})[name] = tensor
    return [Layers.from_tensors(numbered[number], editor.generator.config) for number in sorted(numbered)]


def _scene(edit: Edit, mask: str | None) -> Scene:
    points = [PointState(handle=drag.handle, target=drag.target) for drag in edit.drags]
    return Scene(points=points, anchors=list(edit.anchors), mask=mask)


def _zipped(files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return buffer.getvalue()
