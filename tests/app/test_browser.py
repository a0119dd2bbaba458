"""A real headless Chromium does what a person would: what must be seen on the page, and what came of it.

Debian's chromium is enough (`apt-get install chromium`); where there is none, these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.serving import Running, run
from app.test_api import decoded
from autodrag.app.config import AppConfig
from autodrag.checkpoint import load_landmarks
from autodrag.infer.measure import detect_landmarks

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; apt-get install chromium")

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SEED = 13
KEPT_LEVELS = 2.5
"""Mean change, in grey levels of 255, that the protected lower edge may show after the drag of the test above it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with the shipped checkpoint."""
    config = AppConfig(port=0, checkpoints=CHECKPOINTS, data=tmp_path_factory.mktemp("data"), workers=1, device="cpu")
    running = run(config)
    yield running
    running.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Person:
    """Somebody at the page; every request of it, and every complaint, is remembered."""

    def __init__(self, browser: Any, server: Running, **options: Any) -> None:
        self.server = server
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.frames: list[bytes] = []
        self.session = ""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda text: self.complaints.append(text.text) if text.type == "error" else None)
        self.page.on("websocket", self._connected)
        self.page.goto(f"{server.address}?seed={SEED}")
        self.rest()

    def _connected(self, socket: Any) -> None:
        self.session = "/" + socket.url.split("/", 3)[3].removesuffix("/live")
        socket.on("framereceived", lambda data: self.frames.append(data if isinstance(data, bytes) else data.encode()))

    def rest(self) -> None:
        """Wait until nothing goes on any more."""
        self.page.wait_for_timeout(120)
        self.page.wait_for_selector('body[data-busy="idle"]')

    def spot(self, x: float, y: float) -> tuple[float, float]:
        """Where on the page a point of the image is."""
        box = self.page.locator("#stage").bounding_box()
        return box["x"] + (x + 0.5) * box["width"] / 64, box["y"] + (y + 0.5) * box["height"] / 64

    def stroke(self, start: tuple[float, float], end: tuple[float, float], steps: int = 10, pause: int = 30) -> None:
        """Press, pull and let go."""
        self.page.mouse.move(*self.spot(*start))
        self.page.mouse.down()
        for step in range(1, steps + 1):
            share = step / steps
            self.page.mouse.move(
                *self.spot(start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
            )
            self.page.wait_for_timeout(pause)
        self.page.mouse.up()

    def tool(self, name: str) -> None:
        self.page.click(f'[data-tool="{name}"]')

    def state(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.server.http.get(self.session).json()
        return answer

    def image(self) -> bytes:
        """The present image as the server has it."""
        return self.server.http.get(f"{self.session}/image").content

    def told(self, kind: str) -> int:
        """How many frames of a kind have come."""
        return sum(f'"type": "{kind}"'.encode() in frame[:60] for frame in self.frames)


@pytest.fixture
def person(browser: Any, server: Running) -> Iterator[Person]:
    """At the page, with a wide window; nothing may have gone wrong in the end."""
    somebody = Person(browser, server)
    yield somebody
    somebody.context.close()
    assert somebody.complaints == []
    assert all(request.startswith((server.address, "blob:")) for request in somebody.requests), "a request elsewhere"


def nose(image: bytes) -> np.ndarray:
    """Where the landmark net, which knows nothing of the drag, sees the nose."""
    net = load_landmarks(CHECKPOINTS / "critters")
    assert net is not None
    place: np.ndarray = detect_landmarks(net, decoded(image))[net.config.names.index("nose")]
    return place


def test_a_pulled_nose_follows_and_arrives_and_undo_is_bit_for_bit(person: Person) -> None:
    first = person.image()
    x, y = nose(first).tolist()
    person.stroke((x, y), (x + 8, y), steps=16)
    assert person.told("preview") >= 2, "frames came while the pointer moved"
    person.rest()
    state, second = person.state(), person.image()
    assert state["present"] == 1
    assert np.hypot(*(nose(second) - [x + 8, y])) < 3
    assert person.frames[-2].endswith(second), "the page was shown the very image"
    assert not state["scene"]["points"][0]["lost"]
    assert "px left" in person.page.inner_text("#points")
    person.page.keyboard.press("Control+z")
    person.page.wait_for_selector("#redo:enabled")
    assert person.image() == first
    person.page.click("#redo")
    person.page.wait_for_selector("#redo:disabled")
    person.rest()
    assert person.image() == second


def test_an_exported_session_dropped_on_the_page_replays_to_the_same_image(person: Person, tmp_path: Path) -> None:
    person.stroke((25, 30), (30, 31))
    person.rest()
    image = person.image()
    person.page.click("#files-button")
    with person.page.expect_download() as download:
        person.page.click('[data-file="session"]')
    download.value.save_as(tmp_path / "session.json")
    person.page.keyboard.press("Escape")
    person.page.click("#image-button")
    person.page.click('.seed[aria-label="Seed 5"]')
    person.rest()
    assert person.state()["seed"] == 5 and person.image() != image
    person.page.set_input_files("#file", tmp_path / "session.json")
    person.rest()
    assert person.image() == image and person.state()["seed"] == SEED


def test_what_is_painted_over_stays(person: Person) -> None:
    before = decoded(person.image()).astype(float)

    def change() -> np.ndarray:
        after: np.ndarray = np.abs(decoded(person.image()).astype(float) - before).mean(axis=2)
        return after

    person.stroke((25, 30), (31, 30))
    person.rest()
    free = change()
    person.page.click("#undo")
    person.rest()
    person.page.click("#clear-points")
    person.tool("protect")
    person.page.locator("#feather").fill("0")
    person.page.locator("#brush").fill("30")
    person.stroke((0, 59), (63, 59), pause=5)
    person.tool("pull")
    person.stroke((25, 30), (31, 30))
    person.rest()
    name = person.state()["scene"]["mask"]
    movable = decoded(person.server.http.get(f"{person.session}/masks/{name}").content)[:, :, 0] > 127
    assert 0.1 < (~movable).mean() < 0.3 and not movable[59].any()
    kept = change()
    assert kept[~movable].mean() < KEPT_LEVELS < kept[movable].mean()
    assert kept[~movable].mean() < 0.7 * free[~movable].mean(), "the mask makes the difference"


def test_a_mask_is_held_by_the_refiner_unless_somebody_chooses(person: Person) -> None:
    def choice(name: str) -> Any:
        return sync_api.expect(person.page.locator(f'[data-setting="method"] input[value="{name}"]'))

    choice("both").to_be_checked()
    person.tool("protect")
    person.stroke((5, 59), (15, 59), pause=5)
    choice("refine").to_be_checked()
    person.tool("pull")
    person.stroke((25, 30), (27, 30))
    person.rest()
    assert person.state()["outcome"]["method"] == "refine"
    person.page.check('[data-setting="method"] input[value="both"]', force=True)
    person.stroke((40, 22), (41, 22))
    person.rest()
    choice("both").to_be_checked()
    assert person.state()["scene"]["mask"] and person.state()["outcome"]["method"] == "both"


def test_the_mask_can_be_freed_inverted_and_cleared(person: Person) -> None:
    hint = person.page.locator("#mask-hint")
    person.tool("protect")
    person.stroke((10, 10), (30, 10), pause=5)
    sync_api.expect(hint).to_contain_text(re.compile(r"\d+"))
    share = int(re.findall(r"\d+", hint.inner_text())[0])
    person.page.keyboard.press("i")
    sync_api.expect(hint).to_contain_text(re.compile(rf"\b({99 - share}|{100 - share}|{101 - share})\b"))
    person.page.click("#mask-invert")
    person.tool("free")
    person.stroke((10, 10), (30, 10), pause=5)
    assert int((re.findall(r"\d+", hint.inner_text()) or ["0"])[0]) < share
    person.page.keyboard.press("i")
    person.page.click("#mask-clear")
    sync_api.expect(hint).to_contain_text("Everything may move")


def test_the_keyboard_is_enough(person: Person) -> None:
    person.page.focus("#stage")
    person.page.keyboard.press("ArrowLeft")
    for _ in range(7):
        person.page.keyboard.press("ArrowLeft")
    person.page.keyboard.press("Enter")
    for _ in range(5):
        person.page.keyboard.press("ArrowRight")
    person.page.keyboard.press("Enter")
    person.rest()
    state = person.state()
    assert state["present"] == 1 and state["scene"]["points"][0]["target"] == [30, 32]
    person.page.keyboard.press("n")
    person.page.keyboard.press("Delete")
    sync_api.expect(person.page.locator(".point")).to_have_count(0)
    person.page.keyboard.press("a")
    person.page.keyboard.press("Enter")
    sync_api.expect(person.page.locator(".point.anchor")).to_have_count(1)


def test_points_are_placed_typed_and_removed_and_then_dragged_together(person: Person) -> None:
    person.tool("place")
    person.stroke((20, 30), (23, 31), pause=5)
    person.stroke((40, 22), (40, 19), pause=5)
    person.tool("anchor")
    person.page.mouse.click(*person.spot(18, 18))
    sync_api.expect(person.page.locator(".point.anchor")).to_have_count(1)
    person.rest()  # the list of points is drawn anew by every answer, which would take a half-typed number away
    person.page.wait_for_timeout(400)
    assert person.state()["present"] == 0, "placing moves nothing"
    person.page.fill('[aria-label="Target 1 x"]', "24.5")
    person.page.keyboard.press("Enter")
    person.page.click('[aria-label="Remove point 2"]')
    person.page.click("#run")
    person.rest()
    scene = person.state()["scene"]
    assert [point["target"] for point in scene["points"]] == [[24.5, 31]]
    assert len(scene["anchors"]) == 1


def test_stop_stops_a_refiner_that_would_go_on(person: Person) -> None:
    person.page.check('input[value="draggan"]', force=True)
    person.page.fill("#steps", "1000")
    person.page.keyboard.press("Tab")
    person.tool("place")
    person.stroke((25, 30), (45, 10), pause=5)
    person.page.click("#run")
    person.page.wait_for_selector("#stop:enabled")
    while person.told("step") < 1:
        person.page.wait_for_timeout(20)
    person.page.click("#stop")
    person.rest()
    assert person.state()["outcome"]["reason"] == "stopped"


def test_a_pull_that_is_given_up_leaves_everything_as_it_was(person: Person) -> None:
    image = person.image()
    person.page.mouse.move(*person.spot(25, 30))
    person.page.mouse.down()
    person.page.mouse.move(*person.spot(30, 30))
    while person.told("preview") < 1:
        person.page.wait_for_timeout(20)
    person.page.keyboard.press("Escape")
    person.page.mouse.up()
    person.rest()
    assert person.state()["present"] == 0 and person.page.locator(".point").count() == 0
    assert person.frames[-2].endswith(image), "the page shows the image from before"


def test_compare_and_themes(person: Person) -> None:
    assert person.page.is_disabled("#compare")
    person.stroke((25, 30), (28, 30))
    person.rest()
    person.page.click("#compare")
    sync_api.expect(person.page.locator("#split")).to_be_visible()
    person.page.click("#compare")
    sync_api.expect(person.page.locator("#split")).to_be_hidden()
    root = person.page.locator("html")
    assert root.get_attribute("data-theme") == "auto"
    person.page.keyboard.press("t")
    assert root.get_attribute("data-theme") == "light"


def test_a_saved_session_is_listed_and_opens_again(person: Person) -> None:
    person.stroke((25, 30), (28, 30))
    person.rest()
    image, session = person.image(), person.session
    person.page.click("#files-button")
    person.page.click("#save")
    person.page.wait_for_selector("#saved li")
    person.page.keyboard.press("Escape")
    person.page.close()
    person.page = person.context.new_page()  # another tab: another session
    person.page.on("websocket", person._connected)
    person.page.goto(person.server.address)
    person.rest()
    assert person.session != session
    person.page.click("#files-button")
    person.page.click('#saved li button:text("Open")')
    person.rest()
    assert person.session == session and person.image() == image


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_sticks_out_at_any_width(browser: Any, server: Running, width: int) -> None:
    somebody = Person(browser, server, viewport={"width": width, "height": 800}, has_touch=width < 800)
    try:
        for selector in (".bar", ".tools", "#stage", ".panel", "#theme"):
            box = somebody.page.locator(selector).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5, selector
        stage = somebody.page.locator("#stage").bounding_box()
        assert stage["width"] >= min(320, width * 0.4), "the image is large"
        assert somebody.complaints == []
    finally:
        somebody.context.close()
