"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from autodrag.edits import DEFAULT_CHECKPOINT, Edit, Method, Outside, Parameters, Preset

if TYPE_CHECKING:
    from autodrag.infer.editor import DragEditor


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint FOLDER`; None means the default, or the checkpoint of an edit file."""
    parser.add_argument("--checkpoint", metavar="FOLDER", help=f"checkpoint folder (default: {DEFAULT_CHECKPOINT})")


def add_machine(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--dtype`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of convolutions")


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Method and settings of an edit. A missing option leaves the value of the edit file, then of the preset."""
    group = parser.add_argument_group("method and settings")
    group.add_argument(
        "--method",
        choices=get_args(Method),
        help="auto (default): both if the checkpoint has a predictor, otherwise refine",
    )
    group.add_argument("--preset", choices=get_args(Preset), help="settings of the refiner: ours, or DragGAN's")
    group.add_argument("--rounds", type=int, metavar="N", help="maximum number of predictions")
    group.add_argument("--steps", type=int, metavar="N", help="maximum number of optimisation steps")
    group.add_argument(
        "--budget",
        type=float,
        dest="budget_s",
        metavar="SECONDS",
        help="maximum time of a drag; loading, drawing and writing files are not counted",
    )
    group.add_argument(
        "--outside",
        choices=get_args(Outside),
        help="outside the mask, exact (default): nothing changes; soft: the preset draggan penalises changes",
    )
    group.add_argument("--lr", type=float, help="learning rate of the preset draggan")
    group.add_argument("--space", choices=("w", "w+"), help="one vector for all edited layers, or one for each")
    group.add_argument("--edit-layers", type=int, metavar="N", help="number of layers, from the first, that may change")
    group.add_argument("--feature-block", type=int, metavar="K", help="index of the tracked generator block")
    group.add_argument("--stop-px", type=float, metavar="PX", help="distance at which a point has arrived")


def parameters_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Parameters` that the command line sets."""
    given = {name: getattr(args, name, None) for name in Parameters.model_fields}
    return {name: value for name, value in given.items() if value is not None}


def override(edits: list[Edit], args: argparse.Namespace) -> list[Edit]:
    """The edits with the method and settings that the command line gives."""
    given = parameters_of(args)
    method = {} if args.method is None else {"method": args.method}
    return [edit.replaced(parameters=edit.parameters.replaced(**given), **method) for edit in edits]


def load_editor(checkpoint: str, args: argparse.Namespace) -> DragEditor:
    """The editor of a checkpoint on the device that the options name."""
    import torch

    from autodrag.infer.editor import DragEditor
    from autodrag.infer.task import check_device

    device = None if args.device is None else check_device(args.device)
    return DragEditor.load(checkpoint, device=device, dtype=getattr(torch, args.dtype))
