"""From listings of labelled images to a data set with its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from visus.data.agreement import refuse_other_classes
from visus.data.files import FileImages
from visus.data.folders import Listing
from visus.data.images import Data, Split, map_classes
from visus.data.names import collect_names
from visus.errors import first_of


def make_data(source: str | Path, kind: str, **parts: Split) -> Data:
    """A data set of `parts` that agree on their classes, up to how many these are."""
    classes = max((part.classes for part in parts.values()), key=len)
    named = {name: replace(part, classes=classes) for name, part in parts.items()}
    counts = ", ".join(f"{len(part)} in {name}" for name, part in named.items())
    return Data(
        str(source),
        classes,
        named.get("train"),
        named.get("val"),
        named.get("test"),
        notes=(f"{kind}: {len(classes)} classes, images: {counts}",),
    )


def listed_data(
    source: str | Path,
    kind: str,
    listings: Mapping[str, Listing],
    images: Callable[[str, Sequence[str]], FileImages],
) -> Data:
    """A data set of what is listed for each part, `images(part, paths)` being the images of one.

    The parts must agree on the classes, so that no index shifts in silence; those to test on may have some of them only.
    """
    classes = listings["train" if "train" in listings else min(listings)].classes
    for name, listing in listings.items():
        if name == "val" or set(listing.classes) - set(classes):
            refuse_other_classes(source, name, listing.classes, classes)
    paths = {name: collect_names(listing.paths) for name, listing in listings.items()}
    parts = {
        name: map_classes(
            Split(
                name,
                images(name, paths[name]),
                listing.labels,
                tuple(listing.classes),
                paths[name],
                listing.columns,
            ),
            classes,
        )
        for name, listing in listings.items()
        if listing.paths or name == "train"
    }
    data = make_data(source, kind, **parts)
    return replace(data, notes=(*data.notes, *_notes(listings, classes)))


def _notes(listings: Mapping[str, Listing], classes: list[str]) -> list[str]:
    """What else there is to say of the listings."""
    others = sum(listing.others for listing in listings.values())
    empty = sorted({name for listing in listings.values() for name in listing.empty})
    columns = sorted({name for listing in listings.values() for name in listing.columns})
    notes = [f"{others} other files passed over"] * bool(others)
    notes += [
        f"{name}: {first_of(sorted(set(classes) - set(listing.classes)))} not in it"
        for name, listing in listings.items()
        if set(listing.classes) != set(classes)
    ]
    notes += [
        f"{name}: images in no class folder passed over: {listing.loose}"
        for name, listing in listings.items()
        if listing.loose
    ]
    notes += [f"folders without images passed over: {first_of(empty)}"] * bool(empty)
    return notes + [f"columns kept with each image: {first_of(columns)}"] * bool(columns)
