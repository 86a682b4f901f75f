"""The report as a person meets it: opened from disk in a real browser, without a network."""

import json
from pathlib import Path

import numpy as np
import pytest
from browsing import PHONE, a_browser, check_accessibility, keep_screenshot, see_all, watched
from made_runs import make_images, make_run

from visus.config import make_config
from visus.reporting.page import write_report
from visus.training import train

HOSTILE = sorted(
    [
        "<script>document.title='broken'</script>",
        "قطة صغيرة",
        "</script><b>",
        "a\u2028b & \"q\" 'x' `$`",
        "日本語",
        "x" * 90,
        "\u202eevil",
        "{{7*7}}",
        "name|pipe",
        "-1",
    ]
)


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    source = make_images(folder, HOSTILE, 200)
    run = make_run(folder / "run", HOSTILE, source=source, epochs=4)
    findings = [
        {
            "kind": "leakage",
            "severity": "high",
            "message": "<b>12</b> images",
            "paths": ["<img src=x onerror=alert(1)>"],
        }
    ]
    (run / "audit.json").write_text(json.dumps({"images": 200, "classes": 10, "findings": findings}))
    return write_report([run])


@pytest.fixture
def opened(browser, page_file, request):
    options = getattr(request, "param", {})
    with watched(browser, page_file.as_uri(), **options) as page:
        yield page


def data_of(page):
    return json.loads(page.locator(".run script.data").first.text_content())


@pytest.mark.parametrize(
    "opened",
    [{}, {"color_scheme": "dark"}, {"viewport": PHONE}, {"viewport": PHONE, "color_scheme": "dark"}],
    indirect=True,
    ids=["light", "dark", "phone", "phone-dark"],
)
def test_it_asks_for_nothing_complains_of_nothing_and_never_scrolls_sideways(opened, request):
    keep_screenshot(opened, f"report-{request.node.callspec.id}")
    assert opened.title() == "Report on run"
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.viewport_size["width"]
    assert opened.locator(".chart svg").count() == 6
    assert opened.locator(".matrix .cell").count() == 100


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_it_follows_the_scheme_of_the_reader(browser, page_file, scheme, dark):
    with watched(browser, page_file.as_uri(), color_scheme=scheme) as page:
        ground, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
    assert (brightness[0] < brightness[1]) is dark
    assert abs(brightness[0] - brightness[1]) > 500


def test_names_from_files_are_text_in_every_script(opened):
    names = opened.locator("table.scores tbody th").all_text_contents()
    assert names == HOSTILE
    assert opened.locator("main b script, main bdi script, main bdi b").count() == 0
    assert opened.locator(".findings img").count() == 0
    arabic = opened.locator("table.scores bdi", has_text="قطة")
    assert arabic.evaluate("each => getComputedStyle(each).direction") == "rtl"


def test_a_cell_of_the_confusion_matrix_opens_the_images_behind_it(opened):
    data = data_of(opened)
    truth, predicted, count = max(
        (cell for cell in data["cells"] if cell[0] != cell[1]), key=lambda cell: cell[2]
    )
    opened.locator(f'.matrix [data-cell="{truth},{predicted}"]').click()
    dialog = opened.locator("dialog[open]")
    assert dialog.locator("h2").text_content() == f"{HOSTILE[truth]} taken for {HOSTILE[predicted]}"
    wanted = [row[0] for row in data["images"] if row[1:3] == [truth, predicted]]
    assert dialog.locator(".path").all_text_contents() == wanted
    assert len(wanted) == count
    with np.load(Path(opened.url.removeprefix("file://")).parents[1] / "images.npz") as source:
        assert {HOSTILE[label] for label in source["labels"][list(map(int, wanted))]} == {HOSTILE[truth]}
        drawn = dialog.locator("img").first.evaluate(
            "image => { const c = document.createElement('canvas'); c.width = image.naturalWidth; c.height = image.naturalHeight;"
            "const d = c.getContext('2d'); d.drawImage(image, 0, 0); return [...d.getImageData(0, 0, c.width, c.height).data]; }"
        )
        np.testing.assert_array_equal(
            np.reshape(drawn, (12, 12, 4))[..., :3], source["images"][int(wanted[0])]
        )
    opened.keyboard.press("Escape")
    assert dialog.count() == 0


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, "1"), (2, "1 2"), (3, "1 2 3"), (10, "2 4 6 8 10"), (100, "20 40 60 80 100")],
)
def test_curves_have_ticks_at_whole_epochs(browser, tmp_path, epochs, expected):
    report = write_report([make_run(tmp_path / "run", ["a", "b"], epochs=epochs)])
    with watched(browser, report.as_uri()) as page:
        keep_screenshot(page, f"report-epochs-{epochs}")
        texts = [
            chart.locator('text[text-anchor="middle"]').all_text_contents()
            for chart in page.locator(".chart svg").all()
        ]
    assert [ticks for *ticks, name in texts if name.startswith("Epoch")] == [expected.split()] * 4


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_learning_rate_is_drawn_over_the_whole_of_each_epoch(browser, tmp_path, epochs):
    run = make_run(tmp_path / "run", ["cat", "dog"], epochs=epochs)
    with watched(browser, write_report([run]).as_uri()) as page:
        chart = page.locator("[data-chart=lr]")
        line = chart.locator("path.curve").bounding_box()
        grid = chart.locator("line.grid-line").first.bounding_box()
        assert (line["x"], line["width"]) == pytest.approx((grid["x"], grid["width"]), abs=1)
        assert chart.locator("circle.dot").count() == 0


