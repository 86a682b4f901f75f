"""How often the intervals hold the truth, and how often the tests cry wolf, by simulation.

    python benchmarks/coverage.py [--repeats 2000] [--only shares pairs ...]

Each section prints a table in Markdown. An interval at 95 % should hold the truth in 95 % of the repeats.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
from measuring import header
from scipy import special

from visus.ops.calibration_error import calibration_error_interval
from visus.ops.intervals import bounded_interval, wilson
from visus.ops.paired import mcnemar, paired_interval
from visus.ops.ranking import ranking, ranking_variances, shrunk
from visus.outcomes import ByClass, Outcomes
from visus.scoring import Wanted, balanced_interval, class_scores, resample

SIZES = (20, 50, 100, 300, 1000, 3000, 10_000)
SHARES = (0.5, 0.7, 0.9, 0.95, 0.99, 0.999)


def shares(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Wilson's interval of an accuracy: for each n, the coverage at each p."""
    interval = functools.cache(wilson)
    return {
        str(n): [
            float(np.mean([_holds(interval(k, n), p) for k in random.binomial(n, p, repeats).tolist()]))
            for p in SHARES
        ]
        for n in SIZES
    }


def pairs(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Two classifiers that are equally good: how often the interval leaves 0 out, and the tests say 5 %."""
    interval, exact, mid = (
        functools.cache(each) for each in (paired_interval, mcnemar, functools.partial(mcnemar, mid=True))
    )
    found = {}
    for n in SIZES:
        for differing in (0.01, 0.1, 0.3):
            drawn = random.multinomial(
                n, [differing / 2, differing / 2, 1 - differing], size=repeats
            ).tolist()
            if n * differing < 10:
                continue
            found[f"{n}, {differing:.0%}"] = [
                float(np.mean([not _holds(interval(n, a, b), 0.0) for a, b, _ in drawn])),
                float(np.mean([exact(a, b) <= 0.05 for a, b, _ in drawn])),
                float(np.mean([mid(a, b) <= 0.05 for a, b, _ in drawn])),
            ]
    return found


def rankings(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """AUROC and average precision of normal scores that lie a distance apart."""
    found = {}
    for n, positives in ((50, 10), (200, 20), (1000, 100), (1000, 10)):
        for distance in (0.5, 1.5, 3.0):
            truth = special.ndtr(distance / 2**0.5), _average_precision(distance, positives / n)
            held = np.zeros(2)
            for _ in range(repeats):
                positive = np.arange(n) < positives
                result = ranking(random.normal(distance * positive), positive)
                spread = ranking_variances(result, positive)
                for place in range(2):
                    interval = bounded_interval(
                        result[place],
                        spread[place],
                        positives,
                        at=None if place else shrunk(result[0], positives),
                    )
                    held[place] += _holds(interval, truth[place])
            found[f"{positives} of {n}, {distance:g} apart"] = (held / repeats).tolist()
    return found


def calibration(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """The calibration error of confidences that are honest, and of ones that are too high by a constant."""
    found = {}
    for n in (100, 300, 1000, 10_000):
        row = []
        for gap in (0.0, 0.03, 0.1):
            held = 0
            for _ in range(repeats):
                confidences = random.beta(6, 1, n) * 0.8 + 0.2
                correct = random.random(n) < confidences - gap
                held += _holds(calibration_error_interval(confidences, correct), gap)
            row.append(held / repeats)
        found[str(n)] = row
    return found


def averages(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Balanced accuracy, macro precision and F1, loss and Brier's score of 5 classes."""
    found = {}
    for rare in (False, True):
        for margin in (1.0, 4.0):
            for n in (100, 1000):
                draw = functools.partial(_outcomes, random, margin, rare)
                truth = _figures(draw(400_000))
                held = np.mean([_covered(draw(n), truth) for _ in range(repeats)], axis=0)
                found[f"n {n}, {'rare classes' if rare else 'balanced'}, accuracy {truth[0]:.0%}"] = (
                    held.tolist()
                )
    return found


def groups(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Accuracy on groups of 10 images that are alike, resampled as groups and as images."""
    found = {}
    for count in (10, 30, 100):
        held = np.zeros(2)
        for _ in range(repeats):
            skill = random.beta(4, 1, count).repeat(10)
            labels = np.zeros(len(skill), dtype=np.int64)
            outcomes = _plain_outcomes(labels, (random.random(len(skill)) > skill).astype(np.int64))
            numbers = np.arange(count).repeat(10)
            for place, members in enumerate((numbers, None)):
                wanted = Wanted(groups=members, method="bootstrap")
                held[place] += _holds(resample(outcomes, wanted)["accuracy"], 0.8)
        found[f"{count} groups"] = (held / repeats).tolist()
    return found


def _outcomes(random: np.random.Generator, margin: float, rare: bool, n: int) -> Outcomes:
    weights = 2.0 ** -np.arange(5) if rare else np.ones(5)
    labels = random.choice(5, n, p=weights / weights.sum())
    logits = random.normal(size=(n, 5))
    logits[np.arange(n), labels] += margin
    probabilities = special.softmax(logits, axis=1)
    own = probabilities[np.arange(n), labels]
    briers = (probabilities**2).sum(axis=1) - 2 * own + 1
    predictions = logits.argmax(axis=1)
    zeros = np.zeros(n, dtype=np.int64)
    return Outcomes(5, labels, predictions, own, -np.log(own), briers, zeros, ByClass())


def _plain_outcomes(labels: np.ndarray, predictions: np.ndarray) -> Outcomes:
    zeros = np.zeros(len(labels))
    return Outcomes(2, labels, predictions, zeros, zeros, zeros, zeros.astype(np.int64), ByClass())


def _figures(outcomes: Outcomes) -> list[float]:
    """As they are with no end of images."""
    from visus.ops.confusion import averages, confusion_matrix

    table = confusion_matrix(outcomes.labels, outcomes.predictions, 5)[:, :-1]
    means = averages(table.sum(axis=1), table.sum(axis=0), table.diagonal())
    plain = [float(each) for each in (means.macro_recall, means.macro_precision, means.macro_f1)]
    return [*plain, float(outcomes.losses.mean()), float(outcomes.briers.mean())]


def _covered(outcomes: Outcomes, truth: list[float]) -> list[bool]:
    from visus.ops.confusion import confusion_matrix

    found, wanted = resample(outcomes, Wanted()), Wanted()
    table = confusion_matrix(outcomes.labels, outcomes.predictions, 5)
    per_class = class_scores(table, list("abcde"), wanted, found, [{}] * 5)
    intervals = [
        balanced_interval(per_class, wanted, None),
        *(found[name] for name in ("macro_precision", "macro_f1", "loss", "brier")),
    ]
    return [_holds(each, figure) for each, figure in zip(intervals, truth, strict=True)]


def _average_precision(distance: float, prevalence: float) -> float:
    """Of normal scores, by summing over the threshold."""
    grid = np.linspace(-8, 12, 200_001)
    true, false = special.ndtr(distance - grid), special.ndtr(-grid)
    precision = prevalence * true / (prevalence * true + (1 - prevalence) * false)
    density = np.exp(-((grid - distance) ** 2) / 2) / np.sqrt(2 * np.pi)
    return float((precision * density).sum() * (grid[1] - grid[0]))


def _holds(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


SECTIONS: dict[str, tuple[Callable[..., dict[str, list[float]]], list[str], int]] = {
    "shares": (shares, [f"p = {p:g}" for p in SHARES], 1),
    "pairs": (pairs, ["interval leaves out 0", "McNemar, exact", "McNemar, mid-p"], 1),
    "rankings": (rankings, ["AUROC", "average precision"], 2),
    "calibration": (calibration, ["honest", "3 points too high", "10 points too high"], 4),
    "averages": (averages, ["balanced accuracy", "macro precision", "macro F1", "loss", "Brier"], 8),
    "groups": (groups, ["groups resampled", "images resampled"], 8),
}
"""Each with the headings of its columns, and by how much its repeats are divided, since they cost more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    print(header("numpy", "scipy"))
    for name in arguments.only:
        section, headings, cost = SECTIONS[name]
        began = time.perf_counter()
        repeats = max(1, arguments.repeats // cost)
        rows = section(repeats, np.random.default_rng(0))
        print(f"\n{section.__doc__} {repeats} repeats, {time.perf_counter() - began:.0f} s.\n")
        print(f"| | {' | '.join(headings)} |\n|---|{'---|' * len(headings)}")
        for row, values in rows.items():
            print(f"| {row} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
        means = np.mean(list(rows.values()), axis=0)
        print(f"| mean | {' | '.join(f'{100 * value:.1f}' for value in means)} |", flush=True)


if __name__ == "__main__":
    main()
