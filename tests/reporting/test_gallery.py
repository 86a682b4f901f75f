import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from visus.reporting.gallery import examples, mistakes, pictured, right, spread
from visus.reporting.reading import Listing, Predictions


def predictions(true, predicted, confidence, classes):
    names = tuple(map(str, range(classes)))
    likely = np.zeros(len(true))
    return Predictions(names, [f"{i}.png" for i in range(len(true))], true, predicted, confidence, likely)


@st.composite
def any_predictions(draw):
    n, classes = draw(st.integers(0, 400)), draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    confidence = np.where(rng.random(n) < 0.05, np.nan, rng.random(n))
    return predictions(rng.integers(0, classes, n), rng.integers(0, classes, n), confidence, classes)


@given(any_predictions(), st.integers(1, 5))
def test_what_is_pictured_is_a_choice_of_the_mistakes_that_forgets_no_pair_for_want_of_order(found, share):
    wrong = mistakes(found)
    assert sorted(wrong) == sorted(np.flatnonzero(found.true != found.predicted))
    shown = pictured(found, wrong, share)
    assert len(shown) == len(set(shown)) == min(len(wrong), 200 // share)
    assert set(shown) <= set(wrong)
    assert set(wrong[: min(100 // share, len(wrong))]) <= set(shown)
    pairs = {(found.true[i], found.predicted[i]) for i in wrong}
    if len(pairs) <= 100 // share:
        assert pairs == {(found.true[i], found.predicted[i]) for i in shown}


@given(any_predictions())
def test_of_each_class_some_right_answers_are_shown_the_least_sure_ones(found):
    shown = right(found)
    assert all(found.true[i] == found.predicted[i] for i in shown)
    for label in set(found.true[found.correct]):
        of_class = [i for i in shown if found.true[i] == label]
        others = set(np.flatnonzero(found.correct & (found.true == label))) - set(of_class)
        assert 1 <= len(of_class) <= 6
        surest = np.nanmax(found.confidence[of_class], initial=0)
        assert not any(found.confidence[i] < surest for i in others if len(of_class) == 6)


@given(st.integers(0, 1000), st.integers(1, 50))
def test_places_are_spread_evenly(n, most):
    places = spread(n, most)
    assert len(places) == min(n, most)
    assert all(0 <= each < n for each in places)
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_very_many_classes_have_no_more_examples_than_there_is_room_for():
    listing = Listing({"train": {f"{i:04}": [f"{i}/{j}" for j in range(9)] for i in range(1000)}})
    assert sum(map(len, examples(listing).values())) == 240
    few = Listing({"train": {"a": [str(i) for i in range(100)], "b": ["x"]}})
    assert [len(each) for each in examples(few).values()] == [8, 1]
