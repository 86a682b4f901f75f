"""What axe makes of a page."""

from importlib.resources import files

import pytest


def check_accessibility(page, part="html"):
    """Skips where axe is not installed."""
    pytest.importorskip("axe_playwright_python")
    script = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    # The page's policy lets no other script run; axe is put in from outside.
    page.evaluate(script)
    found = page.evaluate("part => axe.run(part)", part)
    assert len(found["passes"]) > 10
    assert [
        (each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in found["violations"]
    ] == []
