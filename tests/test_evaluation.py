"""Scores against scikit-learn and torch, on random and degenerate outputs."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import nn

from visus.errors import DataError, UsageError
from visus.evaluation import evaluate, predict_labels
from visus.inference import eval_mode, predict_logits
from visus.ops.intervals import bounded_interval, of_few, wilson
from visus.outcomes import ByColumn, collect, follow
from visus.scoring import Wanted, rank_classes


def scores_of(logits, labels, batch_size=7):
    batches = list(zip(logits.split(batch_size), labels.split(batch_size), strict=True))
    return evaluate(nn.Identity(), batches)


def random_outputs(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


@settings(max_examples=12)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(6, 9), st.integers(1, 60))
def test_scores_equal_those_of_scikit_learn(seed, n, classes, batch_size):
    logits, labels = random_outputs(seed, n, classes)
    scores = scores_of(logits, labels, batch_size)
    names = np.arange(classes)
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(true, predicted, labels=names))
    assert scores.accuracy == (true == predicted).mean()
    assert scores.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-12)
    assert scores.top5 == pytest.approx(top_k_accuracy_score(true, logits, k=5, labels=names))
    columns = precision_recall_fscore_support(true, predicted, labels=names, zero_division=0)
    for index, each in enumerate(scores.per_class):
        ours = [each["precision"] or 0, each["recall"] or 0, each["f1"] or 0, each["n"]]
        assert ours == pytest.approx([column[index] for column in columns])


def test_what_has_nothing_to_divide_by_is_none():
    scores = scores_of(torch.eye(3)[[0, 0]], torch.tensor([0, 0]))
    absent = scores.per_class[2]
    assert (absent["n"], absent["accuracy"], absent["ci95"], absent["precision"], absent["f1"]) == (
        0,
        *[None] * 4,
    )
    assert scores.top5 == 1.0


def test_an_image_whose_outputs_are_nan_is_wrong():
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    scores = scores_of(logits, torch.tensor([0, 0]))
    assert scores.accuracy == 0.5
    assert scores.per_class[0]["n"] == 2
    assert np.isnan(scores.loss)


@pytest.mark.parametrize("row", [[np.inf, 0.0, 1.0], [-np.inf] * 3, [0.0, np.nan, 1.0]])
def test_outputs_that_no_probabilities_can_be_made_of_are_no_prediction(row):
    good, labels = random_outputs(0, 60, 3)
    bad = torch.tensor([row] * 20)
    scores = scores_of(torch.cat([good, bad]), torch.cat([labels, torch.zeros(20, dtype=torch.int64)]))
    assert (scores.without_prediction, scores.n) == (20, 80)
    assert scores.per_class[0]["predicted"] == int((good.argmax(dim=1) == 0).sum())
    # They are wrong, and say nothing of how honest the others' confidences are.
    alone = scores_of(good, labels)
    assert (scores.ece, scores.ece_ci95, scores.smooth_ece) == (
        alone.ece,
        alone.ece_ci95,
        alone.smooth_ece,
    )
    assert scores.reliability == alone.reliability


def test_minus_infinity_is_a_class_ruled_out():
    scores = scores_of(torch.tensor([[0.0, -np.inf], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert (scores.accuracy, scores.without_prediction) == (1.0, 0)


def test_where_no_image_has_a_prediction_calibration_is_unknown():
    scores = scores_of(torch.full((5, 3), torch.nan), torch.tensor([0, 1, 2, 0, 1]))
    document = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert [document[key] for key in ("ece", "ece_plain", "smooth_ece", "ece_ci95")] == [None] * 4
    assert document["reliability"] == []
    assert document["accuracy"] == 0.0


@pytest.mark.parametrize("right", [2, 6, 9])
def test_groups_that_are_all_alike_leave_room_for_others(right):
    # As many right in each group: sums that are rounded must not pass for certainty.
    size = right + 1
    logits = torch.eye(2)[[0] * right + [1]].repeat(20, 1)
    groups = np.arange(20).repeat(size).tolist()
    scores = evaluate(
        nn.Identity(),
        [(logits, torch.zeros(20 * size, dtype=torch.int64))],
        wanted=Wanted(groups=groups),
    )
    low, high = scores.accuracy_ci95
    assert low < right / size - 0.02
    assert high > right / size + 0.02
    assert scores.loss_ci95 is None


def test_one_hot_targets_count_as_their_class():
    logits, labels = random_outputs(0, 20, 4)
    assert scores_of(logits, F.one_hot(labels, 4).float()).accuracy == scores_of(logits, labels).accuracy
    true, predicted = predict_labels(nn.Identity(), [(logits, F.one_hot(labels, 4))])
    assert (true.tolist(), predicted.tolist()) == (labels.tolist(), logits.argmax(1).tolist())


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (94, 100, 0.8752, 0.9722)]
)
def test_wilson_gives_the_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_no_images_and_unknown_labels_are_errors():
    with pytest.raises(DataError, match="found none"):
        evaluate(nn.Identity(), [])
    with pytest.raises(DataError, match="labels from 0 to 1"):
        evaluate(nn.Flatten(), [(torch.zeros(2, 2), torch.tensor([0, 2]))])


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()

    def fail():
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_evaluation_moves_no_statistics_and_drops_nothing():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, labels = random_outputs(0, 20, 4)
    assert evaluate(model, [(logits, labels)]).accuracy == scores_of(logits, labels).accuracy
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_probabilities_are_scored_as_scikit_learn_scores_them():
    logits, labels = random_outputs(1, 300, 4)
    logits[torch.arange(300), labels] += 1.5
    scores, probabilities = scores_of(logits, labels), logits.double().softmax(1).numpy()
    true = labels.numpy()
    for kind in ("macro", "weighted"):
        found = getattr(scores, kind)
        expected = roc_auc_score(true, probabilities, multi_class="ovr", average=kind)
        assert found.auroc == pytest.approx(expected, abs=1e-6)
        expected = average_precision_score(np.eye(4)[true], probabilities, average=kind)
        assert found.average_precision == pytest.approx(expected, abs=1e-6)
        for name in ("precision", "recall", "f1", "auroc", "average_precision"):
            low, high = getattr(found, f"{name}_ci95")
            assert low < getattr(found, name) < high
    assert scores.brier == pytest.approx(((probabilities - np.eye(4)[true]) ** 2).sum(1).mean(), abs=1e-6)
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, logits.argmax(1)))
    assert scores.balanced_accuracy == scores.macro.recall
    assert scores.accuracy_ci95 == scores.weighted.recall_ci95
    for name in ("loss", "brier", "balanced_accuracy", "ece"):
        low, high = getattr(scores, f"{name}_ci95")
        assert low < getattr(scores, name) < high


def test_every_figure_is_the_same_for_every_batch_size():
    logits, labels = random_outputs(2, 90, 6)
    one = scores_of(logits, labels, 90).to_json()
    for batch_size in (1, 7, 64):
        assert scores_of(logits, labels, batch_size).to_json() == one


def test_a_document_with_nan_and_classes_that_are_missing_is_plain_json():
    logits = torch.tensor([[float("nan"), 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    scores = scores_of(logits, torch.tensor([0, 0, 1]))
    document = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert (document["loss"], document["loss_ci95"], document["brier"]) == (None, None, None)
    assert document["without_prediction"] == 1
    never = document["per_class"][2]
    assert (never["n"], never["ci95"], never["auroc"], never["f1"]) == (0, None, None, None)
    assert "1 images have an output that is NaN or infinite" in str(scores)
    # Of class 1 there is an image, and none is taken for it; of class 2 there is none.
    told = [re.split(" {2,}", line) for line in str(scores).splitlines()[-2:]]
    assert (told[0][:4], told[0][5]) == (["1", "1", "0", "none of 1"], "none of 0")
    assert told[1][:5] == ["2", "0", "0", "none of 0", "none of 0"]


def test_one_class_alone_and_one_image_alone_can_be_scored():
    scores = scores_of(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0]))
    assert scores.macro.auroc is None
    assert scores.macro.recall == pytest.approx(2 / 3)
    one = scores_of(torch.eye(3)[[0]], torch.tensor([0]))
    assert (one.accuracy, one.macro.f1, one.balanced_accuracy) == (1, 1, 1)
    assert (one.loss_ci95, one.ece_ci95) == (None, None)
    json.dumps(one.to_json(), allow_nan=False)


def test_columns_that_cannot_be_judged_are_said():
    logits, labels = random_outputs(3, 80, 3)
    columns = {"name": [f"n{i}" for i in range(80)], "site": ["a"] * 78 + ["b", "c\nd"], "camera": ["x"] * 80}
    scores = evaluate(nn.Identity(), [(logits, labels)], wanted=Wanted(attributes=columns))
    assert json.loads(json.dumps(scores.to_json()))["slices_left_out"] == [
        {"column": "name", "values": [], "reason": "80 values, more than 50"},
        {"column": "site", "values": ["b", "c\nd"], "reason": "fewer than 5 images"},
    ]
    told = "not looked at as slices: name (80 values, more than 50); site b, c d (fewer than 5 images)"
    assert told in str(scores).splitlines()


def test_another_level_has_other_keys_and_shorter_intervals():
    logits, labels = random_outputs(4, 200, 4)
    batches = [(logits, labels)]
    usual = evaluate(nn.Identity(), batches).to_json()
    document = evaluate(nn.Identity(), batches, wanted=Wanted(level=0.8)).to_json()
    assert "95" not in json.dumps(list(document) + list(document["macro"]) + list(document["per_class"][0]))
    assert (document["ci_level"], document["accuracy"]) == (0.8, usual["accuracy"])
    for key in ("accuracy", "loss", "brier", "ece", "balanced_accuracy"):
        (low, high), (lower, higher) = document[f"{key}_ci"], usual[f"{key}_ci95"]
        assert high - low < higher - lower
    assert document["per_class"][0]["ci"]


@pytest.mark.parametrize("right", [False, True])
def test_a_class_that_is_all_alike_is_as_uncertain_as_its_own_groups_say(right):
    # 20 groups of ten; the second class has four of them.
    groups = np.arange(20).repeat(10)
    labels = torch.tensor((groups >= 16).astype(np.int64))
    logits = torch.eye(2)[labels if right else torch.zeros_like(labels)]
    found = evaluate(nn.Identity(), [(logits, labels)], wanted=Wanted(groups=groups.tolist()))
    assert found.per_class[1]["ci95"] == pytest.approx(wilson(4 * right, 4))


def test_groups_are_resampled_whole():
    logits, labels = random_outputs(5, 40, 4)
    # Ten copies of every image say no more than the image.
    together = logits.repeat_interleave(10, 0), labels.repeat_interleave(10)
    groups = np.arange(40).repeat(10).tolist()
    grouped = evaluate(nn.Identity(), [together], wanted=Wanted(groups=groups))
    alone = evaluate(nn.Identity(), [(logits, labels)], wanted=Wanted(method="bootstrap"))
    assert grouped.groups == 40
    assert grouped.accuracy_ci95 == pytest.approx(alone.accuracy_ci95, abs=0.02)
    for ours, theirs in zip(grouped.per_class, alone.per_class, strict=True):
        assert ours["precision_ci95"] == pytest.approx(theirs["precision_ci95"], abs=0.05)
    low, high = grouped.macro.auroc_ci95
    narrow = evaluate(nn.Identity(), [together]).macro.auroc_ci95
    assert high - low > narrow[1] - narrow[0]
    for wrong, sentence in (([0] * 400, "two groups"), ([0, 1], "each of 400 images")):
        with pytest.raises(UsageError, match=sentence):
            evaluate(nn.Identity(), [together], wanted=Wanted(groups=wrong))
    with pytest.raises(UsageError, match="independent"):
        evaluate(nn.Identity(), [together], wanted=Wanted(groups=groups, accuracy=0.9))


def test_the_mean_of_two_classes_that_rank_alike_is_as_uncertain_as_each_in_few_groups():
    random = np.random.default_rng(0)
    labels, groups = np.arange(80) % 2, np.arange(80) // 10
    margins = labels + random.normal(size=8)[groups] + 0.5 * random.normal(size=80)
    logits = torch.tensor(np.stack([-margins, margins], axis=1))
    found = evaluate(nn.Identity(), [(logits, torch.tensor(labels))], wanted=Wanted(groups=groups.tolist()))
    one, other = (each["auroc_ci95"] for each in found.per_class)
    assert found.macro.auroc_ci95 == pytest.approx(one) == other
    assert found.weighted.auroc_ci95[0] <= one[0]


def test_probabilities_beyond_memory_are_read_back_from_a_file():
    probabilities = np.random.default_rng(0).random((10_000, 3), dtype=np.float32)
    kept = ByColumn(memory_bytes=60_000)
    for block in np.array_split(probabilities, 17):
        kept.add(block)
    for place in range(3):
        np.testing.assert_array_equal(kept.column(place), probabilities[:, place])


def test_rows_of_all_batches_are_kept_in_order():
    random = np.random.default_rng(1)
    rows = random.random((10_000, 2), dtype=np.float32)
    kept = ByColumn()
    for some in np.split(rows, [1, 5000, 9193]):
        kept.add(some)
    np.testing.assert_array_equal(np.concatenate(kept.blocks(), axis=1).T, rows)
    assert [each.shape for each in kept.blocks()] == [(2, 4096), (2, 4096), (2, 1808)]


def test_logits_are_where_there_is_float64(monkeypatch):
    asked = []
    monkeypatch.setattr("visus.inference.exact_device", lambda device: asked.append(device) or device)
    list(predict_logits(nn.Identity(), [(torch.zeros(2, 3), torch.zeros(2))]))
    assert set(asked) == {torch.device("cpu")}


def test_the_mirror_image_is_seen_too_and_probabilities_are_averaged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4, 5))
    images = torch.randn(6, 2, 3, 4)
    ((found, _),) = predict_logits(model, [(images, torch.zeros(6))], tta=True)
    with torch.no_grad():
        both = (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(found.softmax(1), both)
    torch.testing.assert_close(found, both.log())
    # Of an image that is its own mirror image nothing changes but what is the same in all classes.
    same = images + images.flip(3)
    ((found, _),) = predict_logits(model, [(same, torch.zeros(6))], tta=True)
    ((plain, _),) = predict_logits(model, [(same, torch.zeros(6))])
    torch.testing.assert_close(found, plain.log_softmax(1))


def test_the_mean_average_precision_over_few_groups_varies_as_it_does_without_each():
    random = np.random.default_rng(0)
    groups, labels = np.arange(12).repeat(8), np.arange(96) % 3
    scores = random.random((96, 3)) + (np.arange(3) == labels[:, None]) + random.normal(size=(12, 3))[groups]
    wanted = Wanted(groups=groups.tolist())
    found = evaluate(
        nn.Identity(), [(torch.from_numpy(scores), torch.from_numpy(labels))], wanted=wanted
    ).to_json()
    probabilities = special.softmax(scores, axis=1)

    def mean_precision(kept):
        return np.mean([average_precision_score(labels[kept] == k, probabilities[kept, k]) for k in range(3)])

    whole = mean_precision(groups >= 0)
    without = np.array([mean_precision(groups != each) for each in range(12)])
    expected = bounded_interval(whole, of_few(12) * 11 * np.mean((without - whole) ** 2), 96)
    assert found["macro"]["average_precision"] == pytest.approx(whole)
    assert found["macro"]["average_precision_ci95"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["macro", "weighted"])
def test_the_mean_average_precision_of_few_images_is_taken_to_be_flattered(kind):
    random = np.random.default_rng(0)
    labels = random.choice(3, 60, p=[0.2, 0.3, 0.5])
    scores = random.random((60, 3)) + 0.5 * (np.arange(3) == labels[:, None])
    found = evaluate(nn.Identity(), [(torch.from_numpy(scores), torch.from_numpy(labels))]).to_json()
    probabilities = special.softmax(scores, axis=1)

    def mean_precision(kept):
        return average_precision_score(np.eye(3)[labels[kept]], probabilities[kept], average=kind)

    whole = mean_precision(labels >= 0)
    without = np.mean([mean_precision(np.arange(60) != each) for each in range(60)])
    # The share whose interval by Wilson this is, of whatever number of images: his ends are the roots of a quadratic equation.
    low, high = found[kind]["average_precision_ci95"]
    centre = np.roots([low + high - 1, -2 * low * high, low * high])
    assert found[kind]["average_precision"] == pytest.approx(whole)
    assert abs(centre - (whole - 59 * (without - whole))).min() < 1e-6


def held(n, classes, margin, weights, truth, repeats=200):
    """How often the intervals of the macro and the weighted average precision hold the `truth`, of logits `margin` apart."""
    random = np.random.default_rng(0)
    inside = np.zeros(2)
    for _ in range(repeats):
        labels = random.choice(classes, n, p=weights)
        logits = random.normal(size=(n, classes)) + margin * np.eye(classes)[labels]
        (outcomes,) = follow([(torch.from_numpy(logits), torch.from_numpy(labels))])
        found = rank_classes(collect([outcomes]), None, 0.95)
        for place, each in enumerate((found.macro, found.weighted)):
            low, high = each["average_precision_ci95"]
            inside[place] += low <= truth[place] <= high
    return inside / repeats


def test_the_mean_average_precision_of_many_classes_is_inside_its_interval():
    # The truth is that of 1,200,000 images, and below that of 2,400,000; so few images have more by one and a half deviations.
    assert (held(500, 20, 1.0, np.full(20, 0.05), [0.1841, 0.1841], repeats=80) > 0.91).all()


def test_the_mean_average_precision_of_a_good_model_is_inside_its_interval():
    weights = 2.0 ** -np.arange(5)
    assert (held(1000, 5, 4.0, weights / weights.sum(), [0.99886, 0.99956]) > 0.88).all()
