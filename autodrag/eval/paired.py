"""Paired reconstruction, DragGAN's Table 2 (Pan et al. 2023, section 4.2, after Endo 2022), on any generator.

A code w1 is perturbed to w2. The drags are 32 random pixels of the optical flow from image I1 to image I2. The result
I' should equal I2; the metrics are 100 * mean((I' - I2)^2) and 10 * LPIPS after at most 100 steps.

Published settings: 32 points, 100 steps, 1000 pairs. Our choices: the perturbation is the formula of the training of
UserControllableLT, with its psi of 0.3 for w1 (see `Perturbation`); the flow is OpenCV's DIS; images are in [-1, 1];
SSIM is added.
"""

from __future__ import annotations

import argparse
from functools import partial

from autodrag.eval import perceptual
from autodrag.eval.log import Record
from autodrag.eval.metrics import mean_distance
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import Columns, Measure
from autodrag.eval.tasks import FlowSource, Pair, Source


class PairedExperiment(Experiment):
    """Reconstruct a perturbed image from the optical flow between the two images."""

    name = "paired"
    steps = 100
    psi = 0.3
    points = "32"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.similarities = perceptual.similarities(args.metrics, self.bench.device)
        scores = {name: perceptual.MEASURES[name] for name in self.similarities}
        self.measures = {"initial": Measure("drag, px", 2, spread=False)} | scores | {"seconds": Measure("seconds", 3)}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        FlowSource.add_options(parser, 0.1)
        perceptual.add_option(parser)

    def read_source(self, args: argparse.Namespace) -> Source:
        return FlowSource.read(args, self.bench)

    @property
    def setup(self) -> Record:
        return {"measures": sorted(self.similarities)}

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        bench, drag = self.bench, pair.drag(points, self.bench.device)
        edited = bench.run(method, pair.latent.to(bench.device), drag)
        goal = bench.image(pair.goal.to(bench.device))
        scores = {name: measure(edited.image, goal) for name, measure in self.similarities.items()}
        return {"initial": mean_distance(drag.handles, drag.targets)} | scores | edited.record(), edited.picture

    def extras(self, drags: list[Record], unedited: list[Record]) -> Record:
        return {"mean_steps": sum(r["steps"] for r in drags) / len(drags)}

    @property
    def extra_columns(self) -> Columns:
        return {"steps": lambda row: f"{row['mean_steps']:.0f}"}


main = partial(evaluate, PairedExperiment)
"""`autodrag eval paired`."""
