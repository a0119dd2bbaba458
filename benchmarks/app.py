"""Frame rate, delay and memory of the app while clients pull points.

    python benchmarks/app.py --results benchmarks/results/app.json
    python benchmarks/app.py --clients 1,30 --points 1,5 --seconds 60 --edits 1000

Starts a server of its own and speaks to it as the page does: 60 positions per second over the WebSocket, a release,
and again. There is one row for each number of clients and points. `--edits` measures the server's memory over edits
in one session, after the clients. Times are those that a client sees; frames per second count the frames that arrive
while the pointer is down.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import websockets

from autodrag.app.frames import unpack
from autodrag.errors import AutodragError
from autodrag.eval import results
from autodrag.eval.log import Record
from autodrag.eval.tables import MISSING, Columns, optional

RATE = 60
"""Positions per second, the frame rate of a screen."""
PULL_S = 2.0
"""Seconds until the pointer is released."""

HANDLES = ((25, 30), (40, 24), (20, 18), (44, 18), (32, 45))
"""The points that are pulled, of the first image px."""

COLUMNS: Columns = {
    "clients": lambda row: str(row["clients"]),
    "points": lambda row: str(row["points"]),
    "frames per second, median": lambda row: optional(row["frames_per_second"], ".1f"),
    "of the slowest client": lambda row: optional(row["slowest_frames_per_second"], ".1f"),
    "first frame, ms, median": lambda row: optional(row["first_frame_ms"], ".0f"),
    "worst": lambda row: optional(row["worst_first_frame_ms"], ".0f"),
    "pulls without a frame": lambda row: f"{row['pulls_without_a_frame']} of {row['pulls']}",
    "errors": lambda row: str(row["errors"]),
    "lost sessions": lambda row: str(row["lost_sessions"]),
    "memory over the edits, MiB": lambda row: memory_cell(row["edits"], row["resident_mib"]),
}


def memory_cell(edits: int, curve: list[float]) -> str:
    """Resident memory before and after a number of edits."""
    return f"{curve[0]:.0f} to {curve[-1]:.0f} ({edits} edits)" if edits else MISSING


def resident(pid: int) -> float:
    """Resident memory of a process in MiB. Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


class Pointer:
    """A client that pulls points back and forth together, and counts frames and errors."""

    def __init__(self, address: str, seed: int, points: int) -> None:
        self.address, self.seed, self.points = address, seed, points
        self.frames, self.pulled_s = 0, 0.0
        self.first_frames_s: list[float | None] = []  # None: the pointer was released before a frame arrived
        self.errors: list[str] = []
        self.lost = False

    async def work(self, seconds: float) -> None:
        """Pulls again and again until the time is over."""
        async with httpx.AsyncClient(base_url=self.address, timeout=300, trust_env=False) as http:
            answer = await http.post("/api/sessions", json={"seed": self.seed})
            answer.raise_for_status()
            key = answer.json()["key"]
            try:
                await self._pull(f"ws{self.address.removeprefix('http')}api/sessions/{key}/live", seconds)
            except websockets.ConnectionClosed as closed:
                self.errors.append(f"closed: {closed}")
            self.lost = (await http.get(f"/api/sessions/{key}")).status_code != 200

    async def _pull(self, address: str, seconds: float) -> None:
        async with websockets.connect(address, compression=None, ping_timeout=None) as socket:
            await socket.recv()
            end, pull = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                pull += 1
                await self._once(socket, pull, min(PULL_S, end - time.monotonic()))

    async def _once(self, socket: Any, pull: int, seconds: float) -> None:
        idle = asyncio.Event()
        began = time.monotonic()
        arrivals: list[float] = []

        async def listen() -> None:
            while not idle.is_set():
                message = await socket.recv()
                header = unpack(message)[0] if isinstance(message, bytes) else json.loads(message)
                if header["type"] == "preview" and header["pull"] == pull:
                    arrivals.append(time.monotonic())
                elif header["type"] == "error":
                    self.errors.append(header["message"])
                elif header["type"] == "activity" and header["activity"] in ("idle", "stopped"):
                    idle.set()

        listener = asyncio.create_task(listen())
        count = max(2, int(seconds * RATE))
        for step in range(count):
            dx, dy = 8 * math.sin(math.pi * (step + 1) / count), 2 * (step + 1) / count
            drags = [{"handle": [x, y], "target": [x + dx, y + dy]} for x, y in HANDLES[: self.points]]
            edit = {"drags": drags, "parameters": {"steps": 10}}
            await socket.send(json.dumps({"type": "pull", "pull": pull, "edit": edit}))
            await asyncio.sleep(1 / RATE)
        self.frames += len(arrivals)
        self.pulled_s += time.monotonic() - began
        self.first_frames_s.append(arrivals[0] - began if arrivals else None)
        await socket.send(json.dumps({"type": "drag", "pull": pull, "edit": edit}))
        await listener


