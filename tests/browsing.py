"""What tests do with pages in a browser."""

import contextlib
import os
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

PHONE = {"width": 390, "height": 844}


@contextlib.contextmanager
def a_browser():
    """Chromium, without a window; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")))
    path = next(found, None) or pytest.skip("no browser: chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # As root, as in a container, chromium has no sandbox.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def watched(browser, address, **options):
    """The page at `address`, seen all over; fails where it asks another host for anything, or has anything to complain of."""
    own = address if address.startswith("file:") else "/".join(address.split("/")[:3])
    context = browser.new_context(**options)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("data:", own)) or trouble.append(request.url))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.goto(address)
    see_all(page)
    yield page
    context.close()
    assert trouble == []


def expect(locator):
    """Of playwright, imported where a browser is."""
    from playwright.sync_api import expect

    return expect(locator)


def see_all(page):
    """Scroll to whatever is drawn when it comes near the window."""
    for part in page.query_selector_all("section, .hero, .chart"):
        if part.is_visible():
            part.scroll_into_view_if_needed()
    expect(page.locator("[data-confusion]:empty:visible")).to_have_count(0)


def keep_screenshot(page, name):
    """Of the whole page, in the folder VISUS_SCREENSHOTS, for somebody to look at."""
    if folder := os.environ.get("VISUS_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def check_accessibility(page, part="html"):
    """What axe makes of it; skips where that is not installed."""
    pytest.importorskip("axe_playwright_python")
    script = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    # The page's policy lets no other script run; axe is put in from outside.
    page.evaluate(script)
    found = page.evaluate("part => axe.run(part)", part)
    assert len(found["passes"]) > 10
    assert [
        (each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in found["violations"]
    ] == []
