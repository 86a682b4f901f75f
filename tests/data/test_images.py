import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.data.arrays import array_split
from visus.data.images import map_classes
from visus.errors import DataError

NAMES = list("abcdefgh")


@given(
    st.permutations(NAMES),
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=8, unique=True),
    st.integers(0, 99),
)
def test_an_image_keeps_the_name_of_its_class(model, classes, seed):
    labels = np.random.default_rng(seed).integers(0, len(classes), 10)
    split = array_split("test", np.zeros((10, 2, 2), np.uint8), labels, classes, "x")
    mapped = map_classes(split, model)
    assert mapped.classes == tuple(model)
    assert mapped.labels.dtype == np.int64
    assert [model[label] for label in mapped.labels] == [classes[label] for label in labels]
    assert split.labels.tolist() == labels.tolist()


def test_classes_that_the_model_lacks_are_named():
    split = array_split("test", np.zeros((3, 2, 2), np.uint8), [0, 1, 2], ["cat", "cow", "owl"], "x")
    with pytest.raises(
        DataError, match=r"the model has \(cat, dog\), found others: cow, owl; leave them out"
    ):
        map_classes(split, ["cat", "dog"])
