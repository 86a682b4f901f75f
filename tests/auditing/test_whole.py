"""Faults planted in a folder of images, and what the audit says of them."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from visus.auditing.findings import write_findings, write_fix_list
from visus.auditing.whole import audit
from visus.errors import DataError, UsageError


def picture(seed, size=48):
    """Smooth random colours, of which no two are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images in each of two classes to train on, 10 to test on, and one of every fault."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 30), ("test", 10)):
        for label, name in enumerate(("cats", "dogs")):
            place = root / part / name
            place.mkdir(parents=True)
            for number in range(count):
                picture(1000 * label + 100 * (part == "test") + number).save(place / f"{number:02}.png")
    cats, dogs, test = root / "train/cats", root / "train/dogs", root / "test/cats"
    (cats / "empty.png").touch()
    content = (cats / "00.png").read_bytes()
    (cats / "cut.png").write_bytes(content[: len(content) // 2])
    picture(1).save(cats / "again.bmp")
    picture(2).save(dogs / "other_label.png")
    picture(3).save(test / "leak.png")
    picture(4).save(cats / "compressed.jpg", quality=60)
    picture(1005).save(dogs / "turned.png", exif=_turned())
    Image.new("RGB", (48, 48), (9, 200, 30)).save(dogs / "blank.png")
    picture(77, 400).save(dogs / "large.png")
    picture(78).convert("L").save(dogs / "grey.png")
    return root


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def found(folder):
    return audit(folder)


def test_progress_is_told_to_its_end(folder):
    told = []
    found = audit(folder, progress=lambda *at: told.append(at))
    assert ("looked at", found.images, found.images) in told
    compared = [at for at in told if at[0] == "compared"]
    # Images that cannot be read, and the second of two that are the same, are compared with none.
    assert compared[0][1] == 0
    assert 60 < compared[-1][1] == compared[-1][2] < found.images


def paths(found, kind, word=""):
    return [set(each.paths) for each in found.findings if each.kind == kind and word in each.message]


def test_every_file_counts(found):
    assert found.images == 2 * 30 + 2 * 10 + 10
    assert found.classes == ("cats", "dogs")


def test_what_cannot_be_read_is_named_with_the_reason(found):
    assert paths(found, "unreadable") == [{"train/cats/cut.png"}, {"train/cats/empty.png"}]
    assert "0 bytes" in [each.message for each in found.findings if each.kind == "unreadable"][1]


def test_the_same_pixels_in_another_format_are_an_exact_duplicate(found):
    assert {"train/cats/01.png", "train/cats/again.bmp"} in paths(found, "exact_duplicate")


def test_a_pair_stands_under_every_kind_that_applies(found):
    pair = {"train/cats/02.png", "train/dogs/other_label.png"}
    assert pair in paths(found, "exact_duplicate")
    assert paths(found, "conflicting_label") == [pair]
    leak = {"train/cats/03.png", "test/cats/leak.png"}
    assert leak in paths(found, "exact_duplicate")
    assert paths(found, "leakage") == [leak]


def test_a_compressed_copy_is_a_near_duplicate_and_nothing_else_is(found):
    assert paths(found, "near_duplicate") == [{"train/cats/04.png", "train/cats/compressed.jpg"}]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("one colour everywhere", "blank"),
        ("unusual size", "large"),
        ("grey among colour", "grey"),
        ("flag in the file", "turned"),
        ("stored as L", "grey"),
    ],
)
def test_odd_images_are_said_by_what_is_odd(found, word, name):
    assert paths(found, "odd_image", word) == [{f"train/dogs/{name}.png"}]


def test_what_to_leave_out_is_never_the_test_image_and_not_both_of_a_pair(found, tmp_path):
    write_fix_list(found, tmp_path / "fix.csv")
    with (tmp_path / "fix.csv").open() as file:
        dropped = {row["path"]: row["kind"] for row in csv.DictReader(file)}
    assert dropped == {
        "train/cats/cut.png": "unreadable",
        "train/cats/empty.png": "unreadable",
        "train/cats/again.bmp": "exact_duplicate",
        "train/cats/03.png": "leakage",
        "train/cats/02.png": "conflicting_label",
        "train/dogs/other_label.png": "conflicting_label",
        "train/cats/compressed.jpg": "near_duplicate",
        "train/dogs/blank.png": "odd_image",
    }


def test_the_table_has_a_row_for_each_file_of_each_finding(found, tmp_path):
    write_findings(found, tmp_path / "findings.csv")
    with (tmp_path / "findings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(max(1, len(each.paths)) for each in found.findings)
    assert {row["kind"] for row in rows} == set(found.counts())


def test_how_many_are_not_shown_is_said_and_where_all_are(found):
    kinds = found.counts()
    assert max(kinds.values()) > 1
    shown = found.to_text(most=1).splitlines()
    assert f"  and {kinds['unreadable'] - 1} more" in shown
    assert shown[-1] == (
        f"{len(kinds)} of {len(found.findings)} findings are shown; all, with every file: --json, or --csv FILE; "
        "what to leave out: --fix-list FILE"
    )
    assert "findings are shown" not in found.to_text(most=1000)


def test_the_command_finds_it_too_and_exits_with_1(folder, tmp_path):
    fix = tmp_path / "fix.csv"
    command = [
        sys.executable,
        "-m",
        "visus",
        "audit",
        str(folder),
        "--json",
        "--quiet",
        "--fix-list",
        str(fix),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["images"] == 90
    assert {"kind", "severity", "message", "paths"} <= set(document["findings"][0])
    assert fix.read_text().startswith("path,kind,reason\n")
    # No progress, but what bears on the findings.
    assert done.stderr.splitlines() == document["notes"]
    assert any("labels of" in note for note in document["notes"])


def test_nothing_is_deleted(folder, found):
    assert len(list(folder.rglob("*.*"))) == 90


def test_another_source_is_compared_as_validation(folder, tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    picture(1).save(tmp_path / "cats/mine.png")
    picture(5000).save(tmp_path / "dogs/other.png")
    found = audit(folder / "train", val=tmp_path)
    leak = {"cats/01.png", "cats/again.bmp", str(tmp_path / "cats/mine.png")}
    assert leak in paths(found, "leakage")


def test_the_same_data_as_validation_is_refused(folder):
    with pytest.raises(UsageError, match="found the same"):
        audit(folder, val=folder)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing there"):
        audit(tmp_path / "no")


def test_a_group_in_several_parts_is_named_with_what_to_leave_out(tmp_path):
    """Of a table: patients `a` and `c` keep to a part, `b` does not; images without a group belong to none."""
    rows = [
        ("train", "a"),
        ("train", "a"),
        ("train", "b"),
        ("test", "b"),
        ("test", "c"),
        ("train", ""),
        ("test", ""),
    ]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "group"])
        for number, (part, group) in enumerate(rows):
            picture(number).save(tmp_path / f"{number}.png")
            table.writerow([f"{number}.png", "xy"[number % 2], part, group])
    (leak,) = [each for each in audit(tmp_path / "table.csv").findings if each.kind == "group_leakage"]
    assert (leak.paths, leak.drop, leak.severity) == (("2.png", "3.png"), ("2.png",), "high")
    assert leak.message == "group b: 2 images in train and test"


def test_names_move_no_cursor_and_break_no_line(tmp_path):
    for number, name in enumerate(["red\x1b[31m", "two\nlines"]):
        path = tmp_path / "set" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "visus", "audit", tmp_path / "set", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert r"red\x1b[31m/0.png" in done.stdout
    assert r"two\x0alines/1.png" in done.stdout
    assert "\x1b" not in done.stdout
