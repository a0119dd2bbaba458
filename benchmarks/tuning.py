"""How the default settings of refiner and closed loop were chosen: one changed at a time, on pairs that no table uses.

    python benchmarks/tuning.py --pairs 16 --points 1,5,11 --only prior
    python benchmarks/tuning.py --pairs 60 --points 1,5,11 --only rounds

The pairs are none of `autodrag eval landmarks`. Shown are the distances left by the landmark net and by the tracker: a
setting that helps the second alone only fools it. Torn heads are counted as in that protocol, and the Fréchet distance
to the unedited ones is in the net's features.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from autodrag.infer.refine import RefineConfig, refine

from autodrag.checkpoint import load_generator, load_landmarks, load_learned
from autodrag.data.latents import map_codes
from autodrag.eval.landmarks import USUAL
from autodrag.eval.metrics import frechet_distance, strangeness
from autodrag.eval.run import markdown
from autodrag.infer.measure import find_landmarks
from autodrag.infer.predict import LearnedNets, PredictConfig, make_drags, predict
from autodrag.nets.latent_space import LatentBasis, LatentFrame

VALUES: dict[str, tuple[Any, ...]] = {
    "prior": (0.0, 2.0, 3.0, 5.0, 8.0),
    "damping": (0.1, 0.5, 2.0),
    "reach": (1 / 64, 1 / 32, 1 / 16),
    "patience": (2, 3, 5),
    "reuse": (0, 1, 2),
    "space": ("auto", "w+"),
}
ROUNDS = (1, 2, 4, 6)
"""Of the closed loop."""


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--points", default="1,5,11")
    parser.add_argument("--seed", type=int, default=5005)
    parser.add_argument("--only", choices=(*VALUES, "rounds"), help="this setting alone")
    args = parser.parse_args()
    generator, identity = load_generator(args.checkpoint)
    generator.freeze()
    net = load_landmarks(args.checkpoint)
    assert net is not None, "tuning needs a checkpoint with a landmark net"
    basis, frame = LatentBasis.of(generator), LatentFrame(generator.config.w_dim)
    frame.take(basis)
    rng = torch.Generator().manual_seed(args.seed)
    psi = torch.full((args.pairs,), 0.7)
    with torch.no_grad():
        a, b = (
            map_codes(generator, args.pairs, psi, rng)[:, None].repeat(1, generator.config.latent_layers, 1)
            for _ in range(2)
        )
        first, last = (find_landmarks(net, generator(x).clamp(-1, 1)) for x in (a, b))
    start, goal = first.points, last.points
    order = [torch.randperm(start.shape[1], generator=rng) for _ in range(args.pairs)]
    with torch.no_grad():
        codes = map_codes(generator, USUAL, torch.full((USUAL,), 0.7), rng)[:, None]
        codes = codes.expand(-1, generator.config.latent_layers, -1)
        usual = torch.cat([find_landmarks(net, generator(x).clamp(-1, 1)).points for x in codes.split(50)])
    limit = strangeness(usual, usual).quantile(0.95)
    preset = RefineConfig.preset("default", generator.config.image_size)
    variants: dict[str, RefineConfig | PredictConfig] = {} if args.only == "rounds" else {"as shipped": preset}
    if args.only in (None, "rounds"):
        nets = LearnedNets(*load_learned(args.checkpoint, identity)).to(torch.device("cpu"))
        variants |= {f"rounds {n}": PredictConfig(rounds=n) for n in ROUNDS}
    for name, values in VALUES.items():
        if args.only in (None, name):
            for value in values:
                if value != getattr(preset, name):
                    shown = value if isinstance(value, str) else f"{value:g}"
                    variants[f"{name} {shown}"] = replace(preset, **{name: value})
    lines = []
    for count in (int(n) for n in args.points.split(",")):
        before = np.mean([float((start - goal)[k][order[k][:count]].norm(dim=1).mean()) for k in range(args.pairs)])
        for name, config in variants.items():
            held = replace(config, stop_px=1.0 if count <= 5 else 2.0)
            rows, features = [], []
            for k in range(args.pairs):
                chosen = order[k][:count]
                began = time.perf_counter()
                task = (generator, a[k : k + 1], start[k][chosen], goal[k][chosen])
                if isinstance(held, RefineConfig):
                    result = refine(*task, config=held, basis=basis)
                    latent, tracked, steps = result.latent, result.distances, result.steps
                else:
                    drags = make_drags(nets.predictor, *task[2:])
                    guess = predict(nets, *task[:2], drags, config=held)
                    latent, tracked, steps = guess.latent.clone(), guess.distances, guess.rounds
                took = time.perf_counter() - began
                with torch.no_grad():
                    seen = find_landmarks(net, generator(latent).clamp(-1, 1))
                features.append(seen.features)
                torn = float(strangeness(seen.points, usual)[0] > limit)
                length = frame.coordinates(latent) - frame.coordinates(a[k : k + 1])
                left = float((seen.points[0][chosen] - goal[k][chosen]).norm(dim=1).mean())
                rows.append((left, float(tracked.mean()), float(length.norm()), torn, steps, took))
            left, near, far, torn, made, _ = np.mean(rows, axis=0)
            cells = [str(count), name, f"{left:.2f}", f"{left / before:.0%}", f"{near:.2f}", f"{far:.2f}"]
            cells += [f"{torn:.1%}", f"{frechet_distance(torch.cat(features), first.features):.3f}", f"{made:.1f}"]
            lines.append([*cells, f"{np.median([row[5] for row in rows]):.3f}"])
            print(" ".join(lines[-1]), flush=True)
    columns = ["points", "setting", "left, px", "of no edit", "by the tracker, px", "length", "torn", "Fréchet"]
    columns += ["steps", "seconds"]
    print("\n" + markdown(columns, lines))


if __name__ == "__main__":
    main()
