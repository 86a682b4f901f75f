"""Known answers, uniformity, independence, and that a draw depends on nothing but what it is for."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from visus.ops.rng import derive_seed, hash64, permutation, philox, random_words, uniform

# From the kat_vectors file of Random123, the reference implementation.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox(np.array(counter, dtype=np.uint64)[:, None], key)
    assert words[:, 0].tolist() == expected


def test_streams_are_pinned():
    assert random_words(0, "order", 0, [0, 1], 2).tolist() == [
        [2811525898, 1632808851],
        [3267377102, 3687424093],
    ]
    assert permutation(7, "order", 3, 8).tolist() == [5, 6, 3, 2, 7, 0, 1, 4]
    assert derive_seed(1, "model", 2, 3) == 7136416192028805047
    assert hash64(0, "split", ["cats/1.png", "caf\u00e9"]).tolist() == [
        17828512793651014243,
        9408219783411014062,
    ]


@given(st.integers(0, 2**32), st.integers(0, 2**31), st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_a_row_depends_on_its_index_alone(seed, epoch, indices):
    together = random_words(seed, "a", epoch, indices, 7)
    for row, index in zip(together, indices, strict=True):
        assert row[:5].tolist() == random_words(seed, "a", epoch, index, 5)[0].tolist()


@given(st.integers(0, 2**32), st.integers(0, 300))
def test_a_permutation_holds_every_index_once(seed, n):
    assert sorted(permutation(seed, "order", 0, n)) == list(range(n))


def test_a_long_permutation_sorts_the_words_of_all_and_needs_little_memory():
    n = 200_000
    high, low = random_words(3, "order", 1, np.arange(n), 2).astype(np.uint64).T
    tracemalloc.start()
    order = permutation(3, "order", 1, n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (order == np.lexsort((low, high))).all()
    assert peak < 24 * n + 4 * 2**20


def test_draws_are_uniform():
    draws = uniform(0, "test", 0, np.arange(100_000), 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001


def test_every_bit_is_fair():
    words = random_words(5, "test", 1, np.arange(50_000))[:, 0]
    ones = ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1).sum(axis=0)
    assert all(stats.binomtest(int(count), 50_000).pvalue > 0.0001 for count in ones)


@pytest.mark.parametrize(
    "other",
    [
        lambda i: uniform(0, "a", 0, i + 1),
        lambda i: uniform(0, "a", 1, i),
        lambda i: uniform(0, "b", 0, i),
        lambda i: uniform(1, "a", 0, i),
    ],
    ids=["index", "epoch", "purpose", "seed"],
)
def test_neighbours_are_independent(other):
    index = np.arange(50_000)
    pair = np.floor(np.stack((uniform(0, "a", 0, index)[:, 0], other(index)[:, 0])) * 8).astype(int)
    table = np.zeros((8, 8))
    np.add.at(table, (pair[0], pair[1]), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_permutations_put_every_index_everywhere():
    places = np.array([permutation(0, "order", epoch, 6) for epoch in range(6_000)])
    for column in places.T:
        assert stats.chisquare(np.bincount(column, minlength=6)).pvalue > 0.0005


def test_names_that_are_not_utf8_have_a_hash():
    assert hash64(0, "split", [b"caf\xe9.png".decode("utf-8", "surrogateescape")]).shape == (1,)
