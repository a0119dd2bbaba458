"""Short trainings of the predictor that differ in one thing each.

    python benchmarks/ablations.py

Every variant is trained for the same number of steps from the same seed by `autodrag train predictor`. Its average
weights then answer the same held-out landmark drags, open loop and closed loop of three rounds. The result is the mean
distance left as a share of no edit. These are short runs: they rank variants and do not predict long trainings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from autodrag.checkpoint import load_editor, load_generator, load_landmarks
from autodrag.files import write_json
from autodrag.train.heldout import held_out_drags, measure_drags

VARIANTS: dict[str, tuple[dict[str, object], list[str]]] = {
    "as configured": ({}, []),
    **{f"n = {n}": ({}, ["--net.steps", str(n)]) for n in (2, 3, 5, 10)},
    "layers aligned": ({"aligned": True}, []),
    "with moments": ({"moments_weight": 0.2}, []),
    "longer motion": ({"travel_share": [0.4, 1.0]}, []),
}
"""Name: changes of the stage, and options of the command."""


def stage(args: argparse.Namespace, changes: dict[str, object]) -> str:
    """The one stage of a variant, as an option."""
    return json.dumps([{"steps": args.steps, "lr": args.lr, "aligned": False, "average_decay": 0.99} | changes])


def measure(folder: Path, checkpoint: str) -> dict[str, dict[str, float]]:
    """Share of the distance left by a trained variant, open and closed loop."""
    generator, identity = load_generator(checkpoint)
    generator.freeze()
    editor = load_editor(folder, identity)
    assert editor is not None
    held_out = held_out_drags(generator, load_landmarks(checkpoint), editor.predictor.config, count=256)
    return {
        name: measure_drags(held_out, generator, editor, rounds)[0] for name, rounds in (("open", 1), ("closed", 3))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Short trainings that differ in one thing each.")
    parser.add_argument("--config", default="configs/critters/predictor.yaml")
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--batch", type=int, default=32, help="motions per step")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="variants; default: all"
    )
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    args = parser.parse_args()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.only:
        changes, options = VARIANTS[name]
        folder = args.out / "".join(c if c.isalnum() else "-" for c in name)
        result = folder / "left.json"
        if not result.exists():
            command = [sys.executable, "-m", "autodrag.cli", "train", "predictor", "--config", args.config]
            command += ["--checkpoint", args.checkpoint, "--run.folder", str(folder)]
            command += ["--training.stages", stage(args, changes), "--training.batch", str(args.batch)]
            command += ["--training.validate_steps", str(args.steps + 1)]
            subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
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
