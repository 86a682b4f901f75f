"""The loop against a bare one, stopped anywhere and resumed, and with numbers that go wrong."""

import copy
import dataclasses
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from listening import Listening
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from visus.checkpoint import load_checkpoint, model_digest, save_checkpoint
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.sources import open_source
from visus.display import Display
from visus.errors import DataError, Interrupted, NonFiniteError, UsageError
from visus.evaluation import evaluate
from visus.loop import fit
from visus.models.small import SmallNet
from visus.ops.averaging import ExponentialAverage, TailAverage
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.ops.rng import derive_seed
from visus.ops.schedules import ScheduleSettings, make_schedule
from visus.state import TrainingState, pack, restore

DATA = open_source("digits")
POSITIONS = torch.arange(205).numpy()
TRAIN = DATA.train.subset(POSITIONS)
RECORD = measure_preprocessing(TRAIN)
BATCHES = TrainingBatches(TRAIN, RECORD, 34, "light", seed=1)
VAL = EvaluationBatches(DATA.val, RECORD, 60)


def begin(optimizer="sgd", average=None):
    torch.manual_seed(0)
    net = SmallNet(10, 1)
    model = nn.Sequential(net.features, net.pool, nn.Flatten(), nn.Dropout(0.3), net.classifier)
    model = model.to(memory_format=torch.channels_last)
    averages = {None: None, "ema": ExponentialAverage(model, 0.9), "swa": TailAverage(model, 3)}
    settings = OptimizerSettings(optimizer=optimizer)
    return TrainingState(model, make_optimizer(model, settings), averages[average])


class StopAt:
    """Asks to stop before update `step`, as a signal would."""

    exit_code = 143

    def __init__(self, state, step):
        self.state, self.step = state, step

    @property
    def received(self):
        return self.state.step >= self.step


