"""Time and memory of converting a 1024 px StyleGAN2 (config-f), for each format.

    python benchmarks/convert.py --results benchmarks/results/convert.json
    python benchmarks/convert.py --resolution 256 --formats nvidia

A file of random weights is written to a temporary folder and converted in a process of its own. Peak memory is resident
memory above what the process held before, with PyTorch imported. Each file holds one generator only, which is the worst
case: published files often hold three networks, of which one is read. Linux only.
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

from autodrag.errors import AutodragError
from autodrag.eval import results
from autodrag.eval.log import Record
from autodrag.eval.tables import Columns

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("nvidia", "tensorflow", "rosinality")
COLUMNS: Columns = {
    "format": lambda row: str(row["format"]),
    "px": lambda row: str(row["resolution"]),
    "file, MB": lambda row: f"{row['file_mb']:.1f}",
    "seconds": lambda row: f"{row['seconds']:.1f}",
    "peak memory, MB": lambda row: f"{row['peak_mb']:.0f}",
    "peak memory, files": lambda row: f"{row['peak_per_file']:.2f}",
}


def write(kind: str, path: Path, resolution: int) -> None:
    """Writes a source file of random weights."""
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


def measure(path: Path, out: Path) -> Record:
    """Converts in this process, which must be new."""
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


def measure_in_process(kind: str, resolution: int) -> Record:
    """Writes and converts a file, each in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / kind)
        subprocess.run([sys.executable, __file__, "--write", kind, path, "--resolution", str(resolution)], check=True)
        done = subprocess.run([sys.executable, __file__, "--measure", path], check=True, stdout=subprocess.PIPE)
    row: Record = json.loads(done.stdout)
    return row


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024, help="px")
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"comma-separated, of {','.join(FORMATS)}")
    parser.add_argument("--write", nargs=2, metavar=("FORMAT", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    results.add_option(parser)
    args = parser.parse_args()
    if args.write:
        write(args.write[0], Path(args.write[1]), args.resolution)
        return
    if args.measure:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(args.measure, Path(folder))))
        return
    formats = args.formats.split(",")
    for kind in formats:
        if kind not in FORMATS:
            raise AutodragError(f"--formats {args.formats}: {kind!r} is unknown; expected some of {', '.join(FORMATS)}")
    rows = [measure_in_process(kind, args.resolution) for kind in formats]
    command = ["python", "benchmarks/convert.py", *sys.argv[1:]]
    results.report(results.make_table("convert", command, COLUMNS, rows), args.results)


if __name__ == "__main__":
    try:
        main()
    except AutodragError as error:
        sys.exit(f"error: {error}")
