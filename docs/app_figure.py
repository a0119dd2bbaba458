"""Draws docs/app.png: the editor with two points, a mask and an anchor; the comparison; the editor on a phone.

python docs/app_figure.py    # needs playwright, and chromium on the path (apt-get install chromium)
"""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from autodrag.app.config import AppConfig
from autodrag.app.server import make_server

SEED = 13
RESTS = 'body:is([data-busy="idle"], [data-busy="stopped"]):not([data-unanswered])'


def rest(page: Page) -> None:
    """Wait until the server has answered everything."""
    page.wait_for_timeout(200)
    page.wait_for_selector(RESTS)


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """Press at the first point, move through the others, release. Points are px of the image."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    view = page.evaluate("window.autodrag.view")
    places = [
        (box["x"] + view["left"] + (x + 0.5) * view["scale"], box["y"] + view["top"] + (y + 0.5) * view["scale"])
        for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()
    rest(page)


def edit(browser: Any, address: str, **options: Any) -> Page:
    """A page with two dragged points, an anchor and a painted mask."""
    page: Page = browser.new_context(device_scale_factor=1.5, **options).new_page()
    page.goto(f"{address}?seed={SEED}")
    rest(page)
    page.click('.tool[data-tool="protect"]')
    stroke(page, (4, 60), (60, 60))
    page.click('.tool[data-tool="anchor"]')
    stroke(page, (20, 52), (20, 52))
    page.click('.tool[data-tool="pull"]')
    stroke(page, (25, 30), (30, 29))
    stroke(page, (42, 24), (43, 21))
    if page.is_visible("#advice-close"):
        page.click("#advice-close")
    return page


def main() -> None:
    """Start a server, take the pictures, and write them side by side."""
    started, address = threading.Event(), []

    def announce(where: str) -> None:
        address.append(where)
        started.set()

    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        server = make_server(AppConfig(port=0, data=Path(data)), announce)
        thread = threading.Thread(target=server.run)
        thread.start()
        started.wait()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = edit(browser, address[0], viewport={"width": 1240, "height": 800})
        shots = [page.screenshot()]
        page.click("#compare")
        page.wait_for_timeout(500)
        shots.append(page.locator(".frame").screenshot())
        phone = edit(browser, address[0], viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
        shots.append(phone.screenshot())
        browser.close()
        server.should_exit = True
        thread.join()
    height = 600
    pictures = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    pictures = [picture.resize((round(picture.width * height / picture.height), height)) for picture in pictures]
    canvas = Image.new("RGB", (sum(picture.width for picture in pictures) + 32, height), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + 16
    canvas.save(Path(__file__).with_name("app.png"), optimize=True)


if __name__ == "__main__":
    main()
