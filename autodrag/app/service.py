"""The sessions of a server, their worker threads, and the messages to their listeners. Independent of HTTP routes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from autodrag.app import archive
from autodrag.app.checkpoints import Checkpoints
from autodrag.app.config import AppConfig
from autodrag.app.frames import pack, png
from autodrag.app.gate import Gate
from autodrag.app.models import Saved
from autodrag.app.session import Session
from autodrag.errors import AutodragError
from autodrag.infer.editor import DragEditor

P = ParamSpec("P")
T = TypeVar("T")

LOG = logging.getLogger("autodrag.app")
FRESH_S = 60.0
"""A full server may drop sessions that have not been used for this time, seconds."""


Activity = Literal["idle", "pulling", "refining", "working", "stopped"]
"""`working`: opening, replaying, undoing. A page that has no connection shows `down` instead."""
IDLE_CODE = 4408
"""WebSocket close code: the session was not used; it stays on disk and returns at the next request."""


class NotFound(AutodragError):
    """No session has the key."""


class Busy(AutodragError):
    """A limit of the server is reached; the same request may succeed later."""


class Mailbox:
    """Outgoing messages of one WebSocket: all texts and states in order, and the newest frame only.

    Methods are called in the event loop.
    """

    MAX_MESSAGES = 64
    """Maximum number of waiting messages."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._messages: list[bytes | str] = []
        self._frame: bytes | None = None
        self.overflowing = False

    @property
    def ready(self) -> bool:
        """Whether no frame is waiting, so that the next one is sent at once. May be called from any thread."""
        return self._frame is None

    def tell(self, message: bytes | str) -> None:
        """Send a message that must not be skipped. An older frame that still waits is dropped."""
        self._frame = None
        self._messages.append(message)
        self.overflowing = self.overflowing or len(self._messages) > self.MAX_MESSAGES
        self._news.set()

    def show(self, frame: bytes) -> None:
        """Send a frame, unless a newer one replaces it first."""
        self._frame = frame
        self._news.set()

    async def take(self) -> bytes | str:
        """The next message."""
        while True:
            if self._messages:
                return self._messages.pop(0)
            if self._frame is not None:
                frame, self._frame = self._frame, None
                return frame
            self._news.clear()
            await self._news.wait()


