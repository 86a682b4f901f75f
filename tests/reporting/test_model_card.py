from made_runs import make_run

from visus.reporting.model_card import escape, write_card


def test_the_card_says_what_the_report_says(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y", "z"], n=90)
    text = write_card(run).read_text(encoding="utf-8")
    assert "of 90 test images" in text
    assert text.count("\n| ") == 4
    assert text.startswith("---\nlibrary_name: visus\n")


def test_what_is_not_known_yet_is_not_counted(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"], epochs=2, done=0)
    for each in run.iterdir():
        if each.name not in ("config.yaml", "environment.json"):
            each.unlink()
    assert "classes apart" not in write_card(run).read_text(encoding="utf-8")


def test_a_card_that_a_person_has_changed_is_left_alone(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"])
    card = write_card(run)
    first = card.read_text(encoding="utf-8")
    assert write_card(run) == card
    assert card.read_text(encoding="utf-8") == first
    changed = first.replace("*To be written by whoever publishes the model", "*For telling x from y")
    assert changed != first
    card.write_text(changed, encoding="utf-8")
    assert write_card(run) is None
    assert card.read_text(encoding="utf-8") == changed


def test_names_format_nothing(tmp_path):
    names = ["a|b", "<script>alert(1)</script>", "[x](y)", "# head\n\n- item", "`code` *bold*"]
    run = make_run(tmp_path / "run", names)
    text = write_card(run).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert [line.count("|") - line.count(r"\|") for line in text.splitlines() if line.startswith("|")] == [
        6
    ] * 7
    assert escape("a\nb") == "a b"


def test_of_many_classes_those_recognised_least_are_listed(tmp_path):
    run = make_run(tmp_path / "run", [f"c{i:03}" for i in range(80)], n=800)
    text = write_card(run).read_text(encoding="utf-8")
    assert "The 50 recognised least of 80 classes" in text
    assert text.count("\n| c0") == 50
