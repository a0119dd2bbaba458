"""Landmark manipulation, DragGAN's Table 1 (Pan et al. 2023, section 4.2), on any generator with a landmark net.

Two images A and B are sampled, and landmarks found in both. A drag takes l_A(S) to l_B(S) for a random subset S of
one, five or all landmarks; then landmarks are detected again on the result: MD = mean of ||l_result - l_B|| over S, px.

Our choices where the paper leaves them open: psi 0.7 as in its interface; S is drawn among the landmarks inside
the frame in both images; every method sees the same pairs, and its time includes the final synthesis and excludes
loading. "Torn" is the share of results in which the landmark net is less sure than in 95 % of the unedited images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.errors import AutodragError
from autodrag.eval.metrics import frechet_distance, quartiles
from autodrag.files import write_json, write_text
from autodrag.images import to_uint8, write_png
from autodrag.infer.draw import annotate, contact_sheet, enlarge
from autodrag.infer.latent_space import LatentBasis
from autodrag.infer.refine import RefineConfig, refine
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.stylegan2 import Generator, seed_z

METHODS = ("none", "draggan", "refiner")
SHEET_PAIRS = 32

Method = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, int, str]]
"""(latent (1, L, D), handles (N, 2), targets (N, 2)) to (edited latent, steps, reason)."""


@dataclass(frozen=True)
class Pair:
    """One drag task: image A, where its landmarks are, and where B has them."""

    seed: int
    latent: Float[Tensor, "1 L D"]
    source: Float[Tensor, "K 2"]
    target: Float[Tensor, "K 2"]
    order: tuple[int, ...]
    """Landmarks inside the frame in both images, shuffled; a subset of n points is the first n."""


@torch.no_grad()
def sample_pairs(generator: Generator, net: LandmarkNet, *, count: int, seed: int, psi: float) -> list[Pair]:
    """The tasks of a seed: pair k compares the images of seeds base + 2k and base + 2k + 1."""
    height, width = generator.config.image_size
    pairs: list[Pair] = []
    base = 1_000_000 * (seed + 1)
    rng = np.random.default_rng(seed)
    for k in range(count):
        latents = [generator.map(seed_z(base + 2 * k + i, generator.config.z_dim), psi=psi) for i in (0, 1)]
        a, b = (net(generator(latent).clamp(-1, 1)).points[0] for latent in latents)
        limit = a.new_tensor([width - 1, height - 1])
        inside = ((a >= 0) & (a <= limit) & (b >= 0) & (b <= limit)).all(dim=1).nonzero()[:, 0].tolist()
        order = tuple(int(i) for i in rng.permutation(inside))
        if order:
            pairs.append(Pair(base + 2 * k, latents[0], a, b, order))
    return pairs


def make_method(name: str, generator: Generator, steps: int | None) -> Method:
    """The drag function of a method, everything that is prepared once prepared."""
    if name == "none":
        return lambda latent, handles, targets: (latent, 0, "none")
    config = RefineConfig.preset("draggan" if name == "draggan" else "default", generator.config.image_size)
    if steps is not None:
        from dataclasses import replace

        config = replace(config, steps=steps)
    basis = LatentBasis.of(generator)

    def run(latent: Tensor, handles: Tensor, targets: Tensor) -> tuple[Tensor, int, str]:
        result = refine(generator, latent, handles, targets, config=config, basis=basis)
        return result.latent, result.steps, result.reason

    return run


def evaluate(
    generator: Generator,
    net: LandmarkNet,
    *,
    methods: tuple[str, ...],
    pairs: list[Pair],
    points: tuple[int, ...],
    out: Path,
    steps: int | None = None,
) -> list[dict[str, Any]]:
    """Runs what is missing of the table, one JSON line per drag into `out`/drags.jsonl; returns all lines."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "drags.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["method"], r["points"], r["pair"]) for r in records}
    prepared = {name: make_method(name, generator, steps) for name in methods}
    # Pair by pair and method by method, so that a slow minute of the machine hits all methods alike.
    tasks = [(n, k, name) for n in points for k in range(len(pairs)) for name in methods if (name, n, k) not in done]
    with log.open("a") as lines:
        for n, k, name in tqdm(tasks, unit="drag", disable=None):
            pair = pairs[k]
            chosen = list(pair.order[:n])
            handles, targets = pair.source[chosen], pair.target[chosen]
            started = time.perf_counter()
            latent, used, reason = prepared[name](pair.latent, handles, targets)
            with torch.no_grad():
                image = generator(latent).clamp(-1, 1)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                found = net(image)
            record = {
                "method": name,
                "points": n,
                "pair": k,
                "seed": pair.seed,
                "landmarks": chosen,
                "distance": float((found.points[0, chosen] - targets).norm(dim=1).mean()),
                "initial": float((handles - targets).norm(dim=1).mean()),
                "seconds": seconds,
                "steps": used,
                "reason": reason,
                "confidence": float(found.confidence.mean()),
                "features": [round(value, 4) for value in found.features[0].tolist()],
            }
            records.append(record)
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            if k < SHEET_PAIRS:
                write_png(out / "images" / f"{name}-{n}-{k:02d}.png", to_uint8(image)[0])
    return records


