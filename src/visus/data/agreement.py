"""Whether sources agree: on their classes, and on what their images are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from visus.data.arrays import adapt_pixels
from visus.data.images import ArrayImages, Data, Split, map_classes
from visus.errors import DataError, first_of


def with_validation(data: Data, train: Split, other: Data) -> Data:
    """`data`, whose training part is `train`, validated on the validation part of `other`, else on its training part.

    The classes must be the same; where neither source has names for them, fewer numbers will do. `DataError` where they differ.
    """
    part = other.val or other.train
    if data.val is not None:
        raise DataError(f"{data.source}: has a validation part of its own; leave --val {other.source} out")
    if part is None:
        raise DataError(f"{other.source}: expected images to validate on, found only a test part")
    notes = [*data.notes, f"validation on {other.source}: {len(part)} images"]
    channels = train.images.channels
    if isinstance(part.images, ArrayImages) and part.images.channels != channels:
        part = replace(part, images=ArrayImages(adapt_pixels(part.images.pixels, channels)))
        notes.append(f"the images of {other.source} are taken as {'grey' if channels == 1 else 'RGB'}")
    if _lacks_names(part) and _lacks_names(train) and len(part.classes) <= len(data.classes):
        part = replace(part, classes=data.classes)
    refuse_other_classes(other.source, "val", part.classes, data.classes)
    val = replace(map_classes(part, data.classes), name="val")
    return replace(data, val=val, notes=tuple(notes), skipped=(*data.skipped, *other.skipped))


def refuse_other_classes(source: object, part: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """`DataError` naming the first classes that `part` of `source` has beyond, or lacks of, those `expected` from training."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        named = {"missing": missing, "more": extra}
        how = "; ".join(f"{what}: {first_of(classes)}" for what, classes in named.items() if classes)
        raise DataError(f"{source}: expected the same classes in train and {part}; {part} differs ({how})")


def refuse_shared_groups(source: object, parts: Iterable[tuple[str, Split | None]]) -> None:
    """`DataError` where images of one group are in several `parts` of `source`: the model would be tested on what it knows."""
    part_of: dict[str, str] = {}
    for name, part in parts:
        for group in sorted(set(part.columns.get("group", ())) - {""}) if part else ():
            if (other := part_of.setdefault(group, name)) != name:
                raise DataError(
                    f"{source}: expected each group in one part, found {group} in {other} and in {name}; move it to one of them, "
                    "or leave images out (visus audit --fix-list names them, visus train --exclude leaves them out)"
                )


def _lacks_names(part: Split) -> bool:
    """Whether its classes are called by their numbers, as those of arrays without names are."""
    numbers = tuple(map(str, range(len(part.classes))))
    return isinstance(part.images, ArrayImages) and part.classes == numbers
