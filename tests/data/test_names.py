"""Names in one buffer: as good as a list of strings, and small."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.data.files import FileImages
from visus.data.images import Split
from visus.data.names import (
    Names,
    NamesBuilder,
    collect_names,
    join_names,
    read_names,
    separated,
    take,
)
from visus.data.splitting import split_off

# What names of files may be: any text, and bytes that are none.
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff"), max_size=8)
)


@given(NAMES, st.data())
def test_they_are_as_a_list_of_strings(plain, data):
    names = collect_names(iter(plain))
    assert list(names) == plain
    assert names == plain
    assert len(names) == len(plain)
    assert [names[place] for place in range(-len(plain), len(plain))] == plain * 2
    assert names[1:-1] == plain[1:-1]
    assert names[::-2] == plain[::-2]
    assert pickle.loads(pickle.dumps(names)) == plain
    places = np.array(
        data.draw(st.lists(st.sampled_from(range(len(plain))) if plain else st.nothing())), np.int64
    )
    some = [plain[place] for place in places]
    assert names.subset(places) == take(plain, places) == some
    assert names.subset(places)[1:] == some[1:]
    if "\0" not in "".join(plain):
        for each in (names, names.subset(places)):
            # One empty name is written as no names are.
            if list(each) != [""]:
                assert read_names(b"".join(separated(each))) == list(each)
    both = join_names([names.subset(places), names])
    assert both == join_names([some, plain]) == some + plain


def test_they_are_told_from_others():
    names = collect_names(["ab", "c"])
    assert names != ["a", "bc"]
    assert names != collect_names(["a", "bc"])
    assert names != ["ab"]
    assert names != "ab"
    assert names == ("ab", "c")
    with pytest.raises(IndexError):
        names[2]
    with pytest.raises(TypeError):
        hash(names)


def test_a_part_shares_the_buffer_and_so_do_parts_joined():
    names = collect_names(f"{number}" for number in range(100))
    one, other = names.subset(np.arange(60)), names.subset(np.arange(60, 100))
    assert join_names([other, one]).shares(names)
    assert not collect_names(list(names)).shares(names)


def many(count):
    builder = NamesBuilder()
    for kind in range(count // 1000):
        builder.add([f"train/n{kind:08}/n{kind:08}_{number:05}.JPEG" for number in range(1000)])
    return builder.finish()


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_million_images_are_listed_in_150_mb(count):
    """A part with its labels, cut in two: no Python object for each image, and 150 bytes of everything."""
    tracemalloc.start()
    try:
        names = many(count)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 150 * count
        labels = np.repeat(np.arange(count // 1000), 1000)
        part = Split(
            "train", FileImages("/nowhere", names), labels, tuple(map(str, range(count // 1000))), names
        )
        train, val = split_off(part, "val", 0.1, 0)
        del part
        held, _ = tracemalloc.get_traced_memory()
        blocks = sum(each.count for each in tracemalloc.take_snapshot().statistics("filename"))
    finally:
        tracemalloc.stop()
    assert isinstance(train.paths, Names)
    assert len(train) + len(val) == count
    assert held < 150 * count
    assert blocks < 0.2 * count


def test_another_process_gets_no_object_for_each_image():
    names = many(20_000)
    some = names.subset(np.arange(len(names)))
    assert len(pickle.dumps(some)) < 46 * 20_000
    # Of 36 letters each; four bytes tell where it ends, and four more which it is.
    assert names.nbytes == 40 * 20_000 + 4
    assert some.nbytes == 44 * 20_000 + 4
