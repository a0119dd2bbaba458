"""Image quality of a critters generator: the Fréchet distance between its samples and renders.

The Fréchet distance (Heusel et al. 2017) between samples at psi 1 and new renders, in the mean features of the landmark
net's coarsest map. It is not FID, which uses Inception features, and is comparable only for the same landmark net. The
distance between two disjoint sets of renders is the value of a perfect generator for this number of images.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.arguments import ArgumentParser
from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.data.critters import render, sample_factors
from autodrag.errors import AutodragError
from autodrag.eval.metrics import frechet_distance
from autodrag.files import write_json
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.stylegan2 import Generator
from autodrag.progress import track

_BATCH = 32


@torch.no_grad()
def sample_features(generator: Generator, net: LandmarkNet, count: int, seed: int) -> Float[Tensor, "N C"]:
    """Features of `count` generated images at psi 1 with constant noise."""
    rng = torch.Generator().manual_seed(seed)
    features = []
    for start in track(range(0, count, _BATCH), "samples", unit="batch"):
        z = torch.randn(min(_BATCH, count - start), generator.config.z_dim, generator=rng)
        features.append(net(generator(generator.map(z)).clamp(-1, 1)).features)
    return torch.cat(features)


@torch.no_grad()
def render_features(net: LandmarkNet, count: int, seed: int) -> Float[Tensor, "N C"]:
    """Features of `count` renders."""
    rng = torch.Generator().manual_seed(seed)
    features = []
    for start in track(range(0, count, _BATCH), "renders", unit="batch"):
        factors = sample_factors(min(_BATCH, count - start), rng)
        features.append(net(render(factors, size=net.config.resolution).images).features)
    return torch.cat(features)


def main(argv: list[str]) -> int:
    """`autodrag eval samples`."""
    parser = ArgumentParser(prog="autodrag eval samples", description="Samples beside renders, in our features.")
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--count", type=int, default=2000, help="number of images per set (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/eval-samples.json"))
    args = parser.parse_args(argv)
    if args.count < 2:
        raise AutodragError(f"--count {args.count}: expected at least 2.")
    generator, identity = load_generator(args.checkpoint)
    net = load_landmarks(args.checkpoint)
    if net is None:
        raise AutodragError(f"{args.checkpoint} has no landmarks.safetensors; train one: autodrag train landmarks.")
    net.eval()
    # Seeds of training renders start at data.seed * 1,000,003. These seeds do not overlap them.
    # Torch uses seeds modulo 2^32.
    real = render_features(net, args.count, 3_000_000_000 + args.seed)
    other = render_features(net, args.count, 3_500_000_000 + args.seed)
    fake = sample_features(generator.freeze(), net, args.count, args.seed)
    result = {
        "fingerprint": identity,
        "count": args.count,
        "seed": args.seed,
        "frechet_samples_to_renders": round(frechet_distance(fake, real), 4),
        "frechet_renders_to_renders": round(frechet_distance(other, real), 4),
    }
    write_json(args.out, result)
    print(json.dumps(result))
    return 0
