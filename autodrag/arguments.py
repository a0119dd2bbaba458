"""Command-line parser that reports an error in one sentence with a hint, without printing the usage.

Training commands use `autodrag.config_files` instead, which reads config dataclasses.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from autodrag.errors import AutodragError, closest

NEGATIVE = re.compile(r"-\.?\d")


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises AutodragError and accepts negative numbers as option values."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse `--drag -5,40:30,40` as `--drag=-5,40:30,40`, because argparse takes `-5,40:30,40` for an option."""
        joined: list[str] = []
        for word in args or ():
            if NEGATIVE.match(word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_known_args(joined, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise AutodragError with the error and either the closest name, the valid choices or a pointer to --help."""
        required = re.match(r"the following arguments are required: (.*)", message)
        value = re.match(r"argument (\S+): invalid (int|float) value: (.*)", message)
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            name = unknown[1].partition("=")[0]
            if not name.startswith("-"):
                raise AutodragError(f"unexpected argument {name!r}; see {self.prog} --help")
            hint = closest(name, self._option_string_actions)
            raise AutodragError(f"{name} is not an option of {self.prog}; {hint or f'see {self.prog} --help'}")
        if required:
            names = required[1].split(", ")
            verb = "is" if len(names) == 1 else "are"
            raise AutodragError(f"{' and '.join(names)} {verb} missing; see {self.prog} --help")
        if value:
            expected = "a whole number" if value[2] == "int" else "a number"
            raise AutodragError(f"{value[1]} {value[3]} cannot be read; expected {expected}")
        if choice:
            choices = [name.strip("' ") for name in choice[2].split(",")]
            option = re.match(r"argument (\S+):", message)
            subject = f"{option[1]} {choice[1]!r}" if option and option[1].startswith("-") else repr(choice[1])
            hint = closest(choice[1], choices)
            raise AutodragError(f"{subject} is not known; {hint or 'expected one of ' + ', '.join(choices)}")
        message = message.removeprefix("argument ").replace("expected one argument", "the value is missing")
        raise AutodragError(f"{message}; see {self.prog} --help")
