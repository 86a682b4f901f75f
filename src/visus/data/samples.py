"""The samples of one shard: an image, and what is said of it in the files of the same key beside it."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from tarfile import TarInfo
from typing import IO

from visus.data.addresses import Place
from visus.data.folders import IMAGE_SUFFIXES, PARTS, is_image
from visus.data.images import Skipped
from visus.data.names import NamesBuilder
from visus.data.repeated import Repeated
from visus.data.tars import DamagedTarError, compression_of, files_in
from visus.errors import DataError

PLAIN = "expected a plain .tar, of which any image can be read by itself"
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""Everything up to the first dot of the name is the key, what follows says what it is."""
_LABELS = ("json", "cls", "txt")
_LONGEST_LABEL_BYTES = 2**20
_KNOWN = frozenset(["path", "label", "cls", "split", "position"])
_LONGEST_FIELD = 100
"""Letters: a site or a scanner is kept with an image, the caption of a photograph from the web is not."""


@dataclass
class _Sample:
    """One image of a shard and what is said of it."""

    path: str
    offset: int
    length: int
    label: str | None = None
    named: bool = False
    """Whether the label is a name, though it may look like a number."""
    part: str | None = None
    position: int | None = None
    number: int | None = None
    """Of its class, where that has a name besides."""
    others: dict[str, str] = field(default_factory=dict)


