"""Run-time type checker of the tests, used by the import hook in conftest.py."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Accepts int for float, as mypy does."""
