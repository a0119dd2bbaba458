"""Limits, access, and sessions that survive: in memory, on disk, after a killed server."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from app.serving import EDIT, Running, hear, run
from autodrag.app.config import AppConfig

Serve = Callable[..., Running]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def serve(settings: dict[str, Any], tmp_path: Path) -> Iterator[Serve]:
    """Start servers with other settings; they end with the test."""
    running: list[Running] = []

    def start(**overrides: Any) -> Running:
        running.append(run(AppConfig(**{**settings, "data": tmp_path / "data", **overrides})))
        return running[-1]

    yield start
    for server in running:
        server.end()


def test_sessions_are_bounded_and_the_refusal_says_so(serve: Serve) -> None:
    server = serve(sessions=2)
    first = server.open(seed=1)
    server.open(seed=2)
    full = server.http.post("/api/sessions", json={"seed": 3})
    assert full.status_code == 503 and "2 sessions" in full.json()["detail"]
    server.http.delete(first)
    server.open(seed=3)


def test_one_address_cannot_take_all_sessions(serve: Serve) -> None:
    server = serve(sessions_per_address=1)
    server.open(seed=1)
    full = server.http.post("/api/sessions", json={"seed": 3})
    assert full.status_code == 503 and "this address" in full.json()["detail"]


def test_an_idle_session_is_dropped_and_a_saved_one_comes_back(serve: Serve) -> None:
    server = serve(idle_s=1.0)
    saved, other = server.open(seed=1), server.open(seed=2)
    server.http.post(f"{saved}/drag", json=EDIT).raise_for_status()
    image = server.http.get(f"{saved}/image").content
    assert server.http.post(f"{saved}/save").json()["saved"]
    time.sleep(2.0)
    assert server.http.get(other).status_code == 404
    assert server.http.get(f"{saved}/image").content == image
    state = server.http.get(saved).json()
    assert state["present"] == 1 and state["saved"] and state["seed"] == 1


def test_a_saved_session_comes_back_with_its_history_mask_and_scenes(serve: Serve) -> None:
    from app.test_api import mask_png

    server = serve()
    session = server.open(seed=1)
    server.http.put(f"{session}/masks/half.png", content=mask_png()).raise_for_status()
    server.http.post(f"{session}/drag", json={**EDIT, "mask": "half.png", "anchors": [[3, 3]]}).raise_for_status()
    server.http.post(f"{session}/drag", json={"drags": [{"handle": [20, 20], "target": [18, 22]}]}).raise_for_status()
    server.http.post(f"{session}/save").raise_for_status()
    state, exported = server.http.get(session).json(), server.http.get(f"{session}/session").content
    images = [server.http.get(f"{session}/image?number={number}").content for number in state["images"]]
    server.end()
    again = serve()
    back = again.http.get(session).json()
    assert back["scene"] == state["scene"] and back["outcome"] == state["outcome"] and back["present"] == 2
    assert [again.http.get(f"{session}/image?number={number}").content for number in back["images"]] == images
    assert not set(back["images"]) & set(state["images"]), "a browser keeps images by id"
    undone = again.http.post(f"{session}/undo?steps=2").json()
    assert undone["scene"]["mask"] == "half.png" and undone["scene"]["anchors"] == [[3, 3]]
    again.http.post(f"{session}/redo?steps=2").raise_for_status()
    assert len(again.http.get(f"{session}/session").content) == len(exported)


def test_a_session_without_edits_is_saved_too(serve: Serve) -> None:
    server = serve()
    session = server.open(seed=6, psi=0.4)
    server.http.post(f"{session}/save").raise_for_status()
    image = server.http.get(f"{session}/image").content
    server.end()
    again = serve()
    assert again.http.get(f"{session}/image").content == image
    assert again.http.get(session).json()["seed"] == 6
    assert again.http.delete(f"{session}/save").status_code == 204
    assert not again.http.get(session).json()["saved"]


def test_the_disk_tells_nobody_the_key_and_holds_no_half_files(serve: Serve, tmp_path: Path) -> None:
    server = serve(saved=1)
    session = server.open(seed=1)
    server.http.post(f"{session}/save").raise_for_status()
    files = list((tmp_path / "data").rglob("*"))
    assert len([file for file in files if file.is_file()]) == 1
    assert all(session.rpartition("/")[2] not in str(file) for file in files)
    full = server.http.post(f"{server.open(seed=2)}/save")
    assert full.status_code == 503 and "saved already" in full.json()["detail"]


def test_a_long_history_forgets_its_beginning_and_still_replays(serve: Serve) -> None:
    server = serve(history=2)
    session = server.open(seed=1)
    for step in range(4):
        document = {"drags": [{"handle": [10 + step, 12], "target": [14, 14]}], "parameters": {"steps": 2}}
        state = server.http.post(f"{session}/drag", json=document).json()
    assert state["present"] == 2 and len(state["images"]) == 3 and state["seed"] is None
    image = server.http.get(f"{session}/image").content
    taken = server.http.get(f"{session}/session").content
    other = server.open(seed=2)
    server.http.put(f"{other}/session", content=taken).raise_for_status()
    assert server.http.get(f"{other}/image").content == image
    assert server.http.post(f"{session}/undo?steps=2").json()["present"] == 0


def test_a_killed_server_loses_no_saved_session(serve: Serve, settings: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autodrag.cli", "app", "--port", "0", "--device", "cpu"]
    command += ["--checkpoints", str(settings["checkpoints"]), "--data", str(tmp_path / "data")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            key = client.post("/api/sessions", json={"seed": 4}).json()["key"]
            client.post(f"/api/sessions/{key}/drag", json=EDIT).raise_for_status()
            client.post(f"/api/sessions/{key}/save").raise_for_status()
            image = client.get(f"/api/sessions/{key}/image").content
    finally:
        process.kill()
        process.communicate()
    assert serve().http.get(f"/api/sessions/{key}/image").content == image


# --- access ----------------------------------------------------------------------------------------------------------


def test_a_foreign_host_or_origin_is_turned_away(shared: Running) -> None:
    rebound = shared.http.get("/api/about", headers={"host": "evil.example:80"})
    assert rebound.status_code == 421 and "evil.example" in rebound.json()["detail"]
    for host in ("[", "127.0.0.1.evil.example", "", "192.168.0.1"):
        assert shared.http.get("/api/about", headers={"host": host}).status_code == 421, host
    foreign = shared.http.post("/api/sessions", json={}, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403 and "another site" in foreign.json()["detail"]
    assert shared.http.post("/api/sessions", json={}, headers={"origin": "null"}).status_code == 403
    own = shared.http.post("/api/sessions", json={}, headers={"origin": shared.address.rstrip("/")})
    assert own.status_code == 201


def test_where_a_token_is_demanded_nothing_answers_without_it(serve: Serve) -> None:
    server = serve(token="a-long-secret")
    for path in ("/", "/main.js", "/api/about", "/api/openapi.json", "/?token=wrong", "/api/about?token=a-long-secret"):
        assert server.http.get(path).status_code == 401, path
    assert server.http.get("/api/about", headers={"authorization": "Bearer wrong"}).status_code == 401
    server.http.headers["authorization"] = "Bearer a-long-secret"
    session = server.open(seed=1)
    del server.http.headers["authorization"]
    with pytest.raises(InvalidStatus), server.live(session):
        pass
    entered = server.http.get("/?token=a-long-secret&seed=7&psi=")
    assert entered.status_code == 303 and entered.headers["location"] == "/?seed=7&psi="
    assert {"httponly", "samesite=lax"} <= set(entered.headers["set-cookie"].lower().split("; "))
    assert server.http.get("/").status_code == 200, "the cookie is enough"
    cookie = entered.headers["set-cookie"].partition(";")[0]
    with server.live(session, additional_headers={"cookie": cookie}) as live:
        hear(live, "state")


def test_a_person_without_a_token_sees_a_page_and_a_program_json(serve: Serve) -> None:
    server = serve(token="a-long-secret")
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = server.http.get("/?seed=3", headers=browser)
    assert page.status_code == 401 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "needs a token" in page.text and "?token=" in page.text and "a-long-secret" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert server.http.get("/").json()["detail"].startswith("a token is needed")
    assert server.http.post("/api/sessions", headers=browser).json()["detail"].startswith("a token is needed")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_address_of_a_server_on_all_interfaces_can_be_opened(serve: Serve, host: str) -> None:
    if host == "::" and not has_ipv6():
        pytest.skip("no IPv6")
    server = serve(host=host, token="a-long-secret")
    name = urlsplit(server.address).hostname
    assert name is not None and not ipaddress.ip_address(name).is_unspecified
    assert server.http.get("/?token=a-long-secret").status_code == 303


def test_a_server_that_others_can_reach_needs_a_token() -> None:
    with pytest.raises(ValueError, match="token"):
        AppConfig(host="0.0.0.0")
    assert AppConfig(host="::1").is_local and not AppConfig(host="10.0.0.1", token="x").is_local


def test_a_body_that_trickles_is_ended(serve: Serve) -> None:
    server = serve(body_s=0.5)
    port = int(server.address.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(
            f"POST /api/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\n\r\n{".encode()
        )
        assert b" 408 " in raw.recv(1000).splitlines()[0]
