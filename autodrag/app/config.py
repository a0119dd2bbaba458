"""What the server is told, and what it bounds."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AppConfig:
    """Settings of one server; every bound is there so that one client cannot starve the others."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8765
    """Port to listen on; 0 takes a free one."""
    token: str | None = None
    """What clients must know; None only where `host` is a loopback address."""
    hosts: tuple[str, ...] = ()
    """Further names under which the server is reached, as a `Host` header has them, without the port."""
    checkpoints: Path = Path("checkpoints")
    """Folder whose sub-folders are offered as checkpoints."""
    data: Path = Path("~/.local/share/autodrag")
    """Where saved sessions are kept."""
    device: str | None = None
    """Where the networks run; None takes CUDA where it is available."""
    workers: int = min(4, os.cpu_count() or 1)
    """How many computations run at the same time."""
    sessions: int = 64
    """Most sessions in memory."""
    sessions_per_address: int = 64
    """Most of them opened from one address."""
    idle_s: float = 1800.0
    """A session that nobody uses for so long is dropped."""
    saved: int = 1000
    """Most sessions kept on disk."""
    history: int = 100
    """Most edits that a session can undo; an image in the history takes one latent of memory."""
    points: int = 100
    """Most handles of an edit, and most anchors."""
    masks: int = 32
    """Most masks that a session holds."""
    edit_s: float = 30.0
    """Most seconds of computing that one edit may take; waiting for others does not count."""
    replay_s: float = 300.0
    """Most seconds of computing for the replay of an opened session file."""
    body_bytes: int = 8 * 2**20
    """Most bytes of a request."""
    message_bytes: int = 64 * 2**10
    """Most bytes of a message over a WebSocket."""
    body_s: float = 30.0
    """Most seconds that a request's body may take to arrive."""
    loaded: int = 3
    """Most checkpoints in memory."""

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise ValueError(f"host {self.host!r} can be reached from elsewhere: a token is needed.")
        for name in ("workers", "sessions", "sessions_per_address", "history", "points", "masks", "loaded"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host == "localhost" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is an address of this machine's own loopback, such as 127.0.0.1 or ::1."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
