"""Seconds of one processor to list a folder of many files, beside `find` and `os.scandir`; and the memory of the list.

    python benchmarks/scan.py [--files 200000] [--classes 200] [--repeats 5]

Files are empty, in class folders, on the disk of `--under`; the operating system has read their names before. `find` prints every
name, to a pipe that is read. "listed" is what `visus train` does first: class folders and images sorted, other files passed
over, names in one buffer. "opened" also sets a tenth aside for validation, by a hash of each name. "stamps" asks for size and
time of each file, as the cache does.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path

from measuring import alternate, header, processor_seconds, table


def make_files(root: Path, files: int, classes: int) -> None:
    """So many empty files, shared among the classes."""
    for kind in range(classes):
        folder = root / f"n{kind:08}"
        folder.mkdir()
        for number in range(kind, files, classes):
            os.close(os.open(folder / f"n{kind:08}_{number:07}.JPEG", os.O_CREAT | os.O_WRONLY))


def find(root: Path) -> int:
    """How many lines `find` prints."""
    done = subprocess.run(["find", root, "-type", "f"], stdout=subprocess.PIPE, check=True)
    return done.stdout.count(b"\n")


def scan(root: Path) -> int:
    """How many files a loop over `os.scandir` sees."""
    count = 0
    for folder in os.scandir(root):
        with os.scandir(folder) as entries:
            count += sum(not each.is_dir() for each in entries)
    return count


def main() -> None:
    """Print what it ran on, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--under", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.under) as name:
        make_files(Path(name), given.files, given.classes)
        print(f"{header('numpy')}; {given.files} files in {given.classes} folders; n = {given.repeats}\n")
        measure(Path(name), given)


def measure(root: Path, given: argparse.Namespace) -> None:
    """The table for the files under `root`."""
    from visus.data.folders import list_classes
    from visus.data.sources import open_source
    from visus.data.trees import FolderTree

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listing = list_classes(FolderTree(root), "")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(listing.paths) == find(root) == scan(root) == given.files
    images = open_source(root, val_fraction=0).train.images
    works = {
        "find": partial(find, root),
        "os.scandir": partial(scan, root),
        "listed": lambda: list_classes(FolderTree(root), ""),
        "opened": lambda: open_source(root),
        "stamps": images.stamps,
    }
    figures = alternate(
        {name: partial(processor_seconds, work) for name, work in works.items()}, given.repeats
    )
    print(table(figures, "find", "s"))
    print(
        f"\nPeak resident memory grew by {(after - before) / 1024:.1f} MiB while the files were listed",
        end="; ",
    )
    tracemalloc.start()
    data = open_source(root)
    print(
        f"held afterwards: {tracemalloc.get_traced_memory()[0] / 2**20:.1f} MiB for {len(data.train)} + {len(data.val)}"
    )


if __name__ == "__main__":
    main()
