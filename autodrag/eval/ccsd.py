"""FreeDrag's CCSD (Ling et al. 2024): the similarity of an image and the result of a drag p -> t and a drag t -> p.

The metric is the perceptual distance between the first and the last image. It favours methods that do nothing, so the
table also shows the distance that remains after the first drag. Our choices: MSE (images in [-1, 1]) and SSIM in
addition to LPIPS, or instead of it if its weights are missing; the second drag starts at the targets, regardless of the
end of the first drag; the drags are those of `autodrag eval mdd`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from autodrag.eval import perceptual
from autodrag.eval.log import Record
from autodrag.eval.metrics import mean_distance
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import Measure
from autodrag.eval.tasks import Pair


class ThereAndBackExperiment(Experiment):
    """Drag to the targets and back, and compare the result with the first image."""

    name = "ccsd"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.similarities = perceptual.similarities(args.metrics, self.bench.device)
        self.measures = {name: perceptual.MEASURES[name] for name in self.similarities} | {
            "distance": Measure("left by the first drag, px", 2),
            "seconds": Measure("seconds of both", 3),
        }

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        super().add_options(parser)
        perceptual.add_option(parser)

    @property
    def setup(self) -> Record:
        return {"measures": sorted(self.similarities)}

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        bench, drag = self.bench, pair.drag(points, self.bench.device)
        latent = pair.latent.to(bench.device)
        there = bench.run(method, latent, drag)
        back = bench.run(method, there.code.stack[-1].latent, replace(drag, handles=drag.targets, targets=drag.handles))
        before = bench.image(latent)
        record: Record = {name: measure(before, back.image) for name, measure in self.similarities.items()}
        record["initial"] = mean_distance(drag.handles, drag.targets)
        record["distance"] = make_ruler(bench, self.source.detector, pair, points)(there.code)
        record |= {"seconds": there.seconds + back.seconds, "steps": there.steps + back.steps}
        return record | {"reason": f"{there.reason}, {back.reason}"}, back.picture


main = partial(evaluate, ThereAndBackExperiment)
"""`autodrag eval ccsd`."""