@dataclass
class ShardContent:
    """What a pass over one shard has found, by columns: an object for each image would take more memory than all else."""

    paths: NamesBuilder = field(default_factory=NamesBuilder)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Offset, length, position and number of the class of each image; -1 where that is not said."""
    labels: Repeated = field(default_factory=Repeated)
    parts: Repeated = field(default_factory=Repeated)
    """Empty where that is not said, and so are the labels."""
    fields: dict[str, Repeated] = field(default_factory=dict)
    """By their names; each up to the last image that has it."""
    named: bool = False
    others: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, sample: _Sample) -> None:
        """The next image."""
        for name, text in sample.others.items():
            self._field(name).add([text])
        self.paths.add([sample.path])
        said = (-1 if each is None else each for each in (sample.position, sample.number))
        self.numbers.extend((sample.offset, sample.length, *said))
        self.labels.add([sample.label or ""])
        self.parts.add([sample.part or ""])
        self.named |= sample.named

    def join(self, other: ShardContent) -> None:
        """The images of another shard, which has none afterwards."""
        for name, texts in other.fields.items():
            self._field(name).join(texts)
        self.paths.add(other.paths.finish())
        self.numbers.extend(other.numbers)
        self.labels.join(other.labels)
        self.parts.join(other.parts)
        self.named |= other.named
        self.others += other.others
        self.skipped += other.skipped

    def _field(self, name: str) -> Repeated:
        """The texts of that name, up to the image that is added next."""
        texts = self.fields.setdefault(name, Repeated())
        texts.fill(len(self))
        return texts


def read_shard(place: Place, name: str, size: int) -> ShardContent:
    """One pass over a shard: what is whole before a damage is kept, and the damage told."""
    return _read(place, name, size, _samples)


def list_files(place: Place, name: str, size: int) -> ShardContent:
    """One pass over a tar of which every image file is a sample by itself; damages as in `read_shard`."""
    return _read(place, name, size, _alone)


def _read(
    place: Place,
    name: str,
    size: int,
    samples: Callable[[IO[bytes], str, int, ShardContent], Iterator[_Sample]],
) -> ShardContent:
    shard = ShardContent()
    try:
        with place.open(name) as file:
            if kind := compression_of(file):
                raise DataError(f"{place.url(name)}: {PLAIN}, found one compressed with {kind}; unpack it")
            for sample in samples(file, name, size, shard):
                shard.add(sample)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        # A server that sends whole files only gives one that cannot be read in another order.
        raise DataError(f"{place.url(name)}: cannot be read: {error}; copy the shards to a folder") from None
    return shard


def _samples(file: IO[bytes], name: str, size: int, shard: ShardContent) -> Iterator[_Sample]:
    """Those of the WebDataset library: an image, and the files of the same key beside it."""
    for key, members in groupby(_keyed(file, name, size, shard), key=lambda each: each[0]):
        if sample := _sample(name, key, [each[1:] for each in members], shard):
            yield sample


def _alone(file: IO[bytes], name: str, size: int, shard: ShardContent) -> Iterator[_Sample]:
    """Every image file."""
    for member in _members(file, name, size, shard):
        if is_image(member.name.rpartition("/")[2] or "."):
            yield _Sample(f"{name}/{member.name}", member.offset_data, member.size)
        else:
            shard.others += 1


def _keyed(
    file: IO[bytes], name: str, size: int, shard: ShardContent
) -> Iterator[tuple[str, str, TarInfo, bytes]]:
    """Key, suffix and member of each file, and the content of those that say something of an image."""
    for member in _members(file, name, size, shard):
        match = _KEY.fullmatch(member.name)
        if not match or member.name.rpartition("/")[2].startswith("__"):
            shard.others += 1
            continue
        suffix = match[2].lower()
        content = b""
        if suffix in _LABELS and member.size <= _LONGEST_LABEL_BYTES:
            file.seek(member.offset_data)
            content = file.read(member.size)
        yield match[1], suffix, member, content


def _members(file: IO[bytes], name: str, size: int, shard: ShardContent) -> Iterator[TarInfo]:
    """The files of a tar, as far as it is whole."""
    try:
        yield from files_in(file, size)
    except DamagedTarError as error:
        shard.skipped.append(Skipped(name, f"{error}; what is whole before that is used; copy it again"))


def _sample(
    shard_name: str, key: str, members: list[tuple[str, TarInfo, bytes]], shard: ShardContent
) -> _Sample | None:
    images = [(suffix, member) for suffix, member, _ in members if suffix in IMAGE_SUFFIXES]
    texts = {suffix: content for suffix, _, content in members if suffix in _LABELS}
    shard.others += len(members) - len(images) - len(texts)
    if len(images) > 1:
        shard.skipped.append(Skipped(f"{shard_name}/{key}", f"{len(images)} images of one key"))
    if len(images) != 1:
        shard.others += len(texts)
        return None
    member = images[0][1]
    sample = _Sample(f"{shard_name}/{member.name}", member.offset_data, member.size)
    try:
        _add_labels(sample, texts)
    # Brackets within brackets within brackets are too much for the parser.
    except (ValueError, RecursionError) as error:
        shard.skipped.append(Skipped(sample.path, f"its label cannot be read: {error}"))
        return None
    return sample


def _add_labels(sample: _Sample, texts: dict[str, bytes]) -> None:
    """What the files beside an image say of it; of several labels that in the JSON is taken, then `cls`, then `txt`."""
    for suffix in reversed(_LABELS[1:]):
        if suffix in texts and (text := texts[suffix].decode().strip()):
            sample.label = text
    if "json" not in texts:
        return
    document = json.loads(texts["json"])
    fields = document if isinstance(document, dict) else {"label": document}
    label = fields.get("label", fields.get("cls"))
    if isinstance(label, str) and sample.label and sample.label.isdecimal() and len(sample.label) < 10:
        sample.number = int(sample.label)
    if isinstance(label, str | int) and not isinstance(label, bool) and str(label).strip():
        sample.label, sample.named = str(label).strip(), isinstance(label, str)
    if isinstance(fields.get("path"), str):
        sample.path = fields["path"]
    if isinstance(position := fields.get("position"), int) and 0 <= position < 2**62:
        sample.position = position
    if isinstance(split := fields.get("split"), str):
        if split.lower() not in PARTS:
            raise ValueError(f"expected train, val or test as split, found {split}")
        sample.part = PARTS[split.lower()]
    sample.others = {
        name: text
        for name, value in fields.items()
        if name not in _KNOWN
        and isinstance(value, str | int | float)
        and len(text := str(value)) <= _LONGEST_FIELD
    }
    for said in (sample.label, sample.path, *sample.others.values()):
        # What cannot be encoded is a `ValueError`, too.
        if said and b"\0" in said.encode("utf-8", "surrogateescape"):
            raise ValueError("expected text, found a byte of zero in it")
