"""Real servers on free ports, with clients."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from websockets.sync.client import ClientConnection, connect

from autodrag.app.config import AppConfig
from autodrag.app.frames import unpack
from autodrag.app.server import make_server

EDIT: dict[str, Any] = {"drags": [{"handle": [10, 12], "target": [15, 13]}], "parameters": {"steps": 3}}


@dataclass
class Running:
    """A server and a client for it."""

    address: str
    """http://127.0.0.1:PORT/"""
    http: httpx.Client
    server: uvicorn.Server
    thread: threading.Thread

    def open(self, **image: Any) -> str:
        """The path of a new session."""
        answer = self.http.post("/api/sessions", json=image)
        assert answer.status_code == 201, answer.text
        return f"/api/sessions/{answer.json()['key']}"

    def live(self, session: str, **options: Any) -> ClientConnection:
        """A WebSocket of a session."""
        return connect(f"ws{self.address.removeprefix('http').rstrip('/')}{session}/live", compression=None, **options)

    def end(self) -> None:
        """Shut down."""
        self.http.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def run(config: AppConfig) -> Running:
    """Start a server in a thread."""
    listening, address = threading.Event(), []

    def announce(where: str) -> None:
        address.append(where)
        listening.set()

    server = make_server(config, announce)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert listening.wait(20)
    base = address[0].partition("?")[0]
    return Running(base, httpx.Client(base_url=base, timeout=60, trust_env=False), server, thread)


def hear(socket: ClientConnection, kind: str) -> tuple[dict[str, Any], bytes]:
    """Skip messages of a live WebSocket until the first of a kind; returns its header and image."""
    while True:
        message = socket.recv(timeout=30)
        header, image = unpack(message) if isinstance(message, bytes) else (json.loads(message), b"")
        if header["type"] == kind:
            return header, image


def hear_rest(socket: ClientConnection) -> str:
    """Skip messages of a live WebSocket until the server rests; returns idle or stopped."""
    while True:
        activity: str = hear(socket, "activity")[0]["activity"]
        if activity in ("idle", "stopped"):
            return activity
