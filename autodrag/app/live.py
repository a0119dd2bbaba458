"""Live drag over a WebSocket: the image follows the pointer.

From the client, JSON texts:

    {"type": "pull", "pull": 3, "edit": {...}}    the pointer moved: preview the edit; only the newest pull is computed
    {"type": "drag", "pull": 3, "edit": {...}}    the pointer was released: make the edit
    {"type": "stop"}                              stop the computation

From the server, binary messages with an image (`frames.pack`):

    preview   the preview of a pull; `pull` is its number
    step      an intermediate result of a drag
    state     the present image, lossless, the state of the session, the activity, and `answers`: the numbers of the
              drags that have ended since the last state

and JSON texts: `{"type": "error", "pull": 3, "message": "..."}`, and `{"type": "activity", "activity": "..."}` whenever
the activity changes: idle, pulling, refining, working (another request changes the session), or stopped. A pull lasts
until its client sends a drag or a stop, or leaves.

A pull or a drag that arrives during a drag stops that drag, whose result so far becomes an edit.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from autodrag.app.frames import moving, pack
from autodrag.app.gate import Stopped
from autodrag.app.service import CLOSE, LOG, Activity, Mailbox, Seat, Service, present_state, state_message
from autodrag.errors import AutodragError, NothingToDo
from autodrag.infer.task import DragResult

T = TypeVar("T")

LISTENERS = 8
"""Maximum number of WebSockets of a session."""
SEND_S = 30.0
"""Maximum time until a client has taken a message, seconds."""
MESSAGES_PER_S = 300.0
"""Maximum rate of messages of one client."""
FRAME_S = 1 / 10
"""Minimum time between two frames of a drag, seconds, because drawing delays the refiner."""
ARRIVED_PX = 0.5
"""Under a resting pointer, a preview is refined until all points are this close to their targets, px."""
NEARLY_PX = 0.25
"""Frames of a drag are hidden while its mean distance exceeds that of the last preview by more than this, px."""


@dataclass(frozen=True)
class _Order:
    """A pull or a drag of a client."""

    pull: int
    document: dict[str, Any]


class Live:
    """The live drag of a session: at most one computation runs, and only the newest order waits."""

    def __init__(self, service: Service, seat: Seat) -> None:
        self._service, self._seat = service, seat
        self._loop = asyncio.get_running_loop()
        self._pull: deque[_Order] = deque(maxlen=1)
        self._drag: deque[_Order] = deque(maxlen=1)
        self._task: asyncio.Task[None] | None = None
        self._last: tuple[_Order, DragResult] | None = None
        self._stopped: Activity | None = None
        """After a stop that has not been carried out yet: the activity that follows."""
        self._activity: Activity | None = None
        self._owner: Mailbox | None = None
        """The client that sent the last pull or drag."""

    def pull(self, order: _Order, owner: Mailbox) -> None:
        """The pointer moved: preview the edit."""
        self._seat.session.interrupt()
        self._pull.append(order)
        self._owner, self._stopped = owner, None
        self._go()

    def drag(self, order: _Order, owner: Mailbox) -> None:
        """The pointer was released: make the edit."""
        self._seat.session.interrupt()
        self._pull.clear()
        self._drop_drag()
        self._drag.append(order)
        self._owner, self._stopped = owner, None
        self._go()

    def stop(self, rest: Activity = "stopped") -> None:
        """Stop the computation and discard waiting orders.

        Args:
            rest: the activity if something was stopped.
        """
        self._pull.clear()
        self._drop_drag()
        self._seat.session.interrupt()
        self._stopped = "idle" if self._activity is None else rest
        self._go()

    def interrupt(self) -> None:
        """Another request changes the session: stop the computation of a pull or of any other request."""
        if self._activity is None:
            self._seat.session.interrupt()
        else:
            self.stop("idle")

    def leave(self, owner: Mailbox) -> None:
        """A client has gone. What it pulled or dragged is stopped."""
        if self._owner is owner and self._activity is not None:
            self.stop()

    # --- internals ----------------------------------------------------------------------------------------------

    def _drop_drag(self) -> None:
        """Discard a waiting drag."""
        self._seat.answers += [order.pull for order in self._drag]
        self._drag.clear()

    def _go(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    def _become(self, activity: Activity | None, rest: Activity = "idle") -> None:
        """Change the activity. Its end is told by the state that follows."""
        if activity == self._activity:
            return
        if self._activity is not None:
            self._seat.end(self._activity, rest)
        self._activity = activity
        if activity is not None:
            self._seat.begin(activity)

    async def _work(self) -> None:
        """Serve orders until none is left. After a drag or a stop, the listeners receive the state."""
        while self._drag or self._pull or self._stopped:
            rest: Activity = "idle"
            if self._drag:
                order = self._drag.pop()
                self._become("refining")
                await self._caught(order.pull, self._run_drag(order))
                self._seat.answers.append(order.pull)
            elif self._pull:
                self._become("pulling")
                order = self._pull[-1]
                again = await self._caught(order.pull, self._service.run(self._seat, self._run_pull))
                if again is not None and not (self._pull or self._drag or self._stopped):
                    self._pull.append(again)
                continue
            if self._stopped and not (self._drag or self._pull):
                rest, self._stopped = self._stopped, None
            self._last = None
            if not (self._drag or self._pull):
                self._become(None, rest)
            await self._service.publish(self._seat)
            if self._activity is None:
                self._seat.tell()

    async def _caught(self, pull: int, work: Awaitable[T]) -> T | None:
        """Await work; errors are sent to the client."""
        try:
            return await work
        except (NothingToDo, Stopped):
            return None
        except AutodragError as error:
            message = str(error)
        except Exception:
            LOG.exception("live drag")
            message = "the server failed at this edit; undo it or try another"
        for mailbox in list(self._seat.listeners):
            mailbox.tell(json.dumps({"type": "error", "pull": pull, "message": message}))
        return None

    def _run_pull(self) -> _Order | None:
        """Preview the newest order, in a worker thread. The order is chosen after waiting for the turn.

        Returns the order again if more computing improves the preview while the pointer rests, otherwise None.
        """
        session = self._seat.session
        with self._service.gate.turn():
            try:
                order = self._pull.pop()
            except IndexError:  # stopped while it waited
                return None
            edit = session.read(order.document)
            before = None  # the previous preview of the same pull and points
            if self._last is not None and self._last[0].pull == order.pull:
                before = self._last if len(self._last[1].points) == len(edit.drags) else None
            rests = before is not None and before[0].document == order.document
            preview = session.preview(edit, None if before is None else before[1], moving=not rests)
            frame = pack(
                {**_header("preview", order.pull, preview), "seconds": round(preview.seconds, 4)}, moving(preview.image)
            )
        self._last = (order, preview)
        self._loop.call_soon_threadsafe(self._show, frame)
        if preview.method == "predict":  # under a resting pointer, several points are predicted again in all rounds
            return order if len(edit.drags) > 1 and not rests else None
        left = float(preview.distances.max())
        gained = not rests or before is None or left < float(before[1].distances.max()) - 0.05
        return order if gained and left > ARRIVED_PX else None

    async def _run_drag(self, order: _Order) -> None:
        session = self._seat.session
        stop = session.arm()
        try:
            await self._service.run(self._seat, self._refine, order, stop)
        finally:
            session.disarm(stop)

    def _refine(self, order: _Order, stop: threading.Event) -> None:
        """Make the edit, in a worker thread. The refiner starts at the image before the pull, so that its first frames
        are farther from the targets than the last preview; the page keeps showing the preview until they catch up."""
        session = self._seat.session
        drawn = 0.0
        shown = float("inf") if self._last is None else float(self._last[1].distances.mean())

        def watch(state: DragResult) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < FRAME_S or not self._seat.ready or float(state.distances.mean()) > shown + NEARLY_PX:
                return
            drawn = now
            frame = pack({**_header("step", order.pull, state), "step": state.steps}, moving(state.image))
            self._loop.call_soon_threadsafe(self._show, frame)

        session.drag(session.read(order.document), stop, watch)

    def _show(self, frame: bytes) -> None:
        for mailbox in list(self._seat.listeners):
            mailbox.show(frame)


def live_of(service: Service, seat: Seat) -> Live:
    """The live drag of a session, shared by all its WebSockets."""
    if seat.extra is None:
        seat.extra = Live(service, seat)
    live: Live = seat.extra
    return live


async def attend(service: Service, seat: Seat, socket: WebSocket) -> None:
    """Serve an accepted WebSocket until either side closes it. An invalid message closes it with a reason."""
    if len(seat.listeners) >= LISTENERS:
        await socket.close(1013, f"this session has {LISTENERS} listeners already")
        return
    live, mailbox = live_of(service, seat), Mailbox()
    seat.listeners.add(mailbox)
    if seat.last is None or not seat.lock.locked():  # a running edit may hold the lock for long
        seat.last = await service.compute(seat, present_state, seat.session)
    mailbox.tell(state_message(seat, *seat.last))
    sender = asyncio.create_task(_send(socket, mailbox))
    receiver = asyncio.create_task(_receive(service, seat, live, mailbox, socket))
    try:
        done, _ = await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
        code, reason = next(iter(done)).result()
    finally:
        seat.listeners.discard(mailbox)
        for task in (sender, receiver):
            task.cancel()
        await asyncio.gather(sender, receiver, return_exceptions=True)
    live.leave(mailbox)
    if socket.application_state is not WebSocketState.DISCONNECTED and code:
        await socket.close(code, reason[:120])


async def _send(socket: WebSocket, mailbox: Mailbox) -> tuple[int, str]:
    """Send messages of the mailbox; returns code and reason for closing, code 0 if the client has gone."""
    while True:
        message = await mailbox.take()
        if isinstance(message, str) and message.startswith(CLOSE):
            code, _, reason = message.removeprefix(CLOSE).partition(" ")
            return int(code), reason
        if mailbox.overflowing:
            return 1008, "too slow: too many messages are waiting"
        try:
            sending = socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message)
            await asyncio.wait_for(sending, SEND_S)
        except asyncio.TimeoutError:
            return 1008, f"too slow: a message was not taken for {SEND_S:g} seconds"
        except (WebSocketDisconnect, RuntimeError):
            return 0, "gone"


async def _receive(service: Service, seat: Seat, live: Live, mailbox: Mailbox, socket: WebSocket) -> tuple[int, str]:
    """Read messages until one is invalid; returns code and reason for closing, code 0 if the client has gone."""
    allowance, mark = MESSAGES_PER_S, time.monotonic()
    while True:
        try:
            message = await socket.receive()
        except (WebSocketDisconnect, RuntimeError):
            return 0, "gone"
        if message["type"] == "websocket.disconnect":
            return 0, "gone"
        now = time.monotonic()
        allowance, mark = min(MESSAGES_PER_S, allowance + (now - mark) * MESSAGES_PER_S) - 1, now
        if allowance < 0:  # unread messages wait at the client
            await asyncio.sleep(-allowance / MESSAGES_PER_S)
        seat.session.touched = time.monotonic()
        problem = _obey(live, mailbox, message.get("text"), service.config.message_bytes)
        if problem is not None:
            return 1007, problem


def _obey(live: Live, mailbox: Mailbox, text: str | None, most: int) -> str | None:
    """Execute a message; returns the reason if it is invalid."""
    if text is None:
        return "binary message; expected JSON text"
    if len(text) > most:
        return f"message of more than {most} characters"
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return "message is not JSON"
    kind = message.get("type") if isinstance(message, dict) else None
    if kind == "stop":
        live.stop()
        return None
    if kind not in ("pull", "drag"):
        return "message has no known type; expected pull, drag or stop"
    number, document = message.get("pull"), message.get("edit")
    if type(number) is not int or not 0 <= number < 2**53 or not isinstance(document, dict):
        return "pull and drag need a whole number 'pull' and an object 'edit'"
    (live.pull if kind == "pull" else live.drag)(_Order(number, document), mailbox)
    return None


def _header(kind: str, pull: int, state: DragResult) -> dict[str, Any]:
    return {
        "type": kind,
        "pull": pull,
        "points": [[round(x, 3), round(y, 3)] for x, y in state.points.tolist()],
        "distances": [round(value, 3) for value in state.distances.tolist()],
        "confidences": [round(value, 3) for value in state.confidences.tolist()],
        "lost": state.lost.tolist(),
    }
