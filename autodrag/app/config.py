"""Settings and limits of the server."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AppConfig:
    """Settings of one server. The limits keep one client from blocking the others."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8765
    """Port to listen on; 0: any free port."""
    token: str | None = None
    """Secret of the clients; None: no token, which is only allowed on a loopback address."""
    hosts: tuple[str, ...] = ()
    """Additional host names of the server, as in a `Host` header without the port."""
    checkpoints: Path = Path("checkpoints")
    """Folder whose sub-folders are the checkpoints."""
    data: Path = Path("~/.local/share/autodrag")
    """Folder of sessions on disk."""
    device: str | None = None
    """Device of the networks; None: CUDA if available."""
    workers: int = min(4, os.cpu_count() or 1)
    """Maximum number of computations at the same time."""
    sessions: int = 64
    """Maximum number of sessions in memory."""
    sessions_per_address: int = 64
    """Maximum number of sessions in memory that one address has opened."""
    idle_s: float = 1800.0
    """A session is dropped after this time without use, seconds."""
    kept: int = 1000
    """Maximum number of sessions on disk. The least recently changed one is deleted for a new one."""
    saved: int = 1000
    """Maximum number of named copies of sessions on disk."""
    history: int = 200
    """Maximum number of steps that a session can undo. An edit takes the memory of one latent."""
    points: int = 100
    """Maximum number of handles of an edit; the same limit holds for its anchors."""
    masks: int = 32
    """Maximum number of masks of a session that no step uses."""
    edit_s: float = 30.0
    """Maximum computing time of an edit, seconds, without the time of waiting for a turn."""
    replay_s: float = 300.0
    """Maximum computing time of the replay of a session file, seconds."""
    body_bytes: int = 8 * 2**20
    """Maximum size of a request body, bytes."""
    message_bytes: int = 64 * 2**10
    """Maximum size of a WebSocket message and of an edit, bytes."""
    body_s: float = 30.0
    """Maximum time until a request body has arrived, seconds."""
    header_s: float = 10.0
    """Maximum time until the header of a request has arrived on an open connection, seconds."""
    loaded: int = 3
    """Number of checkpoints that stay in memory when no session uses them."""

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise ValueError(f"host {self.host!r} can be reached from other machines: a token is needed.")
        counts = (
            "workers",
            "sessions",
            "sessions_per_address",
            "kept",
            "saved",
            "history",
            "points",
            "masks",
            "loaded",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host == "localhost" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address, such as 127.0.0.1 or ::1."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
