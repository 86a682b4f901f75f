"""The live view: pages that follow their runs, for this machine only."""

import json
import math
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from urllib.parse import quote

import pytest
from browsing import PHONE, a_browser, check_accessibility, expect, keep_screenshot, see_all, watched
from made_runs import make_images, make_run, records

from visus.errors import UsageError
from visus.runs import RunFolder
from visus.watching import Watcher, describe_progress, open_server


@contextmanager
def serving(folder):
    with open_server(Watcher(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def ask(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "runs" / "done", ["x", "y"])
    make_run(tmp_path / "runs" / "a name", ["x", "y"], epochs=8, done=2)
    (tmp_path / "runs" / "no run").mkdir()
    return tmp_path / "runs"


def test_the_overview_lists_the_runs_and_links_to_their_pages(runs):
    with serving(runs) as address:
        status, text, _ = ask(address)
        assert status == 200
        assert 'href="/runs/done"' in text
        assert 'href="/runs/a%20name"' in text
        assert "2 of 8" in text
        assert "no run" not in text
        assert ask(address + "/runs/a%20name")[0] == 200
        assert "about 24.0 s more" in ask(address + "/runs/a%20name")[1]


def test_a_page_is_sent_again_only_when_its_run_has_changed(runs):
    with serving(runs / "a name") as address:
        _, before, headers = ask(address)
        mark = headers["ETag"]
        assert ask(address, **{"If-None-Match": mark})[0] == 304
        RunFolder(runs / "a name").write_records(list(records(5, 60, 0.1)))
        status, after, headers = ask(address, **{"If-None-Match": mark})
        assert status == 200
        assert headers["ETag"] != mark
        assert "2 of 8 epochs so far" in before
        assert "5 of 8 epochs so far" in after


def test_a_run_that_is_deleted_or_damaged_ends_nothing(runs):
    with serving(runs) as address:
        assert ask(address + "/runs/done")[0] == 200
        (runs / "done" / "config.yaml").write_text("- no\n- settings\n")
        assert ask(address + "/runs/done")[0] == 200
        shutil.rmtree(runs / "done")
        assert ask(address + "/runs/done")[0] == 404
        assert 'href="/runs/done"' not in ask(address)[1]
        shutil.rmtree(runs)
        assert "No runs yet" in ask(address)[1]


TOLD = {
    "epoch": 3,
    "epochs": 8,
    "iteration": 30,
    "iterations": 120,
    "seconds": 60.0,
    "loss": 0.4321,
    "correct": 2700,
    "n": 3000,
}


def tell(folder, **changes):
    (folder / "progress.json").write_text(json.dumps(TOLD | changes))


LINE = (
    "epoch 3 of 8, step 30 of 120, loss 0.4321, accuracy 90.0\N{NO-BREAK SPACE}%, 50 images/s, "
    "about 3 min 0 s more of this epoch"
)


def test_how_far_an_epoch_is_is_told_in_a_line(runs):
    with serving(runs) as address:
        assert ask(address + "/now/runs/a%20name")[:2] == (200, "")
        tell(runs / "a name")
        assert ask(address + "/now/runs/a%20name")[1] == LINE
        assert ask(address + "/now/runs/done")[1] == ""
        assert ask(address + "/now/")[1] == f"\u2068a name\u2069: {LINE}"
        assert ask(address + "/now/runs/nowhere")[0] == 404
        tell(runs / "a name", iterations=None)
        assert "step 30 of ?, loss 0.4321" in ask(address + "/now/runs/a%20name")[1]
        tell(runs / "a name", loss=None)
        assert "loss not finite" in ask(address + "/now/runs/a%20name")[1]
    with serving(runs / "done") as address:
        tell(runs / "done")
        assert ask(address + "/now/")[1] == LINE


def test_a_run_that_says_nothing_more_is_told_as_of_then(runs):
    tell(runs / "done")
    long_ago = time.time() - 300
    os.utime(runs / "done" / "progress.json", (long_ago, long_ago))
    assert describe_progress(runs / "done").endswith("images/s, last heard of 5 min 0 s ago")


def test_names_of_runs_stay_in_their_line(runs):
    folder = runs.parent / "odd" / "a\nb\u202e"
    folder.parent.mkdir()
    shutil.copytree(runs / "done", folder)
    tell(folder)
    assert Watcher(folder.parent).now("/") == f"\u2068a b\u202e\u2069: {LINE}"


@pytest.mark.parametrize("name", sorted(TOLD))
@pytest.mark.parametrize("value", ["x", True, -1, 10**400, math.nan, math.inf, [], {}])
def test_progress_of_other_kinds_is_no_line(runs, name, value):
    tell(runs / "done", **{name: value})
    line = describe_progress(runs / "done")
    assert line == "" or (name == "loss" and value == -1 and "loss -1," in line)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"epoch": 1}', b"[" * 100_000, b"\xff", b'{"iteration": 0}']
)
def test_progress_that_cannot_be_read_is_no_line(runs, text):
    tell(runs / "a name")
    (runs / "done" / "progress.json").write_bytes(text)
    with serving(runs) as address:
        assert ask(address + "/now/runs/done")[:2] == (200, "")
        assert ask(address + "/now/")[1] == f"\u2068a name\u2069: {LINE}"


ELSEWHERE = [
    "/../done/config.yaml",
    "/runs/../done",
    "/runs/%2e%2e",
    "/runs/done/config.yaml",
    "/etc/passwd",
    "/runs/",
]


