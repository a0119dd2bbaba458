"""Freed memory stays with the process: the same work again costs fewer page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from autodrag.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()


def work(size):
    return torch.ones(size)[0]


for _ in range(3):
    work(5_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for k in range(20):
    work(5_000_000 + 100_000 * k)  # each larger than what glibc has learned by then to keep
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_kept_memory_is_not_asked_for_again() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    assert faults("keep") < 0.5 * faults("leave")
