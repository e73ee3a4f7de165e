"""A real browser, and pages that a command serves to it."""

from __future__ import annotations

import contextlib
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

PLACES = ("/usr/lib/chromium/chromium", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for place in PLACES if (found := shutil.which(place))), None)
FLAGS = (
    "no-sandbox",
    "disable-gpu",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-quic",
)
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy


def wait_for(address: str, check_alive: Callable[[], None]) -> None:
    """Until a page is served; `check_alive` raises where that will never be."""
    for _ in range(600):
        try:
            OPENER.open(address).close()
            return
        except OSError as waiting:
            if isinstance(waiting, urllib.error.HTTPError):  # the page that says that the model is loading
                waiting.close()
            check_alive()
            time.sleep(0.2)


@contextlib.contextmanager
def opened_browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here; with Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])
        yield browser
        browser.close()


def new_page(browser, width: int = 1280):
    """A page of a visitor of its own, with the errors that it says and the addresses that it asks for."""
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.set_default_timeout(120_000)  # machines may be busy
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    return page


def assert_nothing_fails_or_leaves(page, address: str) -> None:
    """Fonts, scripts and analytics stay on this machine."""
    assert page.said == []
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