@pytest.fixture(scope="module")
def looked_into(tmp_path_factory):
    """The page of a run that was trained, on images of which one class has a name that is markup."""
    folder = tmp_path_factory.mktemp("looked")
    source = make_images(folder, ["<i>a</i>", "constructor", "قطة"], 150)
    settings = {"model": "small", "epochs": 1, "lr": 1e-6, "amp": "off", "device": "cpu"}
    run = train(make_config(data=str(source), out=str(folder / "runs"), val_fraction=0.4, **settings))
    return write_report([run.run])


@pytest.mark.parametrize("options", [{}, {"viewport": PHONE, "color_scheme": "dark"}])
def test_a_closer_look_shows_what_the_model_saw_and_what_is_most_like_it(browser, looked_into, options):
    with watched(browser, looked_into.as_uri(), **options) as page:
        data, classes = data_of(page), ["<i>a</i>", "constructor", "قطة"]
        assert page.get_by_role("button", name="look closer").count() == min(24, data["mistakes"]) > 0
        path, truth, predicted, *_ = next(row for row in data["images"] if row[1] != row[2])
        page.get_by_role("button", name=f"look closer at {path}", exact=True).click()
        dialog = page.locator("dialog[open]")
        assert dialog.locator("h2").text_content() == f"{classes[truth]} taken for {classes[predicted]}"
        assert dialog.locator("p").text_content().startswith(f"{path}; ")
        assert "of 90 it was trained on" in dialog.locator("p").text_content()
        sizes = dialog.locator("img").evaluate_all(
            "images => images.map((each) => [each.naturalWidth, each.naturalHeight])"
        )
        assert sizes == [[320, 160], [12, 12], [12, 12], [12, 12]]
        nearest = data["looks"][path]["nearest"]
        assert dialog.locator(".path").all_text_contents() == [each[0] for each in nearest]
        assert dialog.locator("li b").all_text_contents() == [each[1] for each in nearest]
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        check_accessibility(page, "dialog")
        page.keyboard.press("Escape")
        page.locator(f'.matrix [data-cell="{truth},{predicted}"]').click()
        dialog.get_by_role("button", name=f"look closer at {path}", exact=True).click()
        assert dialog.locator(".seen").count() == 1
        assert page.evaluate("document.activeElement.textContent") == "Close"


def test_the_matrix_is_read_with_arrow_keys(opened):
    opened.locator(".matrix .cell").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        opened.keyboard.press(key)
    assert opened.evaluate("document.activeElement.dataset.cell") == "1,1"
    assert opened.locator(".matrix .cell[tabindex='0']").count() == 1
    opened.keyboard.press("Enter")
    assert "recognised" in opened.locator("dialog[open] h2").text_content()


def test_headings_sort_the_table_both_ways(opened):
    def column():
        cells = opened.locator("table.scores tbody td:nth-child(3)")
        return [float(each) for each in cells.evaluate_all("all => all.map(each => each.dataset.value)")]

    heading = opened.locator("table.scores th", has_text="Recognised")
    heading.locator("button").click()
    assert column() == sorted(column())
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert column() == sorted(column(), reverse=True)
    assert len(set(column())) > 2


def test_a_phone_breaks_names_between_words(browser, tmp_path):
    names = ["American black bear", "Chestnut-sided warbler", "Pseudomonadales"]
    run = make_run(tmp_path / "run", names)
    with watched(browser, write_report([run]).as_uri(), viewport=PHONE) as page:
        lines = page.locator("table th.name bdi").evaluate_all(
            """names => names.flatMap((name) => [...name.textContent.matchAll(/[^ -]+/g)].map((word) => {
                const range = document.createRange();
                range.setStart(name.firstChild, word.index);
                range.setEnd(name.firstChild, word.index + word[0].length);
                return range.getClientRects().length;
            }))"""
        )
        # The words of the two tables that have a row for each class.
        assert lines == [1] * 14


