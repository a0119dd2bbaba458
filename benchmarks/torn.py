"""The share of torn heads that two measures detect, on images that are torn on purpose.

    python benchmarks/torn.py --results benchmarks/results/torn.json

Each measure calls 5 % of the unedited images torn, by its own threshold. Then the lower part of each image, from a row
within the head on, is shifted to the side. Latents are also moved along random directions of W, which tears nothing
while the edit is short. `autodrag eval landmarks` uses the constellation of landmarks.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.data.latents import map_codes
from autodrag.errors import AutodragError
from autodrag.eval import results
from autodrag.eval.log import Record
from autodrag.eval.metrics import strangeness
from autodrag.eval.tables import Columns
from autodrag.infer.measure import find_landmarks
from autodrag.nets.landmarks import Landmarks
from autodrag.nets.latent_space import LatentBasis

SHIFTS = (1, 2, 4, 8)
"""Shifts of the lower part, in 1/64 of the height."""
LENGTHS = (1, 4, 16)
"""Lengths of random edits, standard deviations. Two images at psi 0.7 are 16 apart."""
BATCH = 50

COLUMNS: Columns = {
    "images": lambda row: str(row["images"]),
    "constellation of landmarks": lambda row: f"{row['constellation']:.1%}",
    "confidence of the net": lambda row: f"{row['confidence']:.1%}",
}


def measure(checkpoint: str, count: int, seed: int) -> list[Record]:
    """One row for each set of `count` images."""
    generator, _ = load_generator(checkpoint)
    generator.freeze()
    net = load_landmarks(checkpoint)
    if net is None:
        raise AutodragError(f"{checkpoint!r} has no landmark net; train one with autodrag train landmarks")
    basis = LatentBasis.of(generator)
    rng = torch.Generator().manual_seed(seed)

    def sample_latents() -> Float[Tensor, "B L D"]:
        w = map_codes(generator, count, torch.full((count,), 0.7), rng)
        return w[:, None].repeat(1, generator.config.latent_layers, 1)

    @torch.no_grad()
    def synthesise(latents: Float[Tensor, "B L D"]) -> Float[Tensor, "B 3 H W"]:
        return torch.cat([generator(part).clamp(-1, 1) for part in latents.split(BATCH)])

    def detect(images: Float[Tensor, "B 3 H W"]) -> Landmarks:
        parts = [find_landmarks(net, part) for part in images.split(BATCH)]
        return Landmarks(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Landmarks)))

    usual, latents = detect(synthesise(sample_latents())), sample_latents()
    unedited = synthesise(latents)
    height = unedited.shape[2]

    def scores(images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Both measures; larger means more torn."""
        found = detect(images)
        return strangeness(found.points, usual.points), -found.confidence.mean(dim=1)

    limits = [values.quantile(0.95) for values in scores(unedited)]
    cut = torch.randint(height * 3 // 8, height * 11 // 16, (count,), generator=rng)
    cases = {"unedited": unedited, "others, unedited": synthesise(sample_latents())}
    for shift in SHIFTS:
        below = torch.arange(height)[None, None, :, None] >= cut[:, None, None, None]
        cases[f"lower part {shift}/64 to the side"] = torch.where(
            below, unedited.roll(shift * height // 64, dims=3), unedited
        )
    for length in LENGTHS:
        direction = torch.randn(count, 1, latents.shape[2], generator=rng)
        offset = basis.offset(length * direction / direction.norm(dim=2, keepdim=True))
        cases[f"random edit of length {length}"] = synthesise(latents + offset)
    rows = []
    for name, images in cases.items():
        torn = [float((values > limit).float().mean()) for values, limit in zip(scores(images), limits, strict=True)]
        rows.append({"images": name, "constellation": torn[0], "confidence": torn[1]})
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--images", type=int, default=1000, help="images in each set")
    parser.add_argument("--seed", type=int, default=7007)
    results.add_option(parser)
    args = parser.parse_args()
    rows = measure(args.checkpoint, args.images, args.seed)
    command = ["python", "benchmarks/torn.py", *sys.argv[1:]]
    results.report(results.make_table("torn", command, COLUMNS, rows), args.results)


if __name__ == "__main__":
    try:
        main()
    except AutodragError as error:
        sys.exit(f"error: {error}")
