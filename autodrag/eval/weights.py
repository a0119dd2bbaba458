"""Published networks that some metrics need: looked for on this machine, never downloaded.

Their libraries would fetch a missing file by themselves, and unpickle whatever is there; so the file is looked for
first, in PyTorch's hub folder (`torch.hub.get_dir()`/checkpoints), its content is compared with the hash in its name,
and it must hold tensors and nothing else.
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
    """A file of weights that a library knows by name."""

    what: str
    """What it is for."""
    file: str
    """Its name in the hub folder; the eight digits before the suffix begin its SHA-256."""
    url: str
    """Where its publisher has it."""
    packages: tuple[str, ...]
    """What must be installed to use it."""


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
    """Where the file is expected."""
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.file


def missing(weights: Weights) -> str | None:
    """What is missing to use the weights, as one sentence; None where all is at hand."""
    path = path_of(weights)
    if not path.is_file():
        return f"{weights.what} needs its weights at {str(path)!r}, which is not there; get them from {weights.url}"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for part in iter(lambda: stream.read(2**20), b""):
            digest.update(part)
    if not digest.hexdigest().startswith(path.stem[-8:]):
        return f"{str(path)!r} is not the file that {weights.what} needs (its hash differs); get it from {weights.url}"
    try:  # the libraries below unpickle it as it is; whoever passes here carries tensors and no code
        torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        return f"{str(path)!r} is not a plain file of weights ({str(error).splitlines()[0]}); get it from {weights.url}"
    for package in weights.packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:  # not there, or built for another torch
            return f"{weights.what} needs the package {package} ({error}); install it: pip install 'autodrag[eval]'"
    return None


def require(weights: Weights) -> None:
    """Raises AutodragError with what is missing to use the weights."""
    sentence = missing(weights)
    if sentence is not None:
        raise AutodragError(sentence)
