"""Sessions as files: export and import by clients, and saving on the server.

An exported session is the common session file, or a zip of it with its masks and opened latent. A saved session holds
all steps with their latents and masks, so that it is restored without computing, bit for bit. It is written after every
step. Its latents hardly compress, so that its zip is stored without compression.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from autodrag.app.frames import png, shrink
from autodrag.app.gate import Gate, Stopped, Stopwatch
from autodrag.app.models import EditOutcome, Saved, Scene
from autodrag.app.scene import outcome_of, scene_after, scene_of
from autodrag.app.session import THUMB_PX, Moment, Opening, Session, check_latent
from autodrag.edits import Edit, read_edits
from autodrag.errors import AutodragError
from autodrag.files import replacing, write_json
from autodrag.images import read_mask
from autodrag.infer.editor import DragEditor
from autodrag.infer.task import DragResult
from autodrag.nets.layers import Layers
from autodrag.release import load_tensors, save_tensors

SESSION, STATE = "session.json", "state.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_FILES = 512
MAX_DOCUMENT = 256 * 2**10
MAX_UNPACKED = 64 * 2**20


def export(session: Session) -> tuple[bytes, str]:
    """Export the session up to the present image; returns the file and its suffix, json or zip."""
    if session.moment.position == 0:
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
        scenes: list[tuple[Scene, Scene | None, EditOutcome | None]] = [(Scene(), None, None)]
        masks: dict[str, np.ndarray] = {}
        for number, edit in enumerate(edits, start=1):
            if number > 1 and (edit.seed is not None or edit.latent is not None):
                raise AutodragError(f"edit {number} opens another image; expected one image for each session")
            name = None
            if edit.mask is not None:
                name = f"{time.time_ns():x}-{number}.png"
                masks[name] = read_mask(edit.mask, editor.image_size)
            follow = edit.replaced(seed=None, latent=None, label=None)
            result = editor.apply(follow, callback=step)
            asked = scene_of(edit, name)
            scenes[-1] = (asked, *scenes[-1][1:])
            scenes.append((scene_after(asked, result, editor.image_size), asked, outcome_of(result)))
            images.append(result.image)
        session.adopt(Opening(editor, (first.seed, first.psi, first.label)), images, scenes, masks)


def save(session: Session, path: Path, name: str = "") -> None:
    """Save all steps and masks. A failed write leaves no partial file.

    Args:
        name: name of a copy.
    """
    openings: list[Opening] = []
    for moment in session.moments:
        if moment.opening not in openings:
            openings.append(moment.opening)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        for index, opening in enumerate(openings):
            _save_opening(session, opening, folder / f"opening-{index}")
        for mask in session.masks_in_use():
            (folder / f"mask-{mask}").write_bytes(session.mask_file(mask))
        state = {
            "autodrag_kept": 2,
            "name": name,
            "present": session.present,
            "moments": [
                {
                    "opening": openings.index(moment.opening),
                    "position": moment.position,
                    "image": moment.number,
                    "scene": moment.scene.model_dump(),
                    "asked": moment.asked and moment.asked.model_dump(),
                    "outcome": moment.outcome and moment.outcome.model_dump(),
                }
                for moment in session.moments
            ],
        }
        write_json(folder / STATE, state)
        data = _zipped(sorted(folder.iterdir()), zipfile.ZIP_STORED)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _save_opening(session: Session, opening: Opening, stem: Path) -> None:
    """Write the latents and the edits of an opened image, including those that redo restores."""
    steps = [moment for moment in session.moments if moment.opening is opening]
    masks = {moment.position: moment.asked.mask for moment in reversed(steps) if moment.asked is not None}
    complete = opening.editor.branch()
    complete.go_to(max(moment.position for moment in steps))
    past = {
        f"{number}.{name}": tensor.clone()  # a failed edit shares the latent of the image before it
        for number, layers in enumerate(complete.past)
        for name, tensor in layers.tensors().items()
    }
    save_tensors(stem.with_suffix(".safetensors"), past, kind="past", config={})
    edits = []
    for position, edit in enumerate(complete.edits, start=1):
        document = edit.model_dump(mode="json", exclude_none=True)
        if masks.get(position) is not None:
            document["mask"] = f"mask-{masks[position]}"
        edits.append(document)
    write_json(
        stem.with_suffix(".json"),
        {"checkpoint": Path(complete.checkpoint).name, "source": opening.source, "edits": edits},
    )


def restore(session: Session, path: Path, choose: Callable[[str], DragEditor], gate: Gate) -> None:
    """Append the steps of a saved session to `session`, which may be new."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        masks = {file.name.removeprefix("mask-"): file.read_bytes() for file in folder.glob("mask-*")}
        openings: dict[int, Opening] = {}
        thumbs: dict[int, bytes] = {}
        moments = []
        with gate.turn():
            for entry in state["moments"]:
                index, position, number = entry["opening"], entry["position"], entry["image"]
                if index not in openings:
                    openings[index] = _restore_opening(folder / f"opening-{index}", choose)
                opening = openings[index]
                if number not in thumbs:
                    past = opening.editor.past[position]
                    thumbs[number] = png(shrink(opening.editor.render(past), THUMB_PX))
                moments.append(
                    Moment(
                        number=number,
                        thumb=thumbs[number],
                        opening=opening,
                        position=position,
                        scene=Scene.model_validate(entry["scene"]),
                        asked=entry["asked"] and Scene.model_validate(entry["asked"]),
                        outcome=entry["outcome"] and EditOutcome.model_validate(entry["outcome"]),
                    )
                )
            session.resume(moments, state["present"], masks)


def _restore_opening(stem: Path, choose: Callable[[str], DragEditor]) -> Opening:
    """An opened image with all its edits in force."""
    document = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    seed, psi, label = document["source"]
    editor = choose(document["checkpoint"])
    past = _past(stem.with_suffix(".safetensors"), editor)
    edits = [Edit.model_validate(edit, context={"folder": stem.parent}) for edit in document["edits"]]
    if edits:
        edits[0] = edits[0].replaced(seed=seed, psi=psi, label=label)
    if edits or seed is None:
        editor.restore(edits, past)
    else:
        editor.open(seed, psi, label)
    return Opening(editor, (seed, psi, label))


def _past(path: Path, editor: DragEditor) -> list[Layers]:
    """The images of a saved history."""
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_tensors(path, kind="past")[0].items():
        number, name = key.split(".", 1)
        numbered.setdefault(int(number), {})[name] = tensor
    return [Layers.from_tensors(numbered[number], editor.generator.config) for number in sorted(numbered)]


def describe(path: Path, key: str) -> Saved:
    """Name and size of a named copy."""
    with zipfile.ZipFile(path) as archive:
        state = json.loads(archive.read(STATE))
    return Saved(save=key, name=state["name"], steps=len(state["moments"]) - 1)


def _zipped(files: list[Path], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for file in files:
            archive.write(file, file.name)
    return buffer.getvalue()
