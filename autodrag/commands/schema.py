"""`autodrag schema`: the JSON Schema of edit and session files."""

from __future__ import annotations

import argparse
import json

from autodrag.edits import schema


def arguments(parser: argparse.ArgumentParser) -> None:
    """`autodrag schema` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(schema(), indent=2))
    return 0
