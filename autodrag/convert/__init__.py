"""Foreign StyleGAN2 checkpoints → `generator.safetensors`, running none of the code that they carry.

    report = convert(Path("stylegan2-ffhq-512x512.pkl"), Path("checkpoints/ffhq"))

Read are NVIDIA's pickles (stylegan2-ada-pytorch, the StyleGAN2 of stylegan3, StyleGAN-Human), the legacy
TensorFlow tuples (G, D, Gs) and rosinality's `.pt`. A file is recognised by what it holds, not by its name.

The way of a file: `archives` unwraps it, `pickles` reads its pickle into inert records, one of `nvidia`,
`tensorflow` and `rosinality` recognises and renames, `matching` finds the config and compares every shape,
and only then are tensors read, one by one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autodrag.checkpoint import GENERATOR_FILE
from autodrag.convert import nvidia, rosinality, tensorflow
from autodrag.convert.archives import read_archive
from autodrag.convert.matching import Foreign, match, read_config
from autodrag.convert.pickles import Range, Record
from autodrag.errors import CheckpointError
from autodrag.nets.stylegan2 import GeneratorConfig
from autodrag.release import save_tensors

__all__ = ["ConversionReport", "convert"]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion found and wrote."""

    source: Path
    """The file that was read."""
    path: Path
    """The file that was written."""
    format: str
    """The source's format, for people to read."""
    config: GeneratorConfig
    """The network's architecture."""
    tensors: int
    """How many tensors were written."""
    parameters: int
    """How many numbers they hold, noise and mean latent included."""
    bytes: int
    """Size of the written file."""

    def __str__(self) -> str:
        height, width = self.config.image_size
        labels = f", {self.config.c_dim} labels" if self.config.c_dim else ""
        return (
            f"{self.source}: {self.format}, {width}x{height} px, {self.config.architecture}{labels}, "
            f"{self.parameters / 1e6:.1f} M parameters -> {self.path} "
            f"({self.tensors} tensors, {self.bytes / 2**20:.1f} MiB)"
        )


def convert(
    source: str | Path, out: str | Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> ConversionReport:
    """Convert a foreign generator to `out/generator.safetensors`, whole or not at all.

    Args:
        source: the checkpoint file.
        out: the checkpoint folder to make or to complete.
        dtype: storage type, fp32, fp16 or bf16; computing is in fp32 whatever it is.
        overwrite: replace a generator that is already there.

    Raises:
        CheckpointError: the file is missing, no checkpoint, truncated, of another architecture, or its
            tensors are not those of a StyleGAN2 generator; the sentence says which.
    """
    source, path = Path(source), Path(out) / GENERATOR_FILE
    if not source.is_file():
        raise CheckpointError(f"{str(source)!r} does not exist or is not a file; check the path")
    if Path(out).is_file():
        raise CheckpointError(f"{str(out)!r} is a file; give a folder to write {GENERATOR_FILE} into")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{str(path)!r} exists already; give another folder or --overwrite")
    try:
        with source.open("rb") as stream:
            size = source.stat().st_size
            foreign = recognise(read_archive(Range(stream, 0, size)))
            config = read_config(foreign)
            tensors = match(foreign, config, available=size, dtype=dtype)
            save_tensors(
                path,
                tensors,
                kind="generator",
                config=dataclasses.asdict(config),
                extra={"source": source.name, "source_format": foreign.format},
            )
    except CheckpointError as error:
        raise CheckpointError(f"{str(source)!r}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{str(error.filename or source)!r}: {error.strerror or error}") from error
    parameters = sum(math.prod(shape) for shape in tensors.shapes.values())
    written = path.stat().st_size
    return ConversionReport(source, path, foreign.format, config, len(tensors), parameters, written)


def recognise(value: Any) -> Foreign:
    """The generator in what a checkpoint file holds, told by structure.

    Raises:
        CheckpointError: it holds none that is known.
    """
    if (network := nvidia.recognise(value)) is not None:
        return nvidia.read(network)
    if (network := tensorflow.recognise(value)) is not None:
        return tensorflow.read(network)
    if (table := rosinality.recognise(value)) is not None:
        return rosinality.read(table)
    raise CheckpointError(
        f"no StyleGAN2 generator in it, but {_describe(value)}; expected NVIDIA's pickle with 'G_ema', "
        "TensorFlow's (G, D, Gs) or rosinality's table with 'g_ema'"
    )


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        keys = ", ".join(repr(key)[:40] for key in list(value)[:5] if isinstance(key, (str, int)))
        return f"a table of {keys or 'nothing'}"
    if isinstance(value, Record):
        return f"a record of {value.source}"
    return f"a {type(value).__name__}"
