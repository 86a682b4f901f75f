import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.ops.nearest import near_codes, permute_bits, sign_codes, unit_rows


def changed(code, bits):
    for bit in bits:
        code = code ^ (1 << int(bit))
    return np.uint64(code)


def test_near_pairs_are_found_and_far_ones_are_not():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2**64 - 1, (20_000, 2), dtype=np.uint64)
    queries = table[:500].copy()
    queries[:, 0] = [changed(int(each), rng.permutation(64)[:6]) for each in queries[:, 0]]
    queries[::2, 1] ^= np.uint64(0b111)
    found = {}
    for query, place, distance in near_codes(table, queries, radius=10):
        found.update(zip(zip(query.tolist(), place.tolist(), strict=True), distance.tolist(), strict=True))
    assert np.mean([(i, i) in found for i in range(500)]) > 0.97
    for (query, place), distance in found.items():
        first, second = (int(each).bit_count() for each in queries[query] ^ table[place])
        assert first <= 10
        assert distance == first + second
    assert {found[i, i] for i in range(500) if (i, i) in found} == {6, 9}


def test_a_heap_of_equal_codes_costs_no_more_than_others():
    heap = np.zeros((50_000, 1), dtype=np.uint64)
    assert (
        sum(len(query) for query, _, _ in near_codes(heap, heap, radius=0, tables=2, neighbours=4))
        <= 2 * 8 * 50_000
    )


@given(st.integers(0, 2**64 - 1), st.permutations(range(64)))
def test_bits_change_places_and_none_is_lost(code, order):
    (result,) = permute_bits(np.array([code], dtype=np.uint64), np.array(order))
    assert [int(result) >> place & 1 for place in range(64)] == [code >> bit & 1 for bit in order]


def test_rows_are_brought_to_length_1_and_nothing_stays_nothing():
    rows = np.array([[3, 4], [-1e-3, 0], [0, 0], [1e-30, 0]], dtype=np.float32)
    unit = unit_rows(rows)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [-1, 0], [0, 0], [1e-24, 0]], rtol=1e-6)
    assert unit.dtype == np.float32


@pytest.mark.parametrize("angle", [0.2, 0.5, 1.0])
def test_codes_differ_by_the_angle_over_pi(angle):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(2000, 128)).astype(np.float32)
    other = rng.normal(size=a.shape).astype(np.float32)
    other -= (other * a).sum(1, keepdims=True) / (a**2).sum(1, keepdims=True) * a
    other *= np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(other, axis=1, keepdims=True)
    b = np.float32(np.cos(angle)) * a + np.float32(np.sin(angle)) * other
    differing = np.bitwise_count(sign_codes(a) ^ sign_codes(b)) / 64
    assert differing.shape == (2000, 4)
    assert abs(differing.mean() - angle / np.pi) < 0.01
