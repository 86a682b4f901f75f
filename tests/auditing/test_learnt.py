"""Faults that only a model or a comparison with the whole set can find."""

import io

import numpy as np
import pytest
from PIL import Image

from visus.auditing import patches, similarity
from visus.auditing.learnt_checks import (
    find_label_errors,
    find_outliers,
    neighbour_distances,
    unseen_probabilities,
)
from visus.auditing.patches import patch_features
from visus.auditing.scanning import Pool, scan_images
from visus.auditing.shortcuts import find_shortcuts, found_share
from visus.auditing.similarity import near_pairs
from visus.data.images import ArrayImages
from visus.data.sources import open_source
from visus.ops import scratch

CLASSES = ("circle", "square", "cross")


def shapes(count, seed):
    """Grey shapes of random size, place and brightness on a noisy ground `[N, 32, 32, 3]`, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[:32, :32]
    images = rng.normal(80, 25, (count, 32, 32))
    for image, label in zip(images, labels, strict=True):
        cy, cx, r, bright = *rng.uniform(12, 20, 2), rng.uniform(6, 10), rng.uniform(60, 120)
        far = np.abs(y - cy), np.abs(x - cx)
        inside = (
            np.hypot(*far) < r,
            np.maximum(*far) < 0.9 * r,
            (np.minimum(*far) < 2) & (np.maximum(*far) < r),
        )
        image[inside[label]] += bright
    return np.repeat(np.clip(images, 0, 255).astype(np.uint8)[..., None], 3, axis=3), labels


def pool(labels, classes=CLASSES):
    names = [f"{place}.png" for place in range(len(labels))]
    return Pool(names, labels, np.zeros(len(labels), dtype=np.int64), tuple(classes), {})


def judged(images, labels):
    places = np.arange(len(labels))
    features = patch_features(images, places)
    return find_label_errors(pool(labels), places, unseen_probabilities(pool(labels), places, features))


@pytest.fixture(scope="module")
def thumbs():
    return shapes(600, 0)


def test_wrong_labels_are_found_and_few_others(thumbs):
    images, true = thumbs
    labels = true.copy()
    labels[:30] = (true[:30] + 1) % 3
    findings, notes = judged(images, labels)
    named = {int(each.paths[0].removesuffix(".png")) for each in findings}
    # Of 600 images a model learns less than of the 10,000 in the benchmark: it finds fewer.
    assert len(named & set(range(30))) >= 15
    assert len(named - set(range(30))) <= 0.25 * len(named)
    messages = {each.paths[0]: each.message for each in findings}
    place = min(named)
    assert f"looks like {CLASSES[true[place]]}" in messages[f"{place}.png"]
    assert "images were judged by a model" in notes[0]


def test_labels_without_meaning_are_not_judged(thumbs):
    images, _ = thumbs
    labels = np.random.default_rng(0).integers(0, 3, 600)
    findings, notes = judged(images, labels)
    assert not findings
    assert "too few to tell" in notes[0]


def test_features_of_many_images_lie_in_a_file_and_are_those_of_few(thumbs, monkeypatch):
    images, places = thumbs[0], np.arange(0, 600, 3)
    few = patch_features(images, places)
    # Another third of the images, beside those that the components are found from.
    monkeypatch.setattr(patches, "_FITTED", 200)
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(patches, "_AT_ONCE", 64)
    monkeypatch.setattr(patches, "_filters", lambda *_, real=patches._filters: real(images, places, True, 0))
    many = patch_features(images, np.arange(600))
    assert isinstance(many, np.memmap)
    np.testing.assert_allclose(many[places], few, atol=1e-4)


def test_principal_components_are_scikit_learns():
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rows = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32) @ np.diag([1, 2, 3, 4, 5, 6])
    rows[:, 1] += rows[:, 0]
    ours = patches.principal_components(rows.astype(np.float32))
    pca = PCA().fit(StandardScaler().fit_transform(rows))
    theirs = pca.transform(StandardScaler().fit_transform(rows)) / np.sqrt(pca.explained_variance_[0])
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=2e-2)


def test_an_image_of_another_kind_is_an_outlier(thumbs):
    labels = thumbs[1]
    features = np.concatenate([np.random.default_rng(0).normal(size=(599, 8)), np.full((1, 8), 30.0)])
    (finding,) = find_outliers(pool(labels), np.arange(600), features)
    assert finding.paths == ("599.png",)


def test_the_tenth_neighbour_is_scikit_learns():
    from sklearn.neighbors import NearestNeighbors

    features = np.random.default_rng(0).normal(size=(300, 5))
    theirs = NearestNeighbors(n_neighbors=11).fit(features).kneighbors(features)[0][:, -1]
    np.testing.assert_allclose(neighbour_distances(features), theirs, rtol=1e-6)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))


CHANGES = {
    "jpeg": jpeg,
    "brighter": lambda image: np.clip(image * 1.25, 0, 255).astype(np.uint8),
    "cropped": lambda image: np.asarray(
        Image.fromarray(image[2:31, 1:30]).resize((32, 32), Image.Resampling.BILINEAR)
    ),
    "smaller": lambda image: np.asarray(Image.fromarray(image).resize((24, 24)).resize((32, 32))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_are_found_and_nothing_else_is(thumbs, change):
    images, _ = thumbs
    smooth = np.stack(
        [np.asarray(Image.fromarray(each).resize((16, 16)).resize((32, 32))) for each in images]
    )
    copies = np.stack([CHANGES[change](each) for each in smooth[:50]])
    images = np.concatenate([smooth, copies])
    found = {(a, b) for a, b, _ in near_pairs(images, np.arange(650))}
    planted = {(place, 600 + place) for place in range(50)}
    assert len(found & planted) >= 48
    assert len(found - planted) <= 1


def test_copies_are_the_same_however_many_images_are_looked_at_together(thumbs, monkeypatch):
    images = np.concatenate([thumbs[0], thumbs[0][:50] // 2])
    expected = near_pairs(images, np.arange(650))
    monkeypatch.setattr(similarity, "_WAITING", 0)
    monkeypatch.setattr(similarity, "_AT_ONCE", 50)
    monkeypatch.setattr(similarity, "_SEARCHED", 200)
    found = near_pairs(images, np.arange(650))
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    assert len(found) >= 50


def audited(images, labels):
    split = open_source("digits", val_fraction=0).train.subset(np.arange(len(labels)))
    import dataclasses

    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    part = dataclasses.replace(split, images=ArrayImages(pixels), labels=labels, classes=CLASSES)
    return find_shortcuts(pool(labels), scan_images([part]))


def test_without_a_shortcut_none_is_found(thumbs):
    assert audited(*thumbs) == []


@pytest.mark.parametrize(
    ("row", "column", "where"),
    [
        (28, 28, "at the bottom right"),
        (0, 28, "at the top right"),
        (1, 17, "56 % from the left and 6 % from the top"),
    ],
)
def test_a_watermark_is_named_with_its_class_and_place(thumbs, row, column, where):
    images, labels = thumbs[0].copy(), thumbs[1]
    images[labels == 1, row : row + 3, column : column + 3] = 255
    (finding,) = audited(images, labels)
    assert finding.message.startswith(f"{where}, a 64th of the image gives away square: 100 %")
    assert finding.severity == "high"


def test_what_is_around_the_middle_may_be_the_subject(thumbs):
    images, labels = thumbs[0].copy(), thumbs[1]
    images[labels == 1, 16:20, 16:20] = 255
    (finding,) = audited(images, labels)
    assert finding.severity == "medium"
    assert finding.message.startswith("in the middle, a 64th of the image gives away square: 100 %")
    assert "a subject that is always in the same place" in finding.message


def test_a_colour_of_each_class_is_named(thumbs):
    images, labels = thumbs[0].copy(), thumbs[1]
    images[labels == 2, :, :, 0] //= 4
    messages = [each.message for each in audited(images, labels)]
    assert any(each.startswith("the mean colour gives away cross") for each in messages)


def test_the_share_found_by_chance_is_the_false_alarms():
    scores = np.random.default_rng(0).uniform(size=20_000)
    assert abs(found_share(scores, np.arange(20_000) < 10_000) - 0.01) < 0.004
