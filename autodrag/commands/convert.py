"""`autodrag convert`: a checkpoint of another program becomes a checkpoint folder."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag convert`."""
    parser.add_argument("file", help="NVIDIA .pkl, rosinality .pt or legacy TensorFlow .pkl; recognised by its content")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="checkpoint folder, such as checkpoints/ffhq")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="stored type")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing generator")


def run(args: argparse.Namespace) -> int:
    """Convert without running code from the file."""
    import torch

    from autodrag.convert import convert

    print(convert(args.file, args.out, dtype=getattr(torch, args.dtype), overwrite=args.overwrite))
    return 0
