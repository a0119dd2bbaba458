"""The HTTP API: sessions, edits, history, uploads, exports, and refusals of bad input with status and sentence."""

from __future__ import annotations

import io
import json
import socket
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from app.serving import EDIT, Running
from autodrag.app import exports, picture
from autodrag.app.frames import png
from autodrag.checkpoint import save_code
from autodrag.edits import read_edits
from autodrag.infer.editor import DragEditor
from autodrag.nets.layers import Layers


def mask_png(height: int = 32, width: int = 32) -> bytes:
    """A mask whose left half may change."""
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:, : width // 2] = 255
    return png(mask)


def latent_file(value: float) -> bytes:
    """A latent of the tiny generator with one value everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latent.safetensors"
        save_code(path, Layers.of(torch.full((1, 8, 32), value)), {})
        return path.read_bytes()


def zipped(**files: bytes) -> bytes:
    """A zip with these files; `__` in a name stands for a dot."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]


def test_an_edit_its_undo_and_its_redo_are_bit_for_bit(shared: Running, tiny_checkpoint: Path) -> None:
    session = shared.open(seed=5)
    first = shared.http.get(f"{session}/image").content
    assert np.array_equal(decoded(first), DragEditor.load(tiny_checkpoint, device="cpu").open(5))
    state = shared.http.post(f"{session}/drag", json=EDIT).json()
    second = shared.http.get(f"{session}/image").content
    assert state["present"] == 1 and second != first and state["outcome"]["method"] == "refine"
    undone = shared.http.post(f"{session}/undo").json()
    assert undone["present"] == 0 and len(undone["images"]) == 2
    assert undone["scene"] == {"points": [], "anchors": [], "mask": None}, "as before the edit"
    assert shared.http.get(f"{session}/image").content == first
    assert shared.http.post(f"{session}/redo").json()["scene"] == state["scene"]
    assert shared.http.get(f"{session}/image").content == second
    assert shared.http.get(f"{session}/image?number={state['images'][0]}").content == first


def test_refine_tells_of_every_step(shared: Running) -> None:
    session = shared.open(seed=5)
    with shared.http.stream("POST", f"{session}/refine", json=EDIT) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line for line in answer.iter_lines() if line]
    kinds = [line.removeprefix("event: ") for line in events if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in events if line.startswith("data: ")]
    assert kinds == ["step"] * (len(kinds) - 1) + ["done"] and len(kinds) >= 2
    assert [step["step"] for step in data[:-1]] == list(range(len(data) - 1))
    assert data[-1]["present"] == 1


def test_a_session_that_is_taken_and_brought_replays_to_the_same_image(shared: Running, tmp_path: Path) -> None:
    session = shared.open(seed=5, psi=0.6)
    shared.http.put(f"{session}/masks/half.png", content=mask_png()).raise_for_status()
    shared.http.post(f"{session}/drag", json={**EDIT, "mask": "half.png", "anchors": [[3, 3]]}).raise_for_status()
    shared.http.post(f"{session}/drag", json={"drags": [{"handle": [20, 20], "target": [18, 22]}]}).raise_for_status()
    image = shared.http.get(f"{session}/image").content
    taken = shared.http.get(f"{session}/session")
    assert taken.headers["content-type"] == "application/zip"
    other = shared.open(seed=1)
    state = shared.http.put(f"{other}/session", content=taken.content).json()
    assert shared.http.get(f"{other}/image").content == image
    assert state["present"] == 3 and state["seed"] == 5 and state["psi"] == 0.6 and state["edits"] == 2
    back = shared.http.post(f"{other}/undo").json()
    assert back["scene"]["mask"] is None and back["scene"]["points"][0]["handle"] == [20, 20]
    scene = shared.http.post(f"{other}/undo").json()["scene"]
    mask = shared.http.get(f"{other}/masks/{scene['mask']}").content
    assert np.array_equal(decoded(mask), decoded(mask_png()))
    with zipfile.ZipFile(io.BytesIO(taken.content)) as archive:
        archive.extractall(tmp_path)
    assert len(read_edits(tmp_path / "session.json")) == 2, "the same file as everywhere"


