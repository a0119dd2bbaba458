"""Limits, access, and sessions that survive: in memory, on disk, after a killed server."""

from __future__ import annotations

import contextlib
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
from app.test_api import mask_png
from autodrag.app import connection
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


def test_an_idle_session_comes_back_from_disk(serve: Serve) -> None:
    server = serve(idle_s=1.0)
    session, untouched = server.open(seed=1), server.open(seed=2)
    assert server.http.post(f"{session}/drag", json=EDIT).raise_for_status().json()["saved"]
    image = server.http.get(f"{session}/image").content
    time.sleep(2.0)
    assert server.http.get(untouched).status_code == 404
    assert server.http.get(f"{session}/image").content == image
    state = server.http.get(session).json()
    assert state["present"] == 1 and state["saved"] and state["seed"] == 1


def test_a_session_survives_its_server_with_every_step(serve: Serve) -> None:
    server = serve()
    session = server.open(seed=1)
    server.http.put(f"{session}/masks/half.png", content=mask_png()).raise_for_status()
    scene = {"points": [{"handle": [10, 12], "target": [15, 13]}], "anchors": [[3, 3]], "mask": "half.png"}
    server.http.put(f"{session}/scene", json=scene).raise_for_status()
    server.http.post(f"{session}/drag", json={**EDIT, "mask": "half.png", "anchors": [[3, 3]]}).raise_for_status()
    server.http.post(f"{session}/open", json={"seed": 6, "psi": 0.4}).raise_for_status()
    server.http.post(f"{session}/drag", json={"drags": [{"handle": [20, 20], "target": [18, 22]}]}).raise_for_status()
    server.http.put(f"{session}/masks/unused.png", content=mask_png()).raise_for_status()
    server.http.put(f"{session}/scene", json={"anchors": [[5, 5]], "mask": "unused.png"}).raise_for_status()
    server.http.post(f"{session}/undo?steps=2").raise_for_status()

    def every_step(running: Running) -> list[Any]:
        """Scene, outcome and image of each step from the last to the first, and then the present step again."""
        state = running.http.get(session).json()
        present, last = state["present"], len(state["images"]) - 1
        running.http.post(f"{session}/redo?steps={last - present}").raise_for_status()
        steps = []
        for _ in range(last):
            state = running.http.get(session).json()
            steps.append(
                (state["scene"], state["outcome"], state["seed"], running.http.get(f"{session}/image").content)
            )
            running.http.post(f"{session}/undo").raise_for_status()
        running.http.post(f"{session}/redo?steps={present}").raise_for_status()
        return [present, *steps]

    before, numbers = every_step(server), server.http.get(session).json()["images"]
    exported = server.http.get(f"{session}/session")
    server.end()
    again = serve()
    back = again.http.get(session).json()["images"]
    assert [back.index(number) for number in back] == [numbers.index(number) for number in numbers]
    assert not set(back) & set(numbers), "a browser keeps images by id"
    assert every_step(again) == before and before[0] == 3
    assert before[1][0] == {"points": [], "anchors": [[5, 5]], "mask": "unused.png"}
    assert exported.status_code == 422, "the second image has no edit at this step"
    again.http.post(f"{session}/undo").raise_for_status()
    assert again.http.get(f"{session}/session").headers["content-type"] == "application/zip"
    assert again.http.get(f"{session}/masks/half.png").status_code == 200


def test_a_named_copy_has_its_own_key_and_stays_as_it_was(serve: Serve) -> None:
    server = serve()
    session = server.open(seed=6, psi=0.4)
    server.http.post(f"{session}/drag", json=EDIT).raise_for_status()
    image = server.http.get(f"{session}/image").content
    copy = server.http.post(f"{session}/saves", json={"name": "Nose 1"})
    assert copy.status_code == 201 and copy.json()["name"] == "Nose 1" and copy.json()["steps"] == 1
    key = copy.json()["save"]
    assert key != session.rpartition("/")[2] and server.http.get(f"/api/sessions/{key}").status_code == 404
    server.http.post(f"{session}/drag", json={"drags": [{"handle": [20, 20], "target": [18, 22]}]}).raise_for_status()
    latest = server.http.get(f"{session}/image").content
    state = server.http.post(f"{session}/saves/{key}/open").json()
    assert server.http.get(f"{session}/image").content == image and state["present"] == 4
    server.http.post(f"{session}/undo?steps=2").raise_for_status()
    assert server.http.get(f"{session}/image").content == latest
    server.end()
    again = serve()
    other = again.open(seed=1)
    again.http.post(f"{other}/saves/{key}/open").raise_for_status()
    assert again.http.get(f"{other}/image").content == image
    assert again.http.delete(f"/api/saves/{key}").status_code == 204
    assert again.http.post(f"{other}/saves/{key}/open").status_code == 404


