"""What tests do with pages in a browser."""

import os
from importlib.resources import files
from pathlib import Path

import pytest


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
