"""From what a person names to a data set with its parts."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visus.data import excluding
from visus.data.addresses import is_address
from visus.data.agreement import refuse_shared_groups, with_validation
from visus.data.archives import Archive, ZipArchive
from visus.data.arrays import read_digits, read_npz
from visus.data.cache import Cache
from visus.data.cifar import read_cifar
from visus.data.dataset import MapStyle, is_map_style, read_dataset
from visus.data.files import FileImages, Keeping, with_keeping
from visus.data.folders import PARTS, find_parts, is_image, list_classes
from visus.data.huggingface import (
    is_huggingface,
    is_saved,
    read_huggingface,
    read_parquet_files,
    read_saved,
)
from visus.data.idx import find_idx, read_idx_part
from visus.data.images import Data, Split, map_classes
from visus.data.parts import listed_data, make_data
from visus.data.shards import ShardArchive, ShardIndex
from visus.data.splitting import split_off
from visus.data.tabular import TABLE_SUFFIXES, holds_images, read_table
from visus.data.tars import COMPRESSED_SUFFIXES
from visus.data.trees import FolderTree, NameTree, Tree, join
from visus.data.webdataset import SHARD_SUFFIX, ShardSource, find_shards, is_wildcard, listings, read_index
from visus.display import plural
from visus.errors import DataError, UsageError, first_of
from visus.ops.groups import count_groups

Source = str | os.PathLike[str] | MapStyle

_VAL_FRACTION, _SPLIT_SEED = 0.1, 0
_NOTHING_SET_ASIDE = (
    "nothing was set aside by --val-fraction and --split-seed, since there is a validation part"
)
_SOURCES = (
    "a folder, a table (.csv, .parquet), shards (.tar), an .npz or .zip file, CIFAR's .tar.gz, or `digits`"
)


def open_source(
    source: Source,
    *,
    val: Source | None = None,
    val_fraction: float = _VAL_FRACTION,
    split_seed: int = _SPLIT_SEED,
    cache: Cache = "auto",
    workers: int | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> Data:
    """The data set that `source` names: a folder of class folders, or `train/`, `val/` and `test/` above such; a zip of either; a
    CSV or Parquet table of `path,label[,split,group]`; an `.npz` file; a folder of IDX files (the MNIST family); CIFAR-10 or -100
    as downloaded; `digits`; or a map-style data set of `(image, int)`, such as an `ArrayDataset` or one of torchvision's.

    `val` is another source, for validation. Where no validation part is given, a stratified `val_fraction` of the training part is
    set aside, groups as a whole where a table has them; 0 leaves it out. `digits` has a test part of its own: a fifth, by the same
    rule with seed 0. `cache` says where `batches` keeps decoded files (`auto`: on disk), `workers` how many processes decode and
    threads crop. `exclude` is a list of images to leave out after the split, as `visus audit --fix-list` writes it. Raises
    `DataError` where there is nothing to train on or a group is in several parts, `UsageError` for what is no source.
    """
    read = read_source(source)
    data = _with_validation_part(read, source, val, val_fraction, split_seed)
    if exclude is not None:
        data = excluding.exclude(data, exclude, None if val is None else str(val))
    parts = [("train", data.train), ("test", data.test)]
    # What was set aside comes from the training part; in another source the name of a group means something else.
    parts += [("train" if read.val is None else "val", data.val)] if val is None else []
    refuse_shared_groups(data.source, parts)
    return with_keeping(data, Keeping(cache, workers))


def open_named(settings: Mapping[str, Any]) -> Data:
    """The data that the `settings` of a run name, as values or as text: in the parts that the run had, without what it left out."""
    data = open_source(
        settings["data"],
        val=settings.get("val"),
        val_fraction=float(settings.get("val_fraction", _VAL_FRACTION)),
        split_seed=int(settings.get("split_seed", _SPLIT_SEED)),
        exclude=settings.get("exclude"),
    )
    # To those who gave the settings it was said when the run began.
    return replace(data, notes=tuple(note for note in data.notes if note != _NOTHING_SET_ASIDE))


def _with_validation_part(
    data: Data, source: Source, val: Source | None, val_fraction: float, split_seed: int
) -> Data:
    train = data.train
    if train is None:
        raise DataError(
            f"{data.source}: expected training images, found none; give a folder train beside the others"
        )
    data = _with_absent_classes_said(data, train)
    if val is not None:
        other = read_source(val)
        if _is_same(source, val):
            raise UsageError(
                f"--val {other.source}: expected other images than those to train on, found the same"
            )
        return with_validation(data, train, other)
    if data.val is None and val_fraction:
        kept, held_out = split_off(train, "val", val_fraction, split_seed)
        note = f"{len(held_out)} of {len(train)} training images set aside for validation (seed {split_seed})"
        if "group" in train.columns:
            away, all_groups = (count_groups(part.columns["group"]) for part in (held_out, train))
            note += f", {away} of {all_groups} groups"
        return replace(data, train=kept, val=held_out, notes=(*data.notes, note))
    if data.val is not None and val_fraction and (val_fraction, split_seed) != (_VAL_FRACTION, _SPLIT_SEED):
        return replace(data, notes=(*data.notes, _NOTHING_SET_ASIDE))
    return data


def _with_absent_classes_said(data: Data, train: Split) -> Data:
    """`data`, with a note of classes that have no training image; `DataError` where fewer than two have any."""
    absent = train.absent_classes
    if len(data.classes) - len(absent) < 2:
        raise DataError(
            f"{data.source}: expected images of at least two classes, found only {data.classes[train.labels[0]]}; "
            "add images of others"
        )
    note = f"classes without a training image: {', '.join(absent)}"
    return replace(data, notes=(*data.notes, note)) if absent else data


def read_source(source: Source) -> Data:
    """What `source` holds, with the parts as found: to evaluate on, one class or a test part alone will do."""
    if not isinstance(source, str | os.PathLike):
        if is_huggingface(source):
            return read_huggingface(source)
        if not is_map_style(source):
            raise UsageError(
                f"expected a path, a name, or a map-style data set of (image, int), found {type(source).__name__}"
            )
        name = type(source).__name__
        return make_data(name, "a data set", train=read_dataset(source, name))
    if is_address(str(source)) or _is_pattern(str(source)):
        return _open_shards(str(source))
    path = Path(source)
    try:
        path.stat()
    except FileNotFoundError:
        if str(source) == "digits":
            train, test = split_off(read_digits(), "test", 0.2, 0)
            return make_data("digits", "the built-in digits", train=train, test=test)
        raise DataError(f"{source}: expected {_SOURCES}, found nothing there") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{source}: expected {_SOURCES}, found what cannot be opened: {reason}") from None
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_folder(path: Path) -> Data:
    tree = FolderTree(path)
    # Asked first, so that a folder that cannot be listed is named.
    tree.entries("")
    if parts := find_idx(path):
        return make_data(
            path, "IDX files", **{name: read_idx_part(name, *files) for name, files in parts.items()}
        )
    if cifar := read_cifar(path):
        return make_data(path, cifar.title, **cifar.parts)
    if is_saved(path):
        return read_saved(path)
    if files := _parquet_files(tree):
        return read_parquet_files(path, files)
    if _holds_shards(tree):
        return _open_shards(str(path))
    return _open_tree(tree)


def _open_file(path: Path) -> Data:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: expected {_SOURCES}, found neither a folder nor a file")
    if suffix == ".npz":
        return make_data(path, "an .npz file", train=_in_order(read_npz(path)))
    if suffix == ".zip":
        archive = ZipArchive(path)
        return _open_tree(NameTree(path, archive.names), archive, "class folders in a zip")
    if suffix in TABLE_SUFFIXES:
        return _open_table(path)
    if path.name.lower().endswith((".tar.gz", ".tgz")) and (cifar := read_cifar(path)):
        return make_data(path, cifar.title, **cifar.parts)
    if suffix == SHARD_SUFFIX or path.name.lower().endswith(COMPRESSED_SUFFIXES):
        return _open_shards(str(path))
    if is_image(path.name):
        raise DataError(f"{path}: expected {_SOURCES}, found a single image; give the folder above its class")
    raise DataError(f"{path}: expected {_SOURCES}, found another file")


def _in_order(split: Split) -> Split:
    """`split` with its classes in lexicographic order, as those of folders are; the numbers of classes without names stay."""
    numbers = tuple(map(str, range(len(split.classes))))
    return split if split.classes == numbers else map_classes(split, sorted(split.classes))


def _open_tree(tree: Tree, archive: Archive | None = None, kind: str = "class folders") -> Data:
    """Class folders, or such folders in each part."""
    folders = find_parts(tree)
    listings = {name: list_classes(tree, folder) for name, folder in folders.items()}
    if not listings["train" if "train" in listings else min(listings)].classes:
        raise DataError(
            f"{tree.path}: expected class folders with images in them, found none{_instead(tree)}"
        )
    data = listed_data(
        tree.path, kind, listings, lambda _, paths: FileImages(tree.path, paths, archive=archive)
    )
    return replace(data, notes=(*data.notes, *_beside(tree, list(folders.values()))))


def _beside(tree: Tree, parts: list[str]) -> list[str]:
    """What is said of folders and images beside the folders of the `parts`, of which nothing is used."""
    parent = parts[0].rpartition("/")[0]
    folders, files = tree.entries(parent) if parts[0] else ([], [])
    others = [name for name in folders if join(parent, name) not in parts]
    images = sum(map(is_image, files))
    found = [f"{'folder' if len(others) == 1 else 'folders'} {first_of(others, 3)}"] * bool(others)
    found += [plural(images, "image")] * bool(images)
    names = " and ".join(part.rpartition("/")[2] for part in parts)
    return [f"beside {names}, passed over: {' and '.join(found)}"] if found else []


def _open_table(path: Path) -> Data:
    if path.suffix.lower() == ".parquet" and holds_images(path):
        return read_parquet_files(path, [path])
    kind = "a Parquet table" if path.suffix.lower() == ".parquet" else "a CSV table"
    return listed_data(
        path, kind, read_table(path), lambda _, paths: FileImages(path.parent, paths, table=path)
    )


def _parquet_files(tree: Tree) -> list[Path]:
    """Parquet files at the top, or in the one folder that is there, as on the Hugging Face hub."""
    folders, files = tree.entries("")
    place = folders[0] if len(folders) == 1 else ""
    files = tree.entries(place)[1] if place else files if not folders else []
    return [tree.path / place / name for name in files if name.lower().endswith(".parquet")]


def _open_shards(source: str) -> Data:
    found = find_shards(source)
    index = read_index(found)
    if not index.classes:
        return _open_tar(source, found, index)
    archive = ShardArchive(found.place, index, index.names(), found.identity)

    def images(part: str, paths: Sequence[str]) -> FileImages:
        names = [f"{part}/{path}" for path in paths] if index.has_twins else paths
        return FileImages(Path(source), names, channels=index.channels, archive=archive)

    data = listed_data(
        source,
        f"{len(index.shards)} shard{'s' * (len(index.shards) > 1)}",
        listings(index, stored=found.indexed),
        images,
    )
    return replace(data, skipped=index.skipped)


def _open_tar(source: str, found: ShardSource, index: ShardIndex) -> Data:
    """Class folders in a tar, as in a zip: one whose images have no labels beside them."""
    # Samples are told by the first dot of a name, which class folders know nothing of.
    index = read_index(found, keys=False) if len(index.shards) == 1 else index
    if len(index.shards) != 1 or not index.paths:
        first = "".join(f" ({each.path}: {each.reason})" for each in index.skipped[:1])
        raise DataError(
            f"{source}: expected images (.jpg, .png, ...) with a label (.cls, .json or .txt) of the same key beside each, found "
            f"{len(index.paths) or 'no'} images and no label{first}"
        )
    names = [posixpath.normpath(path.removeprefix(f"{index.shards[0]}/")) for path in index.paths]
    archive = ShardArchive(found.place, index, names, found.identity)
    data = _open_tree(NameTree(Path(source), names), archive, "class folders in a tar")
    return replace(data, skipped=index.skipped)


def _is_pattern(source: str) -> bool:
    pattern = "{" in source or is_wildcard(source.rpartition("/")[2])
    return pattern and source.lower().endswith(SHARD_SUFFIX) and not os.path.lexists(source)


def _holds_shards(tree: Tree) -> bool:
    """Whether there are tars, at the top or in folders named after parts, and no other folders."""
    folders, files = tree.entries("")
    if not folders:
        return any(name.lower().endswith((SHARD_SUFFIX, *COMPRESSED_SUFFIXES)) for name in files)
    return all(name.lower() in PARTS and _holds_only_tars(tree, name) for name in folders)


def _holds_only_tars(tree: Tree, folder: str) -> bool:
    folders, files = tree.entries(folder)
    return not folders and any(name.lower().endswith(SHARD_SUFFIX) for name in files)


def _instead(tree: Tree) -> str:
    """What lies at the top of `tree` where class folders were looked for."""
    loose = any(map(is_image, tree.entries("")[1]))
    return ", only images that lie in no class; make a folder for each class" if loose else ""


def _is_same(source: Source, other: Source) -> bool:
    if isinstance(source, str | os.PathLike) and isinstance(other, str | os.PathLike):
        return os.path.realpath(source) == os.path.realpath(other)
    return source is other
