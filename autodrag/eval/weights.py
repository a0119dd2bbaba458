"""Local weight files of published networks that some metrics need. Nothing is downloaded.

The metrics' libraries would download missing files and unpickle any existing file. Therefore the file is checked first:
it must exist in PyTorch's hub folder (`torch.hub.get_dir()`/checkpoints), its content must match the hash in its name,
and it must contain only tensors.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from autodrag.errors import AutodragError


@dataclass(frozen=True)
class Weights:
    """A weight file."""

    metric: str
    """Name of the metric."""
    file: str
    """File name in the hub folder. The eight digits before the suffix are the start of the SHA-256."""
    url: str
    """URL of the publisher."""
    packages: tuple[str, ...]
    """Packages that are needed to use the file."""


LPIPS = Weights(
    "LPIPS",
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ("torchmetrics", "torchvision"),
)
FID = Weights(
    "FID",
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ("torchmetrics", "torch_fidelity"),
)


def path_of(weights: Weights) -> Path:
    """Expected path of the file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.file


def missing(weights: Weights) -> str | None:
    """Check that the weights can be used. Returns an error message, or None if nothing is missing."""
    path, metric = path_of(weights), weights.metric
    if not path.is_file():
        return f"{metric} needs its weights at {str(path)!r}, but the file does not exist; get it from {weights.url}"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for part in iter(lambda: stream.read(2**20), b""):
            digest.update(part)
    if not digest.hexdigest().startswith(path.stem[-8:]):
        return (
            f"{str(path)!r} is not the file that {weights.metric} needs (its hash differs); get it from {weights.url}"
        )
    try:  # the libraries below unpickle the file without checks, so it must contain only tensors and no code
        torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        return f"{str(path)!r} is not a plain weight file ({str(error).splitlines()[0]}); get it from {weights.url}"
    for package in weights.packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:  # missing, or built for another version of torch
            return f"{metric} needs the package {package} ({error}); install it: pip install 'autodrag[eval]'"
    return None


def require(weights: Weights) -> None:
    """Raise AutodragError if the weights cannot be used."""
    message = missing(weights)
    if message is not None:
        raise AutodragError(message)