def test_files_on_disk_do_not_reveal_the_key_and_are_complete(serve: Serve, tmp_path: Path) -> None:
    server = serve(saved=1)
    session = server.open(seed=1)
    assert not list((tmp_path / "data").rglob("*.zip")), "a session without steps is not saved"
    server.http.post(f"{session}/drag", json=EDIT).raise_for_status()
    server.http.post(f"{session}/saves", json={"name": "one"}).raise_for_status()
    files = [file for file in (tmp_path / "data").rglob("*") if file.is_file()]
    assert sorted(file.parent.name for file in files) == ["saved", "sessions"]
    assert all(session.rpartition("/")[2] not in str(file) for file in files)
    full = server.http.post(f"{session}/saves", json={"name": "two"})
    assert full.status_code == 503 and "saved already" in full.json()["detail"]
    server.http.delete(session)
    assert [file.parent.name for file in (tmp_path / "data").rglob("*.zip")] == ["saved"]


def test_the_oldest_session_on_disk_makes_room(serve: Serve, tmp_path: Path) -> None:
    server = serve(kept=2)
    for seed in range(3):
        server.http.post(f"{server.open(seed=seed)}/drag", json=EDIT).raise_for_status()
    assert len(list((tmp_path / "data").rglob("*.zip"))) == 2


def test_a_full_disk_does_not_undo_the_edit(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    session = server.open(seed=1)
    (tmp_path / "data").write_text("a file instead of a folder")
    state = server.http.post(f"{session}/drag", json=EDIT).raise_for_status().json()
    assert state["present"] == 1 and not state["saved"]


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


def test_a_killed_server_loses_nothing(serve: Serve, settings: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autodrag.cli", "app", "--port", "0", "--device", "cpu"]
    command += ["--checkpoints", str(settings["checkpoints"]), "--data", str(tmp_path / "data")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            key = client.post("/api/sessions", json={"seed": 4}).json()["key"]
            client.post(f"/api/sessions/{key}/drag", json=EDIT).raise_for_status()
            client.put(f"/api/sessions/{key}/masks/half.png", content=mask_png()).raise_for_status()
            scene = {"anchors": [[5, 5]], "mask": "half.png"}
            client.put(f"/api/sessions/{key}/scene", json=scene).raise_for_status()
            image = client.get(f"/api/sessions/{key}/image").content
    finally:
        process.kill()
        process.communicate()
    again = serve()
    assert again.http.get(f"/api/sessions/{key}/image").content == image
    assert again.http.get(f"/api/sessions/{key}").json()["scene"] == {"points": [], **scene}


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


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: "])
def test_connections_without_a_header_are_closed(serve: Serve, sent: bytes) -> None:
    server = serve(header_s=0.5, token="a-long-secret")
    port = int(server.address.rstrip("/").rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(connection.WAITING + 10)
        ]
        time.sleep(0.1)
        for raw in silent:
            with contextlib.suppress(ConnectionError):
                raw.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert silent[-1].recv(10) == b"", "one address has a limit of such connections"
        assert silent[0].recv(10) == b"", "and they have a limit of time"
    time.sleep(0.1)
    answer = server.http.get("/")
    assert answer.status_code == 401 and answer.headers["connection"] == "close"


def test_a_connection_may_be_used_for_long(serve: Serve) -> None:
    server = serve(header_s=0.3)
    session = server.open(seed=1)
    with server.live(session) as live:
        time.sleep(0.8)
        server.http.post(f"{session}/drag", json=EDIT).raise_for_status()
        hear(live, "state")
