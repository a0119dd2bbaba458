"""Convert StyleGAN2 checkpoints of other projects to `generator.safetensors` without running code from them.

    report = convert(Path("stylegan2-ffhq-512x512.pkl"), Path("checkpoints/ffhq"))

Supported formats: NVIDIA's pickles (stylegan2-ada-pytorch, the StyleGAN2 of stylegan3, StyleGAN-Human), the legacy
TensorFlow tuples (G, D, Gs), rosinality's `.pt`, and plain state dicts with NVIDIA's or rosinality's names. The format
is detected from the content, not from the file name. Objects other than the generator are ignored.

`archives` opens the container and `pickles` reads it as inert records. `nvidia`, `tensorflow` or `state_dicts`
recognises the generator and renames its tensors. `matching` infers the config and compares all shapes. Tensors are read
last, one at a time.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autodrag.checkpoint import GENERATOR_FILE
from autodrag.convert import nvidia, state_dicts, tensorflow
from autodrag.convert.archives import read_archive
from autodrag.convert.matching import SourceGenerator, match, read_config
from autodrag.convert.pickles import Range, Record
from autodrag.errors import CheckpointError
from autodrag.nets.stylegan2 import GeneratorConfig
from autodrag.release import save_tensors

__all__ = ["ConversionReport", "convert"]


@dataclass(frozen=True)
class ConversionReport:
    """Result of a conversion."""

    source: Path
    """The file that was read."""
    path: Path
    """The file that was written."""
    format: str
    """Name of the source's format."""
    config: GeneratorConfig
    """The network's architecture."""
    tensors: int
    """Number of tensors written."""
    parameters: int
    """Number of values in them, including noise and the mean latent."""
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
    """Convert another project's generator to `out/generator.safetensors`, atomically.

    Args:
        source: the checkpoint file.
        out: the checkpoint folder, which is created if it does not exist.
        dtype: storage type: fp32, fp16 or bf16. Computation is always in fp32.
        overwrite: replace an existing generator.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint, is damaged, or holds no StyleGAN2 generator
            that autodrag supports.
    """
    if re.match(r"[A-Za-z][\w+.-]+://", str(source)):
        raise CheckpointError(f"{str(source)!r} is a URL, but a file was expected; download it and give its path")
    source, path = Path(source), Path(out) / GENERATOR_FILE
    if source.is_dir():
        if (source / GENERATOR_FILE).exists():
            step = "it is a checkpoint of autodrag and needs no conversion"
        else:
            step = "give the .pkl or .pt file inside"
        raise CheckpointError(f"{str(source)!r} is a folder, but a file was expected; {step}")
    if not source.is_file():
        raise CheckpointError(f"{str(source)!r} does not exist; check the path")
    if Path(out).is_file():
        raise CheckpointError(f"{str(out)!r} is a file, but {GENERATOR_FILE} needs a folder; give a folder")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{str(path)!r} already exists; give another folder or --overwrite")
    try:
        with source.open("rb") as stream:
            size = source.stat().st_size
            generator = recognise(read_archive(Range(stream, 0, size)))
            config = read_config(generator)
            tensors = match(generator, config, available=size, dtype=dtype)
            save_tensors(
                path,
                tensors,
                kind="generator",
                config=dataclasses.asdict(config),
                extra={"source": source.name, "source_format": generator.format},
            )
    except CheckpointError as error:
        raise CheckpointError(f"{str(source)!r}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{str(error.filename or source)!r}: {error.strerror or error}") from error
    parameters = sum(math.prod(shape) for shape in tensors.shapes.values())
    return ConversionReport(source, path, generator.format, config, len(tensors), parameters, path.stat().st_size)


def recognise(value: Any) -> SourceGenerator:
    """Find the generator in the value of a checkpoint file, by its structure.

    Raises:
        CheckpointError: the value holds no generator of a known format.
    """
    if (network := nvidia.recognise(value)) is not None:
        return nvidia.read(network)
    if (network := tensorflow.recognise(value)) is not None:
        return tensorflow.read(network)
    if (state := state_dicts.recognise(value)) is not None:
        return state_dicts.read(state)
    raise CheckpointError(
        f"it holds {_describe(value)}, but no StyleGAN2 generator; expected NVIDIA's or TensorFlow's pickle, or a "
        "state dict with the tensor names of NVIDIA or rosinality"
    )


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        keys = ", ".join(repr(key)[:40] for key in list(value)[:5] if isinstance(key, (str, int)))
        return f"a table of {keys or 'nothing'}"
    return str(value) if isinstance(value, Record) else f"a {type(value).__name__}"
