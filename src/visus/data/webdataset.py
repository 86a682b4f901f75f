"""Shards of samples as the WebDataset library reads them: `key.jpg` with `key.cls`, `key.json` or `key.txt` beside it in a tar.

They are listed by one pass over the headers, and over the labels, of every shard; or by the index that `visus pack` wrote.
"""

from __future__ import annotations

import fnmatch
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from visus.data.addresses import Place, expand_braces, is_address
from visus.data.folders import Listing, parts_by_name, refuse_lookalikes
from visus.data.images import Labels, Skipped
from visus.data.names import Index, take
from visus.data.repeated import Repeated
from visus.data.samples import PLAIN, ShardContent, list_files, read_shard
from visus.data.scans import keep_scan, recall_scan
from visus.data.shards import INDEX_NAME, PART_NAMES, ShardIndex, parse_index
from visus.data.tabular import number_labels, sort_labels
from visus.data.tars import COMPRESSED_SUFFIXES
from visus.errors import DataError, first_of

SHARD_SUFFIX = ".tar"
_MOST_CLASSES = 10**9
"""More than any number has that is read as that of a class."""
_AT_ONCE = 8
"""Shards that are read at a time: most of it is waiting for somebody else's machine."""


@dataclass(frozen=True)
class ShardSource:
    """Shards that somebody has named: where they are, and what they are called there."""

    place: Place
    names: Sequence[str]
    identity: str
    """What names just these."""
    indexed: bool = False
    """Whether there is an index beside them."""


def is_wildcard(name: str) -> bool:
    """Whether `name` stands for all files like it, as in a shell."""
    return any(letter in name for letter in "*?[")


def find_shards(source: str) -> ShardSource:
    """The shards that a folder, an address, a file or a pattern such as `train-{000..009}.tar` or `train-*.tar` names.

    `DataError` where there are none, or where they are compressed.
    """
    folder, _, last = source.rpartition("/")
    if source.lower().endswith(COMPRESSED_SUFFIXES):
        raise DataError(f"{source}: {PLAIN}, found a compressed one; unpack it")
    top = "/" if source.startswith("/") else "."
    if is_wildcard(last) and not is_address(source) and not os.path.lexists(source):
        place = Place(folder or top)
        names = sorted(fnmatch.filter(place.find(SHARD_SUFFIX, depth=1), last))
        if not names:
            raise DataError(f"{source}: expected shards, found none of that pattern")
        return ShardSource(place, names, place.url(last))
    if last.lower().endswith(SHARD_SUFFIX) or "{" in source:
        prefix = source[: source.index("{")].rpartition("/")[0] if "{" in source else folder
        place = Place(prefix or top)
        names = [each[len(prefix) :].lstrip("/") for each in expand_braces(source)]
        return ShardSource(place, names, place.url(source[len(prefix) :].lstrip("/")))
    place = Place(source)
    if is_address(source) and place.exists(INDEX_NAME):
        return ShardSource(place, [], place.base, indexed=True)
    names = place.find(SHARD_SUFFIX)
    if INDEX_NAME in place.find(INDEX_NAME, depth=1):
        return ShardSource(place, names, place.base, indexed=True)
    if not names:
        found = [name for name in place.find("", depth=1) if name.lower().endswith(COMPRESSED_SUFFIXES)]
        raise DataError(
            f"{source}: {PLAIN}, found compressed ones ({first_of(found, 3)}); unpack each"
            if found
            else f"{source}: expected shards (.tar), found none"
        )
    return ShardSource(place, names, place.base)


def read_index(source: ShardSource, *, keys: bool = True) -> ShardIndex:
    """Where the images of the shards are, and what is known of them; `DataError` for shards that do not fit together.

    Without `keys` every image file is one by itself, whatever it is called and whatever lies beside it.
    """
    if source.indexed:
        origin = source.place.url(INDEX_NAME)
        with _open_index(source.place) as file:
            index = parse_index(file, origin)
        if missing := set(index.shards) ^ set(source.names) if source.names else set():
            raise DataError(
                f"{origin}: expected the shards that it lists, found {first_of(sorted(missing), 3)} not in both; "
                "copy all again, or pack them again"
            )
        if not source.place.is_local or _are_as_listed(source, index):
            return index
    with ThreadPoolExecutor(1 if source.place.is_local else _AT_ONCE) as pool:
        stamps = np.array(list(pool.map(source.place.stamp, source.names)), dtype=np.int64).reshape(-1, 2)
        identity = source.identity if keys else f"{source.identity}, file by file"
        if (known := recall_scan(identity, source.names, stamps)) is not None:
            return known
        read = read_shard if keys else list_files
        found = pool.map(read, repeat(source.place), source.names, stamps[:, 0].tolist())
        # What was found is held no longer than it takes to make the index of it.
        index = _make_index(source, stamps, *_joined(found))
    keep_scan(identity, index)
    return index


def _are_as_listed(source: ShardSource, index: ShardIndex) -> bool:
    """Whether the shards are as long as the index says. Of others it says nothing: they are read, up to where they are cut off."""
    return all(
        source.place.stamp(name)[0] == size
        for name, (size, _) in zip(index.shards, index.stamps.tolist(), strict=True)
    )


