"""A summary of every model of torchvision and timm: seconds, parameters, FLOPs, predicted peak, and what went wrong.

    OMP_NUM_THREADS=1 python benchmarks/every_model.py every_model.csv [--share 1/4]

Goes on where the file ends, so that it may be stopped at any time. A share is every n-th name in an order that mixes families; with
a file for each, several processes do a part each. `seconds` is the processor time of `summary` alone, in a process that has made
others before. A row whose `fault` is not empty is a fault: an error, an unpredicted peak, or totals that differ from the sum over
the parameters of a model built apart.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import statistics
import sys
import time
from pathlib import Path

from visus.model_summary import Summary, summary
from visus.models.hollow import build_outline
from visus.models.names import every_model

_COLUMNS = ("name", "seconds", "params", "flops", "peak_mb", "fault")
_CLASSES = 7


def main() -> int:
    """Write the rows that are missing, then say how many models work and how long they take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--share", default="1/1")
    arguments = parser.parse_args()
    first, shares = map(int, arguments.share.split("/"))
    done = {row["name"] for row in _rows(arguments.file)}
    with arguments.file.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if not done and not file.tell():
            writer.writeheader()
        for name in mixed(every_model())[first - 1 :: shares]:
            if name not in done:
                writer.writerow(look_at(name))
                file.flush()
    return _conclude(_rows(arguments.file))


def mixed(names: list[str]) -> list[str]:
    """In an order that has nothing to do with the alphabet, and is the same every time."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def look_at(name: str) -> dict[str, object]:
    """The row of one model."""
    began = time.process_time()
    try:
        found = summary(name, num_classes=_CLASSES, optimizer="sgd")
    # Whatever it is, it is what this looks for.
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return {"name": name, "seconds": f"{time.process_time() - began:.2f}", "fault": message[:400]}
    return {
        "name": name,
        "seconds": f"{time.process_time() - began:.2f}",
        "params": found.total_params,
        "flops": found.flops,
        "peak_mb": None if found.peak_training_mb is None else round(found.peak_training_mb, 1),
        "fault": fault_of(name, found),
    }


def fault_of(name: str, found: Summary) -> str:
    """What is wrong with a summary; empty if nothing is."""
    expected = sum(each.numel() for each in build_outline(name, _CLASSES).parameters())
    unused = sum(int(each.split()[0].replace(",", "")) for each in found.remarks if "not used" in each)
    in_rows = sum(each["params"] for each in found.layers)
    if found.total_params != expected:
        return f"{expected} parameters expected, {found.total_params} found"
    if in_rows + unused != expected:
        return f"{expected} parameters expected, {in_rows} in the rows and {unused} unused"
    if found.peak_training_mb is None:
        return "; ".join(found.remarks)
    return "" if found.flops else "no FLOPs"


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _conclude(rows: list[dict[str, str]]) -> int:
    faults = [row for row in rows if row["fault"]]
    for row in faults:
        print(f"{row['name']}: {row['fault']}")
    seconds = [float(row["seconds"]) for row in rows]
    print(
        f"{len(rows)} models, {len(faults)} with a fault; processor seconds: median {statistics.median(seconds):.2f}, "
        f"highest {max(seconds):.2f}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
