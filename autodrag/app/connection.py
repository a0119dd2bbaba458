"""HTTP connections with a time limit for the header of each request.

uvicorn limits the number of connections, and the time between two requests of one connection. It does not limit the
time until the first header has arrived, so that silent connections could occupy the server. Such a connection is closed
after `seconds`, and one address can have at most `WAITING` of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

WAITING = 64
"""Maximum number of connections of one address whose header has not arrived."""


def limited_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with these limits."""
    waiting: Counter[str] = Counter()

    class Limited(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        @property
        def _address(self) -> str:
            return self.client[0] if self.client else ""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()
            if waiting[self._address] > WAITING:
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            complete = self.conn.their_state is not h11.IDLE or self.transport.get_protocol() is not self
            if complete:
                self._end_wait()
            elif self._deadline is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_wait()
            super().connection_lost(exc)

        def _wait(self) -> None:
            waiting[self._address] += 1
            self._deadline = self.loop.call_later(seconds, self.transport.close)

        def _end_wait(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
                waiting[self._address] -= 1
                if not waiting[self._address]:
                    del waiting[self._address]

    return Limited
