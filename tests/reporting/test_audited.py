import json
from dataclasses import replace

import numpy as np
import pytest
from made_runs import make_images, make_run

from visus.auditing.short import short_audit
from visus.data.sources import open_source
from visus.reporting.audited import describe_findings, images_of_findings
from visus.reporting.contents import Place, describe_run
from visus.reporting.reading import Listing, read_run
from visus.reporting.thumbnails import open_pictures


def finding(paths, kind="leakage", severity="high", message="two"):
    return {"kind": kind, "severity": severity, "message": message, "paths": paths}


@pytest.fixture
def results(tmp_path):
    """Of a run whose parts share some paths."""
    listing = Listing({"train": {"a": ["1.png", "2.png"], "b": ["3.png"]}, "test": {"a": ["1.png", "4.png"]}})
    return replace(read_run(make_run(tmp_path / "run", ["a", "b"])), listing=listing)


def test_images_are_found_by_what_the_audit_calls_them(results):
    audit = {"findings": [finding(["train/1.png", "test/1.png", "4.png", "gone.png", "1.png"])]}
    assert images_of_findings(replace(results, audit=audit)) == {
        "train/1.png": ("train", "1.png"),
        "test/1.png": ("test", "1.png"),
        "4.png": ("test", "4.png"),
    }


def test_validation_images_of_another_source_are_called_by_their_path_there(results):
    listing = Listing({"train": {"a": ["x/0.png"]}, "val": {"a": ["x/0.png"]}})
    audit = {"findings": [finding(["x/0.png", "/other/x/0.png"])]}
    other = replace(results, listing=listing, audit=audit, config={"val": "/other"})
    assert images_of_findings(other) == {
        "x/0.png": ("train", "x/0.png"),
        "/other/x/0.png": ("val", "x/0.png"),
    }


def test_the_gravest_findings_are_pictured_first_and_of_each_a_few(results):
    paths = [f"{number}.png" for number in range(200)]
    listing = Listing({"train": {"a": paths}})
    small = [finding([path], "odd_image", "low") for path in paths[:3]]
    large = [finding(paths[10 * i : 10 * i + 10]) for i in range(1, 20)]
    shown = list(images_of_findings(replace(results, listing=listing, audit={"findings": small + large})))
    assert shown == [f"{10 * i + j}.png" for i in range(1, 6) for j in range(6)] + paths[:3]


def test_messages_have_the_pictures_that_there_are():
    audit = {"findings": [finding(["a", "b"]), finding(["c", "d"]), finding([], "imbalance", "low")]}
    leaks, imbalance = describe_findings(audit, {"b": 7, "c": 8})
    assert [each["pictures"] for each in leaks["messages"]] == [[(7, "b")], [(8, "c")]]
    assert leaks["kind"] == "Leakage (2)"
    assert imbalance["messages"] == [{"text": "two", "pictures": []}]


def test_exact_copies_of_a_set_stand_beside_what_is_said_of_them(tmp_path):
    source = make_images(tmp_path, list("ab"), 12)
    with np.load(source) as arrays:
        images, rest = arrays["images"], {name: arrays[name] for name in ("labels", "classes")}
    images[[4, 7]] = images[[2, 3]]
    np.savez(source, images=images, **rest)
    run = make_run(tmp_path / "run", list("ab"), source=source)
    audit = short_audit(open_source(source, val_fraction=0.5))
    (run / "audit.json").write_text(json.dumps(audit.to_json()))
    results = read_run(run)
    page = describe_run(results, Place(draw=open_pictures(results.config)))
    pictures = page["data"]["pictures"]
    (tiny,) = [each for group in page["audit"] if group["kind"] == "Imbalance" for each in group["messages"]]
    assert len(tiny["pictures"]) == 6
    messages = [
        each
        for group in page["audit"]
        if group["kind"] != "Imbalance"
        for each in group["messages"]
        if each["pictures"]
    ]
    assert messages
    for message in messages:
        (first, _), (second, _) = message["pictures"]
        assert pictures[first] == pictures[second]
        assert {name for _, name in message["pictures"]} in ({"2", "4"}, {"3", "7"})


def test_without_an_audit_or_a_listing_there_is_nothing_to_draw(results):
    assert images_of_findings(replace(results, audit=None)) == {}
    assert images_of_findings(replace(results, audit={"findings": [finding(["1.png"])]}, listing=None)) == {}
