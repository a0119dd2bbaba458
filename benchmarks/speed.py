"""A section for RESULTS.md: `autodrag eval speed` with the machine, the date and the command above its table.

    python benchmarks/speed.py --sizes 512,1024 --dtypes float32,bfloat16 --out out/speed

Takes the options of `autodrag eval speed`.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

from autodrag.errors import AutodragError
from autodrag.eval.speed import main


def machine() -> str:
    """Processor and graphics card, as their systems name them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    parts = [f"{os.cpu_count()} cores of {cpu}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}"])


if __name__ == "__main__":
    print("## Speed and memory\n")
    print(f"{datetime.date.today()}, {machine()}; medians with quartiles.\n")
    print(f"```\npython benchmarks/speed.py {shlex.join(sys.argv[1:])}".rstrip() + "\n```\n")
    try:
        sys.exit(main(sys.argv[1:]))
    except AutodragError as error:
        sys.exit(f"error: {error}")