def _open_index(place: Place) -> IO[bytes]:
    """Not every server lets parts of a file be read."""
    return place.open(INDEX_NAME) if place.is_local else io.BytesIO(place.read(INDEX_NAME))


def listings(index: ShardIndex, *, stored: bool) -> dict[str, Listing]:
    """The parts of an index; of one that was `stored` on purpose the training part has all classes, used or not."""
    parts: dict[str, Listing] = {}
    for number, name in enumerate(PART_NAMES):
        places = np.flatnonzero(index.rows["part"] == number)
        if not len(places):
            continue
        labels = index.rows["label"][places]
        # A part to test on need not have every class, and says so.
        present = np.arange(len(index.classes)) if stored and name == "train" else np.unique(labels)
        parts[name] = Listing(
            classes=[index.classes[int(label)] for label in present],
            paths=take(index.paths, places),
            labels=np.searchsorted(present, labels),
            others=index.others if not parts else 0,
            columns={column: values[places] for column, values in index.columns.items()},
        )
    return parts


def _joined(found: Iterable[ShardContent]) -> tuple[ShardContent, list[int]]:
    """What was found in all shards, and how many images in each."""
    whole, counts = ShardContent(), []
    for shard in found:
        counts.append(len(shard))
        whole.join(shard)
    return whole, counts


def _make_index(source: ShardSource, stamps: Any, found: ShardContent, counts: Sequence[int]) -> ShardIndex:
    """The index of what was `found` in all shards, of which each has one of the `counts`."""
    shards = np.repeat(np.arange(len(counts), dtype=np.int32), np.array(counts, dtype=np.int64))
    parts = _part_numbers(found.parts, shards, parts_by_name(source.names, source.identity))
    paths, labels = found.paths.finish(), found.labels
    numbers = np.asarray(found.numbers).reshape(-1, 4)
    # Without a label anywhere the images may lie in class folders: all are kept, for somebody else to see.
    labelled = any(labels.values)
    order = np.arange(len(labels))
    if labelled and "" in labels.values:
        has_label = labels.numbers != labels.values.index("")
        found.skipped += [
            Skipped(paths[place], "no label beside it") for place in np.flatnonzero(~has_label).tolist()
        ]
        order = np.flatnonzero(has_label)
    if (numbers[order, 2] >= 0).all():
        # `visus pack` mixes the images of a part, and says where each one was.
        order = order[np.argsort(numbers[order, 2], kind="stable")]
    indices, classes = _number(labels, order, number_labels if not found.named else sort_labels)
    indices, classes = _in_written_order(indices, classes, numbers[order, 3])
    refuse_lookalikes(classes, source.identity)
    for column in found.fields.values():
        column.fill(len(labels))
    return ShardIndex(
        source.names,
        stamps,
        paths if np.array_equal(order, np.arange(len(paths))) else take(paths, order),
        {
            "shard": shards[order],
            "offset": numbers[order, 0],
            "length": numbers[order, 1],
            "label": indices,
            "part": parts[order],
        },
        classes if labelled else (),
        columns={name: found.fields[name].texts()[order] for name in sorted(found.fields)},
        others=found.others,
        skipped=tuple(found.skipped),
    )


def _part_numbers(
    told: Repeated, shards: npt.NDArray[np.int32], by_name: Sequence[str]
) -> npt.NDArray[np.int8]:
    """Which of `PART_NAMES` each image is of, `[N]`: what it is `told` to be, else what the name of its shard says."""
    own = np.array([PART_NAMES.index(name) if name else -1 for name in told.values], dtype=np.int8)
    of_shards = np.array([PART_NAMES.index(name) for name in by_name], dtype=np.int8)
    found = own[told.numbers]
    return np.where(found < 0, of_shards[shards], found)


def _number(
    labels: Repeated, order: Index, number: Callable[[Sequence[str]], tuple[Labels, list[str]]]
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The classes by `number`, which is asked once of each label, and the indices into them of the images in `order`."""
    values = [each for each in labels.values if each] or labels.values
    numbers, classes = number(values)
    indices = dict(zip(values, numbers.tolist(), strict=True))
    of_values = np.array([indices.get(each, 0) for each in labels.values], dtype=np.int32)
    return of_values[labels.numbers[order]], classes


def _in_written_order(
    indices: npt.NDArray[np.int32], classes: list[str], numbers: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Indices and classes in the order of the `numbers [N]` beside the names, if each class has one of its own."""
    if not len(numbers) or (numbers < 0).any():
        return indices, classes
    pairs = np.stack(np.divmod(np.unique(indices.astype(np.int64) * _MOST_CLASSES + numbers), _MOST_CLASSES))
    if pairs.shape[1] != len(classes) or len(np.unique(pairs[1])) != len(classes):
        return indices, classes
    order = np.argsort(pairs[1])
    return np.argsort(order).astype(np.int32)[indices], [classes[place] for place in order]
