"""Arrays as a data set for loaders and for visus, and the data sets of others."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from torchvision import transforms
from torchvision.transforms import v2

from visus.data.batching import TrainingBatches, measure_preprocessing
from visus.data.dataset import ArrayDataset
from visus.data.sources import open_source
from visus.errors import DataError, UsageError
from visus.loop import fit
from visus.models.small import SmallNet

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 6, 5), np.uint8)
RGB = RANDOM.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, GREY[:, None]),
        (torch.from_numpy(GREY)[:, None], GREY[:, None]),
        (RGB, RGB.transpose(0, 3, 1, 2)),
        (torch.from_numpy(RGB).permute(0, 3, 1, 2), RGB.transpose(0, 3, 1, 2)),
        (list(RGB), RGB.transpose(0, 3, 1, 2)),
        (list(torch.from_numpy(GREY)), GREY[:, None]),
        ([Image.fromarray(each) for each in RGB], RGB.transpose(0, 3, 1, 2)),
        (GREY.astype(np.float32) / 255, GREY[:, None]),
        (GREY.astype(np.uint16) * 257, GREY[:, None]),
        (read_only(GREY), GREY[:, None]),
    ],
)
def test_without_a_transform_images_are_floats_from_0_to_1(images, expected):
    dataset = ArrayDataset(images, LABELS)
    image, label = dataset[4]
    assert (image.dtype, type(label), label) == (torch.float32, int, 1)
    np.testing.assert_array_equal(image, expected[4].astype(np.float32) / 255)


def test_alpha_is_composed_on_white():
    rgba = np.concatenate([RGB, np.zeros_like(RGB[..., :1])], axis=-1)
    assert ArrayDataset(rgba, LABELS)[0][0].eq(1).all()


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.tolist(),
        LABELS.astype(np.uint8),
        LABELS.astype(float),
        torch.Tensor(LABELS),
        torch.Tensor(LABELS).long(),
    ],
)
def test_labels_may_come_in_any_kind_of_number(labels):
    dataset = ArrayDataset(GREY, labels)
    assert [label for _, label in (dataset[i] for i in range(12))] == LABELS.tolist()
    assert (dataset.classes, dataset.num_classes) == (("0", "1", "2"), 3)


def test_one_hot_labels_equal_torchs():
    dataset = ArrayDataset(GREY, LABELS, ["a", "b", "c", "d"], to_onehot=True)
    found = torch.stack([label for _, label in (dataset[i] for i in range(12))])
    expected = functional.one_hot(torch.from_numpy(LABELS), 4).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("images", "mode"), [(GREY, "L"), (RGB, "RGB")])
def test_a_transform_gets_the_picture(images, mode):
    dataset = ArrayDataset(images, LABELS, transform=lambda image: image)
    picture = dataset[3][0]
    assert isinstance(picture, Image.Image)
    assert picture.mode == mode
    np.testing.assert_array_equal(picture, images[3])


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose([transforms.ToTensor()]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    ],
)
@pytest.mark.parametrize("images", [GREY, RGB])
def test_to_tensor_gives_what_no_transform_gives(images, transform):
    plain, transformed = ArrayDataset(images, LABELS), ArrayDataset(images, LABELS, transform=transform)
    for place in range(12):
        # The second multiplies by 1/255, which may differ in the last bit.
        torch.testing.assert_close(torch.Tensor(transformed[place][0]), plain[place][0], atol=1e-7, rtol=0)


@given(st.integers(-20, 20))
def test_indices_are_those_of_a_sequence(index):
    dataset = ArrayDataset(GREY, LABELS)
    try:
        expected = LABELS.tolist()[index]
    except IndexError:
        with pytest.raises(IndexError):
            dataset[index]
    else:
        assert dataset[index][1] == expected
        assert dataset[torch.tensor(index)][1] == expected


@pytest.mark.parametrize(
    ("images", "labels", "classes", "sentence"),
    [
        (GREY, LABELS[:5], None, "expected 12 labels for 12 images"),
        (GREY, LABELS - 1, None, "found -1 for image 0 and 3 more"),
        (GREY, LABELS, ["a", "b"], "from 0 to 1, found 2 for image 2"),
        (GREY, LABELS, ["a", "b", "b"], "found b twice"),
        (GREY, [*LABELS[:11], 10**12], None, "at most 1,000,000 classes"),
        (GREY, LABELS + 0.5, None, "expected whole numbers as labels, found 0.5 for image 0"),
        (GREY, [*LABELS[:11], float("inf")], None, "found inf for image 11"),
        (GREY, list("abcabcabcabc"), None, "expected whole numbers as labels, found <U1"),
        (GREY, np.eye(12), None, "found labels of shape"),
        (GREY * 2.0, LABELS, None, "pixels from 0 to 1"),
        (np.where(np.arange(12)[:, None, None] == 7, np.nan, GREY / 255), LABELS, None, "found NaN in image 7"),
        ([GREY[0], GREY[1, :3]], [0, 1], None, "images: expected one array, or several of equal shape"),
        (GREY[:0], [], None, "expected images"),
        ([object()] * 12, LABELS, None, "expected images"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(images, labels, classes, sentence):
    with pytest.raises(DataError, match=sentence):
        ArrayDataset(images, labels, classes)


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_it_serves_a_loader(workers, context):
    dataset = ArrayDataset(RGB, LABELS, transform=transforms.ToTensor(), to_onehot=False)
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, multiprocessing_context=context)
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(5, 3, 6, 5), (5, 3, 6, 5), (2, 3, 6, 5)]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64
    assert labels.tolist() == LABELS.tolist()


def test_it_can_be_pickled():
    copy = pickle.loads(pickle.dumps(ArrayDataset(RGB, LABELS, to_onehot=True)))
    assert torch.equal(copy[5][0], ArrayDataset(RGB, LABELS)[5][0])


@pytest.mark.parametrize("to_onehot", [False, True])
def test_a_small_net_learns_from_it(to_onehot):
    labels = np.arange(32) % 2
    row, column = np.mgrid[:8, :8]
    stripes = np.where(labels[:, None, None] == 1, row % 2, column % 2) * 200
    images = stripes + RANDOM.integers(0, 50, stripes.shape)
    dataset = ArrayDataset(images, labels, ["upright", "lying"], to_onehot=to_onehot)
    torch.manual_seed(0)
    model = SmallNet(2, in_channels=1)
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = fit(model, loader, loader, optimizer=optimizer, epochs=6)
    assert history["acc"]["val"][-1] == 1


def test_it_is_a_source_taken_whole():
    data = open_source(ArrayDataset(RGB, LABELS, ["b", "a", "c"]), val_fraction=0)
    np.testing.assert_array_equal(data.train.images.pixels, RGB.transpose(0, 3, 1, 2))
    assert (data.classes, data.train.labels.tolist()) == (("b", "a", "c"), LABELS.tolist())
    assert data.train.paths == [str(place) for place in range(12)]
    with pytest.raises(UsageError, match="found a transform; leave it out"):
        open_source(ArrayDataset(RGB, LABELS, transform=transforms.ToTensor()))


class Pictures:
    """As torchvision's data sets are."""

    classes = ("cat", "dog", "owl")

    def __init__(self, images, convert):
        self.images, self.convert = images, convert

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.convert(self.images[index]), int(LABELS[index])