def train(state, **options):
    accumulate = options.get("accumulate", 1)
    schedule = make_schedule(
        ScheduleSettings(schedule="onecycle"), epochs=3, steps_per_epoch=-(-len(BATCHES) // accumulate)
    )
    options = {"epochs": 3, "schedule": schedule, **options}
    return fit(state.model, BATCHES, VAL, optimizer=state.optimizer, state=state, **options)


def test_it_equals_a_bare_loop_bit_for_bit():
    state, bare = begin(), begin()
    fit(state.model, BATCHES, optimizer=state.optimizer, epochs=2, seed=5)
    step = 0
    bare.model.train()
    for epoch in range(2):
        for images, targets in BATCHES(epoch):
            torch.manual_seed(derive_seed(5, "model", step, 0, 0))
            (F.cross_entropy(bare.model(images), targets, reduction="sum") / len(images)).backward()
            bare.optimizer.step()
            bare.optimizer.zero_grad()
            step += 1
    assert model_digest(state.model.state_dict()) == model_digest(bare.model.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("average", [None, "ema", "swa"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("stop", [1, 3, 6, 10])
def test_a_stopped_and_resumed_run_ends_in_the_same_bits(tmp_path, optimizer, average, accumulate, stop):
    if accumulate == 4 and stop > 5:
        pytest.skip("the run has no more than 6 updates")
    whole, state = begin(optimizer, average), begin(optimizer, average)
    train(whole, accumulate=accumulate, clip_grad=1.0)
    with pytest.raises(Interrupted):
        train(state, accumulate=accumulate, clip_grad=1.0, stop=StopAt(state, stop))
    tensors, plain = pack(state)
    document = {"model": "custom", "classes": [], "preprocess": None, "config": {}, "state": plain}
    save_checkpoint(tmp_path / "last.safetensors", tensors, document)

    torch.manual_seed(99)
    resumed = begin(optimizer, average)
    checkpoint = load_checkpoint(tmp_path / "last.safetensors")
    restore(resumed, checkpoint.tensors, checkpoint.document["state"], checkpoint.path)
    train(resumed, accumulate=accumulate, clip_grad=1.0)
    assert model_digest(resumed.model.state_dict()) == model_digest(whole.model.state_dict())
    assert model_digest(resumed.weights.state_dict()) == model_digest(whole.weights.state_dict())
    assert (resumed.best_accuracy, resumed.best_epoch) == (whole.best_accuracy, whole.best_epoch)


def test_accumulated_batches_equal_one_large_batch():
    torch.manual_seed(0)
    images, targets = torch.randn(10, 6), torch.arange(10) % 3
    whole, parts = nn.Linear(6, 3), nn.Linear(6, 3)
    parts.load_state_dict(whole.state_dict())
    weights = torch.tensor([1.0, 5.0, 0.2])

    def weighted(logits, batch):
        return F.cross_entropy(logits, batch.targets, weights, reduction="sum"), weights[batch.targets].sum()

    for model, sizes, accumulate in ((whole, [10], 1), (parts, [4, 4, 2], 3)):
        data = list(zip(images.split(sizes), targets.split(sizes), strict=True))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        fit(model, data, optimizer=optimizer, epochs=4, loss=weighted, accumulate=accumulate)
    torch.testing.assert_close(parts.weight, whole.weight)


def test_progress_tells_the_means_so_far():
    stream, now = io.StringIO(), itertools.count(0, 100)
    state = begin()
    history = train(state, epochs=1, display=Display(stream, clock=lambda: next(now)))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("Iter: ")]
    assert len(lines) == 6
    assert lines[-1].startswith("Iter: 6 / 6 (")
    assert f"({history['loss']['train'][0]:.4f})" in lines[-1]
    assert f"Acc= {100 * history['acc']['train'][0]:.2f}% (" in lines[-1]


def test_the_history_is_that_of_the_notes():
    history = train(begin())
    assert {part: len(values) for part, values in history["acc"].items()} == {"train": 3, "val": 3}
    assert history["loss"]["train"][-1] < history["loss"]["train"][0]


def test_a_plain_data_loader_will_do_and_the_net_learns_it():
    dataset = TensorDataset(
        torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
    )
    torch.manual_seed(0)
    model = SmallNet(4, 1)
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = make_schedule(ScheduleSettings(schedule="cosine"), epochs=40, steps_per_epoch=4)
    history = fit(model, loader, DataLoader(dataset, 16), optimizer=optimizer, epochs=40, schedule=schedule)
    assert history["acc"]["val"][-1] == 1.0


def test_an_iterable_cannot_go_on_in_mid_epoch():
    state = begin()
    state.epoch_step = 2
    with pytest.raises(UsageError, match="mid-epoch"):
        fit(
            state.model,
            [(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())],
            optimizer=state.optimizer,
            epochs=1,
            state=state,
        )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_that_is_no_number_names_the_step(accumulate):
    state = begin()
    batches = list(BATCHES(0))
    batches[3].images.fill_(float("nan"))
    step = 3 // accumulate
    with pytest.raises(NonFiniteError, match=rf"at step {step} \(epoch 1, learning rate 0.1\)"):
        fit(state.model, batches, optimizer=state.optimizer, epochs=2, accumulate=accumulate)


def test_an_epoch_without_images_is_an_error():
    state = begin()
    with pytest.raises(DataError, match="expected training images"):
        fit(state.model, [], optimizer=state.optimizer, epochs=1)


def test_averaged_weights_are_the_ones_validated():
    state = begin(average="ema")
    before = copy.deepcopy(state.average.module.state_dict())
    train(state)
    assert state.weights is state.average.module
    assert model_digest(state.weights.state_dict()) != model_digest(before)
    assert model_digest(state.weights.state_dict()) != model_digest(state.model.state_dict())


class Poisoned:
    """The batches of `BATCHES`, that of step `step` of each epoch with images that are no numbers."""

    def __init__(self, step):
        self.step = step

    def __call__(self, epoch, start):
        for index, batch in enumerate(BATCHES(epoch, start), start):
            if index == self.step:
                batch.images.fill_(float("nan"))
            yield batch


def test_a_step_that_is_not_finite_is_left_out_as_though_its_batch_were_not_there():
    state, told = begin(), Listening()
    fit(
        state.model,
        Poisoned(2),
        optimizer=state.optimizer,
        epochs=1,
        state=state,
        on_nonfinite="skip",
        display=told,
    )
    without = begin()
    batches = [batch for index, batch in enumerate(BATCHES(0, 0)) if index != 2]
    # Dropout is seeded by the step, which counts on.
    seeds = [step for step in range(len(BATCHES)) if step != 2]
    without.model.train()
    for step, batch in zip(seeds, batches, strict=True):
        torch.default_generator.manual_seed(derive_seed(0, "model", step, 0, 0))
        F.cross_entropy(without.model(batch.images), batch.targets).backward()
        without.optimizer.step()
        without.optimizer.zero_grad()
    assert model_digest(state.model.state_dict()) == model_digest(without.model.state_dict())
    assert (state.step, state.skipped_steps) == (len(BATCHES), 1)
    assert state.images == len(TRAIN) - 34
    assert [line for line in told.lines if "left out" in line] == [
        "step 2 left out: its loss or gradient is not finite"
    ]


def test_a_gradient_that_is_not_finite_is_left_out_too():
    def loss(logits, batch):
        total = F.cross_entropy(logits, batch.targets, reduction="sum")
        # The value is finite, its derivative at 0 is not.
        return total + (logits.sum() * 0).sqrt(), torch.tensor(float(len(batch)))

    state = begin()
    before = model_digest(state.model.state_dict())
    with pytest.raises(NonFiniteError, match="no step of epoch 1"):
        fit(
            state.model,
            BATCHES,
            optimizer=state.optimizer,
            epochs=1,
            state=state,
            loss=loss,
            on_nonfinite="skip",
        )
    assert model_digest(state.model.state_dict()) == before
    assert state.skipped_steps == len(BATCHES)


def test_the_images_of_the_first_bad_step_are_named():
    record = dataclasses.replace(RECORD, std=(float("nan"),))
    batches = TrainingBatches(TRAIN, record, 34, "light", seed=1)
    state = begin()
    with pytest.raises(NonFiniteError, match="not finite at step 0") as caught:
        fit(state.model, batches, optimizer=state.optimizer, epochs=1, state=state)
    first = next(iter(BATCHES.positions(0)))
    assert f"its images: {', '.join(TRAIN.paths[place] for place in first[:10])} and 24 more" in str(
        caught.value
    )


def test_averages_of_the_last_updates_are_validated_with_statistics_of_their_own():
    state = begin(average="swa")
    history = train(state)
    expected = nn.Sequential(*copy.deepcopy(list(state.model)))
    expected.load_state_dict(state.average.module.state_dict())
    torch.optim.swa_utils.update_bn((batch.images for batch in BATCHES(0)), without_dropout(expected))
    torch.testing.assert_close(dict(expected.named_buffers()), dict(state.average.module.named_buffers()))
    scores = evaluate(state.average.module, VAL)
    assert scores.accuracy == history["acc"]["val"][-1]
    assert not any(each.training for each in state.average.module.modules())
    assert state.model.training


def without_dropout(model):
    for each in model:
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    return model


class Scripted(nn.Module):
    """A model whose validation accuracy is a number of images, told for each epoch; training changes nothing of it."""

    def __init__(self, right):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.right, self.epoch = right, -1

    def forward(self, images):
        self.epoch += not self.training
        right = torch.arange(len(images)) < self.right[self.epoch]
        return torch.stack((right, ~right), dim=1).float() + self.weight


PAIRS = [(torch.zeros(10, 1, 2, 2), torch.zeros(10, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("right", "patience", "epochs", "best"),
    [
        ([1, 2, 2, 1, 9, 9], 2, 4, 2),
        ([1, 2, 2, 1, 9, 9], 3, 6, 5),
        ([5, 4, 9], 1, 2, 1),
        ([1, 2, 3], 1, 3, 3),
    ],
)
def test_patience_runs_out_where_no_epoch_is_better(right, patience, epochs, best):
    model, told = Scripted(right), Listening()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainingState(model, optimizer)
    options = {"optimizer": optimizer, "epochs": len(right), "state": state, "display": told}
    history = fit(model, PAIRS, PAIRS, patience=patience, **options)
    assert len(history["acc"]["val"]) == state.epoch == epochs
    assert state.best_epoch == best
    if epochs < len(right):
        assert told.lines[-1] == f"ended after epoch {epochs}: none was better since epoch {best}"
        # Asked to go on, it has nothing to do; with more patience it has.
        fit(model, PAIRS, PAIRS, patience=patience, **options)
        assert state.epoch == epochs
        fit(model, PAIRS, PAIRS, patience=patience + 1, **options)
        assert state.epoch > epochs


def test_patience_wants_images_to_validate_on():
    state = begin()
    with pytest.raises(UsageError, match="patience"):
        fit(state.model, BATCHES, optimizer=state.optimizer, epochs=1, patience=1)
