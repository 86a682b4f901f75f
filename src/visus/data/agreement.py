"""Whether sources agree: on their classes, and on what their images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from visus.data.images import ArrayImages, Data, Split, map_classes
from visus.errors import DataError


def with_validation(data: Data, train: Split, other: Data) -> Data:
    """`data`, whose training part is `train`, validated on `other`; its own validation part if it has one, else its training part.

    The classes must be the same; arrays whose classes have no names keep their numbers. `DataError` where sources do not agree.
    """
    part = other.val or other.train
    if data.val is not None:
        raise DataError(f"{data.source}: has a validation part of its own; leave --val {other.source} out")
    if part is None:
        raise DataError(f"{other.source}: expected images to validate on, found only a test part")
    _refuse_other_channels(data.source, train, other.source, part)
    notes = [*data.notes, f"validation on {other.source}: {len(part)} images"]
    same = set(part.classes) == set(data.classes)
    if not same and _lacks_names(part) and len(part.classes) <= len(data.classes):
        part = replace(part, classes=data.classes)
        notes.append(f"the labels of {other.source} are taken as numbers of the training classes")
    refuse_other_classes(other.source, "val", part.classes, data.classes)
    return replace(data, val=replace(map_classes(part, data.classes), name="val"), notes=tuple(notes))


def refuse_other_classes(source: object, part: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """`DataError` naming the classes that `part` of `source` has beyond, or lacks of, those `expected` from training."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        differences = [f"missing: {', '.join(missing)}"] * bool(missing) + [
            f"more: {', '.join(extra)}"
        ] * bool(extra)
        raise DataError(
            f"{source}: expected the same classes in train and {part}; {part} differs ({'; '.join(differences)})"
        )


def _refuse_other_channels(source: str, train: Split, other_source: str, part: Split) -> None:
    """Only of arrays, which stay as they are: files are decoded to what the training images have."""
    expected, found = train.images.channels, part.images.channels
    if isinstance(part.images, ArrayImages) and found != expected:
        kinds = {1: "grey", 3: "RGB"}
        raise DataError(
            f"{other_source}: expected {kinds[expected]} images as in {source}, found {kinds[found]}; convert them"
        )


def _lacks_names(part: Split) -> bool:
    """Whether its classes are called by their numbers, as those of arrays without names are."""
    numbers = tuple(map(str, range(len(part.classes))))
    return isinstance(part.images, ArrayImages) and part.classes == numbers
