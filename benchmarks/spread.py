"""Whether edited images vary as images do: the predictor on many landmark drags, batched, on pairs that no table uses.

    python benchmarks/spread.py --pairs 1000 --points 1,5,11
    python benchmarks/spread.py --predictor runs/critters/predictor
    python benchmarks/spread.py --regularizer checkpoints/critters/regularizer.safetensors

The Fréchet distance of edited to unedited images and the share of their variance are in the landmark net's features;
the first line is an independent set of unedited images. "Least" and "most" are the smallest and largest eigenvalue of
the covariance of edited codes (the mean of the edited layers) relative to that of the unedited, over the leading
principal directions of W: 1 and 1 where the edit changes no spread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.acceleration import accelerate
from autodrag.checkpoint import load_generator, load_landmarks, load_learned, load_regularizer
from autodrag.data.latents import map_codes
from autodrag.eval.metrics import frechet_distance
from autodrag.eval.tables import markdown
from autodrag.infer.measure import find_landmarks
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig, predict
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.latent_space import LatentBasis, LatentFrame
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Generator

DIRECTIONS = 20
BATCH = 25


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--predictor", type=Path, help="folder of another predictor.safetensors of the same generator")
    parser.add_argument("--regularizer", type=Path, help="restore the edits by this one, not by the predictor's own")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--points", default="1,5,11")
    parser.add_argument("--rounds", type=int, help="most of the closed loop")
    parser.add_argument("--seed", type=int, default=777)
    args = parser.parse_args()
    if args.pairs <= 2 * DIRECTIONS:
        parser.error(f"--pairs {args.pairs}: expected more than {2 * DIRECTIONS}, to tell a covariance")
    generator, identity = load_generator(args.checkpoint)
    generator.freeze()
    net = load_landmarks(args.checkpoint)
    assert net is not None, "this needs a checkpoint with a landmark net"
    predictor, own = load_learned(args.predictor or args.checkpoint, identity)
    other = own if args.regularizer is None else load_regularizer(args.regularizer, identity)
    editor = accelerate(LearnedEditor(predictor, other))
    frame = LatentFrame(generator.config.w_dim)
    frame.take(LatentBasis.of(generator))
    edited_layers = editor.predictor.config.edit_layers
    rng = torch.Generator().manual_seed(args.seed)
    psi = torch.full((args.pairs,), 0.7)
    layers = generator.config.latent_layers
    start, goal, others = (map_codes(generator, args.pairs, psi, rng)[:, None].repeat(1, layers, 1) for _ in range(3))
    points, features = see(generator, net, start)
    wanted, _ = see(generator, net, goal)
    order = torch.rand(points.shape[:2], generator=rng).argsort(dim=1)

    def spread(codes: Float[Tensor, "B L D"]) -> Float[Tensor, "K K"]:
        return torch.cov(frame.coordinates(codes[:, :edited_layers]).mean(dim=1)[:, :DIRECTIONS].t())

    def row(name: str, left: str, codes: Tensor, seen: Tensor) -> list[str]:
        inverse = torch.linalg.inv(torch.linalg.cholesky(spread(start)))
        values = torch.linalg.eigvalsh(inverse @ spread(codes) @ inverse.t())
        share = float(seen.var(dim=0).sum() / features.var(dim=0).sum())
        distance = frechet_distance(seen, features)
        return [name, left, f"{distance:.4f}", f"{share:.3f}", f"{values[0]:.2f}", f"{values[-1]:.2f}"]

    lines = [row("other images", "–", others, see(generator, net, others)[1])]
    for count in (int(n) for n in args.points.split(",")):
        chosen = order[:, :count, None].expand(-1, -1, 2)
        handles, targets = points.gather(1, chosen), wanted.gather(1, chosen)
        config, edits = PredictConfig(rounds=args.rounds, stop_px=1.0 if count <= 5 else 2.0), []
        for code, a, b in zip(start.split(BATCH), handles.split(BATCH), targets.split(BATCH), strict=True):
            drags = DragBatch(a, b, torch.ones(a.shape[:2], dtype=torch.bool))
            edits.append(predict(OpenImage.of(generator, code, editor), drags, config).latent)
        codes = torch.cat(edits)
        found, seen = see(generator, net, codes)
        left = (found.gather(1, chosen) - targets).norm(dim=2).mean() / (handles - targets).norm(dim=2).mean()
        lines.append(row(f"edits of {count}", f"{float(left):.1%}", codes, seen))
    print(markdown(["images", "of no edit", "Fréchet", "variance", "least", "most"], lines))


@torch.no_grad()
def see(
    generator: Generator, net: LandmarkNet, codes: Float[Tensor, "B L D"]
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B C"]]:
    """Landmarks and features of the images of the codes."""
    parts = [find_landmarks(net, generator(part).clamp(-1, 1)) for part in codes.split(BATCH)]
    return torch.cat([part.points for part in parts]), torch.cat([part.features for part in parts])


if __name__ == "__main__":
    main()
