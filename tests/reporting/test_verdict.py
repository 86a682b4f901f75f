import json
from dataclasses import replace

import pytest
from made_runs import make_run

from visus.files import write_json
from visus.reporting.reading import read_run
from visus.reporting.verdict import judge


def verdict(run):
    return judge(read_run(run))


def change(run, **values):
    document = json.loads((run / "evaluation.json").read_text())
    write_json(run / "evaluation.json", document | values)


def test_accuracy_stands_against_the_commonest_class(tmp_path):
    found = verdict(make_run(tmp_path / "run", ["x", "y"], n=100, wrong=0.1))
    assert found.baseline == 0.5
    assert found.sentences[0].tone == "good"
    assert "of 100 test images" in found.sentences[0].text
    assert "the commonest training class, would be right on 50.0\u00a0%" in found.sentences[0].text


def test_what_is_not_better_than_the_commonest_class_is_called_bad(tmp_path):
    found = verdict(make_run(tmp_path / "run", ["x", "y"], n=40, wrong=0.5))
    assert found.sentences[0].tone == "bad"
    assert "not shown to be better" in found.sentences[0].text


def test_figures_on_validation_are_said_to_flatter(tmp_path):
    found = verdict(make_run(tmp_path / "run", ["x", "y"], epochs=4, done=2))
    assert found.part == "val"
    assert found.accuracy == 0.7
    assert "flatters" in found.sentences[0].text
    assert found.sentences[0].tone == "doubtful"


@pytest.mark.parametrize(
    ("ece", "tone", "words"),
    [(0.01, "good", "can be believed"), (0.3, "doubtful", "surer than it should be")],
)
def test_calibration_is_told_in_words(tmp_path, ece, tone, words):
    run = make_run(tmp_path / "run", ["x", "y"], n=200, wrong=0.5)
    change(run, ece=ece, ece_ci95=[0.0, ece + 0.03])
    found = verdict(run).sentences[1]
    assert found.tone == tone
    assert words in found.text


def test_without_predictions_the_calibration_error_is_told_all_the_same(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"], n=200, wrong=0.5)
    change(run, ece=0.126)
    for predictions in run.glob("predictions.*"):
        predictions.unlink()
    found = verdict(run).sentences[1]
    assert found.tone == "unknown"
    assert "the calibration error is 12.6" in found.text


@pytest.mark.parametrize("ece", [0.01, 0.3])
def test_a_temperature_that_was_fitted_after_the_evaluation_is_told(tmp_path, ece):
    run = make_run(tmp_path / "run", ["x", "y"], n=200, wrong=0.5)
    change(run, ece=ece, ece_ci95=[0.0, ece + 0.03], temperature=1.25)
    results = read_run(run)
    fitted = {
        temperature: replace(results, checkpoint={"temperature": temperature}) for temperature in (1.25, 0.8)
    }
    assert "temperature" not in judge(fitted[1.25]).sentences[1].text
    assert (
        judge(fitted[0.8])
        .sentences[1]
        .text.endswith(
            "A temperature of 0.8000 has been fitted since; visus train --resume of this run evaluates it anew, with it."
        )
    )


def test_few_images_do_not_make_a_confidence_that_can_be_believed(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"], n=200, wrong=0.5)
    change(run, ece=0.0, ece_ci95=[0.0, 0.24])
    found = verdict(run).sentences[1]
    assert found.tone == "unknown"
    assert "too few to tell" in found.text
    assert "24.0\u00a0%" in found.text


def test_confidence_that_is_too_low_is_told_apart_from_confidence_that_is_off_in_places(tmp_path):
    run = make_run(tmp_path / "run", [f"{i:02}" for i in range(30)], n=600, wrong=0)
    change(run, ece=0.2)
    assert "less sure than it could be" in verdict(run).sentences[1].text


REMARK = {"kind": "imbalance", "severity": "low", "message": "one class is large"}
FAULT = {"kind": "leakage", "severity": "high", "message": "12 leak"}


@pytest.mark.parametrize(("findings", "tone"), [([], "good"), ([REMARK], "good"), ([REMARK, FAULT], "bad")])
def test_faults_of_the_data_that_matter_are_named(tmp_path, findings, tone):
    run = make_run(tmp_path / "run", ["x", "y"])
    assert verdict(run).sentences[2].tone == "unknown"
    write_json(run / "audit.json", {"images": 60, "classes": 2, "findings": findings})
    found = verdict(run).sentences[2]
    assert found.tone == tone
    assert ("12 leak" in found.text) == (tone == "bad")


def test_the_short_audit_is_told_by_what_it_looked_for(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"])
    document = {"images": 60, "classes": 2, "findings": [], "form": "short"}
    write_json(run / "audit.json", document)
    assert "no image that is there twice" in verdict(run).sentences[2].text
    write_json(run / "audit.json", {**document, "notes": ["copies were not looked for"]})
    text = verdict(run).sentences[2].text
    assert "twice" not in text
    assert "looked for by visus audit" in text


def test_many_findings_are_counted_by_their_kind(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"])
    findings = [FAULT] * 3 + [{**FAULT, "kind": "unreadable"}, REMARK]
    write_json(run / "audit.json", {"images": 60, "classes": 2, "findings": findings})
    text = verdict(run).sentences[2].text
    assert "findings 3 of leakage, 1 of unreadable; the first: 12 leak" in text