async def pull_together(address: str, clients: int, points: int, seconds: float) -> Record:
    """Runs a number of clients at the same time."""
    pointers = [Pointer(address, seed, points) for seed in range(13, 13 + clients)]
    await asyncio.gather(*(pointer.work(seconds) for pointer in pointers))
    rates = [pointer.frames / pointer.pulled_s for pointer in pointers if pointer.pulled_s]
    pulls = [first for pointer in pointers for first in pointer.first_frames_s]
    first_frames = [first for first in pulls if first is not None]
    errors = [error for pointer in pointers for error in pointer.errors]
    for error in errors[:5]:
        print(error, file=sys.stderr)
    return {
        "clients": clients,
        "points": points,
        "frames_per_second": statistics.median(rates) if rates else None,
        "slowest_frames_per_second": min(rates) if rates else None,
        "first_frame_ms": 1000 * statistics.median(first_frames) if first_frames else None,
        "worst_first_frame_ms": 1000 * max(first_frames) if first_frames else None,
        "pulls": len(pulls),
        "pulls_without_a_frame": len(pulls) - len(first_frames),
        "errors": len(errors),
        "lost_sessions": sum(pointer.lost for pointer in pointers),
    }


def memory(address: str, pid: int, edits: int) -> list[float]:
    """Resident memory of the server in MiB at eleven moments of a session's edits."""
    with httpx.Client(base_url=address, timeout=300, trust_env=False) as http:
        key = http.post("/api/sessions", json={"seed": 13}).json()["key"]
        curve = [round(resident(pid), 1)]
        for edit in range(edits):
            x = 28 + 3 * math.sin(edit)
            document = {"drags": [{"handle": [28, 30], "target": [x, 31]}], "parameters": {"steps": 2}}
            http.post(f"/api/sessions/{key}/drag", json=document).raise_for_status()
            if (edit + 1) % max(1, edits // 10) == 0 or edit + 1 == edits:
                curve.append(round(resident(pid), 1))
    return curve


def numbers(option: str, text: str, most: int) -> list[int]:
    """`1,5` as numbers from 1 to `most`."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1 or max(values) > most:
        raise AutodragError(f"{option} {text!r}: expected numbers from 1 to {most}, such as 1,5")
    return values


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--workers", type=int, help="of the server")
    parser.add_argument("--clients", default="1", help="numbers of clients, such as 1,30 (default: 1)")
    parser.add_argument("--points", default="1", help="numbers of points, up to 5, such as 1,5 (default: 1)")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each number of clients (default: 6)")
    parser.add_argument("--edits", type=int, default=0, help="also measure memory over this number of edits")
    results.add_option(parser)
    args = parser.parse_args()
    counts, sizes = numbers("--clients", args.clients, 1000), numbers("--points", args.points, len(HANDLES))
    rows: list[Record] = []
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "autodrag.cli", "app", "--port", "0", "--data", data]
        command += ["--checkpoints", args.checkpoints]
        command += ["--workers", str(args.workers)] if args.workers else []
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            httpx.post(f"{address}api/sessions", json={}, timeout=300).raise_for_status()  # loads and warms up
            for clients, points in itertools.product(counts, sizes):
                row = asyncio.run(pull_together(address, clients, points, args.seconds))
                rows.append(row | {"seconds": args.seconds, "edits": 0, "resident_mib": []})
            if args.edits:
                rows[-1] |= {"edits": args.edits, "resident_mib": memory(address, server.pid, args.edits)}
        finally:
            server.terminate()
            server.wait()
    words = ["python", "benchmarks/app.py", *sys.argv[1:]]
    results.report(results.make_table("app", words, COLUMNS, rows), args.results)


if __name__ == "__main__":
    try:
        main()
    except AutodragError as error:
        sys.exit(f"error: {error}")
