"""The command line: a table of sub-commands, and one `error: sentence` line for what a user can mend.

Exit codes: 0 done (also when there was nothing to do), 1 a batch in which some lines failed, 2 bad input or
output, 130 interrupted. Heavy imports live inside the commands: `autodrag --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autodrag import __version__
from autodrag.commands import app, batch, checkpoints, demo, drag, pictures
from autodrag.errors import AutodragError, NothingToDo
from autodrag.memory import keep_memory

Arguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]

TRAINING = {
    **{name: f"autodrag.train.{name}" for name in ("generator", "landmarks", "regularizer", "predictor")},
    "userlt": "autodrag.eval.baselines.userlt_training",
}
EVALUATIONS = {
    name: f"autodrag.eval.{name}" for name in ("landmarks", "paired", "mdd", "ccsd", "masks", "speed", "samples")
}


@dataclass(frozen=True)
class Command:
    """A sub-command: what it says about itself, its options, and the function that does it."""

    help: str
    arguments: Arguments
    run: Run


def delegate(modules: Mapping[str, str]) -> tuple[Arguments, Run]:
    """A command whose first word names a module; the module reads the other words."""

    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", choices=tuple(modules))
        parser.add_argument("rest", nargs=argparse.REMAINDER, help="its own options; see --help after its name")

    def run(args: argparse.Namespace) -> int:
        module = importlib.import_module(modules[args.what])
        return int(module.main(list(args.rest)) or 0)

    return arguments, run


COMMANDS: dict[str, Command] = {
    "demo": Command("drag the nose of a shipped image and show how far it came", demo.arguments, demo.run),
    "app": Command("edit in the browser, and serve edits over HTTP", app.arguments, app.run),
    "drag": Command("drag points of one image", drag.arguments, drag.run),
    "batch": Command("run many edits from a JSONL file", batch.arguments, batch.run),
    "sample": Command("draw a grid of a generator's images", pictures.sample_arguments, pictures.sample),
    "render": Command("draw critters with their landmarks", pictures.render_arguments, pictures.render),
    "convert": Command(
        "turn a foreign checkpoint into safetensors", checkpoints.convert_arguments, checkpoints.convert
    ),
    "info": Command("say what a checkpoint holds", checkpoints.info_arguments, checkpoints.info),
    "schema": Command("print the JSON Schema of an edit", checkpoints.schema_arguments, checkpoints.schema),
    "train": Command("train a network", *delegate(TRAINING)),
    "eval": Command("measure methods by a protocol", *delegate(EVALUATIONS)),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="autodrag", description="Drag points of StyleGAN2 images.")
    parser.add_argument("--version", action="version", version=f"autodrag {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.arguments(subparsers.add_parser(name, help=command.help, description=command.help.capitalize() + "."))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
    keep_memory()
    try:
        code = COMMANDS[args.command].run(args)
        sys.stdout.flush()
        return code
    except NothingToDo as nothing:
        print(nothing)
        return 0
    except AutodragError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{str(error.filename or 'a file')!r}: {error.strerror or error}; check the path and its rights")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _fail(sentence: str) -> int:
    print("error: " + " ".join(sentence.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