@pytest.mark.parametrize("images", [GREY, RGB])
@pytest.mark.parametrize("convert", [Image.fromarray, np.asarray, transforms.ToTensor(), v2.ToImage()])
def test_any_map_style_data_set_is_a_source(images, convert):
    data = open_source(Pictures(images, convert), val_fraction=0.25)
    assert (data.classes, data.source) == (("cat", "dog", "owl"), "Pictures")
    everyone = np.array([int(path) for path in [*data.train.paths, *data.val.paths]])
    pixels = torch.cat([data.train.images.pixels, data.val.images.pixels])
    expected = images[:, None] if images is GREY else images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels, expected[everyone])
    record = measure_preprocessing(data.train)
    assert len(next(iter(TrainingBatches(data.train, record, 3)(0)))) == 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "LAB"])
def test_pictures_of_any_mode_are_taken_by_their_colours(mode):
    picture = Image.fromarray(GREY[0].astype(np.uint16)) if mode == "I;16" else Image.new(mode, (5, 6))
    assert picture.mode == mode
    channels = open_source([(picture, 0), (picture, 1)]).train.images.channels
    assert channels == (1 if mode in ("1", "L", "LA", "I;16") else 3)


def test_grey_among_colours_becomes_rgb():
    data = open_source([(GREY[0], 0), (RGB[1], 1)], val_fraction=0)
    np.testing.assert_array_equal(data.train.images.pixels[0], np.stack([GREY[0]] * 3))
    assert data.classes == ("0", "1")


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        ([(GREY[0], 0), (GREY[1, :3], 1)], DataError, "images of one size, found 3 x 5, 6 x 5; resize them"),
        ([(GREY[0], 0), (GREY[1], "dog")], DataError, r"item 1: expected a pair .* found \(ndarray, str\)"),
        ([(GREY[0], 0.5)], DataError, "item 0: expected a pair of an image and a whole number"),
        ([{"image": GREY[0], "label": 1}], DataError, "found dict"),
        ([(GREY[0], 0), (torch.full((1, 6, 5), -2.0), 1)], DataError, "item 1: expected float32 pixels from 0 to 1"),
        ([(GREY[0], 0), (GREY[1], 0)], DataError, "at least two classes"),
        ([(GREY[0], -1)], DataError, "expected labels from 0"),
        ([], DataError, "found none"),
        (Stream(), UsageError, "map-style data set .* found Stream"),
        (None, UsageError, "found NoneType"),
        (iter([]), UsageError, "found list_iterator"),
    ],
)  # fmt: skip
def test_data_sets_that_cannot_be_used_say_why(source, error, sentence):
    with pytest.raises(error, match=sentence):
        open_source(source)
