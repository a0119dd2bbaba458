"""What sees a torn head? Images torn on purpose, and the share of them that each measure calls torn.

    python benchmarks/torn.py

Every measure calls 5 % of 1000 unedited images torn, by its own threshold. Then the lower part of each image, from a
row within the head on, is shifted to the side; and codes are moved along random directions of W, in standard
deviations, which tears nothing while it is short. A measure of torn heads has to grow with the first, and a good one
sees it early: `autodrag eval landmarks` counts by the landmarks' constellation.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.data.latents import map_codes
from autodrag.eval.metrics import strangeness
from autodrag.eval.tables import markdown
from autodrag.infer.measure import find_landmarks
from autodrag.nets.landmarks import Landmarks
from autodrag.nets.latent_space import LatentBasis

SHIFTS = (1, 2, 4, 8)
"""Of a part of the image, px of 64."""
LENGTHS = (1, 4, 16)
"""Of random edits, standard deviations; two images at psi 0.7 lie 16 apart."""
BATCH = 50


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7007)
    args = parser.parse_args()
    generator, _ = load_generator(args.checkpoint)
    generator.freeze()
    net = load_landmarks(args.checkpoint)
    assert net is not None, "the checkpoint has no landmark net"
    basis = LatentBasis.of(generator)
    rng = torch.Generator().manual_seed(args.seed)

    def draw() -> Tensor:
        w = map_codes(generator, args.images, torch.full((args.images,), 0.7), rng)
        return w[:, None].repeat(1, generator.config.latent_layers, 1)

    @torch.no_grad()
    def images(codes: Tensor) -> Tensor:
        return torch.cat([generator(part).clamp(-1, 1) for part in codes.split(BATCH)])

    def see(pictures: Tensor) -> Landmarks:
        parts = [find_landmarks(net, part) for part in pictures.split(BATCH)]
        return Landmarks(*(torch.cat([getattr(p, f) for p in parts]) for f in Landmarks.__dataclass_fields__))

    usual, codes = see(images(draw())), draw()
    whole = images(codes)
    height = whole.shape[2]

    def judge(pictures: Tensor) -> tuple[Tensor, Tensor]:
        """By each measure, the larger the more torn."""
        seen = see(pictures)
        return strangeness(seen.points, usual.points), -seen.confidence.mean(dim=1)

    limits = [values.quantile(0.95) for values in judge(whole)]
    cut = torch.randint(height * 3 // 8, height * 11 // 16, (args.images,), generator=rng)
    cases = {"unedited": whole, "others, unedited": images(draw())}
    for shift in SHIFTS:
        below = torch.arange(height)[None, None, :, None] >= cut[:, None, None, None]
        cases[f"lower part {shift} px to the side"] = torch.where(
            below, whole.roll(shift * height // 64, dims=3), whole
        )
    for length in LENGTHS:
        way = torch.randn(args.images, 1, codes.shape[2], generator=rng)
        cases[f"edited by {length} at random"] = images(
            codes + basis.offset(length * way / way.norm(dim=2, keepdim=True))
        )
    lines = []
    for name, pictures in cases.items():
        shares = [float((values > limit).float().mean()) for values, limit in zip(judge(pictures), limits, strict=True)]
        lines.append([name, *(f"{100 * share:.1f} %" for share in shares)])
    print(markdown(["images", "constellation of landmarks", "confidence of the net"], lines))


if __name__ == "__main__":
    main()
