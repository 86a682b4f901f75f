"""Random numbers as pure functions of what they are for.

Every random decision in visus is `f(seed, purpose, epoch, index)`; no generator has a history, so order, workers, threads,
world size and restarts cannot matter. The function is Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3,
2011): the 64-bit key comes from the seed and the purpose, the 128-bit counter holds the epoch, the index and the draw. It is
written out here because the streams of numpy and torch are not promised to stay the same across versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_AT_ONCE = 1 << 14
"""So many that what is computed on the way stays in the processor's cache."""


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Philox4x32-10 of `counter [4, N]` (32-bit words held in uint64) under `key`; 32-bit words `[4, N]` in uint64."""
    c0, c1, c2, c3 = counter
    for round_number in range(_ROUNDS):
        k0 = np.uint64((key[0] + round_number * _WEYL[0]) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + round_number * _WEYL[1]) & 0xFFFFFFFF)
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
    return np.stack((c0, c1, c2, c3))


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def random_words(seed: int, purpose: str, epoch: int, indices: npt.ArrayLike, draws: int = 1) -> Words:
    """`draws` words of 32 random bits for each of `indices [N]` (0 to 2**63 - 1): `[N, draws]`.

    A prefix of the draws does not depend on how many are asked for, nor a row on which others are asked for with it.
    """
    index = np.atleast_1d(np.asarray(indices, dtype=np.uint64))
    words = np.empty((len(index), draws), dtype=np.uint32)
    for first in range(0, len(index), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        words[some] = _words(_key(seed, purpose), epoch, index[some], draws)
    return words


def _words(key: tuple[int, int], epoch: int, index: npt.NDArray[np.uint64], draws: int) -> Words:
    """`random_words` of one piece."""
    blocks = -(-draws // 4)
    counter = np.empty((4, len(index), blocks), dtype=np.uint64)
    counter[0], counter[1] = (index & _LOW)[:, None], (index >> _HALF)[:, None]
    counter[2], counter[3] = np.uint64(epoch), np.arange(blocks, dtype=np.uint64)
    words = philox(counter.reshape(4, -1), key).astype(np.uint32)
    return words.reshape(4, len(index), blocks).transpose(1, 2, 0).reshape(len(index), 4 * blocks)[:, :draws]


def uniform(
    seed: int, purpose: str, epoch: int, indices: npt.ArrayLike, draws: int = 1
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) in steps of 2**-32, `[N, draws]`; as `random_words`."""
    return random_words(seed, purpose, epoch, indices, draws) * np.float64(2.0**-32)


def permutation(seed: int, purpose: str, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """A random order of `range(n)`: the indices sorted by 64 random bits each; some 20 bytes an index, for a while."""
    words = random_words(seed, purpose, epoch, np.arange(n, dtype=np.uint64), draws=2)
    bits = words[:, 0].astype(np.uint64)
    bits <<= _HALF
    bits |= words[:, 1]
    del words
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed of 63 bits for a generator of torch, Python or numpy, from `numbers` (a step, a rank, ...).

    Both halves are mixed, since torch's CPU generator uses only the low 32 bits.
    """
    text = ":".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def hash64(seed: int, purpose: str, names: Sequence[str] | Iterable[str]) -> npt.NDArray[np.uint64]:
    """A stable 64-bit hash of each name (SHA-256, first eight bytes), for splits that follow names and not positions."""
    prefix = hashlib.sha256(f"{seed}:{purpose}:".encode())

    def one(name: str) -> int:
        digest = prefix.copy()
        digest.update(name.encode("utf-8", "surrogateescape"))
        return int.from_bytes(digest.digest()[:8], "little")

    return np.fromiter(map(one, names), dtype=np.uint64)
