"""The live drag: the newest pull is previewed, a release makes an edit, invalid messages close the socket."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from app.serving import EDIT, Running, hear, hear_rest, run
from autodrag.app.config import AppConfig
from autodrag.infer import editor
from autodrag.infer.editor import DragEditor


def say(socket: ClientConnection, kind: str, pull: int = 1, x: float = 15, **edit: Any) -> None:
    document = {**EDIT, "drags": [{"handle": [10, 12], "target": [x, 13]}], **edit}
    socket.send(json.dumps({"type": kind, "pull": pull, "edit": document}))


def test_a_pull_brings_frames_and_a_release_an_edit(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "PREVIEW_S", 10.0)  # enough for a step, however busy the machine is
    session = shared.open(seed=3)
    with shared.live(session) as socket:
        state, first = hear(socket, "state")
        assert state["state"]["present"] == 0 and first.startswith(b"\x89PNG")
        say(socket, "pull", 7)
        frame, image = hear(socket, "preview")
        assert frame["pull"] == 7 and len(frame["points"]) == 1 and image.startswith(b"\x89PNG") and image != first
        assert shared.http.get(f"{session}").json()["present"] == 0, "a pull is no edit"
        say(socket, "drag", 7)
        state, last = hear(socket, "state")
        assert state["state"]["present"] == 1 and last != first
        point = state["state"]["scene"]["points"][0]
        assert point["target"] == [15, 13] and point["handle"] != [10, 12] and point["confidence"] is not None
        hear_rest(socket)
        assert shared.http.get(f"{session}/image").content == last
        assert shared.http.post(f"{session}/undo").json()["present"] == 0
        assert hear(socket, "state")[1] == first


def test_of_many_positions_only_the_newest_is_computed(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    begun, go = threading.Event(), threading.Event()
    original = DragEditor.preview

    def preview(self: DragEditor, handles: Any, targets: Any, *rest: Any, **options: Any) -> Any:
        seen.append(targets[0][0])
        begun.set()
        assert go.wait(20)
        return original(self, handles, targets, *rest, **options)

    session = shared.open(seed=3)
    with shared.live(session) as socket:
        hear(socket, "state")
        monkeypatch.setattr(DragEditor, "preview", preview)
        say(socket, "pull", x=11)
        assert begun.wait(20)
        for step in range(200):
            say(socket, "pull", x=12 + step / 100)
        time.sleep(1.0)  # they have all been read, and one at most is kept
        go.set()
        while len(seen) < 2:
            hear(socket, "preview")
        assert seen[:2] == [11, 12 + 199 / 100]


def test_a_new_pull_ends_what_is_being_refined_and_keeps_what_it_reached(shared: Running) -> None:
    session = shared.open(seed=3)
    endless: dict[str, Any] = {"parameters": {"preset": "draggan", "steps": 100000, "lr": 1e-6}}
    with shared.live(session) as socket:
        hear(socket, "state")
        say(socket, "drag", x=25, **endless)
        hear(socket, "step")
        say(socket, "pull", 2)
        state, _ = hear(socket, "state")
        assert state["state"]["outcome"]["reason"] == "stopped"
        assert hear(socket, "preview")[0]["pull"] == 2


def test_several_points_are_predicted_again_in_all_rounds_when_the_pointer_rests(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    moving: list[bool] = []
    original = DragEditor.preview

    def preview(self: DragEditor, *args: Any, **options: Any) -> Any:
        if "moving" in options:  # the server's warm-up has no pointer
            moving.append(options["moving"])
        return original(self, *args, **options)

    monkeypatch.setattr(DragEditor, "preview", preview)
    server = run(AppConfig(**{**settings, "checkpoints": Path(__file__).parents[2] / "checkpoints"}))
    try:
        with server.live(server.open(seed=13)) as socket:
            hear(socket, "state")
            pairs = [{"handle": [25, 30], "target": [29, 32]}, {"handle": [40, 24], "target": [43, 26]}]
            say(socket, "pull", 1, drags=pairs, parameters={})
            hear(socket, "preview")
            hear(socket, "preview")
            say(socket, "pull", 2, drags=pairs[:1], parameters={})
            assert hear(socket, "preview")[0]["pull"] == 2
            socket.send('{"type": "stop"}')
            hear_rest(socket)
    finally:
        server.end()
    assert moving == [True, False, True], "one point has all its rounds at once"


@pytest.mark.parametrize("how", ["socket", "http"])
def test_stop_stops(shared: Running, how: str) -> None:
    session = shared.open(seed=3)
    with shared.live(session) as socket:
        hear(socket, "state")
        say(socket, "drag", x=25, parameters={"preset": "draggan", "steps": 100000, "lr": 1e-6})
        hear(socket, "step")
        if how == "socket":
            socket.send('{"type": "stop"}')
        else:
            assert shared.http.post(f"{session}/stop").status_code == 204
        hear_rest(socket)
        assert shared.http.get(session).json()["outcome"]["reason"] == "stopped"


def test_an_edit_has_a_limit_of_computing(settings: dict[str, Any]) -> None:
    server = run(AppConfig(**{**settings, "edit_s": 0.3}))
    try:
        session = server.open(seed=3)
        endless = {**EDIT, "parameters": {"preset": "draggan", "steps": 100000, "lr": 1e-6}}
        endless["drags"] = [{"handle": [10, 12], "target": [25, 13]}]
        assert server.http.post(f"{session}/drag", json=endless).json()["outcome"]["reason"] == "budget"
    finally:
        server.end()


def test_a_mistake_in_an_edit_is_told_and_the_socket_stays(shared: Running) -> None:
    session = shared.open(seed=3)
    with shared.live(session) as socket:
        hear(socket, "state")
        for edit, words in (
            ({"drags": []}, "no points"),
            ({"drags": [{"handle": [10, 12], "target": [1000, 0]}]}, "outside the image"),
            ({"mask": "none.png"}, "upload it first"),
            ({"mask": "\ud800"}, "surrogate"),
            ({"mask": "../../etc/passwd"}, "leaves"),
            ({"drags": [{"handle": [k, k], "target": [k, 0]} for k in range(101)]}, "limit of 100"),
            ({"unknown": 1}, "unknown"),
            ({"drags": [{"handle": [float("nan"), 1], "target": [2, 2]}]}, "NaN"),
        ):
            say(socket, "pull", 4, **edit)
            error, _ = hear(socket, "error")
            assert words in error["message"] and error["pull"] == 4
        say(socket, "pull", 5)
        assert hear(socket, "preview")[0]["pull"] == 5


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("not json", "not JSON"),
        ("[" * 50000, "not JSON"),
        ("5", "no known type"),
        ('{"type": "destroy"}', "no known type"),
        ('{"type": "pull", "pull": "1", "edit": {}}', "whole number"),
        ('{"type": "pull", "pull": -1, "edit": {}}', "whole number"),
        ('{"type": "drag", "pull": 1, "edit": []}', "object"),
        (b"\x00\x01", "binary"),
        ("9" * 70000, ""),  # the protocol's own limit: code 1009
    ],
)
def test_rubbish_closes_the_socket_with_a_reason_and_the_server_stays(
    shared: Running, message: str | bytes, reason: str
) -> None:
    session = shared.open(seed=3)
    with shared.live(session) as socket:
        hear(socket, "state")
        socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            hear(socket, "never")
    assert closed.value.rcvd is not None
    assert reason in closed.value.rcvd.reason and closed.value.rcvd.code in (1007, 1009)
    assert shared.http.get(session).status_code == 200


def test_a_foreign_session_is_not_found_and_a_foreign_origin_not_let_in(shared: Running) -> None:
    with shared.live("/api/sessions/AAAAAAAAAAAAAAAAAAAAAAAA") as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4404
    session = shared.open(seed=3)
    with pytest.raises(InvalidStatus), shared.live(session, origin="https://evil.example"):
        pass
    with shared.live(session, origin=shared.address.rstrip("/")) as socket:
        hear(socket, "state")


def test_who_does_not_read_does_not_hold_up_who_does(shared: Running) -> None:
    session = shared.open(seed=3)
    with shared.live(session) as deaf, shared.live(session) as socket:
        hear(socket, "state")
        for step in range(10):
            say(deaf, "pull", step, x=12 + step)
            hear(socket, "preview")