def summarise(records: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """One row per number of points and method: distances, time, Fréchet distance, share of torn results."""
    rows = []
    for n in sorted({r["points"] for r in records}):
        of = {name: [r for r in records if r["points"] == n and r["method"] == name] for name in METHODS}
        initial = of["none"]
        unsure = np.quantile([r["confidence"] for r in initial], 0.05) if initial else None
        before = torch.tensor([r["features"] for r in initial])
        for name, drags in of.items():
            if not drags:
                continue
            distances = [r["distance"] for r in drags]
            low, middle, high = quartiles(distances)
            fast, usual, slow = quartiles([r["seconds"] for r in drags])
            start = sum(r["initial"] for r in drags) / len(drags)
            row: dict[str, Any] = {"points": n, "method": name, "drags": len(drags)}
            row |= {"mean_px": sum(distances) / len(drags), "median_px": middle, "quartiles_px": [low, high]}
            row |= {"share_of_none": row["mean_px"] / start, "share_of_size": row["mean_px"] / size}
            row |= {
                "median_s": usual,
                "quartiles_s": [fast, slow],
                "mean_steps": sum(r["steps"] for r in drags) / len(drags),
            }
            if initial and len(drags) > 1 and len(initial) > 1:
                row["frechet"] = frechet_distance(torch.tensor([r["features"] for r in drags]), before)
                row["torn"] = sum(r["confidence"] < unsure for r in drags) / len(drags)
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = "| points | method | mean distance, px | of no edit | median (quartiles), px "
    head += "| seconds, median (quartiles) | steps | Fréchet | torn |"
    lines = [head, "|" + "---|" * 9]
    for r in rows:
        low, high = r["quartiles_px"]
        fast, slow = r["quartiles_s"]
        lines.append(
            f"| {r['points']} | {r['method']} | {r['mean_px']:.2f} | {100 * r['share_of_none']:.0f} % "
            f"| {r['median_px']:.2f} ({low:.2f}–{high:.2f}) | {r['median_s']:.3f} ({fast:.3f}–{slow:.3f}) "
            f"| {r['mean_steps']:.0f} | {r.get('frechet', 0.0):.3f} | {100 * r.get('torn', 0.0):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def write_sheet(generator: Generator, pairs: list[Pair], methods: tuple[str, ...], points: int, out: Path) -> Path:
    """A contact sheet of the first drags: before with the drag drawn on it, then every method's result."""
    from autodrag.images import read_image

    cells = []
    with torch.no_grad():
        for k, pair in enumerate(pairs[:SHEET_PAIRS]):
            chosen = list(pair.order[:points])
            before = to_uint8(generator(pair.latent))[0]
            cells.append(annotate(before, handles=pair.source[chosen], targets=pair.target[chosen], least=192))
            for name in methods:
                if name != "none":
                    cells.append(enlarge(read_image(out / "images" / f"{name}-{points}-{k:02d}.png"), 192))
    path = out / f"sheet-{points}.png"
    width = len(methods) - ("none" in methods) + 1
    write_png(path, contact_sheet(cells, columns=width * max(1, 12 // width)))
    return path


def main(argv: list[str]) -> int:
    """`autodrag eval landmarks`."""
    parser = argparse.ArgumentParser(prog="autodrag eval landmarks", description="Drag landmarks and find them again.")
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--points", default="1", help="numbers of points, such as 1,5,all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--psi", type=float, default=0.7)
    parser.add_argument("--steps", type=int, help="step limit of every method; default: each preset's own")
    parser.add_argument(
        "--out", type=Path, default=Path("out/eval-landmarks"), help="an earlier run there is continued"
    )
    args = parser.parse_args(argv)

    methods = tuple(args.methods.split(","))
    for name in methods:
        if name not in METHODS:
            raise AutodragError(f"method {name!r} is unknown; expected some of {', '.join(METHODS)}.")
    generator, identity = load_generator(args.checkpoint)
    generator.freeze()
    net = load_landmarks(args.checkpoint)
    if net is None:
        raise AutodragError(f"{args.checkpoint} holds no landmarks.safetensors; train one: autodrag train landmarks.")
    names = len(net.config.names)
    try:
        points = tuple(names if text == "all" else int(text) for text in args.points.split(","))
    except ValueError:
        points = (0,)
    if args.pairs < 1 or not all(1 <= n <= names for n in points):
        raise AutodragError(
            f"--pairs {args.pairs} --points {args.points}: expected at least 1, and 1 to {names} or all."
        )

    setup = {
        "fingerprint": identity,
        "pairs": args.pairs,
        "seed": args.seed,
        "psi": args.psi,
        "steps": args.steps,
    }
    marker = args.out / "setup.json"
    if marker.exists() and json.loads(marker.read_text()) != setup:
        raise AutodragError(f"{args.out} holds a run with other settings; choose another --out or delete it.")
    write_json(marker, setup)
    pairs = sample_pairs(generator, net, count=args.pairs, seed=args.seed, psi=args.psi)
    records = evaluate(generator, net, methods=methods, pairs=pairs, points=points, out=args.out, steps=args.steps)
    rows = summarise(
        [r for r in records if r["method"] in methods and r["points"] in points], generator.config.resolution
    )
    write_json(args.out / "table.json", rows)
    write_text(args.out / "table.md", table(rows))
    for n in points:
        write_sheet(generator, pairs, methods, n, args.out)
    print(table(rows), end="")
    return 0