@pytest.mark.parametrize("path", ELSEWHERE)
def test_nothing_but_pages_of_runs_can_be_had(runs, path):
    with serving(runs) as address:
        status, text, _ = ask(address + path)
        assert status == 404
        assert "epochs:" not in text


def test_names_that_others_gave_to_this_machine_are_refused(runs):
    with serving(runs) as address:
        assert ask(address, Host="evil.example")[0] == 403
        assert ask(address, Host="localhost:1")[0] == 200


def test_nothing_is_written_into_the_folders(runs):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    with serving(runs) as address:
        for path in ("/", "/runs/done", "/machine", "/now/runs/done"):
            assert ask(address + path)[0] == 200
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_what_is_no_folder_and_a_port_that_is_taken_are_said(runs, tmp_path):
    with pytest.raises(UsageError, match="expected the folder"):
        Watcher(tmp_path / "nowhere")
    with serving(runs) as address, pytest.raises(UsageError, match="choose another"):
        open_server(Watcher(runs), int(address.rpartition(":")[2]))


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


def test_the_page_in_a_browser_follows_its_run(runs, browser):
    with serving(runs) as address, watched(browser, address) as page:
        page.get_by_role("link", name="a name").click()
        expect(page.locator(".eyebrow")).to_contain_text("2 of 8 epochs so far")
        expect(page.locator(".now")).to_be_hidden()
        tell(runs / "a name")
        expect(page.locator(".now")).to_have_text(LINE, timeout=20_000)
        RunFolder(runs / "a name").write_records(list(records(6, 60, 0.1)))
        expect(page.locator(".eyebrow")).to_contain_text("6 of 8 epochs so far", timeout=20_000)
        page.locator('[data-chart="accuracy"]').scroll_into_view_if_needed()
        expect(page.locator('[data-chart="accuracy"]')).to_have_attribute(
            "aria-valuemax", "5", timeout=20_000
        )
        expect(page.locator(".machine")).to_contain_text("load", timeout=20_000)


def test_of_a_run_that_is_gone_the_page_stays(runs, browser):
    # Not `watched`: the browser itself complains of an answer of 404.
    with serving(runs) as address, closing(browser.new_page()) as page:
        page.goto(f"{address}/runs/a%20name")
        shutil.rmtree(runs / "a name")
        expect(page.locator(".live")).to_contain_text("gone", timeout=20_000)
        assert "2 of 8" in page.locator(".eyebrow").text_content()


HOSTILE = sorted(["<script>alert(1)</script>", "قطة صغيرة", "American black bear"])
NAME = "<img src=x onerror=alert(1)> قطة"


@pytest.fixture
def hostile(tmp_path):
    """Two runs with such classes: one is over, and the other has such a name and goes on."""
    source = make_images(tmp_path, HOSTILE, 60)
    make_run(tmp_path / "runs" / "done", HOSTILE, source=source)
    tell(make_run(tmp_path / "runs" / NAME, HOSTILE, source=source, epochs=8, done=2))
    return tmp_path / "runs"


def check_page(page, expected, cells):
    """Nothing of the names is more than text, and nothing is wider than the window; `cells` of the page are `expected`."""
    see_all(page)
    assert sorted(page.locator(cells).all_text_contents()) == sorted(expected)
    assert page.locator("main script:not(.data), main bdi *, main img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


VIEWS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}


@pytest.mark.parametrize("view", VIEWS)
def test_it_is_read_in_any_light_on_any_width_whatever_names_hold(hostile, browser, view):
    pages = {
        "overview": ("", ["done", NAME], "#compared tbody th"),
        "going-on": (f"/runs/{quote(NAME)}", HOSTILE, "section[id^=data] tbody th"),
        "done": ("/runs/done", HOSTILE, "table.scores tbody th"),
    }
    with serving(hostile) as address, watched(browser, address, **VIEWS[view]) as page:
        for kind, (path, expected, cells) in pages.items():
            page.goto(address + path)
            expect(page.locator(".live")).to_have_text("live", timeout=20_000)
            check_page(page, expected, cells)
            told = {"overview": f"\u2068{NAME}\u2069: {LINE}", "going-on": LINE, "done": ""}[kind]
            expect(page.locator(".now")).to_have_text(told, timeout=20_000)
            keep_screenshot(page, f"watch-{view}-{kind}")
            check_accessibility(page)
            assert is_dark(page) == view.endswith("dark")


def is_dark(page):
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    ground, ink = (sum(map(int, re.findall(r"\d+", each))) for each in colours)
    return ground < ink


def test_names_are_text_also_where_the_page_is_put_together_anew(hostile, browser):
    with serving(hostile) as address, watched(browser, f"{address}/runs/done") as page:
        mark = page.locator("body").get_attribute("data-mark")
        RunFolder(hostile / "done").write_records(list(records(2, 60, 0.1)))
        expect(page.locator("body")).not_to_have_attribute("data-mark", mark, timeout=20_000)
        expect(page.locator(".eyebrow")).to_contain_text("2 of 3 epochs so far")
        check_page(page, HOSTILE, "table.scores tbody th")


def test_a_page_made_from_json_that_changed_under_it_is_an_answer_too(runs):
    with serving(runs) as address:
        (runs / "done" / "evaluation.json").write_text(json.dumps({"accuracy": "much"}))
        assert ask(address + "/runs/done")[0] in (200, 503)
        assert ask(address)[0] in (200, 503)
