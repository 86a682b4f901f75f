"""Mixed precision: tried in a child process, believed beyond a margin, kept; and what it changes in the loop."""

import json

import pytest
import torch
from torch import nn

from visus import amp
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.sources import open_source
from visus.errors import UsageError
from visus.evaluation import evaluate
from visus.loop import fit
from visus.models.small import SmallNet
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.state import TrainingState, pack, restore

CPU = torch.device("cpu")
DATA = open_source("digits")
TRAIN = DATA.train.subset(torch.arange(160).numpy())
RECORD = measure_preprocessing(TRAIN)
BATCHES = TrainingBatches(TRAIN, RECORD, 40)


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Seconds that each type is made to take; a type that is not in it dies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seconds = {}
    monkeypatch.setattr(amp, "_try", lambda device, name: seconds.get(name))
    return seconds


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"off": 3.0, "bf16": 1.9, "fp16": 1.0}, "bf16"),
        ({"off": 3.0, "bf16": 2.1, "fp16": 2.0}, "fp16"),
        ({"off": 3.0, "bf16": 2.1, "fp16": 2.1}, "off"),
        ({"off": 3.0, "fp16": 1.0}, "fp16"),
        ({"off": 3.0}, "off"),
    ],
)
def test_auto_takes_a_type_only_where_it_clearly_pays(tried, seconds, chosen):
    tried |= seconds
    assert amp.resolve_amp("auto", CPU) == chosen


def test_what_was_found_is_kept(tried):
    tried |= {"off": 3.0, "bf16": 1.0}
    assert amp.probe(CPU) == {"off": 3.0, "bf16": 1.0}
    tried.clear()
    assert amp.usable_types(CPU) == ["bf16"]


def test_a_type_that_does_not_work_is_refused_by_name(tried):
    tried |= {"off": 3.0, "fp16": 9.0}
    assert amp.resolve_amp("fp16", CPU) == "fp16"
    with pytest.raises(
        UsageError, match=r"--amp bf16 does not work on .* \(types that do: fp16\); use --amp off"
    ):
        amp.resolve_amp("bf16", CPU)


def test_off_tries_nothing(tried):
    assert amp.resolve_amp("off", CPU) == "off"


@pytest.mark.parametrize("command", ["import os, signal; os.kill(os.getpid(), signal.SIGILL)", "print('x')"])
def test_a_child_that_dies_of_an_illegal_instruction_is_no_answer(monkeypatch, command):
    run = amp.subprocess.run

    def instead(arguments, **options):
        return run([arguments[0], "-c", command], **options)

    monkeypatch.setattr(amp.subprocess, "run", instead)
    assert amp._try(CPU, "bf16") is None


def test_a_damaged_answer_is_asked_for_again(tried):
    tried |= {"off": 3.0}
    amp.probe(CPU)
    amp._kept_at(CPU).write_text("{")
    assert amp.probe(CPU) == {"off": 3.0}
    assert json.loads(amp._kept_at(CPU).read_text()) == {"off": 3.0}


def begin(kind, growth_interval=2000):
    torch.manual_seed(0)
    model = SmallNet(10, 1)
    scaler = amp.make_scaler(kind, CPU)
    scaler._growth_interval = growth_interval
    return TrainingState(model, make_optimizer(model, OptimizerSettings(lr=0.05)), scaler=scaler)


def run(state, epochs, kind):
    return fit(state.model, BATCHES, optimizer=state.optimizer, epochs=epochs, state=state, amp=kind)


def skip_where_it_does_not_work(kind):
    if kind not in amp.usable_types(CPU):
        pytest.skip(f"{kind} does not work on this CPU")


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_net_learns_in_mixed_precision_near_float32(kind):
    skip_where_it_does_not_work(kind)
    losses = {each: run(begin(each), 3, each)["loss"]["train"] for each in ("off", kind)}
    assert losses[kind][-1] < 0.8 * losses[kind][0]
    assert losses[kind] == pytest.approx(losses["off"], rel=0.1)
    assert losses[kind] != losses["off"]


def test_the_scale_of_fp16_survives_a_resume():
    skip_where_it_does_not_work("fp16")
    whole, half, again = (begin("fp16", growth_interval=4) for _ in range(3))
    run(whole, 2, "fp16")
    run(half, 1, "fp16")
    tensors, plain = pack(half)
    restore(again, tensors, plain, "test")
    assert again.scaler.get_scale() == half.scaler.get_scale() > 65536
    run(again, 2, "fp16")
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_evaluation_runs_in_the_type_asked_for():
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(torch.is_autocast_enabled("cpu"))
            return images.flatten(1)[:, :10]

    batches = EvaluationBatches(TRAIN, RECORD, 200)
    for kind in ("off", "bf16"):
        evaluate(Spy(), batches, amp=kind)
    assert seen == [False, True]
