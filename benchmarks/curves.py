"""Draws the curves of a training run from its TensorBoard logs.

python benchmarks/curves.py runs/critters/generator checkpoints/critters/curves.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(folder: Path, out: Path) -> None:
    """One panel per scalar under `folder`/logs, as logged and as a running mean."""
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in sorted(events.Tags()["scalars"]) if name != "epoch"]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = events.Scalars(name)
        values = np.array([p.value for p in points])
        steps = np.array([p.step for p in points])
        width = max(1, len(values) // 30)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(steps, values, alpha=0.3)
        axis.plot(steps[width - 1 :], smooth)
        axis.set(title=name, xlabel="optimiser steps")
    figure.tight_layout()
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
