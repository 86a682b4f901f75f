"""How often the intervals hold the truth, and how often the tests cry wolf, by simulation.

    python benchmarks/coverage.py [--repeats 2000] [--only shares pairs ...]

Each section prints a table in Markdown. An interval at 95 % should hold the truth in 95 % of the repeats.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from measuring import header
from scipy import special, stats

from visus.comparison import _pool_pair
from visus.ops import resampling
from visus.ops.abstention import threshold_for
from visus.ops.calibration_error import calibration_error_interval
from visus.ops.intervals import bounded_interval, share_interval, wilson
from visus.ops.paired import grouped_mcnemar, mcnemar, paired_interval, worth
from visus.ops.ranking import pulls, ranking, ranking_variances, shrunk
from visus.ops.slices import slice_scores
from visus.outcomes import ByColumn, Outcomes
from visus.scoring import Wanted, balanced_interval, class_scores, rank_classes, resample

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


def other_shares(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Intervals of an accuracy: for each n, the mean and the least coverage over p from 0.5 to 0.999."""
    found = {}
    for n in SIZES:
        methods = (
            functools.partial(wilson, n=n),
            functools.partial(share_interval, n=n, method="exact"),
            functools.partial(_bootstrapped, random, n),
        )
        intervals = [functools.cache(each) for each in methods]
        held = np.array(
            [
                [np.mean([_holds(each(k), p) for k in drawn]) for each in intervals]
                for p, drawn in ((p, random.binomial(n, p, repeats).tolist()) for p in SHARES)
            ]
        )
        found[str(n)] = np.stack([held.mean(axis=0), held.min(axis=0)], axis=1).ravel().tolist()
    return found


def _bootstrapped(random: np.random.Generator, n: int, k: int) -> tuple[float, float] | None:
    wrong = random.permutation((np.arange(n) >= k).astype(np.int64))
    outcomes = _plain_outcomes(np.zeros(n, dtype=np.int64), wrong)
    return resample(outcomes, Wanted(method="bootstrap"))["accuracy"]


