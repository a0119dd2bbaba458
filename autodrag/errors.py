"""Errors that a user can mend. Each is one sentence: the value, what was expected, the next step."""

from __future__ import annotations


class AutodragError(ValueError):
    """Input that cannot be used. The command line prints it after `error: ` and exits with code 2."""


class CheckpointError(AutodragError):
    """A checkpoint or latent file that is missing, broken, or made for something else."""


class NothingToDo(AutodragError):
    """Every handle already lies on its target. The command line says so and exits with code 0."""
