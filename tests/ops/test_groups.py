"""Images without a group count for one each, wherever groups are counted."""

import numpy as np

from visus.ops.groups import count_groups, counted_groups, is_one_group, named_apart


def test_an_image_without_a_group_is_one_of_its_own():
    groups = ["a", "", "b", "a", ""]
    for each in (groups, np.array(groups, dtype=object)):
        assert count_groups(each) == 4
        assert [group for group in named_apart(each) if group in "ab"] == ["a", "b", "a"]
        assert len(set(counted_groups(each))) == 4
    # By its name where it has one, so that the order of images does not matter.
    names = "vwxyz"
    assert set(named_apart(groups[::-1], names[::-1])) == set(named_apart(groups, names))


def test_groups_that_say_nothing_are_not_counted():
    assert counted_groups(["", "", ""]) is None
    assert counted_groups(["a", "b", ""]) is None
    assert counted_groups(["a", "a"]) is None
    assert counted_groups([]) is None
    assert is_one_group(["a", "a"])
    assert not is_one_group(["", ""])
    assert not is_one_group(["a"])
