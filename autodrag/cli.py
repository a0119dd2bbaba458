"""The command line: the table of commands, and one line `error: sentence` for bad input.

Exit codes: 0 done (also if there was nothing to do), 1 a batch in which some lines failed, 2 bad input or output,
130 interrupted. A command is imported only when it runs, so that `autodrag --help` is fast.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from autodrag import __version__
from autodrag.arguments import ArgumentParser
from autodrag.errors import AutodragError, NothingToDo
from autodrag.files import is_disk_full
from autodrag.memory import keep_memory

COMMANDS = {
    "demo": "drag the nose of an image of the shipped checkpoint and report the distance left",
    "app": "edit images in the browser and serve edits over HTTP",
    "drag": "drag points of one image",
    "batch": "run many edits from a JSONL file",
    "sample": "draw a grid of images of a generator, each with its seed",
    "render": "render critters as a grid, or as a folder with their landmarks",
    "convert": "convert a checkpoint of another program to safetensors",
    "info": "print what a checkpoint contains",
    "schema": "print the JSON Schema of an edit",
}
"""Command and its description; the module `autodrag.commands.NAME` has `arguments(parser)` and `run(args)`."""

GROUPS = {
    "train": {
        "generator": "train a StyleGAN2 generator on critters or on a folder of pictures",
        "landmarks": "train the landmark net on rendered critters",
        "regularizer": "train the latent regularizer, stage 1 of the learned editor",
        "predictor": "train the latent predictor, stage 2 of the learned editor",
        "paper": "train both stages of the learned editor exactly as the paper describes them",
        "userlt": "train the baseline UserControllableLT",
    },
    "eval": {
        "landmarks": "drag landmarks to those of another image (DragGAN, table 1)",
        "paired": "reconstruct an image from dragged pixels (DragGAN, table 2)",
        "mdd": "measure how fast the distance to the target falls",
        "ccsd": "drag there and back and compare the images (FreeDrag)",
        "masks": "drag with masks: distance left, change outside, seams",
        "trust": "compare what results say of themselves with the truth",
        "speed": "measure time and memory of edits",
        "samples": "compare images of a generator with rendered critters",
    },
}
"""Group and its sub-commands; the module `autodrag.GROUP.NAME` has `main(argv)` and parses its own options."""
BASELINE_TRAININGS = {"userlt": "autodrag.eval.baselines.userlt_training"}
"""Trainings whose module is not in `autodrag.train`."""

DESCRIPTIONS = {"train": "train a network", "eval": "measure methods by a protocol"}


def build_parser(command: str | None = None) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The main parser and the parser of each command. Only the parser of `command` has options."""
    parser = ArgumentParser(prog="autodrag", description="Drag points of StyleGAN2 images.")
    parser.add_argument("--version", action="version", version=f"autodrag {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers: dict[str, ArgumentParser] = {}
    for name, text in {**COMMANDS, **DESCRIPTIONS}.items():
        parsers[name] = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    for group, members in GROUPS.items():
        parts = parsers[group].add_subparsers(dest="part", metavar="NAME", required=True)
        for name, text in members.items():
            parts.add_parser(name, help=text)
    if command in COMMANDS:
        _module(command).arguments(parsers[command])
    return parser, parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except NothingToDo as nothing:
        print(nothing)
        return 0
    except AutodragError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if is_disk_full(error):
            return _fail(f"{str(error.filename or 'a file')!r} cannot be written: the disk is full; free some space")
        return _fail(f"{str(error.filename or 'a file')!r}: {error.strerror or error}; check the path and its rights")
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    if len(argv) > 1 and argv[1] in GROUPS.get(argv[0], ()):
        keep_memory()
        name = f"autodrag.{argv[0]}.{argv[1]}"
        module = importlib.import_module(BASELINE_TRAININGS.get(argv[1], name))
        return int(module.main(argv[2:]) or 0)
    parser, parsers = build_parser(argv[0] if argv else None)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parsers[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    keep_memory()
    return int(_module(args.command).run(args))


def _module(command: str) -> Any:
    return importlib.import_module(f"autodrag.commands.{command}")


def _fail(sentence: str) -> int:
    print("error: " + " ".join(sentence.split()), file=sys.stderr)
    return 2


def entry() -> None:
    """The installed script. After Ctrl-C the process ends without waiting for threads that still compute."""
    signal.signal(signal.SIGINT, _interrupt)
    code = main()
    if code == 130:
        gc.collect()  # removes the semaphores of other processes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt. During an import, end the process, because some libraries catch the exception there."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    entry()
