"""Shards of samples as the WebDataset library reads them: `key.jpg` with `key.cls`, `key.json` or `key.txt` beside it in a tar.

They are listed by one pass over the headers, and over the labels, of every shard; or by the index that `visus pack` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.data.addresses import Place, expand_braces, is_address
from visus.data.folders import Listing, parts_by_name, refuse_lookalikes
from visus.data.images import Skipped
from visus.data.names import collect_names, join_names, take
from visus.data.samples import PLAIN, ShardContent, read_shard
from visus.data.scans import keep_scan, recall_scan
from visus.data.shards import INDEX_NAME, PART_NAMES, ShardIndex, parse_index
from visus.data.tabular import number_labels, sort_labels
from visus.data.tars import COMPRESSED_SUFFIXES
from visus.errors import DataError, first_of

SHARD_SUFFIX = ".tar"
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


def find_shards(source: str) -> ShardSource:
    """The shards that a folder, an address, a file or a pattern such as `train-{000..009}.tar` names.

    `DataError` where there are none, or where they are compressed.
    """
    folder, _, last = source.rpartition("/")
    if source.lower().endswith(COMPRESSED_SUFFIXES):
        raise DataError(f"{source}: {PLAIN}, found a compressed one; unpack it")
    if last.lower().endswith(SHARD_SUFFIX) or "{" in source:
        prefix = source[: source.index("{")].rpartition("/")[0] if "{" in source else folder
        place = Place(prefix or ("/" if source.startswith("/") else "."))
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


def read_index(source: ShardSource) -> ShardIndex:
    """Where the images of the shards are, and what is known of them; `DataError` for shards that do not fit together."""
    if source.indexed:
        origin = source.place.url(INDEX_NAME)
        index = parse_index(source.place.read(INDEX_NAME), origin)
        if missing := set(index.shards) ^ set(source.names) if source.names else set():
            raise DataError(
                f"{origin}: expected the shards that it lists, found {first_of(sorted(missing), 3)} not in both; pack them again"
            )
        return index
    with ThreadPoolExecutor(1 if source.place.is_local else _AT_ONCE) as pool:
        stamps = np.array(list(pool.map(source.place.stamp, source.names)), dtype=np.int64).reshape(-1, 2)
        if (known := recall_scan(source.identity, source.names, stamps)) is not None:
            return known
        found = list(pool.map(read_shard, repeat(source.place), source.names, stamps[:, 0].tolist()))
    index = _make_index(source, stamps, found)
    keep_scan(source.identity, index)
    return index


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
            labels=np.searchsorted(present, labels).tolist(),
            others=index.others if not parts else 0,
            columns={column: values[places] for column, values in index.columns.items()},
        )
    return parts


def _make_index(source: ShardSource, stamps: Any, found: Sequence[ShardContent]) -> ShardIndex:
    by_name = parts_by_name(source.names, source.identity)
    named = [shard.paths.finish() for shard in found]
    paths = join_names(named) if named else collect_names([])
    labels = [label for shard in found for label in shard.labels]
    numbers = np.concatenate([np.empty(0, np.int64), *(np.array(each.numbers) for each in found)]).reshape(
        -1, 4
    )
    shards = np.repeat(np.arange(len(found)), [len(each) for each in named])
    parts = [part or by_name[number] for number, each in enumerate(found) for part in each.parts]
    fields = [each for shard in found for each in shard.fields]
    skipped = [each for shard in found for each in shard.skipped]
    # Without a label anywhere the images may lie in class folders: all are kept, for somebody else to see.
    order = np.array([place for place, label in enumerate(labels) if label is not None], dtype=np.int64)
    labelled = bool(len(order))
    if not labelled:
        order = np.arange(len(labels))
    elif len(order) < len(labels):
        skipped += [
            Skipped(path, "no label beside it")
            for path, label in zip(paths, labels, strict=True)
            if label is None
        ]
    if (numbers[order, 2] >= 0).all():
        # `visus pack` mixes the images of a part, and says where each one was.
        order = order[np.argsort(numbers[order, 2], kind="stable")]
    number = sort_labels if any(each.named for each in found) else number_labels
    indices, classes = number([labels[place] or "" for place in order])
    indices, classes = _in_written_order(indices, classes, numbers[order, 3])
    refuse_lookalikes(classes, source.identity)
    columns = sorted({name for each in fields for name in each})
    return ShardIndex(
        source.names,
        stamps,
        take(paths, order),
        {
            "shard": shards[order],
            "offset": numbers[order, 0],
            "length": numbers[order, 1],
            "label": indices,
            "part": np.array([PART_NAMES.index(parts[place]) for place in order], dtype=np.int64),
        },
        classes if labelled else (),
        columns={
            name: np.array([fields[place].get(name, "") for place in order], dtype=object) for name in columns
        },
        others=sum(shard.others for shard in found),
        skipped=tuple(skipped),
    )


def _in_written_order(
    indices: npt.NDArray[np.int64], classes: list[str], numbers: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Indices and classes in the order of the `numbers [N]` beside the names, if each class has one of its own."""
    if not len(numbers) or (numbers < 0).any():
        return indices, classes
    pairs = np.unique(np.stack([indices, numbers]), axis=1)
    if pairs.shape[1] != len(classes) or len(np.unique(pairs[1])) != len(classes):
        return indices, classes
    order = np.argsort(pairs[1])
    return np.argsort(order)[indices], [classes[place] for place in order]
