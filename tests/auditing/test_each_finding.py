"""Checks one by one: a case in which what was planted is named and nothing else, and one in which there is nothing to say."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from visus.auditing import shortcuts, whole
from visus.auditing.findings import write_fix_list
from visus.auditing.plain_checks import find_imbalance, find_odd_images
from visus.auditing.scanning import Pool, pool_images, scan_images
from visus.auditing.shortcuts import find_shortcuts
from visus.auditing.similarity import near_vectors
from visus.data.images import ArrayImages, Split
from visus.data.sources import read_source
from visus.ops.logistic import out_of_sample

CLASSES = ("ant", "bee", "cat")


def pool_of(counts, parts=0):
    """Images without pixels: so many of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return Pool(list(map(str, range(len(labels)))), labels, np.zeros_like(labels) + parts, CLASSES, {})


def test_the_largest_and_the_smallest_class_are_named_from_ten_times_on():
    (found,) = find_imbalance(pool_of([250, 30, 300]))
    assert found.message.startswith("cat has 300 images, bee 30; always saying cat is right for 51.7 %")
    assert (found.kind, found.severity, found.figure) == ("imbalance", "medium", 10.0)
    # Thirty images are not the fault of any of them.
    assert found.paths == found.drop == ()
    assert find_imbalance(pool_of([250, 30, 299])) == []


def test_classes_of_fewer_than_20_images_are_named():
    (found,) = find_imbalance(pool_of([19, 40, 3]))[1:]
    assert found.message == "2 classes have fewer than 20 images: ant, cat"
    assert found.paths == (*map(str, range(19)), "59", "60", "61")
    (found,) = find_imbalance(pool_of([20, 19, 20]))
    assert found.message == "1 class has fewer than 20 images: bee"
    assert found.paths == tuple(map(str, range(20, 39)))
    assert find_imbalance(pool_of([20, 20, 20])) == []


def test_a_class_that_is_tiny_beside_others_is_named_twice_with_its_files_and_none_of_them_is_left_out():
    ratio, tiny = find_imbalance(pool_of([200, 3, 7]))
    assert ratio.paths == ("200", "201", "202")
    assert tiny.paths == tuple(map(str, range(200, 210)))
    assert ratio.drop == tiny.drop == ()


def test_of_several_parts_the_training_images_are_counted_and_of_none_all():
    enough, few = [0] * 25 + [2] * 5, [0] * 15 + [2] * 15
    assert find_imbalance(pool_of([30, 30, 30], enough * 3)) == []
    (found,) = find_imbalance(pool_of([30, 30, 30], enough + few + enough))
    assert found.message == "1 class has fewer than 20 images: bee"
    assert found.paths == tuple(map(str, range(30, 45)))
    assert find_imbalance(pool_of([30, 30, 30], 2)) == []


def scanned(images, labels):
    """What is seen of arrays `[N, height, width, 3]`."""
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2).copy())
    names = list(map(str, range(len(labels))))
    scan = scan_images([Split("train", ArrayImages(pixels), labels, CLASSES, names)])
    return Pool(names, labels, np.zeros(len(labels), dtype=np.int64), CLASSES, {}), scan


def odd(images):
    """By what is odd: the places of the images."""
    found = find_odd_images(*scanned(images, np.zeros(len(images), dtype=np.int64)))
    return {each.message.split(":")[0]: [int(name) for name in each.paths] for each in found}


@pytest.fixture
def photos():
    """150 images of coarse colours, some darker than others: 2 % are three."""
    rng = np.random.default_rng(0)
    images = np.stack([_coarse(rng, rng.integers(7, 9), 48) for _ in range(150)])
    return images * rng.uniform(0.7, 1, (150, 1, 1, 1)) + rng.normal(0, 8, images.shape)


def _coarse(rng, cells, size):
    image = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def test_ordinary_images_are_not_odd(photos):
    assert odd(photos) == {}


