"""What `visus audit` finds of faults planted in Fashion-MNIST, kind by kind; and how its time and memory grow.

    python benchmarks/audit.py [--images 10000] [--seed 0] [--distinct]
    python benchmarks/audit.py --flips 600 2000    # wrong labels alone, in so many images, four seeds each
    python benchmarks/audit.py --growth 10000 100000 1000000

Planted, in a folder of PNG files with a part to train and one to test: 5 % of the training labels flipped, 200 exact copies, 200
near copies (50 each compressed as JPEG of quality 50 to 90, cropped by one to three of 28 pixels a side, resized to 24 to 56, made
darker or brighter), 100 test images put into training as well, half of them as they are and half as near copies, 50 broken files,
and a white square at the corner of one class. A pair counts as found when one finding of the kind names both files. Fashion-MNIST
has near copies of its own: what is reported besides the planted ones counts as wrong in the precision here, however like it
looks; `--sheet` draws them, for somebody to judge. `--distinct` leaves out beforehand whose pixels correlate by more than 0.98 with
those of an image before it, 2 % of the set, so that what is reported besides is wrong indeed.

For `--growth` so many images are made, each a mean of two of a class with a random weight, as arrays; one in a hundred has a copy,
by turns the same, brighter, and cut by a pixel or two. What is reported besides is told apart by whether both are mixed of the
same two images, and so like each other by chance. Each count has a process of its own. The memory is what the audit takes
besides the images, and cannot give back: thumbnails and features lie in files.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import tempfile
import threading
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from measuring import header
from PIL import Image

import visus
from visus.auditing.findings import Audit
from visus.auditing.whole import audit

FASHION = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
MARKED = "shirt"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distinct", action="store_true")
    parser.add_argument("--flips", type=int, nargs="+")
    parser.add_argument("--growth", type=int, nargs="+")
    parser.add_argument("--grown", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sheet", type=Path, help="picture of the pairs reported that were not planted")
    arguments = parser.parse_args()
    if arguments.grown:
        print(f"| {' | '.join(grown(arguments.grown, arguments.seed))} |")
        return
    print(header("torchvision", "numpy", "pillow", "scipy"))
    if arguments.growth:
        print_growth(arguments.growth, arguments.seed)
        return
    if arguments.flips:
        print_flips(arguments.flips, arguments.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        originals = read_fashion(arguments.images, arguments.seed, distinct=arguments.distinct)
        print_recalls(Path(folder), *originals, arguments.seed, arguments.sheet)


def read_fashion(count: int, seed: int, *, distinct: bool = False) -> tuple[np.ndarray, np.ndarray]:
    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((FASHION / name).read_bytes()), np.uint8, offset=offset)

    images = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    order = np.random.default_rng(seed).permutation(len(images))
    # Some more, as 2 % will go.
    chosen = without_doubles(images, order[: count + count // 10])[:count] if distinct else order[:count]
    return images[chosen], read("train-labels-idx1-ubyte.gz", 8)[chosen]


def without_doubles(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Those of `chosen` that correlate by at most 0.98 with each one before."""
    rows = images[chosen].reshape(len(chosen), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    double = np.zeros(len(rows), dtype=bool)
    for begin in range(0, len(rows), 1000):
        correlations = np.tril(rows[begin : begin + 1000] @ rows.T, begin - 1)
        double[begin : begin + 1000] = (correlations > 0.98).any(axis=1)
    return chosen[~double]


class Planter:
    """Writes a folder of images, and knows what is wrong with it."""

    def __init__(self, root: Path, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
        self.root, self.images, self.labels = root, images.copy(), labels
        self.rng = np.random.default_rng(seed)
        self.unused = iter(self.rng.permutation(len(images)))
        self.names: dict[int, str] = {}
        self.given = labels.copy()

    def take(self, count: int, *, test: bool = False) -> list[int]:
        """Images that no other fault has: the first fifth is the test part."""
        taken: list[int] = []
        while len(taken) < count:
            place = int(next(self.unused))
            if self.is_test(place) == test:
                taken.append(place)
        return taken

    def is_test(self, place: int) -> bool:
        return place < len(self.images) // 5

    def write(self) -> None:
        for place, image in enumerate(self.images):
            part = "test" if self.is_test(place) else "train"
            self.names[place] = f"{part}/{CLASSES[self.given[place]]}/{place:05}.png"
            self.save(self.names[place], image)

    def save(self, name: str, image: np.ndarray, **options: int) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)

    def flip(self, count: int) -> set[str]:
        places = self.take(count)
        for place in places:
            self.given[place] = (self.labels[place] + self.rng.integers(1, 10)) % 10
        self.flipped = places
        return set()

    def copy(self, place: int, kind: str) -> tuple[str, str]:
        """One more of an image in the training part, changed as `kind` says; their two names."""
        image, options, suffix = self.images[place], {}, ".png"
        if kind == "jpeg":
            options, suffix = {"quality": int(self.rng.integers(50, 90))}, ".jpg"
        elif kind == "crop":
            top, left = self.rng.integers(0, 4, 2)
            bottom, right = 28 - self.rng.integers(0, 4 - top), 28 - self.rng.integers(0, 4 - left)
            image = image[top : bottom - (top == 0 and bottom == 28), left:right]
        elif kind == "resize":
            side = int(self.rng.choice([24, 36, 42, 56]))
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        elif kind == "brightness":
            image = np.clip(image * self.rng.choice([0.7, 0.8, 1.2, 1.3]), 0, 255).astype(np.uint8)
        name = f"train/{CLASSES[self.given[place]]}/copy-{kind}-{place:05}{suffix}"
        self.save(name, image, **options)
        return self.names[place], name

    def mark(self) -> None:
        for place in np.flatnonzero(self.labels == CLASSES.index(MARKED)):
            self.images[place, 24:27, 24:27] = 230


CHANGES = ("jpeg", "crop", "resize", "brightness")


def print_recalls(
    folder: Path, images: np.ndarray, labels: np.ndarray, seed: int, sheet: Path | None
) -> None:
    planter = Planter(folder, images, labels, seed)
    planter.mark()
    planter.flip(len(images) * 8 // 10 // 20)
    planter.write()
    exact = [planter.copy(place, "same") for place in planter.take(200)]
    near = {kind: [planter.copy(place, kind) for place in planter.take(50)] for kind in CHANGES}
    leaks = [planter.copy(place, "same") for place in planter.take(50, test=True)]
    near_leaks = [planter.copy(place, CHANGES[i % 4]) for i, place in enumerate(planter.take(50, test=True))]
    broken = [break_file(planter, place, i) for i, place in enumerate(planter.take(50))]
    began, processor = time.perf_counter(), time.process_time()
    found = audit(folder)
    seconds, cpu = time.perf_counter() - began, time.process_time() - processor
    print(f"{found.images} images, {seconds:.0f} s ({cpu:.0f} s of this process's processor time)\n")
    print("| kind | planted | found | recall | reported | precision | others |")
    print("|---|---|---|---|---|---|---|")
    line("broken files", {(name,) for name in broken}, singles_of(found, "unreadable"))
    line("exact copies", as_pairs(exact + leaks), pairs_of(found, "exact_duplicate"))
    everything = as_pairs([pair for pairs in near.values() for pair in pairs] + near_leaks)
    line("near copies", everything, pairs_of(found, "near_duplicate"))
    for kind in CHANGES:
        hits = as_pairs(near[kind]) & pairs_of(found, "near_duplicate")
        print(
            f"| of these {kind} | {len(near[kind])} | {len(hits)} | {len(hits) / len(near[kind]):.3f} | | | | |"
        )
    line("leaks into training", as_pairs(leaks + near_leaks), pairs_of(found, "leakage"))
    flipped = {(planter.names[place],) for place in planter.flipped}
    line("flipped labels", flipped, singles_of(found, "label_error"))
    for each in found.findings:
        if each.kind == "shortcut":
            print(f"\nshortcut: {each.message}")
    for note in found.notes:
        print(f"note: {note}")
    if sheet:
        draw(planter.root, list(pairs_of(found, "near_duplicate") - everything), sheet)


def print_flips(counts: list[int], seed: int) -> None:
    """Of 5 % wrong labels: the shares that are named, and that are wrong of those named."""
    print("| images | recall, mean | min to max | precision, mean | min to max |\n|---|---|---|---|---|")
    for count in counts:
        found = [flips_found(count, each) for each in range(seed, seed + 4)]
        cells = [
            f"{sum(each) / 4:.2f} | {min(each):.2f} to {max(each):.2f}" for each in zip(*found, strict=True)
        ]
        print(f"| {count} | {' | '.join(cells)} |")


def flips_found(count: int, seed: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        planter = Planter(Path(folder), *read_fashion(count, seed), seed)
        planter.flip(count * 8 // 10 // 20)
        planter.write()
        named = singles_of(audit(folder), "label_error")
    hits = named & {(planter.names[place],) for place in planter.flipped}
    return len(hits) / len(planter.flipped), len(hits) / max(1, len(named))


def break_file(planter: Planter, place: int, number: int) -> str:
    """Cut in half, emptied, zeros from the middle on, or text: by turns."""
    path = planter.root / planter.names[place]
    content = path.read_bytes()
    middle = len(content) // 2
    ways = (content[:middle], b"", content[:middle] + bytes(len(content) - middle), b"not an image")
    path.write_bytes(ways[number % 4])
    return planter.names[place]


def as_pairs(pairs: list[tuple[str, str]]) -> set[tuple[str, ...]]:
    return {tuple(sorted(pair)) for pair in pairs}


def pairs_of(found: Audit, kind: str) -> set[tuple[str, ...]]:
    return {
        pair for each in found.findings if each.kind == kind for pair in combinations(sorted(each.paths), 2)
    }


def singles_of(found: Audit, kind: str) -> set[tuple[str, ...]]:
    return {(path,) for each in found.findings if each.kind == kind for path in each.paths}


def line(name: str, planted: set[tuple[str, ...]], reported: set[tuple[str, ...]]) -> None:
    hits, others = planted & reported, reported - planted
    precision = len(hits) / max(1, len(reported))
    print(
        f"| {name} | {len(planted)} | {len(hits)} | {len(hits) / len(planted):.3f} | {len(reported)} "
        f"| {precision:.3f} | {len(others)} |"
    )


def draw(root: Path, pairs: list[tuple[str, ...]], path: Path) -> None:
    """The pairs side by side, twelve in a row."""
    sheet = Image.new("L", (12 * 138, 70 * -(-max(1, len(pairs)) // 12)), 128)
    for number, pair in enumerate(sorted(pairs)):
        for side, name in enumerate(pair):
            image = Image.open(root / name).convert("L").resize((64, 64), Image.Resampling.NEAREST)
            sheet.paste(image, (number % 12 * 138 + side * 64, number // 12 * 70))
    sheet.save(path)


def print_growth(counts: list[int], seed: int) -> None:
    """A line for each count, measured in a process of its own."""
    columns = (
        "images",
        "processor, s",
        "for 10,000, s",
        "wall, s",
        "memory, MiB",
        "same found",
        "near found",
    )
    print(f"| {' | '.join(columns)} | besides, of one pair | others |\n|{'---|' * (len(columns) + 2)}")
    for count in counts:
        subprocess.run([sys.executable, __file__, "--grown", str(count), "--seed", str(seed)], check=True)


def grown(count: int, seed: int) -> list[str]:
    """The cells of a line of `print_growth`."""
    images, labels, mixed, same, near = mixed_fashion(count, seed)
    data = visus.ArrayDataset(images, labels, CLASSES)
    before, peak, over = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak.append(anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, processor = time.perf_counter(), time.process_time()
    found = audit(data)
    wall, processor = time.perf_counter() - began, time.process_time() - processor
    over.set()
    watcher.join()
    reported = pairs_of(found, "near_duplicate")
    besides = [tuple(map(int, pair)) for pair in reported - near]
    of_one_pair = sum(np.array_equal(mixed[one], mixed[other]) for one, other in besides)
    return [
        f"{len(images):,}",
        f"{processor:.0f}",
        f"{processor / len(images) * 10_000:.1f}",
        f"{wall:.0f}",
        f"{max(peak) - before:.0f}",
        f"{len(same & pairs_of(found, 'exact_duplicate'))} of {len(same)}",
        f"{len(near & reported)} of {len(near)}",
        f"{of_one_pair}",
        f"{len(besides) - of_one_pair}",
    ]


def mixed_fashion(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, set, set]:
    """Images `[N, 28, 28]`, labels, which two each is mixed of `[N, 2]`, and pairs of names: of the same, and of near copies."""
    originals, classes = read_fashion(60_000, seed)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(classes == number) for number in range(10)]
    labels = rng.integers(0, 10, count)
    images = np.empty((count + count // 100, 28, 28), dtype=np.uint8)
    mixed = np.empty((count, 2), dtype=np.int64)
    for place, label in enumerate(labels):
        mixed[place] = rng.choice(members[label], 2)
        first, second = originals[mixed[place]].astype(np.float32)
        images[place] = second + rng.uniform(0.35, 0.65) * (first - second)
    pairs: list[set] = [set(), set()]
    copied = rng.permutation(count)[: count // 100]
    for number, place in enumerate(copied):
        image = images[place]
        if number % 3 == 1:
            image = np.clip(image * 1.2, 0, 255)
        elif number % 3 == 2:
            cut = Image.fromarray(image[1:28, 0:26])
            image = np.asarray(cut.resize((28, 28), Image.Resampling.BICUBIC))
        images[count + number] = image
        pairs[number % 3 > 0].add(tuple(sorted((str(place), str(count + number)))))
    with_copies = np.concatenate([np.arange(count), copied])
    return images, labels[with_copies], np.sort(mixed)[with_copies], pairs[0], pairs[1]


def anonymous_mib() -> float:
    """Memory of this process that no file has."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024


if __name__ == "__main__":
    main()
