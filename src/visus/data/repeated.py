"""Texts that are there many times, in little memory: each different one once, and four bytes for each place.

`N` places, `V` different texts. Nothing here loads torch.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class Repeated:
    """The texts of `N` places, taken some at a time."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._numbers: dict[str, int] = {}
        self._of_places = array("i")
        self.add(texts)

    def __len__(self) -> int:
        return len(self._of_places)

    @property
    def values(self) -> list[str]:
        """`[V]`, the different texts, in the order in which they are met."""
        return list(self._numbers)

    @property
    def numbers(self) -> npt.NDArray[np.int32]:
        """`[N]`, which of the `values` is at each place; nothing can be added while somebody holds it."""
        return np.asarray(self._of_places)

    def add(self, texts: Iterable[str]) -> None:
        """The texts of the next places."""
        numbers = self._numbers
        self._of_places.extend(numbers.setdefault(text, len(numbers)) for text in texts)

    def join(self, other: Repeated) -> None:
        """The texts of `other` at the next places."""
        numbers = self._numbers
        own = [numbers.setdefault(text, len(numbers)) for text in other.values]
        self._of_places.frombytes(np.array(own, dtype=np.int32)[other.numbers].tobytes())

    def fill(self, count: int) -> None:
        """Empty texts at the next places, so that there are `count` in all."""
        self.add(itertools.repeat("", count - len(self)))

    def first(self, text: str) -> int:
        """The first place of one of the `values`."""
        return self._of_places.index(self._numbers[text])

    def texts(self) -> npt.NDArray[np.object_]:
        """`[N]`, as objects, one for each of the `values`."""
        return np.array(self.values, dtype=object)[self.numbers]
