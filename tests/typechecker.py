"""The run-time type checker of the tests, named by the import hook in conftest.py."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is a float, as it is to mypy."""
