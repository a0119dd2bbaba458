"""Cost of a refiner step beside a plain synthesis of the same network, and peak memory of a drag.

    python benchmarks/refiner.py --sizes 128,256,512,1024

Random weights serve for speed. Syntheses and steps alternate in one process, so that a slow minute of the machine hits
both; the ratio of their medians is what to quote. Memory is the peak resident size of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import torch

from autodrag.eval.metrics import quartiles
from autodrag.infer.refine import RefineConfig, StepState, refine
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Generator, GeneratorConfig, seed_z


def measure(size: int, preset: str, rounds: int, steps: int, channel_base: int) -> dict[str, object]:
    """Seconds of plain synthesis and of one step, (25 %, median, 75 %), and their ratio."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(resolution=size, channel_base=channel_base)).freeze()
    generator = generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    latent = generator.map(seed_z(0, 512))
    config = replace(RefineConfig.preset(preset, (size, size)), steps=steps, patience=10**6)
    basis = LatentBasis.of(generator, samples=1024)
    handle = torch.tensor([[size * 0.4, size * 0.4]])
    target = torch.tensor([[size * 0.8, size * 0.8]])
    mark = 0.0
    synthesis: list[float] = []
    step: list[float] = []

    def on_step(state: StepState) -> None:
        nonlocal mark
        now = time.perf_counter()
        if state.step > 1:  # the first step also makes the references
            step.append(now - mark)
        mark = now

    with torch.no_grad():
        generator(latent)
    for _ in range(rounds):
        for _ in range(3):
            started = time.perf_counter()
            with torch.no_grad():
                generator(latent)
            synthesis.append(time.perf_counter() - started)
        mark = time.perf_counter()
        refine(generator, latent, handle, target, config=config, basis=basis, callback=on_step)
    plain, one = quartiles(synthesis), quartiles(step)
    return {
        "px": size,
        "preset": preset,
        "synthesis_s": [round(v, 4) for v in plain],
        "step_s": [round(v, 4) for v in one],
        "ratio_of_medians": round(one[1] / plain[1], 3),
        "steps_measured": len(step),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="128,256,512,1024")
    parser.add_argument("--presets", default="draggan,default")
    parser.add_argument("--channel-base", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", action="store_true", help="measure in this process (used by the command itself)")
    args = parser.parse_args()
    for size in args.sizes.split(","):
        for preset in args.presets.split(","):
            if args.one:
                print(json.dumps(measure(int(size), preset, args.rounds, args.steps, args.channel_base)), flush=True)
                continue
            command = [sys.executable, __file__, "--one", "--sizes", size, "--presets", preset]
            command += [
                "--rounds",
                str(args.rounds),
                "--steps",
                str(args.steps),
                "--channel-base",
                str(args.channel_base),
            ]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
