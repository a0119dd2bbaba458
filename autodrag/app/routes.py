"""The HTTP API: sessions, edits in the common schema, exports."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response, WebSocket
from fastapi import Path as InPath
from starlette.responses import StreamingResponse

from autodrag import __version__
from autodrag.app import archive, exports, picture
from autodrag.app.frames import png
from autodrag.app.gate import Stopped
from autodrag.app.live import attend, live_of
from autodrag.app.models import (
    About,
    CheckpointInfo,
    OpenRequest,
    Problem,
    Saved,
    SaveRequest,
    SceneRequest,
    SessionState,
)
from autodrag.app.service import LOG, NotFound, Seat, Service
from autodrag.edits import schema
from autodrag.errors import AutodragError
from autodrag.infer.task import DragResult

Key = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_-]{16,64}$", description="The session's key.")]
MaskName = Annotated[str, InPath(pattern=r"^[a-z0-9][a-z0-9-]{0,39}\.png$", description="Name of the mask in edits.")]
ImageId = Annotated[
    int | None, Query(ge=0, le=2**53, description="Id of an image of the history; default: the present image.")
]
Steps = Annotated[int, Query(ge=1, le=1000, description="Number of steps.")]
SaveKey = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_-]{16,64}$", description="Key of a named copy.")]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The request cannot be read",
        404: "There is no session with this key",
        408: "The body arrived too slowly",
        413: "The body is too large",
        422: "The input cannot be used",
        503: "A limit of the server is reached",
    }.items()
}


def _body(description: str, kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": value} for kind, value in kinds.items()}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _file(*kinds: str) -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The file", "content": {kind: binary for kind in kinds}}}


def edit_schema() -> dict[str, Any]:
    """The schema of one edit, as a component of the OpenAPI document."""
    text = json.dumps(schema()["$defs"]).replace("#/$defs/", "#/components/schemas/edit-")
    parts: dict[str, Any] = json.loads(text)
    return {f"edit-{name}": part for name, part in parts.items() if name != "SessionFile"}


EDIT = _body("An edit in the common schema.", {"application/json": {"$ref": "#/components/schemas/edit-Edit"}})
BINARY = {"type": "string", "format": "binary"}


def build(service: Service) -> APIRouter:
    """All routes below /api."""
    router = APIRouter(prefix="/api", responses=PROBLEMS)

    async def changed(seat: Seat) -> SessionState:
        await service.publish(seat)
        return seat.session.state()

    async def stopped(key: str) -> Seat:
        """The session with a key; its computation stops."""
        seat = await service.find(key)
        live_of(service, seat).interrupt()
        return seat

    def address(request: Request) -> str:
        return request.client.host if request.client else ""

    @router.get("/about")
    async def about() -> About:
        """The server: its checkpoints and its limits."""
        config = service.config
        offers = await asyncio.to_thread(service.checkpoints.offers)
        return About(
            version=__version__,
            checkpoints=[CheckpointInfo(name=offer.name) for offer in offers],
            points=config.points,
            edit_seconds=config.edit_s,
            body_bytes=config.body_bytes,
            idle_seconds=config.idle_s,
        )

    @router.get("/schema")
    async def edit_file_schema() -> dict[str, Any]:
        """The JSON Schema of edits and session files."""
        return schema()

    @router.get("/thumbnail", response_class=Response, responses=_file("image/png"))
    async def thumbnail(
        seed: Annotated[int, Query(ge=0, le=2**32 - 1)],
        checkpoint: Annotated[str, Query(max_length=200)] = "critters",
        psi: Annotated[float, Query(ge=-4, le=4, allow_inf_nan=False)] = 0.7,
        label: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
    ) -> Response:
        """A small picture of a seed."""
        data = await service.errand(service.checkpoints.thumbnail, checkpoint, seed, psi, label, service.gate)
        return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=86400"})

    @router.post("/sessions", status_code=201)
    async def create(request: Request, image: OpenRequest) -> SessionState:
        """Open an image in a new session. Everyone who knows the key of the session may edit."""
        seat = await service.create(address(request), image.checkpoint, image.seed, image.psi, image.label)
        return seat.session.state()

    @router.get("/sessions/{key}")
    async def look(key: Key, request: Request) -> SessionState:
        """The state of a session. During an edit, the state before the edit."""
        seat = await service.find(key, address(request))
        if seat.last is not None and seat.lock.locked():
            return SessionState.model_validate(seat.last[0])
        return await service.run(seat, seat.session.state)

    @router.delete("/sessions/{key}", status_code=204)
    async def delete(key: Key) -> None:
        """Delete a session, also from disk."""
        await service.delete(await service.find(key))

    @router.put("/sessions/{key}/scene")
    async def arrange(key: Key, scene: SceneRequest) -> SessionState:
        """Set points, anchors and mask, as a step that undo takes back. Waits for the end of a running edit."""
        seat = await service.find(key)
        revision = seat.session.revision
        await service.run(seat, seat.session.arrange, scene)
        return await changed(seat) if seat.session.revision != revision else seat.session.state()

    @router.post("/sessions/{key}/open")
    async def open_image(key: Key, image: OpenRequest) -> SessionState:
        """Open another image, as a step that undo takes back."""
        seat = await stopped(key)
        name = image.checkpoint or seat.session.state().checkpoint
        async with service.working(seat):
            editor = await service.errand(service.checkpoints.editor, name)
            await service.compute(seat, seat.session.open, editor, image.seed, image.psi, image.label)
        return seat.session.state()

    async def open_latent_file(seat: Seat, data: bytes) -> None:
        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "latent.safetensors"
                path.write_bytes(data)
                _named(folder, seat.session.open_latent, seat.session.editor.sibling(), path)

        await service.compute(seat, work)

    async def open_session_file(seat: Seat, data: bytes) -> None:
        stop = seat.session.arm()

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = _named(folder, archive.unpack, data, Path(folder))
                _named(folder, archive.replay, seat.session, path, service.checkpoints.editor, service.gate, stop)

        try:
            await service.run(seat, work)
        except Stopped:
            raise AutodragError("the replay was stopped; the session is unchanged") from None
        finally:
            seat.session.disarm(stop)

    @router.put("/sessions/{key}/latent", openapi_extra=_body("A latent file.", {"application/octet-stream": BINARY}))
    async def open_latent(key: Key, request: Request) -> SessionState:
        """Open a latent.safetensors file, as a step that undo takes back."""
        data = await request.body()
        seat = await stopped(key)
        async with service.working(seat):
            await open_latent_file(seat, data)
        return seat.session.state()

    @router.put(
        "/sessions/{key}/session",
        openapi_extra=_body("A session file, or a zip.", {"application/json": {}, "application/zip": BINARY}),
    )
    async def open_session(key: Key, request: Request) -> SessionState:
        """Replay a session file, as steps that undo takes back. If it fails, the session stays unchanged."""
        data = await request.body()
        seat = await stopped(key)
        async with service.working(seat):
            await open_session_file(seat, data)
        return seat.session.state()

    @router.put("/sessions/{key}/picture", openapi_extra=_body("An exported PNG.", {"image/png": BINARY}))
    async def open_picture(key: Key, request: Request) -> SessionState:
        """Open a PNG of `GET picture`: its session, or its latent if there is no session that can be replayed here."""
        data = await request.body()
        contents = picture.extract(data)
        if not contents:
            raise AutodragError("the PNG carries no latent and no session; open a PNG that this editor exported")
        seat = await stopped(key)
        async with service.working(seat):
            try:
                if "session" not in contents:
                    raise AutodragError("the PNG carries no session")
                await open_session_file(seat, contents["session"])
            except AutodragError:
                if "latent" not in contents:
                    raise
                await open_latent_file(seat, contents["latent"])
        return seat.session.state()

    @router.put(
        "/sessions/{key}/masks/{name}", status_code=204, openapi_extra=_body("An image.", {"image/png": BINARY})
    )
    async def put_mask(key: Key, name: MaskName, request: Request) -> None:
        """Upload a mask of the size of the image; pixels brighter than 127 may change. Edits use it by its name."""
        seat, data = await service.find(key), await request.body()
        await service.errand(seat.session.add_mask, name, data)  # does not wait for the end of an edit

    @router.get("/sessions/{key}/masks/{name}", response_class=Response, responses=_file("image/png"))
    async def get_mask(key: Key, name: MaskName) -> Response:
        """A mask of the session; white pixels may change."""
        seat = await service.find(key)
        return Response(seat.session.mask_file(name), media_type="image/png")

    @router.post("/sessions/{key}/drag", openapi_extra=EDIT)
    async def drag(key: Key, request: Request) -> SessionState:
        """Make an edit and answer when it has ended. `mask` names an uploaded mask; `latent` is refused."""
        seat, document = await service.find(key), await request.body()
        seat.begin("refining")
        try:
            await _drag(service, seat, document, None)
        finally:
            seat.end("refining")
            await service.publish(seat)
        return seat.session.state()

    @router.post(
        "/sessions/{key}/refine",
        openapi_extra=EDIT,
        response_class=StreamingResponse,
        responses={200: {"description": "Events", "content": {"text/event-stream": {}}}},
    )
    async def refine(key: Key, request: Request) -> StreamingResponse:
        """Make an edit and send an event after every step.

        Events: `step` (step, distances, confidences, lost, seconds), then `done` (the session) or `problem`.
        The edit stops if the client disconnects.
        """
        seat, document = await service.find(key), await request.body()
        await service.run(seat, seat.session.read, document)  # an invalid edit gets a status, not an event
        return StreamingResponse(_events(service, seat, document, changed), media_type="text/event-stream")

    @router.post("/sessions/{key}/stop", status_code=204)
    async def stop(key: Key) -> None:
        """Stop the computation. The result so far of a running edit becomes the present image."""
        seat = await service.find(key)
        live_of(service, seat).stop()

    @router.post("/sessions/{key}/undo")
    async def undo(key: Key, steps: Steps = 1) -> SessionState:
        """Undo steps: image, points, anchors and mask are again as before."""
        seat = await stopped(key)
        async with service.working(seat):
            await service.compute(seat, seat.session.undo, steps)
        return seat.session.state()

    @router.post("/sessions/{key}/redo")
    async def redo(key: Key, steps: Steps = 1) -> SessionState:
        """Redo steps that were undone."""
        seat = await stopped(key)
        async with service.working(seat):
            await service.compute(seat, seat.session.redo, steps)
        return seat.session.state()

    @router.post("/sessions/{key}/saves", status_code=201)
    async def save(key: Key, copy: SaveRequest) -> Saved:
        """Save a named copy of the session. Later edits do not change the copy."""
        return await service.save(await service.find(key), copy.name)

    @router.post("/sessions/{key}/saves/{save}/open")
    async def load(key: Key, save: SaveKey) -> SessionState:
        """Open a named copy in a session, as steps that undo takes back."""
        seat = await stopped(key)
        async with service.working(seat):
            await service.load(seat, save)
        return seat.session.state()

    @router.delete("/saves/{save}", status_code=204)
    async def forget(save: SaveKey) -> None:
        """Delete a named copy."""
        service.forget(save)

    @router.get("/sessions/{key}/image", response_class=Response, responses=_file("image/png"))
    async def image(key: Key, number: ImageId = None) -> Response:
        """An image of the history, lossless."""
        seat = await service.find(key)
        pixels = await service.compute(seat, seat.session.image_of, number)
        return Response(png(pixels), media_type="image/png", headers=_caching(number))

    @router.get("/sessions/{key}/picture", response_class=Response, responses=_file("image/png"))
    async def get_picture(key: Key) -> Response:
        """The present image as a PNG that carries its latent and its session, and can be opened again."""
        seat = await service.find(key)
        data = await service.compute(seat, exports.picture_file, seat.session)
        return Response(data, media_type="image/png", headers=_attached("image.png"))

    @router.get(
        "/sessions/{key}/thumb",
        response_class=Response,
        responses={**_file("image/png"), 204: {"description": "The image was discarded when another image was opened"}},
    )
    async def thumb(key: Key, number: Annotated[int, Query(ge=0, le=2**53)]) -> Response:
        """A small picture of an image of the history."""
        seat = await service.find(key)
        data = seat.session.thumb_of(number)
        # Another image may have been opened since the page received this id, which is no error.
        if data is None:
            return Response(status_code=204)
        return Response(data, media_type="image/png", headers=_caching(number))

    @router.get("/sessions/{key}/annotated", response_class=Response, responses=_file("image/png"))
    async def annotated(key: Key) -> Response:
        """The present image with handles in red, targets in blue, anchors in green, and fixed pixels dimmed."""
        seat = await service.find(key)
        data = await service.compute(seat, exports.annotated, seat.session)
        return Response(data, media_type="image/png", headers=_attached("annotated.png"))

    @router.get("/sessions/{key}/latent", response_class=Response, responses=_file("application/octet-stream"))
    async def latent(key: Key) -> Response:
        """The present latent as a safetensors file."""
        seat = await service.find(key)
        data = await service.run(seat, exports.latent, seat.session)
        return Response(data, media_type="application/octet-stream", headers=_attached("latent.safetensors"))

    @router.get(
        "/sessions/{key}/session", response_class=Response, responses=_file("application/json", "application/zip")
    )
    async def session(key: Key) -> Response:
        """The edits of the opened image as a session file; a zip if it has masks or a latent."""
        seat = await service.find(key)
        data, suffix = await service.run(seat, archive.export, seat.session)
        return Response(data, media_type=f"application/{suffix}", headers=_attached(f"session.{suffix}"))

    @router.get("/sessions/{key}/film", response_class=Response, responses=_file("video/mp4", "image/gif"))
    async def film(key: Key, suffix: Literal["mp4", "gif"] = "mp4") -> Response:
        """The edits of the opened image as a film."""
        seat = await service.find(key)
        data = await service.compute(seat, exports.film, seat.session, suffix, service.gate)
        kind = {"mp4": "video/mp4", "gif": "image/gif"}[suffix]
        return Response(data, media_type=kind, headers=_attached(f"history.{suffix}"))

    @router.websocket("/sessions/{key}/live")
    async def live(socket: WebSocket, key: str) -> None:
        await socket.accept()
        try:
            seat = await service.find(key)
        except NotFound as missing:
            await socket.close(4404, str(missing))
            return
        await attend(service, seat, socket)

    return router


async def _drag(service: Service, seat: Seat, document: bytes, watch: Any) -> None:
    stop = seat.session.arm()
    try:
        await service.run(seat, lambda: seat.session.drag(seat.session.read(document), stop, watch))
    except Stopped:
        raise AutodragError("the edit was stopped before the image had changed; send it again") from None
    finally:
        seat.session.disarm(stop)


async def _events(service: Service, seat: Seat, document: bytes, changed: Any) -> AsyncIterator[str]:
    """Server-sent events of an edit."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]](maxsize=0)
    gone = threading.Event()

    def watch(state: DragResult) -> None:
        if gone.is_set():
            seat.session.interrupt()
        step = {
            "step": state.steps,
            "distances": [round(value, 3) for value in state.distances.tolist()],
            "confidences": [round(value, 3) for value in state.confidences.tolist()],
            "lost": state.lost.tolist(),
            "seconds": round(state.seconds, 3),
        }
        loop.call_soon_threadsafe(queue.put_nowait, ("step", step))

    async def work() -> None:
        seat.begin("refining")
        try:
            try:
                await _drag(service, seat, document, watch)
            finally:
                seat.end("refining")
                state = await changed(seat)
            queue.put_nowait(("done", state.model_dump()))
        except AutodragError as error:
            queue.put_nowait(("problem", {"detail": str(error)}))
        except Exception:
            LOG.exception("refine")
            queue.put_nowait(("problem", {"detail": "the server failed at this edit; undo it or try another"}))

    task = asyncio.create_task(work())
    try:
        kind = ""
        while kind not in ("done", "problem"):
            kind, value = await queue.get()
            yield f"event: {kind}\ndata: {json.dumps(value, allow_nan=False)}\n\n"
    finally:
        gone.set()
        await asyncio.shield(task)


def _named(folder: str, function: Any, *args: Any) -> Any:
    """Call a function, and remove the temporary folder from its error messages."""
    try:
        return function(*args)
    except AutodragError as error:
        raise type(error)(str(error).replace(f"{folder}/", "").replace(folder, "the upload")) from error


def _attached(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}


def _caching(number: int | None) -> dict[str, str]:
    """Images with an id may be cached forever, because ids are never reused; the present image changes."""
    return {"cache-control": "no-store" if number is None else "private, max-age=86400, immutable"}
