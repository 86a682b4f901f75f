"""Near pairs among many binary codes, without comparing all with all.

`N` codes in the table, `Q` queries, of `W` words of 64 bits each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.ops.rng import permutation

Codes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

BITS = 64
"""Of a word."""
WORDS = 4
"""Of a code: the first one finds pairs, all of them tell how near two are."""
_QUERIES_AT_ONCE = 2**16


def near_codes(
    table: Codes, queries: Codes, *, radius: int, tables: int = 36, neighbours: int = 8, seed: int = 0
) -> Iterator[tuple[Places, Places, Places]]:
    """Pairs whose first words differ in at most `radius` bits: places in `queries [Q, W]`, in `table [N, W]`, and in how many bits
    of all their words they differ.

    The table is sorted under `tables` random orders of the bits, and each query is compared with the `neighbours` before and after
    the place where it would stand: of a near pair the first bits agree under some order (Charikar, Similarity Estimation
    Techniques from Rounding Algorithms, 2002). Time is O(tables (N + Q) log N) whatever the codes are, memory O(N); some pairs are
    missed, the more the farther they are apart and the more others are nearer. A pair may come more than once.
    """
    for number in range(tables):
        order = permutation(seed, "bits", number, BITS)
        keys = permute_bits(table[:, 0], order)
        rank = np.argsort(keys, kind="stable")
        keys = keys[rank]
        for begin in range(0, len(queries), _QUERIES_AT_ONCE):
            some = queries[begin : begin + _QUERIES_AT_ONCE]
            wanted = permute_bits(some[:, 0], order)
            # In their order, so that memory is read from front to back.
            query = np.argsort(wanted, kind="stable")
            wanted = wanted[query]
            stand = np.searchsorted(keys, wanted)
            for step in range(-neighbours, neighbours):
                place = np.clip(stand + step, 0, len(keys) - 1)
                near = np.bitwise_count(wanted ^ keys[place]) <= radius
                if near.any():
                    one, other = query[near], rank[place[near]]
                    differing = np.bitwise_count(some[one] ^ table[other])
                    yield one + begin, other, differing.sum(axis=1, dtype=np.int64)


def permute_bits(codes: Codes, order: Places) -> Codes:
    """`codes [N]` with bit `order[i]` of each at place `i`."""
    result = np.zeros_like(codes)
    for place, bit in enumerate(order):
        result |= ((codes >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
    return result


def unit_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """`rows [N, D]`, float32, brought to length 1; what is shorter than 1e-6, as rounding leaves of nothing, stays short."""
    unit: npt.NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return unit


def sign_codes(vectors: npt.NDArray[np.float32], seed: int = 0) -> Codes:
    """For each of `vectors [N, D]` on which side of 256 random planes it lies: `[N, 4]`.

    Two codes differ in a share of their bits that is the angle between the vectors over pi, on average (Charikar, 2002).
    """
    planes = _planes(vectors.shape[1], seed)
    signs = (vectors @ planes) > 0
    codes: Codes = np.packbits(signs, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return codes


def _planes(size: int, seed: int) -> npt.NDArray[np.float32]:
    """Normals of the planes, `[size, 256]`, normally distributed."""
    from scipy.special import ndtri

    from visus.ops.rng import uniform

    draws = uniform(seed, "planes", 0, np.arange(size), WORDS * BITS)
    planes: npt.NDArray[np.float32] = ndtri(draws + 2.0**-33).astype(np.float32)
    return planes
