"""The app under hands: frames per second while a pointer pulls, many clients at once, memory over many edits.

    python benchmarks/app.py                              # one pointer, seconds
    python benchmarks/app.py --clients 30 --seconds 60    # thirty at once for a minute
    python benchmarks/app.py --edits 1000                 # and the server's memory over a thousand edits

Starts a server of its own, speaks to it as the page does (positions at 60 per second over the WebSocket, a release, and
again), and prints one line of JSON for each part. Times are those that the client sees. Frames per second are those
frames that came while the pointer was down, by that time.
"""

from __future__ import annotations

import argparse
import asyncio
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

RATE = 60  # positions per second, as a screen draws
PULL_S = 2.0  # until the pointer is released


def resident(pid: int) -> float:
    """Resident memory in MiB. Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


class Pointer:
    """One client that pulls the nose back and forth, and what it saw."""

    def __init__(self, address: str, seed: int) -> None:
        self.address, self.seed = address, seed
        self.frames, self.pulled = 0, 0.0  # seconds
        self.firsts: list[float | None] = []  # seconds; None: the pointer was released before there was a frame
        self.edits = 0
        self.errors: list[str] = []
        self.lost = False

    async def work(self, seconds: float) -> None:
        """Pull for so long."""
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
        frames: list[float] = []  # when they came

        async def listen() -> None:
            while not idle.is_set():
                message = await socket.recv()
                header = unpack(message)[0] if isinstance(message, bytes) else json.loads(message)
                if header["type"] == "preview" and header["pull"] == pull:
                    frames.append(time.monotonic())
                elif header["type"] == "error":
                    self.errors.append(header["message"])
                elif header["type"] == "state":
                    self.edits += 1
                elif header["type"] == "activity" and header["activity"] in ("idle", "stopped"):
                    idle.set()

        listener = asyncio.create_task(listen())
        count = max(2, int(seconds * RATE))
        for step in range(count):
            target = [25 + 8 * math.sin(math.pi * (step + 1) / count), 30 + 2 * (step + 1) / count]
            edit = {"drags": [{"handle": [25, 30], "target": target}], "parameters": {"steps": 10}}
            await socket.send(json.dumps({"type": "pull", "pull": pull, "edit": edit}))
            await asyncio.sleep(1 / RATE)
        self.frames += len(frames)
        self.pulled += time.monotonic() - began
        self.firsts.append(frames[0] - began if frames else None)
        await socket.send(json.dumps({"type": "drag", "pull": pull, "edit": edit}))
        await listener


async def many(address: str, clients: int, seconds: float) -> dict[str, Any]:
    """So many pointers at once."""
    pointers = [Pointer(address, seed) for seed in range(13, 13 + clients)]
    began = time.monotonic()
    await asyncio.gather(*(pointer.work(seconds) for pointer in pointers))
    took = time.monotonic() - began
    rates = [pointer.frames / pointer.pulled for pointer in pointers if pointer.pulled]
    pulls = [first for pointer in pointers for first in pointer.firsts]
    firsts = [first for first in pulls if first is not None]
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "frames_per_second_while_pulling": round(statistics.median(rates), 2) if rates else None,
        "frames_per_second_of_the_slowest": round(min(rates), 2) if rates else None,
        "first_frame_ms_median": round(1000 * statistics.median(firsts)) if firsts else None,
        "first_frame_ms_worst": round(1000 * max(firsts)) if firsts else None,
        "pulls": len(pulls),
        "pulls_without_a_frame": len(pulls) - len(firsts),
        "edits": sum(pointer.edits for pointer in pointers),
        "errors": [error for pointer in pointers for error in pointer.errors][:5],
        "lost_sessions": sum(pointer.lost for pointer in pointers),
    }


def memory(address: str, pid: int, edits: int) -> dict[str, Any]:
    """Resident memory over many edits of one session."""
    with httpx.Client(base_url=address, timeout=300, trust_env=False) as http:
        key = http.post("/api/sessions", json={"seed": 13}).json()["key"]
        curve = [round(resident(pid), 1)]
        for edit in range(edits):
            x = 28 + 3 * math.sin(edit)
            document = {"drags": [{"handle": [28, 30], "target": [x, 31]}], "parameters": {"steps": 2}}
            http.post(f"/api/sessions/{key}/drag", json=document).raise_for_status()
            if (edit + 1) % max(1, edits // 10) == 0 or edit + 1 == edits:
                curve.append(round(resident(pid), 1))
    return {"edits": edits, "resident_mib": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--workers", type=int, help="of the server")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--edits", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "autodrag.cli", "app", "--port", "0", "--data", data]
        command += ["--checkpoints", args.checkpoints]
        command += ["--workers", str(args.workers)] if args.workers else []
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            httpx.post(f"{address}api/sessions", json={}, timeout=300).raise_for_status()  # loads and warms up
            print(json.dumps(asyncio.run(many(address, args.clients, args.seconds))), flush=True)
            if args.edits:
                print(json.dumps(memory(address, server.pid, args.edits)), flush=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
