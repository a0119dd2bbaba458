"""`autodrag info`: contents of a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from autodrag.edits import DEFAULT_CHECKPOINT


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag info`."""
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT_CHECKPOINT, help="folder or .safetensors file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Load a checkpoint, which checks it, and print what it contains."""
    from autodrag.checkpoint import LANDMARKS_FILE, find_checkpoint, has_predictor, load_generator, load_landmarks

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
        f"  predictor    {'yes' if facts['predictor'] else 'none: edits use the refiner'}",
        sep="\n",
    )
    return 0
