"""The sessions of a server, their worker threads, and the messages to their listeners. Independent of HTTP routes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from autodrag.app import archive
from autodrag.app.checkpoints import Checkpoints
from autodrag.app.config import AppConfig
from autodrag.app.frames import pack, png
from autodrag.app.gate import Gate
from autodrag.app.session import Session
from autodrag.errors import AutodragError
from autodrag.infer.editor import DragEditor

P = ParamSpec("P")
T = TypeVar("T")

LOG = logging.getLogger("autodrag.app")
FRESH_S = 60.0
"""A full server may drop sessions that have not been used for this time, seconds."""


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
    """A session in the event loop, with its lock and its listeners."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lock = asyncio.Lock()
        self.listeners: set[Mailbox] = set()
        self.extra: Any = None
        """The live drag, set by `live.py`."""

    @property
    def ready(self) -> bool:
        """Whether a listener has no waiting frame."""
        return any(mailbox.ready for mailbox in list(self.listeners))


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
        """The session with a key. A saved session that is not in memory is restored from disk.

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

    async def save(self, seat: Seat) -> None:
        """Save a session on disk. A failed write leaves no partial file."""
        path = self._path(seat.session.key)
        if not path.exists() and len(list(path.parent.glob("*.zip"))) >= self.config.saved:
            raise Busy(f"{self.config.saved} sessions are saved already, which is this server's limit; delete one")
        await self.run(seat, archive.save, seat.session, path)
        seat.session.saved = True

    def forget(self, seat: Seat) -> None:
        """Remove a session from disk."""
        self._path(seat.session.key).unlink(missing_ok=True)
        seat.session.saved = False

    async def delete(self, seat: Seat) -> None:
        """Drop a session and remove it from disk."""
        self._drop(seat, "the session was deleted")
        self.forget(seat)

    def drop_idle(self) -> None:
        """Drop sessions that were not used for `idle_s`; saved sessions stay on disk."""
        now = time.monotonic()
        for seat in list(self._seats.values()):
            if now - seat.session.touched > self.config.idle_s and not seat.lock.locked():
                self._drop(seat, f"the session was not used for {self.config.idle_s:g} seconds")

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
        """Send the present state to all listeners of a session."""
        if seat.listeners:
            message = await self.compute(seat, state_message, seat.session)
            for mailbox in list(seat.listeners):
                mailbox.tell(message)

    # --- internals ----------------------------------------------------------------------------------------------

    def _session(self, key: str, address: str, editor: DragEditor) -> Session:
        return Session(key, address, editor, self.gate, self.config)

    def _restore(self, key: str, address: str, path: Path) -> Session:
        session = self._session(key, address, self.checkpoints.editor())
        try:
            archive.restore(session, path, self.checkpoints.editor, self.gate)
        except AutodragError:
            raise
        except Exception as error:
            LOG.exception("saved session %s", path)
            raise AutodragError("the saved session cannot be read; open another") from error
        session.saved = True
        return session

    def _path(self, key: str) -> Path:
        """File of a saved session; its name does not reveal the key."""
        return self.config.data.expanduser() / "sessions" / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.zip"

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

    def _drop(self, seat: Seat, why: str) -> None:
        self._seats.pop(seat.session.key, None)
        seat.session.interrupt()
        for mailbox in list(seat.listeners):
            mailbox.tell(CLOSE + why)


CLOSE = "close:"
"""A mailbox message that ends its WebSocket; the rest is the reason."""


def state_message(session: Session) -> bytes:
    """The present image, lossless, and the state of the session."""
    return pack({"type": "state", "state": session.state().model_dump()}, png(session.editor.image))