@pytest.mark.parametrize(("ground", "what"), [(0, "very dark"), (244, "very bright")])
def test_very_dark_and_very_bright_images_are_named_unless_they_are_common(photos, ground, what):
    planted = [3, 70, 141]
    photos[planted] = ground + 0.04 * photos[planted]
    assert odd(photos) == {what: planted}
    photos[9] = ground + 0.04 * photos[9]
    assert odd(photos) == {}


def test_images_a_little_above_the_bound_of_dark_are_not_named(photos):
    for place, mean in ((3, 9.0), (4, 11.5)):
        photos[place] *= mean / photos[place].mean()
    assert odd(photos).get("very dark") == [3]


def test_blurred_images_are_named_also_if_they_are_many(photos):
    planted = list(range(5, 150, 25))
    for place in planted:
        small = Image.fromarray(photos[place].clip(0, 255).astype(np.uint8)).resize((3, 3))
        photos[place] = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC))
    assert odd(photos) == {"blurred beside the others": planted}


def folder_of(path, save):
    """40 images of each class, which `save(image, path without its suffix, label)` writes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (path / name).mkdir()
        for number in range(40):
            image = Image.fromarray(_coarse(rng, 8, 32).clip(0, 255).astype(np.uint8))
            save(image, path / name / f"{number:02}", label)
    pool, parts = pool_images(read_source(path))
    return pool, scan_images(parts, workers=1)


LONG = {"07": (24, 80), "08": (80, 24)}


# 90 is three times 30, and not more; of 120 images two are 2 %, and three are more than that.
@pytest.mark.parametrize(("other", "named"), [((30, 90), [*LONG]), ((90, 30), [*LONG]), ((29, 90), [])])
def test_images_more_than_three_times_as_long_as_wide_are_named_if_they_are_rare(tmp_path, other, named):
    def save(image, path, label):
        sizes = {**LONG, "09": other} if label == 2 else {}
        image.resize(sizes.get(path.name, image.size)).save(f"{path}.png")

    found = find_odd_images(*folder_of(tmp_path, save))
    paths = [each.paths for each in found if each.message.startswith("one side more than 3 times the other")]
    assert sum(paths, ()) == tuple(f"cat/{name}.png" for name in named)


def plain(image, path, label):
    image.save(f"{path}.png")


def test_files_that_are_alike_give_no_class_away(tmp_path):
    assert find_shortcuts(*folder_of(tmp_path, plain)) == []


@pytest.mark.parametrize("what", ["size", "format", "mode"])
def test_a_class_of_another_size_format_or_mode_is_given_away_by_it(tmp_path, what):
    def save(image, path, label):
        image = image.resize((37, 37)) if label == 1 and what == "size" else image
        image = image.convert("RGBA") if label == 1 and what == "mode" else image
        image.save(f"{path}.bmp" if label == 1 and what == "format" else f"{path}.png")

    first, *others = find_shortcuts(*folder_of(tmp_path, save))
    assert first.message.startswith("size in pixels, format and mode give away bee: 100 % of its images")
    assert len(set(first.paths)) == len(first.paths) == 40
    assert all(name.startswith("bee/") for name in first.paths)
    # The length of a file may follow from these; no other class is named, and nothing in the image.
    assert all(each.message.startswith("the length of the file gives away bee") for each in others)


@pytest.mark.parametrize(("share", "named"), [(0.75, 1), (0.35, 0)])
def test_a_format_is_a_shortcut_from_half_of_a_class_on(tmp_path, share, named):
    def save(image, path, label):
        image.save(f"{path}.bmp" if label == 1 and int(path.name) < 40 * share else f"{path}.png")

    found = find_shortcuts(*folder_of(tmp_path, save))
    assert [each.message.split(":")[0] for each in found] == [
        "size in pixels, format and mode give away bee"
    ] * named
    # Those that have it, and no other.
    assert all(len(set(each.paths)) == round(40 * each.figure) for each in found)
    assert all(re.fullmatch(r"bee/\d\d\.bmp", name) for each in found for name in each.paths)


def test_the_length_of_the_file_alone_is_a_shortcut(tmp_path):
    def save(image, path, label):
        image.save(f"{path}.png", compress_level=0 if label == 1 else 6)

    (found,) = find_shortcuts(*folder_of(tmp_path, save))
    assert found.message.startswith("the length of the file gives away bee: 100 % of its images")
    assert (found.kind, found.severity, found.figure) == ("shortcut", "high", 1.0)


def noisy(pattern, marked=slice(None), count=300):
    """Noisy images of three classes, to those `marked` of which their class's `pattern [3, 32, 32]` is added; what is found."""
    labels = np.arange(count) % 3
    images = 128 + np.random.default_rng(0).normal(0, 40, (count, 32, 32))
    images[marked] += pattern[labels][marked]
    return find_shortcuts(*scanned(np.repeat(images[..., None], 3, axis=3), labels))