class Seat:
    """A session in the event loop, with its lock, its listeners and its activity."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lock = asyncio.Lock()
        self.listeners: set[Mailbox] = set()
        self.last: tuple[dict[str, Any], bytes] | None = None
        """The last published state and image; None if there may be a newer one."""
        self.answers: list[int] = []
        """Numbers of the drags that have ended since the last state was sent."""
        self._doing: list[Activity] = []
        self._rest: Activity = "idle"
        self.extra: Any = None
        """The live drag, set by `live.py`."""

    @property
    def ready(self) -> bool:
        """Whether a listener has no waiting frame."""
        return any(mailbox.ready for mailbox in list(self.listeners))

    @property
    def activity(self) -> Activity:
        """The newest work that goes on; otherwise idle, or stopped if the last work was stopped."""
        return self._doing[-1] if self._doing else self._rest

    def begin(self, activity: Activity) -> None:
        """Work begins."""
        self._doing.append(activity)
        self.tell()

    def end(self, activity: Activity, rest: Activity = "idle") -> None:
        """Work ends. The listeners are told by the next state, or by `tell`."""
        self._doing.remove(activity)
        self._rest = rest

    def tell(self) -> None:
        """Tell the listeners the activity."""
        for mailbox in list(self.listeners):
            mailbox.tell(json.dumps({"type": "activity", "activity": self.activity}))


class Service:
    """Sessions, checkpoints and worker threads of one server."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.gate = Gate(config.workers)
        self.checkpoints = Checkpoints(config)
        self._threads = ThreadPoolExecutor(config.sessions + 8, thread_name_prefix="autodrag")
        self._errands = ThreadPoolExecutor(2, thread_name_prefix="autodrag-errand")
        self._seats: dict[str, Seat] = {}
        self._returning: dict[str, asyncio.Lock] = {}

    # --- work ---------------------------------------------------------------------------------------------------

    async def run(self, seat: Seat, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a worker thread under the session's lock. If it computes, it must take a turn."""
        async with seat.lock:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def compute(self, seat: Seat, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, inside a turn."""

        def turn() -> T:
            with self.gate.turn():
                return function(*args, **kwargs)

        return await self.run(seat, turn)

    @contextlib.asynccontextmanager
    async def working(self, seat: Seat) -> AsyncIterator[None]:
        """A context manager for a request that changes the session; the listeners learn its end by a state."""
        seat.begin("working")
        try:
            yield
        finally:
            seat.end("working")
            await self.publish(seat)

    async def errand(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function without a session, such as loading, in one of two threads; see `run`."""
        return await asyncio.get_running_loop().run_in_executor(self._errands, lambda: function(*args, **kwargs))

    # --- sessions -----------------------------------------------------------------------------------------------

    async def create(self, address: str, checkpoint: str | None, seed: int, psi: float, label: int | None) -> Seat:
        """A new session with an open image."""
        self._make_room(address)

        def begin() -> Session:
            session = self._session(secrets.token_urlsafe(24), address, self.checkpoints.editor(checkpoint))
            with self.gate.turn():
                session.open(session.editor, seed, psi, label)
            return session

        session = await self.errand(begin)
        self._make_room(address)  # other sessions may have been opened since the first check
        seat = self._seats[session.key] = Seat(session)
        return seat

    async def find(self, key: str, address: str = "") -> Seat:
        """The session with a key. A session that is not in memory is restored from disk.

        Raises:
            NotFound: no session has the key.
        """
        seat = self._seats.get(key)
        if seat is None:
            path = self._path(key)
            if not path.is_file():
                raise NotFound("there is no session with this key; it was dropped or never existed, so open a new one")
            async with self._returning.setdefault(key, asyncio.Lock()):
                if key not in self._seats:
                    self._make_room(address)
                    self._seats[key] = Seat(await self.errand(self._restore, key, address, path))
                seat = self._seats[key]
            self._returning.pop(key, None)
        seat.session.touched = time.monotonic()
        return seat

    async def save(self, seat: Seat, name: str) -> Saved:
        """Save a named copy of a session under a key of its own."""
        key = secrets.token_urlsafe(24)
        path = self._copy(key)
        if len(list(path.parent.glob("*.zip"))) >= self.config.saved:
            raise Busy(f"{self.config.saved} sessions are saved already, which is this server's limit; delete one")
        await self.run(seat, archive.save, seat.session, path, name)
        return archive.describe(path, key)

    async def load(self, seat: Seat, key: str) -> None:
        """Append the steps of a named copy to a session; undo returns to the image before."""
        path = self._copy(key)
        if not path.is_file():
            raise NotFound("there is no saved session with this key; it was deleted or never existed")
        await self.run(seat, self._read, seat.session, path)

    def forget(self, key: str) -> None:
        """Delete a named copy."""
        self._copy(key).unlink(missing_ok=True)

    async def delete(self, seat: Seat) -> None:
        """Drop a session and remove it from disk."""
        self._drop(seat, "the session was deleted")
        self._path(seat.session.key).unlink(missing_ok=True)

    def drop_idle(self) -> None:
        """Drop sessions that were not used for `idle_s` from memory; they stay on disk."""
        now = time.monotonic()
        for seat in list(self._seats.values()):
            if now - seat.session.touched > self.config.idle_s and not seat.lock.locked():
                self._drop(seat, f"the session was not used for {self.config.idle_s:g} seconds", IDLE_CODE)

    async def watch(self) -> None:
        """Drop idle sessions until cancelled."""
        while True:
            await asyncio.sleep(min(30.0, self.config.idle_s / 4))
            self.drop_idle()

    def close(self) -> None:
        """Drop all sessions and stop the threads."""
        for seat in list(self._seats.values()):
            self._drop(seat, "the server is closing")
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._errands.shutdown(wait=True, cancel_futures=True)

    # --- listeners ----------------------------------------------------------------------------------------------

    async def publish(self, seat: Seat) -> None:
        """Save a changed session on disk, and send its state to all listeners."""
        if seat.session.saved_revision != seat.session.revision > 1:  # 1: nothing but the opened image
            await self.run(seat, self._keep, seat.session)
        seat.last = None
        if seat.listeners:
            seat.last = await self.compute(seat, present_state, seat.session)
            message = state_message(seat, *seat.last)
            seat.answers.clear()
            for mailbox in list(seat.listeners):
                mailbox.tell(message)

    # --- internals ----------------------------------------------------------------------------------------------

    def _session(self, key: str, address: str, editor: DragEditor) -> Session:
        return Session(key, address, editor, self.gate, self.config)

    def _keep(self, session: Session) -> None:
        """Save a session on disk. A failure does not undo the step; the state then says that it is not saved."""
        path = self._path(session.key)
        try:
            if not path.exists():
                files = sorted(path.parent.glob("*.zip"), key=lambda file: file.stat().st_mtime)
                for file in files[: max(0, len(files) + 1 - self.config.kept)]:
                    file.unlink(missing_ok=True)
            archive.save(session, path)
            session.saved_revision = session.revision
        except (AutodragError, OSError):
            LOG.exception("session %s", path)

    def _restore(self, key: str, address: str, path: Path) -> Session:
        session = self._session(key, address, self.checkpoints.editor())
        self._read(session, path)
        session.saved_revision = session.revision
        return session

    def _read(self, session: Session, path: Path) -> None:
        try:
            archive.restore(session, path, self.checkpoints.editor, self.gate)
        except AutodragError:
            raise
        except Exception as error:
            LOG.exception("saved session %s", path)
            raise AutodragError("the saved session cannot be read; open another") from error

    def _path(self, key: str) -> Path:
        """File of a session; its name does not reveal the key."""
        return self._file("sessions", key)

    def _copy(self, key: str) -> Path:
        """File of a named copy of a session."""
        return self._file("saved", key)

    def _file(self, folder: str, key: str) -> Path:
        return self.config.data.expanduser() / folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.zip"

    def _make_room(self, address: str) -> None:
        """If a limit is reached, drop the least recently used session.

        Raises:
            Busy: all sessions are in use.
        """
        config, seats = self.config, list(self._seats.values())
        mine = [seat for seat in seats if seat.session.address == address]
        if len(mine) >= config.sessions_per_address:
            full, candidates = f"this address has {len(mine)} sessions in use, which is the limit; delete one", mine
        elif len(seats) >= config.sessions:
            full, candidates = f"all {len(seats)} sessions of this server are in use; try again in a minute", seats
        else:
            return
        idle = [seat for seat in candidates if not seat.listeners and not seat.lock.locked()]
        oldest = min(idle, key=lambda seat: seat.session.touched, default=None)
        if oldest is None or time.monotonic() - oldest.session.touched < FRESH_S:
            raise Busy(full)
        self._drop(oldest, "the server needed room")

    def _drop(self, seat: Seat, reason: str, code: int = 1001) -> None:
        self._seats.pop(seat.session.key, None)
        seat.session.interrupt()
        for mailbox in list(seat.listeners):
            mailbox.tell(f"{CLOSE}{code} {reason}")


CLOSE = "close:"
"""A mailbox message that ends its WebSocket; the rest is the close code and the reason."""


def present_state(session: Session) -> tuple[dict[str, Any], bytes]:
    """The state of the session, and the present image as PNG. Call it inside a turn."""
    return session.state().model_dump(), png(session.editor.image)


def state_message(seat: Seat, state: dict[str, Any], image: bytes) -> bytes:
    """A message of the type `state`, with the activity at this time."""
    return pack({"type": "state", "activity": seat.activity, "answers": seat.answers, "state": state}, image)
