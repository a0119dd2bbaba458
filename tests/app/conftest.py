"""Servers around the tiny generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.serving import Running, run
from autodrag.app.config import AppConfig


@pytest.fixture(scope="session")
def settings(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of test servers: the tiny checkpoint, and a temporary data folder."""
    return {
        "port": 0,
        "checkpoints": tiny_checkpoint.parent,
        "data": tmp_path_factory.mktemp("data"),
        "workers": 2,
        "sessions": 1000,
        "sessions_per_address": 1000,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def shared(settings: dict[str, Any]) -> Iterator[Running]:
    """One server for all tests of a module that need no other settings."""
    running = run(AppConfig(**settings))
    yield running
    running.end()
