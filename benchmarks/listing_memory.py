"""Bytes of memory for each image at the highest moment while a table or shards are opened.

    python benchmarks/listing_memory.py [--images 1000000] [--repeats 3] [--under FOLDER]

Each figure is what the resident set of a process of its own grows by, once all is imported, to its peak. A tenth of the images is
set aside for validation where no column says it. Names have 36 letters, there are 1,000 classes, and tables have a group to every
five images. "shards" are 20 tars that nobody has seen before, with a `.cls` beside each image; "shards, again" are found as they
were. Of a table only the first file is there, and the images in shards have ten bytes: none is decoded. Linux.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import header

OPEN = """
import sys, torch, pyarrow.parquet, visus.data.webdataset, fsspec.implementations.local
from visus.data.sources import open_source
def memory(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind))
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
data = open_source(sys.argv[1])
images = sum(len(part) for part in (data.train, data.val, data.test) if part)
print(1024 * (memory("VmHWM") - before) / images)
"""


def rows(images: int) -> Iterator[tuple[str, str, str, str]]:
    """Path, label, split and group of each image."""
    for number in range(images):
        kind = f"n{(number * 2654435761 >> 9) % 1000:08}"
        part = "val" if number // 5 % 10 == 0 else "train"
        yield f"train/{kind}/{kind}_{number:07}.JPEG", kind, part, f"patient{number // 5:06}"


def make_tables(folder: Path, images: int) -> dict[str, Path]:
    """A table in several forms."""
    import pyarrow.csv
    import pyarrow.parquet

    columns = {"parts and groups": (0, 1, 2, 3), "groups": (0, 1, 3), "labels": (0, 1)}
    found = {}
    for name, places in columns.items():
        found[f"CSV of {name}"] = folder / f"{len(found)}.csv"
        with found[f"CSV of {name}"].open("w", newline="") as file:
            names = ("path", "label", "split", "group")
            writer = csv.writer(file)
            writer.writerow([names[place] for place in places])
            writer.writerows([row[place] for place in places] for row in rows(images))
    table = pyarrow.csv.read_csv(folder / "0.csv")
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    first = folder / next(rows(1))[0]
    first.parent.mkdir(parents=True)
    first.touch()
    return found | {"Parquet of parts and groups": folder / "a.parquet"}


def make_shards(folder: Path, images: int, shards: int = 20) -> Path:
    """So many images with a label beside each."""
    folder.mkdir()
    listed = rows(images)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for _, (path, kind, *_) in zip(range(images // shards), listed, strict=False):
                key = path.removesuffix(".JPEG")
                for name, content in ((f"{key}.jpg", bytes(10)), (f"{key}.cls", kind[1:].encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def bytes_an_image(source: Path) -> float:
    """What a process needs for each image of `source`, above what is imported."""
    command = [sys.executable, "-c", OPEN, source]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Print what it ran on, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--under", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.under) as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        sources = make_tables(folder, given.images)
        shards = make_shards(folder / "shards", given.images)
        print(f"{header('numpy', 'pyarrow')}; {given.images} images; n = {given.repeats}\n")
        figures: dict[str, list[float]] = {}
        for _ in range(given.repeats):
            for kind, source in sources.items():
                figures.setdefault(kind, []).append(bytes_an_image(source))
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for kind in ("shards", "shards, again"):
                figures.setdefault(kind, []).append(bytes_an_image(shards))
    print("| | bytes an image, median | min to max |\n|---|---|---|")
    for kind, values in figures.items():
        print(f"| {kind} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} |")


if __name__ == "__main__":
    main()
