"""What becomes of image files before training: each decoded once, bad ones named, pixels kept where `cache` says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from visus.data.arrays import adapt_pixels
from visus.data.cache import (
    Cache,
    CacheWriter,
    Entries,
    Stamps,
    cache_path,
    describe_source,
    growing_cache,
    locked,
    mark_used,
    read_cache,
    room_bytes,
    writing_cache,
)
from visus.data.counts import PixelCounts
from visus.data.decode import DecodeSettings, Pixels, UndecodableError
from visus.data.files import FileImages, decode_all
from visus.data.images import ArrayImages, Data, Skipped, Split
from visus.data.isolated import Decoders
from visus.data.names import find_names, join_names, take
from visus.data.stored import DamagedCacheError, Index, MemoryWriter, StoredImages
from visus.errors import DataError, first_of
from visus.processes import ALONE, Processes

_MAX_BAD = 0.01
_TRIED: dict[Cache | Literal["found"], tuple[Cache, ...]] = {
    "auto": ("disk", "ram"),
    "found": ("ram",),
    "disk": ("disk",),
    "ram": ("ram",),
    "off": (),
}
"""Where pixels are kept, if they can be."""


@dataclass(frozen=True)
class _Means:
    """What `decode_once` may use, and whom it tells."""

    cache: Cache | Literal["found"]
    memory_bytes: int
    workers: int | None
    progress: Callable[[int, int], None]
    say: Callable[[str], None]
    counts: PixelCounts | None = None
    counted: int = 0
    """How many of the files, the first ones, `counts` are taken of."""
    processes: Processes = ALONE
    """Those that are given the same files."""


class _NotKept(Exception):
    """Why pixels cannot be kept where they were to be."""


@dataclass(frozen=True)
class _Decoded:
    """What became of a list of files."""

    reasons: dict[str, str]
    """Why those are left out that are, by their paths."""
    images: StoredImages | None = None
    """The others, in order, where they were kept."""


def decode_once(
    data: Data,
    *,
    channels: int = 3,
    resize: int | None,
    cache_size: int | Literal["full"] | None = None,
    interpolation: str = "bilinear",
    max_bad: float = _MAX_BAD,
    max_pixels: int = 100_000_000,
    memory_bytes: int,
    cache: Cache | Literal["found"] = "ram",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    counts: PixelCounts | None = None,
    processes: Processes = ALONE,
) -> Data:
    """`data` with every file decoded once, in child processes: bad ones left out and listed, pixels kept as `cache` says.

    `ram` keeps them while they take at most `memory_bytes`; `disk` in a file that later runs use instead of decoding; `off` not at
    all; `auto` takes `disk` where there can be such a file, else `ram` where they fit; `found` takes `disk` where there is one
    already, else `ram`. What cannot be kept is decoded each time: the pixels are always the same. `cache_size` is the short side of
    the training images, `resize` where it is not given. Arrays get their channels and their size in the same way. More than
    `max_bad` of the set bad, or a class without an image left to train on, is a `DataError`. `progress(done, total)` is called for
    each file, `say` with a line for people; `counts` are taken of the first part of `data`, the one to train on, but for what an
    earlier run has decoded. Of several `processes`, which must all call this, each looks at its share of what none of them keeps; a
    file that is damaged in another one's copy only is found when it is read.
    """
    every = {name: getattr(data, name) for name in ("train", "val", "test")}
    sides = {"train": resize if cache_size is None else None if cache_size == "full" else cache_size}
    decoders = Decoders()
    parts: dict[str, Any] = {
        name: replace(
            part,
            images=replace(
                part.images,
                channels=channels,
                resize=sides.get(name, resize),
                interpolation=interpolation,
                max_pixels=max_pixels,
                decoded=None,
                decoders=decoders,
            ),
        )
        for name, part in every.items()
        if part and isinstance(part.images, FileImages)
    }
    total = sum(map(len, parts.values()))
    means = _Means(cache, memory_bytes, workers, progress or _ignore, say or _ignore, processes=processes)
    skipped: list[Skipped] = []
    for names in _of_one_source(parts):
        some = replace(means, counts=counts if names[0] == next(iter(parts)) else None)
        whole, bad, kept_bytes = _decode_parts([parts[name] for name in names], some)
        parts.update(zip(names, whole, strict=True))
        skipped += bad
        means = replace(means, memory_bytes=means.memory_bytes - kept_bytes)
    for name, part in every.items():
        if part and isinstance(part.images, ArrayImages):
            pixels = adapt_pixels(part.images.pixels, channels, resize, interpolation)
            parts[name] = replace(part, images=ArrayImages(pixels))
    _refuse_too_many(skipped, total, max_bad, data.source)
    if "train" in parts and skipped:
        _refuse_lost_classes(every["train"], parts["train"], data.source)
    return replace(data, **parts, skipped=(*data.skipped, *skipped))


def keep_part(part: Split, resize: int | None, memory_bytes: int, counts: PixelCounts) -> Split:
    """A part of files, decoded once, counted, and kept as its `keeping` says, without those that are no images.

    With `off` it is left to whoever reads to find these. A warning counts them; `DataError` for more than one in a hundred.
    """
    images = _files(part)
    cache, workers = images.keeping.cache, images.keeping.workers
    if cache == "off":
        return replace(part, images=replace(images, resize=resize, decoded=None))
    data = decode_once(
        Data(str(images.root), part.classes, val=part),
        channels=images.channels,
        resize=resize,
        interpolation=images.interpolation,
        max_pixels=images.max_pixels,
        memory_bytes=memory_bytes,
        cache=cache,
        workers=workers,
        max_bad=_MAX_BAD,
        counts=counts,
    )
    if data.skipped:
        first = data.skipped[0]
        warnings.warn(
            f"{data.source}: {len(data.skipped)} files are no images that can be used and were left out, the first "
            f"{first.path}: {first.reason}",
            stacklevel=3,
        )
    assert data.val is not None
    return data.val


def _of_one_source(parts: dict[str, Split]) -> list[list[str]]:
    """The names of `parts`, those together whose files are of one source and decoded in one way."""
    groups: dict[tuple[str, DecodeSettings], list[str]] = {}
    for name, part in parts.items():
        images = _files(part)
        groups.setdefault((images.identity, images.settings), []).append(name)
    return list(groups.values())


def _decode_parts(parts: list[Split], means: _Means) -> tuple[list[Split], list[Skipped], int]:
    """`parts` of one source with the images that are whole; the others; and how many bytes of memory are taken."""
    images = [_files(part) for part in parts]
    files = replace(images[0], paths=join_names([each.paths for each in images]))
    stamps, unreadable = files.stamps()
    readable = np.setdiff1d(np.arange(len(files)), list(unreadable))
    means = replace(means, counted=int(np.searchsorted(readable, len(images[0]))))
    decoded = _decode(files.subset(readable), stamps.subset(readable), means)
    reasons = {files.paths[place]: reason for place, reason in unreadable.items()} | decoded.reasons
    good = _without(files.paths, reasons)
    ranks, ends = np.cumsum(good) - 1, np.cumsum([len(each) for each in images])[:-1]
    whole = [
        _with_pixels(part, np.flatnonzero(mine), decoded.images, rank[mine])
        for part, mine, rank in zip(parts, np.split(good, ends), np.split(ranks, ends), strict=True)
    ]
    skipped = [
        Skipped(part.paths[place], reasons[each.paths[place]])
        for part, each, mine in zip(parts, images, np.split(good, ends), strict=True)
        for place in np.flatnonzero(~mine).tolist()
    ]
    in_memory = decoded.images is not None and decoded.images.path is None
    return whole, skipped, decoded.images.nbytes if decoded.images and in_memory else 0


def _without(paths: Sequence[str], reasons: dict[str, str]) -> npt.NDArray[np.bool_]:
    """`[N]`, which of `paths` there are no `reasons` against."""
    if not reasons:
        return np.ones(len(paths), dtype=np.bool_)
    return np.fromiter((path not in reasons for path in paths), dtype=np.bool_, count=len(paths))


def _with_pixels(part: Split, good: Index, decoded: StoredImages | None, ranks: Index) -> Split:
    """The images of `part` at `good`; their pixels those of `decoded` at `ranks`, where they were kept."""
    whole = part.subset(good)
    kept = None if decoded is None else decoded.subset(ranks)
    return replace(whole, images=replace(_files(whole), decoded=kept))


def _decode(files: FileImages, stamps: Stamps, means: _Means) -> _Decoded:
    """Decode `files` and keep them as `means` say, or can."""
    kept = _keep(files, stamps, means)
    nobody = not any(means.processes.from_each(kept is not None))
    return kept or _look_through(files, replace(means, processes=means.processes if nobody else ALONE))


def _keep(files: FileImages, stamps: Stamps, means: _Means) -> _Decoded | None:
    """Decode `files` and keep them; `None`, said, where that is not to be, or cannot."""
    tried = _TRIED["auto" if means.cache == "found" and _is_cached(files) else means.cache]
    for place in tried:
        try:
            if place == "disk":
                return _decode_to_disk(files, stamps, means)
            return _decode_to_memory(files, means)
        except _NotKept as reason:
            off = "off, images are decoded each time" if place == tried[-1] else f"not on {place}"
            means.say(f"cache: {off}: {reason}")
    return None


def _look_through(files: FileImages, means: _Means) -> _Decoded:
    """Which of `files` cannot be decoded; counted, too. Of several processes each looks at its share."""
    processes = means.processes
    share = np.array_split(np.arange(len(files)), processes.size)[processes.rank]

    def progress(done: int, _: int) -> None:
        means.progress(min(done * processes.size, len(files)), len(files))

    own = replace(means, counts=means.counts and means.counts.empty(), progress=progress)
    with closing(_decoded(files, share, own)) as results:
        refused = {
            files.paths[place]: str(result)
            for place, result in zip(share.tolist(), results, strict=True)
            if isinstance(result, UndecodableError)
        }
    reasons: dict[str, str] = {}
    for each, counts in processes.from_each((refused, own.counts)):
        reasons |= each
        if means.counts and counts:
            means.counts.take(counts)
    return _Decoded(reasons)


def _decode_to_memory(files: FileImages, means: _Means) -> _Decoded:
    """Raises `_NotKept` where they take more than they may."""
    writer = MemoryWriter(files.channels, means.memory_bytes)
    reasons: dict[str, str] = {}
    bounds = f"{_shown(means.memory_bytes)} of memory may be used"
    with closing(_decoded(files, np.arange(len(files)), means)) as results:
        for path, result in zip(files.paths, results, strict=True):
            if isinstance(result, UndecodableError):
                reasons[path] = str(result)
                continue
            try:
                writer.add(result)
            except OverflowError:
                raise _NotKept(f"they take more than the memory there is ({bounds})") from None
    images = writer.finish()
    means.say(f"cache: ram, {_shown(images.nbytes)} of decoded images ({bounds})")
    return _Decoded(reasons, images)


def _decode_to_disk(files: FileImages, stamps: Stamps, means: _Means) -> _Decoded:
    """Use the cache file, brought up to date first. Raises `_NotKept` where there can be none."""
    try:
        path = cache_path(describe_source(files.identity, files.settings))
        with locked(path, lambda: means.say("cache: another process decodes these images; waiting for it")):
            return _use_cache(path, files, stamps, means)
    except OverflowError:
        reason = f"they take more than half of the free disk ({_shown(room_bytes(path.parent))})"
    except (OSError, DamagedCacheError) as error:
        reason = f"no cache can be written ({getattr(error, 'strerror', None) or error})"
    raise _NotKept(reason)


def _is_cached(files: FileImages) -> bool:
    with suppress(OSError):
        return cache_path(describe_source(files.identity, files.settings)).exists()
    return False


def _use_cache(path: Path, files: FileImages, stamps: Stamps, means: _Means) -> _Decoded:
    earlier = entries = _read_earlier(path, files.channels, means)
    found = np.full(len(files), -1) if entries is None else entries.find(files.paths, stamps)
    passing: dict[str, str] = {}
    if entries is None or (found < 0).any():
        passing, begin = _write_cache(path, files, stamps, means, entries, found)
        entries = read_cache(path, files.channels)
        if entries.images.checked is not None:
            # Just written, they would be read from the same memory as they were written from.
            entries.images.checked[:] = entries.images.places[:, 1] >= begin
        found = entries.find(files.paths, stamps)
    mark_used(path)
    reasons = {name: entries.reasons[name] for name in files.paths if name in entries.reasons} | passing
    places = entries.places[found[found >= 0]]
    images = entries.images.subset(places[places >= 0])
    origin = ", from an earlier run" if earlier else ""
    means.say(f"cache: disk, {_shown(images.nbytes)} of decoded images in {path}{origin}")
    return _Decoded(reasons, images)


def _read_earlier(path: Path, channels: int, means: _Means) -> Entries | None:
    try:
        return read_cache(path, channels)
    except FileNotFoundError:
        return None
    except DamagedCacheError:
        means.say(f"cache: {path} is damaged; decoding again")
        return None


def _write_cache(
    path: Path,
    files: FileImages,
    stamps: Stamps,
    means: _Means,
    entries: Entries | None,
    found: Index,
) -> tuple[dict[str, str], int]:
    """Bring the cache of `files` up to date: what was `found` in `entries` stays, the rest is decoded.

    What `entries` have of other files of the source, whose parts are not asked for now, stays as well. Returns reasons that may not
    last, and where in the file begins what was written.
    """
    about, room = describe_source(files.identity, files.settings), room_bytes(path.parent)
    missing, others = np.flatnonzero(found < 0), np.empty(0, dtype=np.int64)
    if entries is not None:
        others = _others(entries, files)
        kept = entries.subset(np.concatenate([found[found >= 0], others]))
        ranks = np.concatenate([np.flatnonzero(found >= 0), len(files) + np.arange(len(others))])
        if 2 * kept.images.nbytes >= path.stat().st_size:
            expected = len(missing), int(stamps.sizes[missing].sum())
            with growing_cache(path, entries.file_bytes, room, expected, about) as writer:
                writer.keep(kept, ranks)
                return _decode_into(writer, files, stamps, missing, means), writer.begin
    known_bytes = 0 if entries is None else int(entries.stamps.sizes[others].sum())
    expected = len(files) + len(others), int(stamps.sizes.sum()) + known_bytes
    with writing_cache(path, room, expected, about) as writer:
        if entries is not None:
            damaged = _copy(writer, kept, ranks)
            missing = np.union1d(missing, damaged[damaged < len(files)])
        return _decode_into(writer, files, stamps, missing, means), writer.begin


def _copy(writer: CacheWriter, entries: Entries, ranks: Index) -> Index:
    """Write what `entries` have; the ranks of those that are damaged."""
    damaged = []
    rows = zip(ranks, entries.names, entries.stamps.sizes, entries.stamps.times, entries.places, strict=True)
    for rank, name, size, time, place in rows:
        try:
            result = entries.reasons[name] if place < 0 else entries.images[place]
        except DamagedCacheError:
            damaged.append(rank)
        else:
            writer.add(int(rank), name, int(size), int(time), result)
    return np.array(damaged, dtype=np.int64)


def _decode_into(
    writer: CacheWriter, files: FileImages, stamps: Stamps, places: Index, means: _Means
) -> dict[str, str]:
    """Decode those of `files` at `places` and write them; reasons that may not last are returned."""
    passing: dict[str, str] = {}
    with closing(_decoded(files, places, means)) as results:
        for place, decoded in zip(places.tolist(), results, strict=True):
            name, size, time = files.paths[place], int(stamps.sizes[place]), int(stamps.times[place])
            if not isinstance(decoded, UndecodableError):
                writer.add(place, name, size, time, decoded)
            elif decoded.lasting:
                writer.add(place, name, size, time, str(decoded))
            else:
                passing[name] = str(decoded)
    return passing


def _others(entries: Entries, files: FileImages) -> Index:
    """Where in `entries` files are that are none of `files`, but still there and unchanged."""
    places = np.flatnonzero(find_names(files.paths, entries.names) < 0)
    there = replace(files, paths=take(entries.names, places), decoded=None)
    try:
        stamps, _ = there.stamps()
    except KeyError:
        # An archive that has lost one has changed.
        return places[:0]
    known = entries.stamps.subset(places)
    same: Index = places[(stamps.sizes == known.sizes) & (stamps.times == known.times)]
    return same


def _decoded(
    files: FileImages, places: Index, means: _Means
) -> Generator[Pixels | UndecodableError, None, None]:
    """Those of `files` at `places`, as `decode_all` gives them; counted if somebody takes them all."""
    counts = means.counts and means.counts.empty()

    def count(position: int, pixels: Pixels) -> None:
        if counts and places[position] < means.counted:
            counts.add(pixels)

    for done, result in enumerate(decode_all(files.subset(places), means.workers, count), start=1):
        yield result
        means.progress(done, len(places))
    if means.counts and counts:
        means.counts.take(counts)


def _files(part: Split) -> FileImages:
    assert isinstance(part.images, FileImages)
    return part.images


def _shown(amount_bytes: int) -> str:
    return f"{amount_bytes / 2**30:.1f} GB" if amount_bytes >= 2**30 else f"{amount_bytes / 2**20:.1f} MB"


def _ignore(*_: object) -> None:
    """Nobody is told."""


def _refuse_too_many(skipped: list[Skipped], total: int, max_bad: float, source: str) -> None:
    if len(skipped) > max_bad * total:
        first = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:3])
        too_large = any(each.reason.startswith("too many pixels") for each in skipped)
        raise DataError(
            f"{source}: {len(skipped)} of {total} files are no images that can be used, more than --max-bad {max_bad:g} allows "
            f"({first}{'; ...' if len(skipped) > 3 else ''}); remove them, copy them again, or raise --max-bad"
            f"{' or --max-pixels' * too_large}"
        )


def _refuse_lost_classes(before: Split, after: Split, source: str) -> None:
    had_none = set(before.absent_classes)
    if lost := [name for name in after.absent_classes if name not in had_none]:
        raise DataError(
            f"{source}: expected training images of every class, found none that can be used of {first_of(lost)}"
        )
