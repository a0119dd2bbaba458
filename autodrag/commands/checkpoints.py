"""`autodrag convert`, `autodrag info` and `autodrag schema`: checkpoints and the format of edits."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from autodrag.edits import DEFAULT_CHECKPOINT
from autodrag.edits import schema as edit_schema


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag convert`."""
    parser.add_argument("file", help="NVIDIA or TensorFlow .pkl, rosinality .pt, or a state dict")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="checkpoint folder, such as checkpoints/ffhq")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="type of the stored weights"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing generator")


def convert(args: argparse.Namespace) -> int:
    """Convert a checkpoint of another project without running code from it."""
    import torch

    from autodrag.convert import convert as convert_file

    print(convert_file(args.file, args.out, dtype=getattr(torch, args.dtype), overwrite=args.overwrite))
    return 0


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag info`."""
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT_CHECKPOINT, help="folder or .safetensors file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def info(args: argparse.Namespace) -> int:
    """Load a checkpoint, which checks it, and say what it holds."""
    from autodrag.checkpoint import (
        LANDMARKS_FILE,
        find_checkpoint,
        has_predictor,
        load_generator,
        load_landmarks,
    )

    folder = find_checkpoint(args.checkpoint)
    generator, identity = load_generator(folder)
    config = generator.config
    height, width = config.image_size
    landmarks = load_landmarks(folder) if folder.is_dir() else None
    facts: dict[str, Any] = {
        "checkpoint": str(folder),
        "fingerprint": identity,
        "image_size": {"width": width, "height": height},
        "classes": config.c_dim,
        "latent": [config.latent_layers, config.w_dim],
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "config": dataclasses.asdict(config),
        "landmarks": None if landmarks is None else list(landmarks.config.names),
        "predictor": has_predictor(folder, identity),
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    classes = f"{config.c_dim} classes" if config.c_dim else "no classes"
    print(
        f"{folder}: StyleGAN2 generator {identity}",
        f"  images       {width}x{height} px, {classes}",
        f"  latent       {config.latent_layers} layers of {config.w_dim}",
        f"  parameters   {facts['parameters'] / 1e6:.2f} million, architecture {config.architecture}",
        f"  landmarks    {', '.join(landmarks.config.names) if landmarks else f'none (no {LANDMARKS_FILE})'}",
        f"  predictor    {'yes' if facts['predictor'] else 'none: edits run on the refiner'}",
        sep="\n",
    )
    return 0


def schema_arguments(parser: argparse.ArgumentParser) -> None:
    """`autodrag schema` has no options."""


def schema(args: argparse.Namespace) -> int:
    """Print the JSON Schema of edit and session files."""
    print(json.dumps(edit_schema(), indent=2))
    return 0
