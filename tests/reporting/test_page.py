import html
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from made_runs import make_images, make_run

import visus.tested_runs
from visus.comparison import compare_runs
from visus.display import Display
from visus.errors import UsageError
from visus.files import write_json
from visus.ops.paired import mcnemar, paired_interval
from visus.ops.significance import holm
from visus.reporting.comparing import differences, in_a_sentence
from visus.reporting.model_card import write_card
from visus.reporting.page import report_on, write_report
from visus.reporting.reading import read_run
from visus.reporting.rendering import as_json


class Islands(HTMLParser):
    """The documents in a page's script elements, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self._texts, self._inside = [], False
        self.feed(text)

    @property
    def data(self):
        return [json.loads(text) for text in self._texts]

    def handle_starttag(self, tag, attributes):
        self._inside = tag == "script" and dict(attributes).get("type") == "application/json"
        if self._inside:
            self._texts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self._texts[-1] += data


def rows_of_classes(page):
    """The cells of the table of classes, as text, the averages at its end."""
    (table,) = re.findall('<table class="sortable scores.*?</table>', page, re.DOTALL)
    rows = re.findall("<tr>(<th scope=.row.*?)</tr>", table, re.DOTALL)
    cells = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<svg.*</svg>|<[^>]*>", "", cell)) for cell in row] for row in cells]


def report(run):
    return Islands(write_report([run]).read_text(encoding="utf-8"))


def test_what_is_put_into_a_script_element_ends_it_never_and_comes_out_alike():
    document = ["</script><!--", "\u2028 & 'x' \"y\"", "قطة", {"<b>": None}]
    text = as_json(document)
    assert not set("<>&\u2028") & set(text)
    assert text.isascii()
    assert json.loads(text) == document


def test_the_same_run_gives_the_same_page(tmp_path):
    source = make_images(tmp_path, list("abc"))
    run = make_run(tmp_path / "run", list("abc"), source=source)
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first
    assert write_report([run], tmp_path / "elsewhere.html").read_bytes() == first


def test_ten_classes_with_their_pictures_take_less_than_five_megabytes(tmp_path):
    classes = list("abcdefghij")
    source = make_images(tmp_path, classes, 400, side=120)
    run = make_run(tmp_path / "run", classes, source=source, wrong=0.9)
    page = write_report([run])
    (data,) = Islands(page.read_text(encoding="utf-8")).data
    assert len(data["pictures"]) > 200
    # Noise is what compresses worst.
    assert page.stat().st_size < 5e6


def test_mistakes_are_pictured_the_surest_first_and_every_pair_of_classes_in_turn(tmp_path):
    run = make_run(tmp_path / "run", list("abc"), n=300, source=make_images(tmp_path, list("abc"), 300))
    (data,) = report(run).data
    mistakes = [row for row in data["images"] if row[1] != row[2]]
    assert data["mistakes"] == len(mistakes)
    assert [row[3] for row in mistakes] == sorted((row[3] for row in mistakes), reverse=True)
    assert all(len(row) == 6 for row in mistakes)
    assert {tuple(row[1:3]) for row in mistakes} == {(t, p) for t, p, _ in data["cells"] if t != p}


def test_means_of_the_classes_stand_there_with_their_intervals(tmp_path):
    run = make_run(tmp_path / "run", list("abcd"), n=400, wrong=0.3)
    macro = json.loads((run / "evaluation.json").read_text())["macro"]
    text = write_report([run]).read_text()
    for name, key in (("AUROC", "auroc"), ("average precision", "average_precision")):
        low, high = macro[f"{key}_ci95"]
        assert f"<dt>Mean {name}</dt><dd>{macro[key]:.4g}<small>{low:.4g} to {high:.4g}</small>" in text
    assert f"<dt>Mean F1</dt><dd>{100 * macro['f1']:.2f}" in text


def test_parts_that_cannot_be_judged_are_said(tmp_path):
    run = make_run(tmp_path / "run", ["a", "<b>", "c", "d"], n=16)
    told = "class: <bdi>&lt;b&gt;</bdi>, <bdi>a</bdi>, <bdi>c</bdi> and 1 more (fewer than 5 images)."
    assert f"Parts that were not looked at:\n{told}" in write_report([run]).read_text(encoding="utf-8")
    evaluation = json.loads((run / "evaluation.json").read_text())
    # As an earlier version wrote it.
    del evaluation["slices_left_out"]
    write_json(run / "evaluation.json", evaluation)
    assert "not looked at" not in write_report([run]).read_text(encoding="utf-8")


def test_figures_of_the_page_are_those_of_its_predictions(tmp_path):
    run = make_run(tmp_path / "run", list("abcd"), n=400, wrong=0.3)
    (data,) = report(run).data
    rows = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()[1:]]
    right = np.array([row[1] == row[2] for row in rows])
    sure = np.array([max(map(float, row[3:])) for row in rows])
    assert sum(each["n"] for each in data["reliability"]) == 400
    np.testing.assert_allclose(sum(each["n"] * each["accuracy"] for each in data["reliability"]), right.sum())
    np.testing.assert_allclose(
        sum(each["n"] * each["confidence"] for each in data["reliability"]), sure.sum()
    )
    for point in data["coverage"]:
        # Of two that are equally sure in the table either may come first.
        surest = np.argsort(-sure, kind="stable")[: point["n"]]
        np.testing.assert_allclose(point["accuracy"], right[surest].mean(), atol=1.5 / point["n"])
    assert data["coverage"][-1]["coverage"] == 1
    np.testing.assert_allclose(data["coverage"][-1]["accuracy"], right.mean())
    assert sum(n for t, p, n in data["cells"] if t == p) == right.sum()


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "split.csv", "evaluation.json", "predictions.csv", "environment.json"]
)
@pytest.mark.parametrize("damage", ["gone", "empty", "rubbish"])
def test_what_is_missing_or_damaged_is_left_out_and_said(tmp_path, name, damage):
    run = make_run(tmp_path / "run", ["x", "y"])
    path = run / name
    path.unlink() if damage == "gone" else path.write_bytes(
        b"" if damage == "empty" else b"\xff\x00{]\n\xfe,\n"
    )
    page = write_report([run]).read_text(encoding="utf-8")
    told = f"{name} could not be read" in page
    # No epoch being over is no damage.
    assert told == (damage == "rubbish" or (damage == "empty" and name != "metrics.jsonl"))
    assert page.count("<section") == 6


def test_names_that_are_no_utf8_do_not_stop_the_report(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"], wrong=1)
    for name in ("split.csv", "predictions.csv"):
        text = (run / name).read_bytes()
        (run / name).write_bytes(text.replace(b"\n0,", b"\n\xff\xfe.png,"))
    assert "??.png" in write_report([run]).read_text(encoding="utf-8")


def test_a_class_without_images_and_one_never_predicted_are_said(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y", "z"], wrong=0)
    evaluation = json.loads((run / "evaluation.json").read_text())
    none = dict.fromkeys(("accuracy", "ci95", "recall", "f1", "auroc", "average_precision"))
    evaluation["per_class"][1] |= {"n": 20, "predicted": 0, "correct": 0, "accuracy": 0.0, "precision": None}
    evaluation["per_class"][2] |= {"n": 0, "predicted": 7, "correct": 0, "precision": 0.0, **none}
    write_json(run / "evaluation.json", evaluation)
    rows = rows_of_classes(write_report([run]).read_text(encoding="utf-8"))
    assert rows[1][:3] == ["y", "20", "none of 20"]
    assert rows[1][4] == "none of 0"
    assert rows[2] == ["z", "0", "none of 0", "", "0.0\u00a0%", "none", "none", "none"]
    assert write_card(run).read_text(encoding="utf-8").count("none of 20") == 1


def test_the_table_of_classes_has_areas_and_both_means(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y", "z"], n=100)
    evaluation = json.loads((run / "evaluation.json").read_text())
    page = write_report([run]).read_text(encoding="utf-8")
    *classes, macro, weighted = rows_of_classes(page)
    for row, scores in zip(classes, evaluation["per_class"], strict=True):
        assert row[5:] == [
            f"{100 * scores['f1']:.1f}\u00a0%",
            f"{scores['auroc']:.4f}",
            f"{scores['average_precision']:.4f}",
        ]
    assert (macro[0], weighted[0]) == ("Mean of the classes", "Weighted by images")
    # 34, 33 and 33 images.
    assert macro[2:] != weighted[2:]
    for row, key in ((macro, "macro"), (weighted, "weighted")):
        shares = [f"{100 * evaluation[key][name]:.1f}\u00a0%" for name in ("recall", "precision", "f1")]
        assert [row[2], *row[4:6]] == shares
        areas = [f"{evaluation[key][name]:.4f}" for name in ("auroc", "average_precision")]
        assert row[6:] == areas
    assert f"the calibration error is {100 * evaluation['smooth_ece']:.1f}\u00a0% (smooth)" in page


def test_intervals_over_groups_are_said(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"])
    assert "Intervals are over" not in write_report([run]).read_text(encoding="utf-8")
    evaluation = json.loads((run / "evaluation.json").read_text())
    write_json(run / "evaluation.json", evaluation | {"groups": 12})
    assert "Intervals are over 12 groups of images." in write_report([run]).read_text(encoding="utf-8")


def test_a_loss_that_was_not_finite_leaves_a_gap(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[2]["loss"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (data,) = report(run).data
    assert data["curves"]["train"]["loss"] == [2.0, None, pytest.approx(2 / 3)]


def test_every_element_is_labelled_once(tmp_path):
    runs = [make_run(tmp_path / name, ["x", "y"]) for name in ("one", "two")]
    page = write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_runs_are_compared_with_the_first_on_the_same_images(tmp_path):
    source = make_images(tmp_path, list("abcd"), 400)
    made = {
        name: make_run(tmp_path / name, list("abcd"), source=source, wrong=wrong, seed=seed)
        for name, wrong, seed in (("poor", 0.4, 1), ("fair", 0.1, 2))
    }
    other = make_run(tmp_path / "other", ["x", "y"])
    page = write_report([*made.values(), other], tmp_path / "all.html").read_text(encoding="utf-8")
    pair = compare_runs(list(made.values())).pairs[0]
    assert f"{100 * pair.difference:+.1f} points" in page
    assert "points" in page.split('class="text difference"')[2]
    assert "beyond chance (McNemar" in page
    assert "not comparable" in page.split('class="text difference"')[3]
    poor, fair, unlike = page.split('aria-label="Verdict"')[1:]
    low, high = (100 * each for each in pair.difference_ci95)
    told = f"{100 * pair.difference:.1f} points more than \u2068poor\u2069 on the same images"
    assert f"{told} ({low:+.1f} to {high:+.1f}, beyond chance)" in fair
    assert "on the same images" not in poor + unlike


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [
        (0, 8, ", 20.0 points more than \u2068a\u2069 on the same images (+9.5 to +34.8, beyond chance)"),
        (8, 0, ", 20.0 points less than \u2068a\u2069 on the same images (-34.8 to -9.5, beyond chance)"),
        (3, 3, ", as many as \u2068a\u2069 on the same images (-14.0 to +14.0, not beyond chance)"),
    ],
)
def test_a_difference_in_a_sentence(only_a, only_b, expected):
    pair = SimpleNamespace(
        difference=(only_b - only_a) / 40,
        difference_ci95=paired_interval(40, only_a, only_b),
        p_adjusted=mcnemar(only_a, only_b).exact,
    )
    assert in_a_sentence(pair, "a") == expected


def test_a_difference_over_groups_says_so(tmp_path):
    source = make_images(tmp_path, list("abcd"), 400)
    runs = [
        make_run(tmp_path / str(seed), list("abcd"), source=source, wrong=0.3, seed=seed) for seed in range(2)
    ]
    table = runs[0] / "split.csv"
    header, *rows = table.read_text().splitlines()
    grouped = [f"{row},patient {place // 4}" for place, row in enumerate(rows)]
    table.write_text("\n".join([f"{header},group", *grouped]))
    evaluation = json.loads((runs[0] / "evaluation.json").read_text())
    write_json(runs[0] / "evaluation.json", {**evaluation, "groups": 17})
    assert read_run(runs[0]).listing == read_run(runs[1]).listing
    (pair,) = differences([read_run(each) for each in runs])
    tested = [row for row in grouped if ",val," in row]
    count = len({row.rpartition(",")[2] for row in tested})
    assert pair.groups == count < len(tested)
    page = write_report(runs, tmp_path / "all.html").read_text(encoding="utf-8")
    told = f"{100 * pair.difference:+.1f} points"
    assert told in page
    assert "could not be read" not in page
    assert re.search(r"95\s%\sinterval over 17 groups ", html.unescape(page))
    assert re.search(r"95\s%\sinterval over 17 groups ", write_card(runs[0]).read_text(encoding="utf-8"))
    assert f"(McNemar over {count} groups of images, p = {pair.p_adjusted:.2g})" in page


def test_differences_of_several_runs_are_corrected_for_their_number(tmp_path):
    source = make_images(tmp_path, list("abcd"), 400)
    runs = [
        make_run(tmp_path / str(seed), list("abcd"), source=source, wrong=0.3, seed=seed) for seed in range(4)
    ]
    found = differences([read_run(each) for each in runs])
    plain = [each.mcnemar_p for each in found]
    assert [each.p_adjusted for each in found] == pytest.approx(list(holm(plain)))
    assert any(each.p_adjusted > each.mcnemar_p for each in found)


def test_each_run_is_read_once_and_the_reasons_of_those_that_cannot_be_compared_are_told(
    tmp_path, monkeypatch
):
    source = make_images(tmp_path, list("abcd"), 200)
    for name in ("first", "second", "third"):
        make_run(tmp_path / name, list("abcd"), source=source, wrong=0.3, seed=len(name))
    make_run(tmp_path / "undone", list("abcd"), done=1)
    make_run(tmp_path / "other", ["x", "y"])
    make_run(tmp_path / "damaged", list("abcd"))
    (tmp_path / "damaged" / "evaluation.json").write_text("{")
    times = Counter()

    def counted(path, read=visus.tested_runs.read_run):
        times[path.name] += 1
        return read(path)

    monkeypatch.setattr("visus.tested_runs.read_run", counted)
    names = ["first", "second", "undone", "third", "other", "damaged", "first"]
    second, undone, third, other, damaged, again = differences([read_run(tmp_path / name) for name in names])
    assert times == {"first": 2, "second": 1, "undone": 1, "third": 1, "other": 1, "damaged": 1}
    monkeypatch.undo()
    for found, name in ((second, "second"), (third, "third")):
        (alone,) = compare_runs([tmp_path / "first", tmp_path / name]).pairs
        assert replace(found, p_adjusted=alone.p_adjusted) == alone
    assert undone.startswith("not comparable: expected predictions of a finished run, found none")
    assert other.startswith(
        f"not comparable: {tmp_path / 'first'} and {tmp_path / 'other'}: expected the same"
    )
    assert damaged.startswith("not comparable: evaluation.json: cannot be read: ")
    assert again == "not comparable: expected at least two different runs to compare; name each once"
    assert differences([read_run(tmp_path / name) for name in ("undone", "first")]) == [
        f"not comparable: {tmp_path / 'undone'}: {undone.removeprefix('not comparable: ')}"
    ]


def test_a_report_asked_of_no_run_or_into_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"config\.yaml"):
        write_report([tmp_path])
    run = make_run(tmp_path / "run", ["x", "y"])
    with pytest.raises(UsageError, match="found none; make it first"):
        write_report([run], tmp_path / "nowhere" / "report.html")


def test_at_the_end_of_a_run_whatever_goes_wrong_is_one_line(tmp_path):
    stream = io.StringIO()
    report_on(tmp_path, Display(stream))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("the report could not be written")
    run = make_run(tmp_path / "run", ["x", "y"])
    (run / "report.html").mkdir()
    report_on(run, Display(stream))
    assert stream.getvalue().count("\n") == 2