def test_a_plain_session_is_plain_json_that_the_editor_replays(
    shared: Running, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    session = shared.open(seed=5)
    shared.http.post(f"{session}/drag", json=EDIT).raise_for_status()
    taken = shared.http.get(f"{session}/session")
    assert taken.headers["content-type"] == "application/json"
    (tmp_path / "session.json").write_bytes(taken.content)
    editor = DragEditor.load(tiny_checkpoint, device="cpu")
    assert np.array_equal(
        editor.load_session(tmp_path / "session.json"), decoded(shared.http.get(f"{session}/image").content)
    )


def test_a_latent_comes_back_as_the_same_image(shared: Running) -> None:
    session = shared.open(seed=5)
    shared.http.post(f"{session}/drag", json=EDIT).raise_for_status()
    image = shared.http.get(f"{session}/image").content
    latent = shared.http.get(f"{session}/latent").content
    other = shared.open(seed=1)
    state = shared.http.put(f"{other}/latent", content=latent).json()
    assert state["seed"] is None and state["present"] == 1
    assert shared.http.get(f"{other}/image").content == image
    shared.http.post(f"{other}/drag", json=EDIT).raise_for_status()
    assert shared.http.get(f"{other}/session").headers["content-type"] == "application/zip", "the latent goes with it"


def test_pictures_and_films(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PER_EDIT", 2)
    monkeypatch.setattr(exports, "REST", 1)
    session = shared.open(seed=5)
    shared.http.post(f"{session}/drag", json={**EDIT, "anchors": [[3, 3]]}).raise_for_status()
    assert min(decoded(shared.http.get(f"{session}/annotated").content).shape[:2]) >= 512
    number = shared.http.get(session).json()["images"][1]
    assert decoded(shared.http.get(f"{session}/thumb?number={number}").content).shape == (32, 32, 3)
    assert shared.http.get(f"{session}/film?suffix=gif").content.startswith(b"GIF8")
    film = shared.http.get(f"{session}/film")
    assert film.headers["content-type"] == "video/mp4" and film.content[4:8] == b"ftyp"
    assert decoded(shared.http.get("/api/thumbnail?checkpoint=tiny&seed=4").content).shape == (32, 32, 3)


def test_opening_another_image_is_a_step(shared: Running) -> None:
    session = shared.open(seed=5)
    first = shared.http.post(f"{session}/drag", json=EDIT).raise_for_status().json()
    image = shared.http.get(f"{session}/image").content
    state = shared.http.post(f"{session}/open", json={"seed": 9, "psi": 0.5}).json()
    assert (state["seed"], state["psi"], state["present"], state["edits"]) == (9, 0.5, 2, 0)
    assert state["opened"] == state["images"][2] and state["scene"]["points"] == []
    assert shared.http.get(f"{session}/image?number={first['images'][1]}").content == image
    back = shared.http.post(f"{session}/undo").json()
    assert back["seed"] == 5 and back["scene"] == first["scene"]
    assert shared.http.get(f"{session}/image").content == image
    shared.http.post(f"{session}/drag", json={"drags": [{"handle": [20, 20], "target": [18, 22]}]}).raise_for_status()
    assert shared.http.get(f"{session}/thumb?number={state['images'][2]}").status_code == 204, "discarded, no error"


def test_an_edit_may_open_its_own_image(shared: Running) -> None:
    session = shared.open(seed=5)
    state = shared.http.post(f"{session}/drag", json={**EDIT, "seed": 8, "psi": 0.9}).json()
    assert (state["seed"], state["psi"], state["present"], state["edits"]) == (8, 0.9, 2, 1)


def test_points_anchors_and_mask_are_steps_of_the_same_history(shared: Running) -> None:
    session = shared.open(seed=5)
    point = {"handle": [10, 12], "target": [15, 13]}
    shared.http.put(f"{session}/masks/half.png", content=mask_png()).raise_for_status()
    shared.http.put(f"{session}/scene", json={"points": [point]}).raise_for_status()
    shared.http.put(f"{session}/scene", json={"points": [point]}).raise_for_status()
    painted = shared.http.put(f"{session}/scene", json={"points": [point], "mask": "half.png"}).json()
    assert painted["present"] == 2 and len(set(painted["images"])) == 1, "the same scene is no step"
    dragged = shared.http.post(f"{session}/drag", json={"drags": [point], "parameters": {"steps": 3}}).json()
    assert dragged["present"] == 3 and dragged["scene"]["mask"] is None
    scenes = [shared.http.post(f"{session}/undo").json()["scene"] for _ in range(3)]
    assert [scene["mask"] for scene in scenes] == ["half.png", None, None]
    assert [len(scene["points"]) for scene in scenes] == [1, 1, 0]
    assert shared.http.post(f"{session}/redo?steps=3").json()["scene"] == dragged["scene"]


def test_a_scene_that_was_set_during_an_edit_keeps_the_tracked_handles(shared: Running) -> None:
    session = shared.open(seed=5)
    revision = shared.http.get(session).json()["revision"]
    dragged = shared.http.post(f"{session}/drag", json=EDIT).json()
    tracked = dragged["scene"]["points"][0]
    late = {"points": [{"handle": [10, 12], "target": [20, 20]}], "anchors": [[3, 3]], "revision": revision}
    scene = shared.http.put(f"{session}/scene", json=late).json()["scene"]
    assert scene["points"][0]["handle"] == tracked["handle"] and scene["points"][0]["target"] == [20, 20]
    assert scene["points"][0]["confidence"] == tracked["confidence"] and scene["anchors"] == [[3, 3]]
    moved = {"points": [{"handle": [10, 12], "target": [20, 20]}]}
    scene = shared.http.put(f"{session}/scene", json=moved).json()["scene"]
    assert scene["points"][0]["handle"] == [10, 12] and scene["points"][0]["confidence"] is None


def test_an_exported_picture_carries_its_session_and_its_latent(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = shared.open(seed=5)
    shared.http.put(f"{session}/masks/half.png", content=mask_png()).raise_for_status()
    shared.http.post(f"{session}/drag", json={**EDIT, "mask": "half.png"}).raise_for_status()
    image, exported = shared.http.get(f"{session}/image").content, shared.http.get(f"{session}/picture").content
    assert np.array_equal(decoded(exported), decoded(image))
    other = shared.open(seed=1)
    state = shared.http.put(f"{other}/picture", content=exported).json()
    assert state["seed"] == 5 and state["edits"] == 1 and shared.http.get(f"{other}/image").content == image
    contents = picture.extract(exported)
    for content in ({"latent": contents["latent"]}, {**contents, "session": b"rubbish"}):
        state = shared.http.put(f"{other}/picture", content=picture.embed(image, **content)).json()
        assert state["seed"] is None and shared.http.get(f"{other}/image").content == image


def test_a_deleted_session_is_gone(shared: Running) -> None:
    session = shared.open(seed=5)
    assert shared.http.delete(session).status_code == 204
    assert shared.http.get(session).status_code == 404


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/drag", b"not json", 422, "not JSON"),
    ("POST", "/drag", b"", 422, "not JSON"),
    ("POST", "/drag", b"\xff\xfe", 422, "not JSON"),
    ("POST", "/drag", {"drags": "many"}, 422, "drags"),
    ("POST", "/drag", {"drags": []}, 422, "no points"),
    ("POST", "/drag", b'{"drags": [{"handle": [NaN, 1], "target": [2, 2]}]}', 422, "NaN"),
    ("POST", "/drag", {"drags": [{"handle": [1, 1], "target": [1, 1]}]}, 422, "nothing to do"),
    ("POST", "/drag", {"drags": [{"handle": [1, 1], "target": [99, 1]}]}, 422, "outside"),
    ("POST", "/drag", {"drags": [{"handle": [k / 400, 1], "target": [2, 2]} for k in range(10000)]}, 422, "limit"),
    ("POST", "/drag", {"drags": [{"handle": [k, 1], "target": [2, 2]} for k in range(101)]}, 422, "limit of 100"),
    ("POST", "/drag", {**EDIT, "mask": "/etc/passwd"}, 422, "leaves"),
    ("POST", "/drag", {**EDIT, "mask": "nothing.png"}, 422, "upload it first"),
    ("POST", "/drag", {**EDIT, "mask": "\ud800"}, 422, "surrogate"),
    ("POST", "/refine", {**EDIT, "mask": "\ud800"}, 422, "surrogate"),
    ("POST", "/open", {"checkpoint": "\ud800"}, 422, "unicode"),
    ("POST", "/open", {"\ud800": 1}, 422, "unicode"),
    ("POST", "/drag", {**EDIT, "latent": "a.safetensors"}, 422, "upload the latent"),
    ("POST", "/drag", {**EDIT, "fingerprint": "0123456789abcdef"}, 422, "generator"),
    ("POST", "/drag", {**EDIT, "method": "predict"}, 422, "predictor"),
    ("POST", "/drag", {**EDIT, "parameters": {"keep_references": True}}, 422, "keep_references"),
    ("POST", "/drag", {"autodrag_session": 1, "edits": [EDIT, EDIT]}, 422, "one edit at a time"),
    ("POST", "/refine", {"drags": []}, 422, "no points"),
    ("POST", "/undo", None, 422, "0 steps to undo"),
    ("POST", "/redo?steps=2", None, 422, "0 steps to redo"),
    ("POST", "/undo?steps=-1", None, 422, "steps"),
    ("POST", "/open", {"seed": -1}, 422, "seed"),
    ("POST", "/open", {"seed": 2**40}, 422, "seed"),
    ("POST", "/open", b'{"psi": NaN}', 422, "psi"),
    ("POST", "/open", {"checkpoint": "../../etc"}, 422, "is not available"),
    ("POST", "/open", {"seed": 1, "label": 3}, 422, "no classes"),
    ("POST", "/open", {"sede": 1}, 422, "sede"),
    ("POST", "/open", b"[" * 100000, 400, "parsing the body"),
    ("GET", "/session", None, 422, "empty"),
    ("GET", "/image?number=99", None, 422, "not in the history"),
    ("GET", "/thumb?number=99", None, 422, "not in the history"),
    ("GET", "/film?suffix=exe", None, 422, "suffix"),
    ("GET", "/masks/none.png", None, 422, "upload it first"),
    ("PUT", "/masks/half.png", b"no image", 422, "not an image"),
    ("PUT", "/masks/half.png", mask_png(8, 8), 422, "resize the mask"),
    ("PUT", "/masks/half.png", mask_png(2000, 2000), 422, "limit of 1024 pixels"),
    ("PUT", "/masks/..%2Fhalf.png", mask_png(), 405, ""),
    ("PUT", "/masks/half.exe", mask_png(), 422, "name"),
    ("PUT", "/latent", b"rubbish", 422, "corrupt"),
    ("PUT", "/latent", latent_file(1e38), 422, "expected at most 10000"),
    ("PUT", "/latent", latent_file(-1e38), 422, "expected at most 10000"),
    (
        "PUT",
        "/session",
        zipped(
            a__json=json.dumps({**EDIT, "latent": "b.safetensors", "checkpoint": "tiny"}).encode(),
            b__safetensors=latent_file(1e38),
        ),
        422,
        "expected at most 10000",
    ),
    ("PUT", "/scene", {"points": [{"handle": [1, 1], "target": [99, 1]}]}, 422, "outside the image"),
    ("PUT", "/scene", {"anchors": [[-1, 1]]}, 422, "outside the image"),
    ("PUT", "/scene", {"anchors": [[k % 30, 1] for k in range(101)]}, 422, "limit of 100"),
    ("PUT", "/scene", {"mask": "none.png"}, 422, "upload it first"),
    ("PUT", "/scene", b'{"anchors": [[NaN, 1]]}', 422, "anchors"),
    ("PUT", "/scene", {"point": []}, 422, "point"),
    ("PUT", "/picture", mask_png(), 422, "carries no latent"),
    ("PUT", "/picture", b"GIF8", 422, "not a PNG"),
    ("PUT", "/picture", picture.embed(mask_png(), latent=b"rubbish"), 422, "corrupt"),
    ("PUT", "/picture", picture.embed(mask_png(), latent=latent_file(1e38)), 422, "expected at most 10000"),
    ("PUT", "/picture", picture.embed(mask_png(), session=b"rubbish"), 422, "not JSON"),
    ("POST", "/saves", {"name": ""}, 422, "name"),
    ("POST", f"/saves/{'A' * 32}/open", None, 404, "no saved session"),
    ("PUT", "/session", b"PK\x03\x04 rubbish", 422, "zip"),
    ("PUT", "/session", {"drags": EDIT["drags"]}, 422, "neither a seed nor a latent"),
    ("PUT", "/session", {**EDIT, "seed": 1, "checkpoint": "elsewhere"}, 422, "is not available"),
    ("PUT", "/session", b"x" * (9 * 2**20), 413, "limit"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_in_one_sentence(
    shared: Running, method: str, path: str, body: Any, status: int, words: str
) -> None:
    session = shared.open(seed=5)
    before = shared.http.get(session).json()
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    answer = shared.http.request(method, session + path, content=data, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert words in sentence and "\n" not in sentence and "/tmp" not in sentence
    assert shared.http.get(session).json() == before, "nothing has changed"


def test_a_foreign_key_opens_nothing(shared: Running) -> None:
    for key, status in (("A" * 32, 404), ("short", 422), ("..%2F..%2Fetc%2Fpasswd", 404), ("A" * 500, 422)):
        for path in ("", "/image", "/session"):
            assert shared.http.get(f"/api/sessions/{key}{path}").status_code == status


def test_a_body_that_is_cut_off_leaves_the_server_up(shared: Running) -> None:
    session = shared.open(seed=5)
    port = int(shared.address.rstrip("/").rpartition(":")[2])
    for path in (f"{session}/drag", f"{session}/open", "/api/sessions"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
                "Content-Length: 1000\r\n\r\n{".encode()
            )
    assert shared.http.get(session).json()["present"] == 0


def test_a_body_without_a_stated_length_is_bounded_too(shared: Running) -> None:
    session = shared.open(seed=5)
    answer = shared.http.put(f"{session}/session", content=(b"x" * 2**16 for _ in range(160)))
    assert answer.status_code == 413 and "limit" in answer.json()["detail"]


@pytest.mark.parametrize("names", [["../evil.json"], ["/evil.json"], ["a/b.json"], ["a.json", "b.json"], []])
def test_a_zip_with_strange_names_is_refused(shared: Running, names: list[str]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, json.dumps({**EDIT, "seed": 1}))
        archive.writestr("other.txt", "")
    session = shared.open(seed=5)
    answer = shared.http.put(f"{session}/session", content=buffer.getvalue())
    assert answer.status_code == 422 and "zip holds" in answer.json()["detail"]


def test_a_zip_that_swells_is_refused(shared: Running) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("session.json", b" " * (70 * 2**20))
    session = shared.open(seed=5)
    answer = shared.http.put(f"{session}/session", content=buffer.getvalue())
    assert answer.status_code == 422 and "more than" in answer.json()["detail"]


def test_the_page_asks_no_other_host(shared: Running) -> None:
    page = shared.http.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    folder = Path(__file__).resolve().parents[2] / "autodrag" / "app" / "page"
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, file
        assert shared.http.get(f"/{file.name}").status_code == 200