def figures(found):
    """What is said, to the figures."""
    return [each.message.split(" of ")[0] for each in found]


RING = np.pad(np.zeros((24, 24)), 4, constant_values=1.0)
PATTERNS = np.kron(np.random.default_rng(1).choice([-1.0, 1.0], (3, 16, 16)), np.ones((2, 2)))
BRIGHTNESS = np.array([-40, 0, 40])[:, None, None] * np.ones((32, 32))
MARK = np.pad(np.ones((3, 3)), ((28, 1), (28, 1)))


def test_a_class_that_is_brighter_is_given_away_by_the_mean_colour():
    found = figures(noisy(np.array([0, 8, 0])[:, None, None] * np.ones((32, 32))))
    assert found[0] == "the mean colour gives away bee: 100 %"
    assert not any(word in message for message in found for word in ("ant", "cat"))


def test_a_watermark_names_the_files_that_have_it():
    """All bees but every fiftieth."""
    marked = np.flatnonzero((np.arange(300) % 3 == 1) & (np.arange(300) % 50 != 1))
    (found,) = noisy(np.array([0, 100, 0])[:, None, None] * MARK, marked)
    assert found.message.startswith("at the bottom right, a 64th of the image gives away bee")
    assert len(set(found.paths)) == round(100 * found.figure) > 90
    assert set(map(int, found.paths)) <= set(marked)
    assert found.drop == ()


FEW_AND_MANY = pytest.mark.parametrize("count", [300, 1200])
"""Of many images a model of the half of them judges the other half, of few one of four fifths the rest."""


@FEW_AND_MANY
def test_a_border_that_tells_the_class_is_named(monkeypatch, count):
    folds = []
    monkeypatch.setattr(
        shortcuts,
        "out_of_sample",
        lambda *given, **how: folds.append(how.get("folds")) or out_of_sample(*given, **how),
    )
    (found,) = noisy(12 * PATTERNS * RING, count=count)
    assert folds.count(2 if count == 1200 else 5) >= 2
    assert found.message.startswith("the border alone tells the class")
    # Of each class in turn, and none to be left out.
    assert [{int(name) % 3 for name in found.paths[i : i + 3]} for i in range(0, 24, 3)] == [{0, 1, 2}] * 8
    assert found.drop == ()


def shares(message):
    """By what was measured: per cent."""
    alone = re.match(r"(.*?) alone tells the class of ([0-9.]+) %", message)
    left = re.search(r"what is left without it that of ([0-9.]+) %", message)
    others = re.findall(r"[(;] ?(?:linear models; )?([^;(]+?) alone: ([0-9.]+) %", message)
    return {alone[1]: float(alone[2]), "left": float(left[1]), **{what: float(n) for what, n in others}}


