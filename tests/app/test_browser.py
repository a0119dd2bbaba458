"""A real headless Chromium does what a person would: what must be seen on the page, and what came of it.

Debian's chromium is enough (`apt-get install chromium`); where there is none, these tests are skipped.
"""

from __future__ import annotations

import dataclasses
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
from autodrag.app.frames import png
from autodrag.checkpoint import load_landmarks
from autodrag.infer.measure import detect_landmarks

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; apt-get install chromium")

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SEED = 13


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
        self.page.wait_for_selector('body:is([data-busy="idle"], [data-busy="stopped"]):not([data-unanswered])')

    def spot(self, x: float, y: float) -> tuple[float, float]:
        """Where on the page a point of the image is."""
        box = self.page.locator("#stage").bounding_box()
        view = self.page.evaluate("window.autodrag.view")
        return box["x"] + view["left"] + (x + 0.5) * view["scale"], box["y"] + view["top"] + (y + 0.5) * view["scale"]

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

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript. The page's policy does not allow Playwright's `wait_for_function`."""
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(condition)

    def pixels(self, *, hide_marks: bool = False) -> str:
        """The canvas as the page draws it, as a data URL."""
        marks = """const { points, anchors, mask } = window.autodrag;
          Object.assign(window.autodrag, { points: [], anchors: [] }); mask.share = 0;"""
        return str(
            self.page.evaluate(
                f"""async () => {{
                  {marks if hide_marks else ""}
                  dispatchEvent(new Event("resize")); window.autodrag.hover = null;
                  await new Promise((drawn) => setTimeout(drawn, 150));
                  return document.querySelector("#stage").toDataURL();
                }}"""
            )
        )

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
    assert kept[~movable].max() == 0 < free[~movable].max(), "the mask makes the difference"
    assert kept[movable].mean() > 1


def test_a_mask_does_not_change_the_method(person: Person) -> None:
    def choice(name: str) -> Any:
        return sync_api.expect(person.page.locator(f'[data-setting="method"] input[value="{name}"]'))

    choice("both").to_be_checked()
    person.tool("protect")
    person.stroke((5, 59), (15, 59), pause=5)
    choice("both").to_be_checked()
    person.tool("pull")
    person.stroke((25, 30), (27, 30))
    person.rest()
    assert person.state()["outcome"]["method"] == "both"
    person.page.check('[data-setting="method"] input[value="predict"]', force=True)
    person.stroke((40, 22), (41, 22))
    person.rest()
    choice("predict").to_be_checked()
    assert person.state()["scene"]["mask"] and person.state()["outcome"]["method"] == "predict"


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
    sync_api.expect(hint).to_contain_text("The whole image may change")


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
    state = person.state()
    assert state["edits"] == 0 and len(set(state["images"])) == 1, "placing moves nothing"
    assert len(state["scene"]["points"]) == 2 and len(state["scene"]["anchors"]) == 1, "and the server has it"
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


def test_the_theme_can_be_chosen(person: Person) -> None:
    root = person.page.locator("html")
    assert root.get_attribute("data-theme") == "auto"
    person.page.keyboard.press("t")
    assert root.get_attribute("data-theme") == "light"


def test_the_divider_is_dragged_on_the_image_and_nothing_is_edited(person: Person) -> None:
    assert person.page.is_disabled("#compare")
    person.tool("protect")
    person.stroke((5, 59), (15, 59), pause=5)
    person.tool("pull")
    person.stroke((25, 30), (28, 30))
    person.rest()
    state = person.state()
    person.page.click("#compare")
    person.until("window.autodrag.before !== null")
    picture = person.pixels()
    assert picture == person.pixels(hide_marks=True), "no hatch and no markers"
    person.stroke((32, 30), (50, 30), pause=5)
    person.page.wait_for_timeout(100)
    assert abs(person.page.evaluate("window.autodrag.split") - 50.5 / 64) < 0.02
    for key in ("ArrowLeft", "r", "i", "Delete", "Enter"):
        person.page.keyboard.press(key)
    assert person.page.evaluate("window.autodrag.split") < 0.78
    person.rest()
    assert person.state() == state
    person.page.keyboard.press("Escape")
    person.page.wait_for_timeout(50)
    assert person.page.get_attribute("#compare", "aria-pressed") == "false"


# --- the history -----------------------------------------------------------------------------------------------------


def test_undo_after_painting_takes_back_the_stroke(person: Person) -> None:
    hint = person.page.locator("#mask-hint")
    person.stroke((25, 30), (28, 30))
    person.rest()
    image = person.image()
    person.tool("protect")
    person.stroke((10, 50), (30, 50), pause=5)
    person.rest()
    person.tool("anchor")
    person.page.mouse.click(*person.spot(18, 18))
    person.rest()
    painted = hint.inner_text()
    assert "protected" in painted and person.page.locator(".point.anchor").count() == 1
    person.page.keyboard.press("Control+z")
    person.rest()
    assert person.page.locator(".point.anchor").count() == 0 and hint.inner_text() == painted
    person.page.keyboard.press("Control+z")
    person.rest()
    sync_api.expect(hint).to_contain_text("may change")
    assert person.image() == image and person.page.locator(".point").count() == 1
    person.page.keyboard.press("Control+y")
    person.page.keyboard.press("Control+Shift+Z")
    person.rest()
    sync_api.expect(hint).to_have_text(painted)
    assert person.page.locator(".point.anchor").count() == 1


def test_opening_another_image_can_be_undone(person: Person) -> None:
    person.stroke((25, 30), (28, 30))
    person.rest()
    image = person.image()
    person.page.click("#image-button")
    person.page.click('.seed[aria-label="Seed 5"]')
    person.rest()
    assert person.image() != image and person.page.locator(".point").count() == 0
    person.page.keyboard.press("Control+z")
    person.rest()
    assert person.image() == image and person.page.locator(".point").count() == 1
    assert person.page.inner_text("#image-name") == str(SEED)


def worked(person: Person) -> tuple[Any, ...]:
    """An edit, and then a point, an anchor and a stroke that no edit has used."""
    person.stroke((25, 30), (28, 30))
    person.rest()
    person.tool("place")
    person.stroke((40, 22), (40, 19), pause=5)
    person.tool("anchor")
    person.page.mouse.click(*person.spot(18, 18))
    person.tool("protect")
    person.stroke((10, 50), (30, 50), pause=5)
    person.rest()
    work = seen(person)
    assert work[1] == (2, 1) and "protected" in work[2]
    return work


def seen(person: Person) -> tuple[Any, ...]:
    person.rest()
    person.until("document.querySelector('#mask-hint').textContent.includes('protected')")
    anchors = person.page.locator(".point.anchor").count()
    points = person.page.locator(".point").count() - anchors
    return person.image(), (points, anchors), person.page.inner_text("#mask-hint")


def test_reload_back_and_a_closed_tab_lose_nothing(person: Person) -> None:
    work, session = worked(person), person.session
    person.page.reload()
    assert seen(person) == work and person.session == session
    person.page.goto("about:blank")
    person.page.go_back()
    assert seen(person) == work and person.session == session
    person.page.close()
    person.page = person.context.new_page()
    person.page.on("websocket", person._connected)
    person.page.goto(person.server.address)
    assert seen(person) == work and person.session == session
    person.session = ""
    other = person.context.new_page()
    other.on("websocket", person._connected)
    other.goto(person.server.address)
    other.wait_for_selector('body[data-busy="idle"]')
    assert person.session != session, "a second tab does not take the session of the first"


def test_a_change_that_waits_for_the_end_of_an_edit_survives_a_reload(person: Person) -> None:
    person.page.check('input[value="draggan"]', force=True)
    person.tool("place")
    person.stroke((25, 30), (45, 10), pause=5)
    person.page.click("#run")
    while person.told("step") < 1:
        person.page.wait_for_timeout(20)
    person.tool("protect")
    person.stroke((10, 50), (30, 50), pause=5)
    person.page.wait_for_timeout(50)
    person.page.reload()
    assert seen(person)[1] == (1, 0)
    assert person.state()["edits"] == 1 and person.state()["scene"]["mask"]


def test_a_server_that_ends_and_returns_loses_nothing(browser: Any, tmp_path: Path) -> None:
    config = AppConfig(port=0, checkpoints=CHECKPOINTS, data=tmp_path, workers=1, device="cpu")
    first = run(config)
    person = Person(browser, first)
    try:
        work = worked(person)
        first.end()
        person.page.wait_for_selector('#lamp[data-state="down"]')
        second = run(dataclasses.replace(config, port=int(first.address.rstrip("/").rpartition(":")[2])))
        try:
            person.server = second
            assert seen(person) == work
            assert person.page.get_attribute("#lamp", "data-state") == "idle"
            person.page.keyboard.press("Control+z")
            person.rest()
            sync_api.expect(person.page.locator("#mask-hint")).to_contain_text("may change")
        finally:
            second.end()
    finally:
        person.context.close()


def test_a_named_copy_opens_as_it_was_saved(person: Person) -> None:
    person.stroke((25, 30), (28, 30))
    person.rest()
    image, session = person.image(), person.session
    person.page.click("#files-button")
    person.page.fill("#save-name", "nose right")
    person.page.click("#save")
    person.page.wait_for_selector("#saved li")
    person.page.keyboard.press("Escape")
    person.stroke((40, 22), (40, 19))
    person.rest()
    later = person.image()
    assert later != image
    person.page.click("#files-button")
    assert "nose right" in person.page.inner_text("#saved")
    person.page.click('#saved li button:text("Open")')
    person.rest()
    assert person.session == session and person.image() == image
    person.page.keyboard.press("Control+z")
    person.page.keyboard.press("Control+z")
    person.rest()
    assert person.image() == later
    person.page.click("#files-button")
    person.page.click('#saved li button:text("Delete")')
    sync_api.expect(person.page.locator("#saved li")).to_have_count(0)


def test_an_exported_picture_opens_again_and_a_photograph_is_no_mask(person: Person, tmp_path: Path) -> None:
    person.stroke((25, 30), (28, 30))
    person.rest()
    image = person.image()
    person.page.click("#files-button")
    with person.page.expect_download() as download:
        person.page.click('[data-file="picture"]')
    download.value.save_as(tmp_path / "image.png")
    person.page.keyboard.press("Escape")
    person.page.click("#image-button")
    person.page.click('.seed[aria-label="Seed 5"]')
    person.rest()
    (tmp_path / "photograph.png").write_bytes(person.image())
    person.page.set_input_files("#file", tmp_path / "photograph.png")
    sync_api.expect(person.page.locator(".toast")).to_contain_text("nor a mask")
    person.rest()
    assert person.state()["scene"]["mask"] is None
    mask = np.full((64, 64, 3), 255, np.uint8)
    mask[40:] = 0
    (tmp_path / "mask.png").write_bytes(png(mask))
    person.page.set_input_files("#file", tmp_path / "mask.png")
    sync_api.expect(person.page.locator("#mask-hint")).to_contain_text("38 %")
    person.rest()
    assert person.state()["scene"]["mask"]
    person.page.set_input_files("#file", tmp_path / "image.png")
    person.rest()
    assert person.image() == image and person.state()["seed"] == SEED and person.state()["edits"] == 1


# --- view and tools --------------------------------------------------------------------------------------------------


def test_the_wheel_zooms_at_the_pointer_and_space_pans(person: Person) -> None:
    x, y = person.spot(20, 40)
    person.page.mouse.move(x, y)
    person.page.mouse.wheel(0, -600)
    person.until("window.autodrag.view.zoom > 1.5")
    person.page.wait_for_timeout(50)
    assert np.allclose(person.spot(20, 40), (x, y), atol=1)
    person.page.keyboard.down(" ")
    person.page.mouse.down()
    person.page.mouse.move(x + 30, y - 10)
    person.page.mouse.up()
    person.page.keyboard.up(" ")
    person.page.wait_for_timeout(50)
    assert np.allclose(person.spot(20, 40), (x + 30, y - 10), atol=1)
    assert person.page.locator(".point").count() == 0, "a pan is no pull"
    person.stroke((25, 30), (28, 30))
    person.rest()
    target = person.state()["scene"]["points"][0]["target"]
    assert np.allclose(target, [28, 30], atol=0.3), "points are placed in the zoomed image"
    person.page.keyboard.press("0")
    person.until("window.autodrag.view.zoom === 1")


def test_two_fingers_zoom_and_give_up_the_press_of_the_first(browser: Any, server: Running) -> None:
    person = Person(browser, server, viewport={"width": 390, "height": 844}, has_touch=True)
    try:
        touch = person.context.new_cdp_session(person.page)
        (x, y) = person.spot(32, 32)

        def dispatch(kind: str, *places: tuple[float, float]) -> None:
            points = [{"x": a, "y": b, "id": index} for index, (a, b) in enumerate(places)]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        dispatch("touchStart", (x - 40, y))
        dispatch("touchStart", (x - 40, y), (x + 40, y))
        for step in range(1, 9):
            dispatch("touchMove", (x - 40 - 5 * step, y), (x + 40 + 5 * step, y))
        dispatch("touchEnd")
        person.page.wait_for_timeout(100)
        zoom = person.page.evaluate("window.autodrag.view.zoom")
        assert 1.7 < zoom < 2.3
        assert np.allclose(person.spot(32, 32), (x, y), atol=4)
        person.rest()
        assert person.page.locator(".point").count() == 0 and person.state()["present"] == 0
    finally:
        person.context.close()


def test_brackets_change_the_brush_and_alt_erases(person: Person) -> None:
    size = person.page.locator("#brush-value")
    person.tool("protect")
    before = float(size.inner_text().split()[0])
    for _ in range(3):
        person.page.keyboard.press("]")
    sync_api.expect(size).not_to_have_text(f"{before} px")
    assert float(size.inner_text().split()[0]) > before
    person.stroke((10, 50), (30, 50), pause=5)
    person.rest()
    person.page.keyboard.down("Alt")
    person.stroke((10, 50), (30, 50), pause=5)
    person.page.keyboard.up("Alt")
    person.rest()
    sync_api.expect(person.page.locator("#mask-hint")).to_contain_text("may change")


def test_the_image_keeps_its_place_when_the_history_grows(person: Person) -> None:
    before = person.spot(0, 0)
    person.stroke((25, 30), (28, 30))
    person.rest()
    assert person.page.locator("#history li").count() == 2
    person.page.locator("#history button").first.click()
    person.rest()
    assert person.spot(0, 0) == before and person.state()["present"] == 0


def test_a_toolbar_is_one_stop_of_the_tab_key(person: Person) -> None:
    person.page.focus('[data-tool="pull"]')
    person.page.keyboard.press("ArrowDown")
    assert person.page.evaluate("document.activeElement.dataset.tool") == "place"
    person.page.keyboard.press("End")
    assert person.page.evaluate("document.activeElement.dataset.tool") == "free"
    person.page.keyboard.press("Tab")
    assert person.page.evaluate("document.activeElement.id") == "stage"
    person.page.keyboard.press("Shift+Tab")
    assert person.page.evaluate("document.activeElement.dataset.tool") == "free"


@pytest.mark.parametrize("height", [640, 844])
def test_on_a_phone_image_and_brush_are_in_view_and_targets_are_large(
    browser: Any, server: Running, height: int
) -> None:
    options = {"viewport": {"width": 375, "height": height}, "has_touch": True, "is_mobile": True}
    person = Person(browser, server, **options)
    try:
        person.tool("protect")
        person.page.wait_for_timeout(50)
        for selector in ("#stage", "#brush", "#feather", ".tools", "#undo"):
            box = person.page.locator(selector).bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= height + 1, selector
            middle = f"{box['x'] + box['width'] / 2}, {box['y'] + box['height'] / 2}"
            assert person.page.evaluate(
                f"document.querySelector('{selector}').contains(document.elementFromPoint({middle}))"
            ), f"{selector} is covered"
        small = person.page.evaluate(
            """[...document.querySelectorAll("button, select, .row, .choice label")]
              .filter((item) => item.checkVisibility() && item.offsetHeight)
              .filter((item) => item.offsetHeight < 44 || item.offsetWidth < 44)
              .map((item) => item.outerHTML.slice(0, 80))"""
        )
        assert small == []
    finally:
        person.context.close()


def test_a_drag_that_fails_offers_what_to_try(person: Person) -> None:
    person.page.check('[data-setting="method"] input[value="refine"]', force=True)
    person.page.check('input[name="space"][value="w"]', force=True)
    person.page.fill("#steps", "1")
    person.page.keyboard.press("Tab")
    person.tool("place")
    person.stroke((25, 30), (45, 12), pause=5)
    person.stroke((40, 22), (40, 19), pause=5)
    person.rest()
    person.page.click("#run")
    person.rest()
    advice = person.page.locator("#advice")
    sync_api.expect(advice).to_contain_text("Or try:")
    names = advice.locator(".advice-buttons button").all_inner_texts()
    assert {"More steps", "Use W+"} <= set(names) and any(name.startswith("Release point") for name in names)
    advice.get_by_text("Use W+").click()
    person.rest()
    assert person.state()["edits"] == 2 and person.page.is_checked('input[name="space"][value="w+"]')
    person.page.locator("#advice").get_by_text("Release point").click()
    person.rest()
    assert len(person.state()["scene"]["points"]) == 1
    person.page.click("#advice-close")
    sync_api.expect(advice).to_be_hidden()


def test_two_tabs_on_one_session_show_the_same_and_never_hang(person: Person) -> None:
    other = person.context.new_page()
    other.goto(person.server.address)
    other.evaluate(f"sessionStorage.setItem('autodrag-session', '{person.session.rpartition('/')[2]}')")
    other.reload()
    other.wait_for_selector('body[data-busy="idle"]')
    person.page.bring_to_front()
    person.page.mouse.move(*person.spot(25, 30))
    person.page.mouse.down()
    person.page.mouse.move(*person.spot(29, 30))
    other.wait_for_selector('#lamp[data-state="pulling"]')
    person.page.mouse.up()
    person.rest()
    other.wait_for_selector('body[data-busy="idle"]:not([data-unanswered])')
    other.wait_for_selector("#points .point")
    assert person.state()["edits"] == 1
    # The other tab undoes while this one pulls: the pull is given up, and both show the same.
    person.page.mouse.move(*person.spot(40, 22))
    person.page.mouse.down()
    person.page.mouse.move(*person.spot(40, 18))
    other.wait_for_selector('#lamp[data-state="pulling"]')
    other.bring_to_front()
    other.click("#undo")
    other.wait_for_selector("#points .point", state="detached")
    person.page.bring_to_front()
    person.page.mouse.up()
    person.rest()
    assert person.state()["present"] == 0 and person.page.locator(".point").count() == 0
    # A tab that is closed in the middle of a pull leaves no lamp on.
    person.page.mouse.move(*person.spot(25, 30))
    person.page.mouse.down()
    person.page.mouse.move(*person.spot(29, 30))
    other.wait_for_selector('#lamp[data-state="pulling"]')
    person.page.close()
    other.wait_for_selector('body:is([data-busy="idle"], [data-busy="stopped"])')
    person.page = other
    person.stroke((25, 30), (28, 30))
    person.rest()
    assert person.state()["edits"] == 1


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_sticks_out_at_any_width(browser: Any, server: Running, width: int) -> None:
    somebody = Person(browser, server, viewport={"width": width, "height": 800}, has_touch=width < 800)
    try:
        for selector in (".bar", ".tools", "#stage", ".brush", "#theme"):
            box = somebody.page.locator(selector).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5, selector
        stage = somebody.page.locator("#stage").bounding_box()
        assert stage["width"] >= min(320, width * 0.4), "the image is large"
        assert somebody.complaints == []
    finally:
        somebody.context.close()