def test_areas_sort_the_table_and_averages_stay_below(opened):
    for place, name in ((6, "AUROC"), (7, "Average precision")):
        opened.locator("table.scores th", has_text=name).locator("button").click()
        cells = opened.locator(f"table.scores tbody td:nth-child({place + 1})")
        found = [float(each) for each in cells.evaluate_all("all => all.map(each => each.dataset.value)")]
        assert found == sorted(found)
        assert len(set(found)) > 2
    assert opened.locator("table.scores tfoot tr").count() == 2


def test_the_gallery_filters_and_orders(opened):
    data = data_of(opened)
    mistakes = [row for row in data["images"] if row[1] != row[2]]
    gallery = opened.locator(".gallery")
    shown = gallery.locator(".pictures > li")
    assert shown.count() == len(mistakes)
    assert [row[3] for row in mistakes] == sorted((row[3] for row in mistakes), reverse=True)
    truth = mistakes[0][1]
    gallery.locator("select").first.select_option(str(truth))
    expected = [row[0] for row in mistakes if row[1] == truth]
    assert shown.locator(".path").all_text_contents() == expected
    assert gallery.locator("[role=status]").text_content() == f"{len(expected)} of {len(mistakes)} mistakes"
    gallery.locator("select").nth(2).select_option("path")
    assert shown.locator(".path").all_text_contents() == sorted(expected, key=int)
    gallery.locator("input").fill(expected[0])
    assert set(shown.locator(".path").all_text_contents()) == {
        path for path in expected if expected[0] in path
    }


def test_curves_tell_their_values_to_the_pointer_and_to_keys(opened):
    chart = opened.locator('[data-chart="accuracy"]')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    opened.mouse.move(box["x"] + box["width"] - 16, box["y"] + 60)
    tip = chart.locator(".tip")
    assert tip.inner_text().split("\n") == ["Epoch 4", "training 87.5\u00a0%", "validation 82.5\u00a0%"]
    assert opened.locator('[data-chart="loss"] .tip').is_visible()
    opened.mouse.move(5, 5)
    assert not tip.is_visible()
    chart.focus()
    opened.keyboard.press("Home")
    assert chart.get_attribute("aria-valuetext") == "Epoch 1, training 50\u00a0%, validation 45\u00a0%"


@pytest.mark.parametrize("opened", [{}, {"color_scheme": "dark", "viewport": PHONE}], indirect=True)
def test_axe_finds_nothing_serious(opened):
    check_accessibility(opened)


def test_axe_finds_nothing_serious_in_the_images_behind_a_cell(opened):
    opened.locator(".matrix .cell:not(.empty)").first.click()
    check_accessibility(opened, "dialog")


def test_several_runs_have_their_curves_over_one_another_and_a_tab_each(browser, tmp_path):
    runs = [
        make_run(tmp_path / name, list("abc"), epochs=epochs, seed=epochs)
        for name, epochs in (("first", 3), ("second", 6))
    ]
    with watched(browser, write_report(runs, tmp_path / "both.html").as_uri()) as page:
        assert page.locator('#compared [data-chart="accuracy"] .curve').count() == 2
        assert page.locator("#compared tbody th").all_text_contents() == ["first", "second"]
        assert page.locator("#run0").is_visible()
        page.locator("[role=tab]", has_text="second").click()
        assert not page.locator("#run0").is_visible()
        see_all(page)
        page.locator("#run1 .matrix .cell:not(.empty)").first.click()
        assert page.locator("dialog[open]").count() == 1
        page.keyboard.press("Escape")
        page.locator("[role=tab]", has_text="second").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#run0").is_visible()
        check_accessibility(page)


def test_of_many_classes_the_pairs_are_listed_and_found(browser, tmp_path):
    classes = [f"class {number:03}" for number in range(120)]
    run = make_run(tmp_path / "run", classes, n=1200)
    with watched(browser, write_report([run]).as_uri()) as page:
        assert page.locator("table.scores tbody tr:visible").count() == 40
        page.get_by_role("button", name="Show all 120 classes").last.click()
        assert page.locator("table.scores tbody tr:visible").count() == 120
        page.get_by_label("Find a class among the confused pairs").fill("class 077")
        rows = page.locator("[data-confusion] tbody tr")
        assert {"class 077" in text for text in rows.all_text_contents()} == {True}
        page.locator("[data-confusion] [data-cell]").first.click()
        assert page.locator("dialog[open] .pictures > li").count() > 0


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_is_not_finished_shows_what_there_is(browser, tmp_path, done):
    run = make_run(tmp_path / "run", ["x", "y"], epochs=5, done=done)
    with watched(browser, write_report([run]).as_uri()) as page:
        assert f"{done} of 5 epochs so far" in page.locator(".eyebrow").text_content()
        assert page.locator('[data-chart="loss"] svg').count() == bool(done)
        assert page.locator(".verdict li").count() == 3


def test_it_prints_with_everything_drawn(browser, page_file):
    with watched(browser, page_file.as_uri(), color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator(".bar-top").is_visible()
        assert len(page.pdf()) > 10_000
