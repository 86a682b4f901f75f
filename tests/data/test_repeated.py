"""Texts that are there many times: as a list of them, whatever the order in which they come."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from visus.data.repeated import Repeated

TEXTS = st.lists(st.sampled_from(["", "a", "b é", "\udcff", "a\0"]), max_size=20)


@given(TEXTS, TEXTS, st.integers(0, 3))
def test_they_are_as_a_list_of_strings(one, other, more):
    found = Repeated(one)
    found.join(Repeated(other))
    found.fill(len(one) + len(other) + more)
    plain = [*one, *other, *[""] * more]
    assert found.texts().tolist() == plain
    assert len(found) == len(plain)
    assert found.values == list(dict.fromkeys(plain))
    assert [found.first(value) for value in found.values] == [plain.index(value) for value in found.values]


def test_there_is_one_object_for_equal_texts():
    texts = Repeated("".join(["site", str(number % 3)]) for number in range(1000)).texts()
    assert len({id(each) for each in texts}) == 3
    assert all(a is b for a, b in itertools.pairwise(texts[::3]))
