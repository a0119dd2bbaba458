"""The example of docs/http.md runs and gives the files that it names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import pytest

from app.serving import run
from autodrag.app.config import AppConfig


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
    match = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert match is not None
    server = run(
        AppConfig(port=0, checkpoints=Path(__file__).parents[2] / "checkpoints", data=tmp_path, workers=1, device="cpu")
    )
    try:
        script = match[1].replace("http://127.0.0.1:8765/", server.address)
        done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    finally:
        server.end()
    assert done.returncode == 0, done.stderr
    assert "event: step" in done.stdout and "event: done" in done.stdout
    assert len(json.loads((tmp_path / "session.json").read_text(encoding="utf-8"))["edits"]) == 2
    picture = cv2.imread(str(tmp_path / "image.png"))
    assert picture is not None and picture.shape == (64, 64, 3)
    assert (tmp_path / "latent.safetensors").stat().st_size > 1000