@FEW_AND_MANY
@pytest.mark.parametrize(
    ("pattern", "what", "as_good"),
    [
        (BRIGHTNESS, "the mean colour", "the border"),
        (
            np.array([100, -100, 0])[:, None, None] * MARK,
            "a 64th of the image at the bottom right",
            "the border",
        ),
        (40 * PATTERNS * RING, "the border", "a 64th of the image"),
    ],
    ids=["brightness", "a watermark in the border", "a strong border"],
)
def test_of_what_tells_the_class_as_well_that_is_named_without_which_nothing_is_told(
    pattern, what, as_good, count
):
    *_, found = noisy(pattern, count=count)
    assert found.message.startswith(f"{what} alone tells the class")
    measured = shares(found.message)
    assert len(measured) == 4
    # Many cells tell as much; which is shown is of no account.
    as_well = next(figure for name, figure in measured.items() if name.startswith(as_good))
    assert min(measured[what], as_well) >= 98
    # By chance it were a third.
    assert measured["left"] < 40
    assert [each.message for each in noisy(pattern, count=count)][-1] == found.message


@FEW_AND_MANY
@pytest.mark.parametrize(
    "pattern",
    [12 * PATTERNS * (1 - RING), 6 * PATTERNS, 2 * PATTERNS * RING],
    ids=["a subject in the middle", "a subject everywhere", "a border that tells little"],
)
def test_a_border_that_tells_less_than_the_whole_or_little_is_no_shortcut(pattern, count):
    assert noisy(pattern, count=count) == []


def test_files_that_give_a_class_away_are_on_no_list_of_what_to_leave_out(tmp_path):
    def save(image, path, label):
        image.save(f"{path}.png", compress_level=0 if label == 1 else 6)

    folder_of(tmp_path, save)
    found = whole.audit(tmp_path, workers=1, pictures=tmp_path / "found.png")
    assert [(each.kind, len(each.paths)) for each in found.findings] == [("shortcut", 40)]
    write_fix_list(found, tmp_path / "fix.csv")
    assert (tmp_path / "fix.csv").read_text().splitlines() == ["path,kind,reason"]
    # A row of four thumbnails, as of any other kind.
    sheet = np.asarray(Image.open(tmp_path / "found.png"))
    assert (sheet[40:100, 12:380].std(axis=(0, 2)) > 0).mean() > 0.9


def features(count=400, size=64):
    return np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)


def near(vectors):
    return {(a, b) for a, b, _ in near_vectors(vectors, np.arange(len(vectors)))}


def with_copies(vectors, noise):
    """The last 20 are made from the first 20, so that their cosine is about `1 / sqrt(1 + noise ** 2)`."""
    noise = noise * np.random.default_rng(1).normal(size=(20, vectors.shape[1]))
    return np.concatenate([vectors, vectors[:20] + noise]).astype(np.float32)


def test_images_near_by_their_features_are_pairs_and_no_others():
    planted = {(place, 400 + place) for place in range(20)}
    assert near(with_copies(features(), 0.2)) == planted
    assert near(with_copies(features(), 0.8)) == set()
    assert near(features()) == near(features(1)) == set()


def test_images_that_are_all_as_near_to_one_another_are_no_copies():
    """Eight crowds of features at a cosine of some 0.95, as of classes whose images a model takes for one."""
    crowds = np.repeat(features(8), 50, axis=0) + 0.23 * features()
    assert near(crowds) == set()


def test_pairs_by_the_features_of_a_model_are_near_duplicates(tmp_path, monkeypatch):
    folder_of(tmp_path, plain)

    def embedded(data, *_):
        names = pool_images(data)[0].names
        vectors = dict(zip(names, features(len(names)), strict=True))
        return {**vectors, "bee/05.png": 1.01 * vectors["ant/11.png"]}

    assert whole.audit(tmp_path, workers=1).findings == ()
    monkeypatch.setattr(whole, "features_by_name", embedded)
    found = whole.audit(tmp_path, model="any", weights="any", workers=1).findings
    assert [each.kind for each in found] == ["near_duplicate", "conflicting_label"]
    assert all(each.paths == ("ant/11.png", "bee/05.png") for each in found)
