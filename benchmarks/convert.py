"""Time and memory of converting a 1024 px StyleGAN2 (config-f), for each format.

    python benchmarks/convert.py [--resolution 1024] [--formats nvidia,tensorflow,rosinality]

Writes a file of random weights to a temporary folder, converts it in a process of its own, and prints one line of
JSON for each format: the seconds, the file's bytes, and the peak of resident memory above what the process held
before (PyTorch imported), also as a multiple of the file. Each file holds one generator and nothing else, which is
the worst case: published files often carry three networks, of which one is read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("nvidia", "tensorflow", "rosinality")


def write(kind: str, path: Path, resolution: int) -> None:
    """Write a source file of random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from convert import sources

    sizes: dict[str, Any] = {"base": 32768, "most": 512, "w_dim": 512, "layers": 8}
    if kind == "nvidia":
        tensors = sources.nvidia_tensors(resolution, z_dim=512, **sizes)
        sources.write_nvidia(path, tensors, clamp=256.0, attributes={"": {"z_dim": 512}})
    elif kind == "tensorflow":
        sources.write_tensorflow(path, sources.tensorflow_tensors(resolution, z_dim=512, **sizes))
    else:
        average = np.zeros(512, np.float32)
        sources.write_rosinality(path, sources.rosinality_tensors(resolution, **sizes), average)


def resident(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the peak) of this process, in bytes. Linux only."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def measure(path: Path, out: Path) -> dict[str, object]:
    """Convert in this process, which must be fresh."""
    import safetensors.torch  # noqa: F401  (imported before the measurement, as PyTorch is)

    from autodrag.convert import convert

    before, start = resident("VmRSS"), time.perf_counter()
    report = convert(path, out)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    peak = resident("VmHWM") - before
    return {
        "format": report.format,
        "resolution": report.config.resolution,
        "file_mb": round(size / 2**20, 1),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak / 2**20, 1),
        "peak_per_file": round(peak / size, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--write", nargs=2, metavar=("FORMAT", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write(args.write[0], Path(args.write[1]), args.resolution)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.measure:
            print(json.dumps(measure(Path(args.measure), Path(folder))))
            return
        for kind in args.formats.split(","):
            path = Path(folder) / kind
            size = ("--resolution", str(args.resolution))
            subprocess.run([sys.executable, __file__, "--write", kind, path, *size], check=True)
            subprocess.run([sys.executable, __file__, "--measure", path], check=True)
            path.unlink()


if __name__ == "__main__":
    main()
