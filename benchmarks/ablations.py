"""Short trainings of the predictor that differ in one thing each, as in Tables 1 and 3 of Auto DragGAN.

    python benchmarks/ablations.py --regularizer runs/critters/regularizer/regularizer.safetensors

Every variant is trained for the same number of steps from the same seed by `autodrag train predictor`, and its average
weights answer the same held-out landmark drags, open loop and closed loop of three. What is reported is the mean
distance left as a share of no edit; landmarks are detected again on the result. These are short runs: they rank
variants, and say nothing of what long training would reach.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from autodrag.checkpoint import load_generator, load_landmarks, load_learned
from autodrag.files import write_json
from autodrag.train.heldout import held_out_drags, measure_drags
from autodrag.train.predictor import LearnedEditor


def losses(*, l1: float = 0.0, drag: float = 0.0, position: float = 0.0) -> list[str]:
    """Weights of the losses as options; what is not named counts nothing."""
    weights = {"l1": l1, "drag": drag, "position": position, "prior": 0.0, "moments": 0.0}
    return [word for name, weight in weights.items() for word in (f"--training.{name}_weight", str(weight))]


PAPER = losses(l1=0.1, drag=1)
FORCED = ["--training.teacher_forcing", "true", "--training.rounds", "1"]
VARIANTS: dict[str, list[str]] = {
    "as configured": [],
    "without regularizer": ["--regularizer", "null"],
    "regularizer at the paper's rate": ["--training.regularizer_lr", "1e-5"],
    **{f"n = {n}": ["--net.steps", str(n)] for n in (2, 3, 5, 10)},
    "trained open loop": ["--training.rounds", "1"],
    "L1 alone": losses(l1=1),
    "drag loss alone": losses(drag=1),
    "position loss alone": losses(position=5),
    "away from w*, Eq. 7 as printed": ["--motion.toward", "false"],
    "0.1 L1 + drag loss, the paper's": PAPER,
    "teacher forcing, n = 5": [*PAPER, "--net.steps", "5", *FORCED],
    "0.1 L1 + position loss": losses(l1=0.1, position=5),
    "with moments": ["--training.moments_weight", "0.2"],
    "layers together": ["--net.together", "true"],
    "drags beyond their matches": ["--motion.reach", "1.25"],
    "no positions": ["--net.positions", "false"],
    "a token per patch": ["--net.pairs", "false"],
}


def measure(folder: Path, checkpoint: str) -> dict[str, dict[str, float]]:
    """Share of the distance left by a trained variant, open and closed loop."""
    generator, identity = load_generator(checkpoint)
    generator.freeze()
    editor = LearnedEditor(*load_learned(folder, identity)).eval()
    held_out = held_out_drags(generator, load_landmarks(checkpoint), editor.predictor.config, count=256)
    return {
        name: measure_drags(held_out, generator, editor, rounds)[0] for name, rounds in (("open", 1), ("closed", 3))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Short trainings that differ in one thing each.")
    parser.add_argument("--config", default="configs/critters/predictor.yaml")
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--regularizer", required=True, help="stage 1's regularizer.safetensors")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32, help="motions of a step")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="variants; default: all"
    )
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    args = parser.parse_args()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.only:
        folder = args.out / "".join(c if c.isalnum() else "-" for c in name)
        result = folder / "left.json"
        if not result.exists():
            command = [sys.executable, "-m", "autodrag.cli", "train", "predictor", "--config", args.config]
            command += ["--checkpoint", args.checkpoint, "--regularizer", args.regularizer]
            command += ["--run.folder", str(folder), "--training.steps", str(args.steps)]
            command += ["--training.batch", str(args.batch)]
            command += ["--training.validate_steps", str(args.steps + 1), "--training.average_decay", "0.99"]
            subprocess.run([*command, *VARIANTS[name]], check=True, stdout=subprocess.DEVNULL)
            write_json(result, measure(folder, args.checkpoint))
        rows[name] = json.loads(result.read_text())
        print(name, rows[name], flush=True)
    counts = list(next(iter(rows.values()))["closed"])
    print("\n| variant | " + " | ".join(f"{c}, {loop} loop" for loop in ("open", "closed") for c in counts) + " |")
    print("|" + "---|" * (1 + 2 * len(counts)))
    for name, row in rows.items():
        cells = [f"{100 * row[loop][c]:.0f} %" for loop in ("open", "closed") for c in counts]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
