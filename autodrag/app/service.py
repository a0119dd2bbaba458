"""The server's inside: sessions, the threads that work for them, and who is told what became of it."""

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
"""A full server gives up sessions that have not been used for so long."""


class NotFound(AutodragError):
    """No session has that key."""


class Busy(AutodragError):
    """A bound of the server is reached; later it may work."""


class Mailbox:
    """What waits to be sent over one WebSocket: states in order, of frames only the newest.

    Methods are called in the event loop.
    """

    MOST = 64

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._messages: list[bytes | str] = []
        self._frame: bytes | None = None
        self.overflown = False

    @property
    def hungry(self) -> bool:
        """Whether a frame would be sent at once; may be asked from any thread."""
        return self._frame is None

    def tell(self, message: bytes | str) -> None:
        """Send for certain, in order; frames from before are dropped."""
        self._frame = None
        self._messages.append(message)
        self.overflown = self.overflown or len(self._messages) > self.MOST
        self._news.set()

    def show(self, frame: bytes) -> None:
        """Send unless a newer frame comes first."""
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
    """A session's place in the event loop: its lock, and its listeners."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lock = asyncio.Lock()
        self.listeners: set[Mailbox] = set()
        self.extra: Any = None
        """The live drag, which `live.py` keeps here."""

    @property
    def hungry(self) -> bool:
        """Whether anybody waits for a frame."""
        return any(mailbox.hungry for mailbox in list(self.listeners))


class Service:
    """All of it; one for each server."""

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
        """Call in a worker thread, holding the session; `function` takes a turn if it computes."""
        async with seat.lock:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def compute(self, seat: Seat, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`run` inside of a turn."""

        def turn() -> T:
            with self.gate.turn():
                return function(*args, **kwargs)

        return await self.run(seat, turn)

    async def errand(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Work for no session yet, such as loading, two at a time; `function` takes a turn if it computes."""
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
        self._make_room(address)  # others may have come meanwhile
        seat = self._seats[session.key] = Seat(session)
        return seat

    async def find(self, key: str, address: str = "") -> Seat:
        """The session of a key, brought back from disk if it was saved and is not in memory.

        Raises:
            NotFound: no such key.
        """
        seat = self._seats.get(key)
        if seat is None:
            path = self._path(key)
            if not path.is_file():
                raise NotFound("there is no session with this key; it was dropped, or never was")
            async with self._returning.setdefault(key, asyncio.Lock()):
                if key not in self._seats:
                    self._make_room(address)
                    self._seats[key] = Seat(await self.errand(self._bring_back, key, address, path))
                seat = self._seats[key]
            self._returning.pop(key, None)
        seat.session.touched = time.monotonic()
        return seat

    async def keep(self, seat: Seat) -> None:
        """Write a session to disk, whole or not at all."""
        path = self._path(seat.session.key)
        if not path.exists() and len(list(path.parent.glob("*.zip"))) >= self.config.saved:
            raise Busy(f"{self.config.saved} sessions are saved already, which is this server's limit; delete one")
        await self.run(seat, archive.keep, seat.session, path)
        seat.session.saved = True

    def forget(self, seat: Seat) -> None:
        """Remove a session from disk."""
        self._path(seat.session.key).unlink(missing_ok=True)
        seat.session.saved = False

    async def delete(self, seat: Seat) -> None:
        """Forget a session, on disk too."""
        self._drop(seat, "the session was deleted")
        self.forget(seat)

    def drop_idle(self) -> None:
        """Drop what nobody has used for long; saved sessions stay on disk."""
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
        """Stop everything."""
        for seat in list(self._seats.values()):
            self._drop(seat, "the server is closing")
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._errands.shutdown(wait=True, cancel_futures=True)

    # --- listeners ----------------------------------------------------------------------------------------------

    async def publish(self, seat: Seat) -> None:
        """Tell every listener of the session what is now."""
        if seat.listeners:
            message = await self.compute(seat, state_message, seat.session)
            for mailbox in list(seat.listeners):
                mailbox.tell(message)

    # --- inside -------------------------------------------------------------------------------------------------

    def _session(self, key: str, address: str, editor: DragEditor) -> Session:
        return Session(key, address, editor, self.gate, self.config)

    def _bring_back(self, key: str, address: str, path: Path) -> Session:
        session = self._session(key, address, self.checkpoints.editor())
        try:
            archive.bring_back(session, path, self.checkpoints.editor, self.gate)
        except AutodragError:
            raise
        except Exception as error:
            LOG.exception("saved session %s", path)
            raise AutodragError("the saved session cannot be read any more; open another") from error
        session.saved = True
        return session

    def _path(self, key: str) -> Path:
        """Where a session is kept; the name tells nobody the key."""
        return self.config.data.expanduser() / "sessions" / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.zip"

    def _make_room(self, address: str) -> None:
        """Drop the session that has not been used for longest, if a bound asks for it and it is not in use."""
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
    """The present image, lossless, and everything about it."""
    return pack({"type": "state", "state": session.state().model_dump()}, png(session.editor.image))