def pairs(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Two classifiers that are equally good: how often the interval leaves 0 out, and the tests say 5 %."""
    interval, test = functools.cache(paired_interval), functools.cache(mcnemar)
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
                float(np.mean([test(a, b).exact <= 0.05 for a, b, _ in drawn])),
                float(np.mean([test(a, b).mid <= 0.05 for a, b, _ in drawn])),
            ]
    return found


def pools(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Pools of seeds, accuracy 90 %: how often the interval leaves 0 out where both are equally good, and how often it holds the
    truth where one is 2 points better. Images have a difficulty, a share of which is common to both pools, and half of the rest to
    the seeds of one; seeds are better or worse by a standard deviation in points."""
    found = {}
    for seeds in ((2, 2), (3, 3), (5, 5), (2, 5), (1, 5)):
        for n in (300, 10_000):
            for spread in (0.0, 0.5):
                for common in (0.5, 0.9):
                    draw = functools.partial(_pool_runs, random, seeds, n, spread, common)
                    held = [
                        np.mean(
                            [
                                _holds(_pool_pair(draw(gain), 0, 1).difference_ci95, gain)
                                for _ in range(repeats)
                            ]
                        )
                        for gain in (0.0, 0.02)
                    ]
                    name = f"{seeds[0]} and {seeds[1]} seeds, n {n}, spread {spread:g}, common {common:.0%}"
                    found[name] = [float(1 - held[0]), float(held[1])]
    return found


def _pool_runs(
    random: np.random.Generator, seeds: tuple[int, int], n: int, spread: float, common: float, gain: float
) -> list[list[SimpleNamespace]]:
    """Runs of two pools, right in 90 % and in `gain` more on average: an image is right where a normal number is above 0."""
    difficulty = random.normal(0, np.sqrt(common), n)
    # By how much a seed moves the number for so many points of accuracy.
    moved = spread / 100 / stats.norm.pdf(stats.norm.ppf(0.9))
    pools = []
    for accuracy, count in zip((0.9, 0.9 + gain), seeds, strict=True):
        level = stats.norm.ppf(accuracy) * np.hypot(1, moved) + random.normal(0, moved, count)
        alike = difficulty + random.normal(0, np.sqrt((1 - common) / 2), n)
        noise = random.normal(0, np.sqrt((1 - common) / 2), (count, n))
        right = level[:, None] + alike + noise > 0
        pools.append([SimpleNamespace(correct=each, accuracy=each.mean()) for each in right])
    return pools


def rankings(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """AUROC and average precision: of normal scores that lie a distance apart, of exponential ones, and of normal ones 4 apart
    where one positive image in twenty looks like the others."""
    found = {}
    for n, positives in ((20, 3), (50, 10), (200, 20), (1000, 100), (1000, 10)):
        for name, draw in SCORES.items():
            truth = _areas(draw, positives / n)
            positive = np.arange(n) < positives
            held = [_ranked(draw(random, positive), positive, truth) for _ in range(repeats)]
            found[f"{positives} of {n}, {name}"] = np.mean(held, axis=0).tolist()
    return found


def grouped_rankings(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """AUROC and average precision on groups of 10 images whose scores, normal and 1.5 or 3 apart, are higher or lower together."""
    found = {}
    for count in (10, 30, 100):
        units = np.arange(count).repeat(10)
        for distance, together in ((1.5, 0.7), (3.0, 0.7), (3.0, 1.5)):
            truth = _areas(functools.partial(_normal, distance, sd=np.hypot(1, together)), 0.3)
            held = []
            while len(held) < repeats:
                positive = random.random(len(units)) < 0.3
                scores = _normal(distance, random, positive) + random.normal(0, together, count)[units]
                if 0 < positive.sum() < len(units):
                    held.append(
                        [
                            *_ranked(scores, positive, truth, units=units),
                            *_ranked(scores, positive, truth),
                        ]
                    )
            name = f"{count} groups, {distance:g} apart, together {together:g}"
            found[name] = np.mean(held, axis=0).tolist()
    return found


def _ranked(
    scores: np.ndarray,
    positive: np.ndarray,
    truth: tuple[float, float],
    *,
    units: np.ndarray | None = None,
) -> list[bool]:
    """Whether the intervals of both areas hold the truth."""
    found = ranking(scores, positive)
    scarcer = min(positive.sum(), (~positive).sum())
    near = shrunk(found.auroc, scarcer), None
    pulled = pulls(found, scores, positive, units)
    spread = ranking_variances(found, pulled, positive, units=units)
    return [
        _holds(bounded_interval(*pair, scarcer, at=at), true)
        for pair, at, true in zip(zip(found[:2], spread, strict=True), near, truth, strict=True)
    ]


def _normal(distance: float, random: np.random.Generator, positive: np.ndarray, sd: float = 1) -> np.ndarray:
    return random.normal(distance * positive, sd)


def _exponential(area: float, random: np.random.Generator, positive: np.ndarray) -> np.ndarray:
    return random.exponential(np.where(positive, area / (1 - area), 1))


def _mixed(random: np.random.Generator, positive: np.ndarray) -> np.ndarray:
    return _normal(4, random, positive & (random.random(len(positive)) > 0.05))


SCORES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "0.5 apart": functools.partial(_normal, 0.5),
    "1.5 apart": functools.partial(_normal, 1.5),
    "3 apart": functools.partial(_normal, 3.0),
    "exponential, AUROC 0.9": functools.partial(_exponential, 0.9),
    "exponential, AUROC 0.98": functools.partial(_exponential, 0.98),
    "4 apart, 5 % alike": _mixed,
}


def _areas(draw: Callable[[np.random.Generator, np.ndarray], np.ndarray], prevalence: float) -> list[float]:
    """Both areas as they are with no end of images: of 200,000 positive ones, and precision by the share `prevalence` of them."""
    positive = np.arange(400_000) < 200_000
    scores = draw(np.random.default_rng(1), positive)
    order = np.argsort(-scores)
    true, false = np.cumsum(positive[order]) / 200_000, np.cumsum(~positive[order]) / 200_000
    precision = prevalence * true / (prevalence * true + (1 - prevalence) * false)
    auroc = 1 - false[positive[order]].mean()
    return [float(auroc), float(precision[positive[order]].mean())]


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
    """Balanced accuracy, precision and F1 on average, loss and Brier's score of 5 classes."""
    found = {}
    for rare in (False, True):
        for margin in (1.0, 4.0):
            for n in (100, 1000, 10_000):
                draw = functools.partial(_outcomes, random, margin, rare)
                truth = _figures(draw(400_000))
                held = np.mean([_covered(draw(n), truth) for _ in range(repeats)], axis=0)
                found[f"n {n}, {'rare classes' if rare else 'balanced'}, accuracy {truth[0]:.0%}"] = (
                    held.tolist()
                )
    return found


MEANS = ("macro_precision", "macro_f1", "weighted_precision", "weighted_f1")


def average_areas(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Macro and weighted averages of AUROC and average precision."""
    found = {}
    for classes, rare in ((5, False), (5, True), (20, False)):
        for margin in (1.0, 4.0):
            for n in (100, 1000):
                draw = functools.partial(_outcomes, random, margin, rare, classes=classes)
                truth = _average_areas(draw(400_000))
                held = np.mean([_areas_covered(draw(n), truth) for _ in range(repeats)], axis=0)
                name = f"{classes} classes, n {n}, {'rare classes' if rare else 'balanced'}, AUROC {truth[0]:.3f}"
                found[name] = held.tolist()
    return found


def grouped_average_areas(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Macro and weighted averages of AUROC and average precision of 5 classes on groups of 10 images that lean alike, which are of
    all classes or of one."""
    found = {}
    for margin, together in ((1.0, 0.7), (4.0, 0.7), (4.0, 1.5)):
        draw = functools.partial(_grouped_outcomes, random, margin, together)
        truth = _average_areas(draw(400_000, 1, whole=False))
        for whole in (False, True):
            for count in (10, 30, 100):
                units = np.arange(count).repeat(10)
                held = [_areas_covered(draw(count, 10, whole=whole), truth, units) for _ in range(repeats)]
                name = f"{count} groups of {'one class' if whole else 'all classes'}, AUROC {truth[0]:.3f}, together {together:g}"
                found[name] = np.mean(held, axis=0).tolist()
    return found


AREAS = ("auroc", "average_precision")


def _average_areas(outcomes: Outcomes) -> list[float]:
    """As they are with no end of images."""
    found = rank_classes(outcomes, None, 0.95)
    return [each[name] for each in (found.macro, found.weighted) for name in AREAS]


def _areas_covered(outcomes: Outcomes, truth: list[float], units: np.ndarray | None = None) -> list[bool]:
    found = rank_classes(outcomes, units, 0.95)
    intervals = [each[f"{name}_ci95"] for each in (found.macro, found.weighted) for name in AREAS]
    return [_holds(each, figure) for each, figure in zip(intervals, truth, strict=True)]


def promises(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """How often `--wanted-accuracy` finds a threshold, and how often the accuracy from there on is below the one wanted, and below
    `at_least`."""
    found = {}
    for name, model in MODELS.items():
        for wanted in (0.9, 0.99):
            for n in (100, 1000, 10_000):
                broken = [_promised(*model(random, n, wanted), wanted) for _ in range(repeats)]
                found[f"{name}, {wanted:.0%} wanted, n {n}"] = np.mean(broken, axis=0).tolist()
    return found


def _promised(
    confidences: np.ndarray, correct: np.ndarray, truth: Callable[[float], float], wanted: float
) -> list[bool]:
    """Whether there is a promise, whether it is broken, and whether its bound is."""
    found = threshold_for(wanted, confidences, correct)
    if found is None:
        return [False, False, False]
    true = truth(found.threshold)
    return [True, true < wanted, true < found.at_least]


Answers = tuple[np.ndarray, np.ndarray, Callable[[float], float]]
"""Confidences, whether they are right, and the true accuracy from a threshold on."""


def _sure(times: float, random: np.random.Generator, n: int, _wanted: float) -> Answers:
    """Right as often as Beta(9, 1) says, 90 % in all; the confidences are these with `times` their log odds."""
    chances = random.beta(9, 1, n)
    confidences = special.expit(times * special.logit(chances))
    return confidences, random.random(n) < chances, functools.partial(_beta_above, times)


def _beta_above(times: float, threshold: float) -> float:
    """The mean of Beta(9, 1) where it is that which `threshold` was made of, or more."""
    least = special.expit(special.logit(threshold) / times)
    return float(0.9 * (1 - least**10) / (1 - least**9))


def _told_nothing(random: np.random.Generator, n: int, wanted: float) -> Answers:
    """Every promise is broken: the accuracy is a hair below the wanted one, whatever the confidence."""
    return random.beta(9, 1, n), random.random(n) < wanted, lambda _: float(np.nextafter(wanted, 0))


MODELS: dict[str, Callable[[np.random.Generator, int, float], Answers]] = {
    "honest": functools.partial(_sure, 1.0),
    "too sure": functools.partial(_sure, 2.0),
    "not sure enough": functools.partial(_sure, 0.5),
    "confidence says nothing": _told_nothing,
}


def groups(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Accuracy on groups of 10 images that are alike: groups resampled, and Wilson's interval, as if images were independent."""
    found = {}
    for count in (10, 30, 100):
        held = np.zeros(2)
        for _ in range(repeats):
            skill = random.beta(4, 1, count).repeat(10)
            labels = np.zeros(len(skill), dtype=np.int64)
            outcomes = _plain_outcomes(labels, (random.random(len(skill)) > skill).astype(np.int64))
            together = resample(outcomes, Wanted(groups=np.arange(count).repeat(10)))["accuracy"]
            alone = wilson(int(outcomes.correct.sum()), len(skill))
            held += _holds(together, 0.8), _holds(alone, 0.8)
        found[f"{count} groups"] = (held / repeats).tolist()
    return found


def slices(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """How often one of five slices is named beyond chance though none is worse, on groups of 10 images that are alike, and how
    often the intervals of their accuracies hold the truth."""
    found = {}
    for count in (20, 40, 100, 300):
        units = np.arange(count).repeat(10)
        for accuracy in (0.7, 0.9, 0.97):
            seen = np.zeros(4)
            for _ in range(repeats):
                skill = random.beta(4 * accuracy, 4 - 4 * accuracy, count).repeat(10)
                correct = random.random(len(units)) < skill
                across = random.integers(0, 5, len(units))
                whole = random.permutation(np.arange(count) % 5).repeat(10)
                both = [slice_scores({"x": values}, correct, units=units) for values in (across, whole)]
                seen[:2] += [any(each.beyond_chance for each in parts) for parts in both]
                seen[2:] += [np.mean([_holds(each.ci95, accuracy) for each in parts]) for parts in both]
            found[f"{count} groups, accuracy {accuracy:.0%}"] = (seen / repeats).tolist()
    return found


def _outcomes(random: np.random.Generator, margin: float, rare: bool, n: int, classes: int = 5) -> Outcomes:
    weights = 2.0 ** -np.arange(classes) if rare else np.ones(classes)
    labels = random.choice(classes, n, p=weights / weights.sum())
    return _made_of(random.normal(size=(n, classes)), labels, margin)


def _grouped_outcomes(
    random: np.random.Generator, margin: float, together: float, count: int, size: int, *, whole: bool
) -> Outcomes:
    """Of `count` groups of `size` images, each of which leans to some of 5 classes and is, where `whole`, of one."""
    leaning = random.normal(0, together, (count, 5)).repeat(size, axis=0)
    labels = random.integers(0, 5, count).repeat(size) if whole else random.integers(0, 5, count * size)
    return _made_of(leaning + random.normal(size=leaning.shape), labels, margin)


def _made_of(logits: np.ndarray, labels: np.ndarray, margin: float) -> Outcomes:
    """Those of `logits [N, K]`, with `margin` added to the one of the label."""
    n, classes = logits.shape
    logits[np.arange(n), labels] += margin
    probabilities = special.softmax(logits, axis=1)
    own = probabilities[np.arange(n), labels]
    briers = (probabilities**2).sum(axis=1) - 2 * own + 1
    predictions = logits.argmax(axis=1)
    zeros = np.zeros(n, dtype=np.int64)
    kept = ByColumn()
    kept.add(probabilities.astype(np.float32))
    return Outcomes(classes, labels, predictions, own, -np.log(own), briers, zeros, kept)


def _plain_outcomes(labels: np.ndarray, predictions: np.ndarray) -> Outcomes:
    zeros = np.zeros(len(labels))
    return Outcomes(2, labels, predictions, zeros, zeros, zeros, zeros.astype(np.int64), ByColumn())


def _figures(outcomes: Outcomes) -> list[float]:
    """As they are with no end of images."""
    from visus.ops.confusion import averages, confusion_matrix

    table = confusion_matrix(outcomes.labels, outcomes.predictions, 5)[:, :-1]
    means = averages(table.sum(axis=1), table.sum(axis=0), table.diagonal())
    plain = [float(getattr(means, name)) for name in ("macro_recall", *MEANS)]
    return [*plain, float(outcomes.losses.mean()), float(outcomes.briers.mean())]


def _covered(outcomes: Outcomes, truth: list[float]) -> list[bool]:
    from visus.ops.confusion import confusion_matrix

    found, wanted = resample(outcomes, Wanted()), Wanted()
    table = confusion_matrix(outcomes.labels, outcomes.predictions, 5)
    per_class = class_scores(table, list("abcde"), wanted, found, [{}] * 5)
    intervals = [
        balanced_interval(per_class, wanted, None),
        *(found[name] for name in (*MEANS, "loss", "brier")),
    ]
    return [_holds(each, figure) for each, figure in zip(intervals, truth, strict=True)]


def _holds(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def grouped_pairs(repeats: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Two classifiers that are equally good, on groups of 10 images that are alike in part: how often the interval leaves 0 out,
    and the tests say 5 %."""
    found = {}
    plain = functools.cache(mcnemar)
    for name, accuracy, first, second in (
        ("accuracy 90 %", 0.9, 0.5, 0.5),
        ("accuracy 97 %", 0.97, 0.5, 0.5),
        ("90 %, groups matter to one only", 0.9, 0.0, 0.8),
        ("90 %, groups matter to neither", 0.9, 0.0, 0.0),
    ):
        for count in (10, 20, 50, 200):
            units = np.arange(count).repeat(10)
            rows = []
            for _ in range(repeats):
                shared = random.normal(size=count)[units] * 0.7 + random.normal(size=len(units)) * 0.7
                a, b = (_right(random, shared, units, accuracy, own) for own in (first, second))
                difference = b.astype(np.int64) - a
                alone = int((difference < 0).sum()), int((difference > 0).sum())
                n = worth(difference, units)
                interval = paired_interval(n, *(n * each / len(units) for each in alone))
                rows.append(
                    [not _holds(interval, 0.0), *_over_groups(difference, units), plain(*alone).exact <= 0.05]
                )
            found[f"{count} groups, {name}"] = np.mean(rows, axis=0).tolist()
    return found


def _right(
    random: np.random.Generator, shared: np.ndarray, units: np.ndarray, accuracy: float, own: float
) -> np.ndarray:
    """Which images a classifier has right: by how hard they are for all (`shared`, of variance 0.98), how hard their group is for
    this one (of the standard deviation `own`), and chance."""
    hard = shared + own * random.normal(size=units.max() + 1)[units] + 0.5 * random.normal(size=len(units))
    return hard < special.ndtri(accuracy) * np.sqrt(0.98 + own**2 + 0.25)


def _over_groups(difference: np.ndarray, units: np.ndarray) -> list[bool]:
    """Whether tests over groups say 5 %: McNemar's, its mid-p, the t-test, Obuchowski's (1998), Eliasziw and Donner's (1991)."""
    sums = np.bincount(units, difference).astype(np.int64)
    count, squares = len(sums), float((sums**2).sum())
    spread = sums.std(ddof=1) * np.sqrt(count)
    t = stats.t.sf(abs(sums.sum()) / spread, count - 1) if spread else 0.5
    null = stats.norm.sf(abs(sums.sum()) / np.sqrt(squares * count / (count - 1))) if squares else 0.5
    p_values = [*grouped_mcnemar(sums), 2 * t, 2 * null]
    return [p <= 0.05 for p in [*p_values, _eliasziw_donner(difference, units)]]


def _eliasziw_donner(difference: np.ndarray, units: np.ndarray) -> float:
    """McNemar's chi-squared, divided by what the correlation among the images that differ within a group adds to its variance."""
    sizes = np.bincount(units, difference != 0)
    second, sizes = np.bincount(units, difference > 0)[sizes > 0], sizes[sizes > 0]
    total, count = sizes.sum(), len(sizes)
    if not count:
        return 1.0
    chi = (2 * second.sum() - total) ** 2 / total
    if 1 < count < total:
        between = ((second - sizes * second.sum() / total) ** 2 / sizes).sum() / count
        within = (second * (sizes - second) / sizes).sum() / (total - count)
        usual = sizes.mean() - sizes.var() / (count - 1) / sizes.mean()
        both = between + (usual - 1) * within
        correlation = max(0.0, (between - within) / both) if both > 0 else 0.0
        chi /= 1 + ((sizes**2).sum() / total - 1) * correlation
    return float(stats.chi2.sf(chi, 1))


SECTIONS: dict[str, tuple[Callable[..., dict[str, list[float]]], list[str]]] = {
    "shares": (shares, [f"p = {p:g}" for p in SHARES]),
    "other_shares": (
        other_shares,
        [f"{name}, {what}" for name in ("Wilson's", "exact", "bootstrap") for what in ("mean", "least")],
    ),
    "pairs": (pairs, ["interval leaves out 0", "McNemar, exact", "McNemar, mid-p"]),
    "pools": (pools, ["false alarms", "truth held, 2 points better"]),
    "rankings": (rankings, ["AUROC", "average precision"]),
    "grouped_rankings": (
        grouped_rankings,
        ["AUROC", "average precision", "AUROC, images", "average precision, images"],
    ),
    "calibration": (calibration, ["honest", "3 points too high", "10 points too high"]),
    "averages": (
        averages,
        [
            "balanced accuracy",
            *(each.replace("_", " ").replace("f1", "F1") for each in MEANS),
            "loss",
            "Brier",
        ],
    ),
    "average_areas": (
        average_areas,
        ["macro AUROC", "macro average precision", "weighted AUROC", "weighted average precision"],
    ),
    "grouped_average_areas": (
        grouped_average_areas,
        ["macro AUROC", "macro average precision", "weighted AUROC", "weighted average precision"],
    ),
    "promises": (promises, ["promised", "below the wanted one", "below `at_least`"]),
    "groups": (groups, ["groups resampled", "Wilson's"]),
    "slices": (
        slices,
        [
            "named, cut across groups",
            "named, of whole groups",
            "truth held, cut across groups",
            "truth held, of whole groups",
        ],
    ),
    "grouped_pairs": (
        grouped_pairs,
        [
            "interval leaves out 0",
            "McNemar over groups",
            "its mid-p",
            "t-test over groups",
            "Obuchowski",
            "Eliasziw and Donner",
            "McNemar over images",
        ],
    ),
}
"""Each with the headings of its columns."""


def draw_once() -> None:
    """The bootstrap draws the same samples for the same number of units: they are drawn once, not in each repeat."""
    draws = resampling._draws
    resampling._draws = functools.cache(lambda units, seed: [np.concatenate(list(draws(units, seed)))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    draw_once()
    print(header("numpy", "scipy"))
    for name in arguments.only:
        section, headings = SECTIONS[name]
        began = time.perf_counter()
        rows = section(arguments.repeats, np.random.default_rng(0))
        print(f"\n{section.__doc__} {arguments.repeats} repeats, {time.perf_counter() - began:.0f} s.\n")
        print(f"| | {' | '.join(headings)} |\n|---|{'---|' * len(headings)}")
        for row, values in rows.items():
            print(f"| {row} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
        means = np.mean(list(rows.values()), axis=0)
        print(f"| mean | {' | '.join(f'{100 * value:.1f}' for value in means)} |", flush=True)


if __name__ == "__main__":
    main()
