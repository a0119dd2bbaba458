"""Errors that a user can correct. Each is one sentence: the value, what was expected, the next step."""

from __future__ import annotations


class AutodragError(ValueError):
    """Input that cannot be used. The command line prints it after `error: ` and exits with code 2."""


class CheckpointError(AutodragError):
    """A checkpoint or latent file that is missing, broken, or belongs to another generator."""


class NothingToDo(AutodragError):
    """Every handle already lies on its target. The command line prints the message and exits with code 0."""
