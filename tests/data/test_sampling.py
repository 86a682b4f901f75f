"""An epoch's images: all of them once, or drawn by class."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from visus.data.sampling import draw_balanced, draw_epoch, earlier

LABELS = np.repeat([0, 1, 3], [900, 90, 10])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_has_as_many_images_as_the_part(labels, seed, epoch):
    labels = np.array(labels)
    assert sorted(draw_epoch(seed, epoch, labels, "shuffle")) == list(range(len(labels)))
    numbers = draw_epoch(seed, epoch, labels, "balanced")
    # No two are augmented alike, and of those that are there once the number is the position.
    assert len(set(numbers)) == len(labels)
    assert np.array_equal(numbers % len(labels), draw_balanced(seed, epoch, labels))
    assert set(numbers % len(labels)) <= set(numbers)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_earlier_counts_what_stands_before(values):
    seen, expected = Counter(), []
    for value in values:
        expected.append(seen[value])
        seen[value] += 1
    assert earlier(np.array(values, dtype=np.int64)).tolist() == expected


def test_each_class_is_equally_likely_and_each_image_of_a_class_too():
    drawn = np.concatenate([draw_balanced(0, epoch, LABELS) for epoch in range(100)])
    by_class = np.bincount(LABELS[drawn])
    assert by_class[2] == 0
    assert chisquare(by_class[[0, 1, 3]]).pvalue > 0.01
    by_image = np.bincount(drawn, minlength=len(LABELS))
    for label in (0, 1, 3):
        assert chisquare(by_image[label == LABELS]).pvalue > 0.01


def test_the_draw_depends_on_seed_and_epoch_alone():
    assert np.array_equal(draw_balanced(3, 4, LABELS), draw_balanced(3, 4, LABELS))
    assert not np.array_equal(draw_balanced(3, 4, LABELS), draw_balanced(3, 5, LABELS))
    assert not np.array_equal(draw_balanced(3, 4, LABELS), draw_balanced(2, 4, LABELS))
