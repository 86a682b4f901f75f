"""Each schedule step by step against torch's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler

from visus.errors import UsageError
from visus.ops.schedules import ScheduleSettings, make_schedule


def torch_factors(steps, make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def factors(settings, epochs, steps_per_epoch):
    schedule = make_schedule(settings, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return [schedule(step) for step in range(epochs * steps_per_epoch)]


def test_multistep_drops_at_half_and_three_quarters():
    expected = torch_factors(40, lambda o: lr_scheduler.MultiStepLR(o, [20, 30], gamma=0.1))
    assert factors(ScheduleSettings(), epochs=8, steps_per_epoch=5) == pytest.approx(expected)


def test_the_milestones_of_the_notes():
    schedule = make_schedule(ScheduleSettings(milestones=(50, 75)), epochs=100, steps_per_epoch=3)
    assert [schedule(3 * epoch) for epoch in (49, 50, 74, 75)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert schedule(3 * 50 - 1) == 1


def test_cosine():
    expected = torch_factors(30, lambda o: lr_scheduler.CosineAnnealingLR(o, 30))
    assert factors(ScheduleSettings(schedule="cosine"), 6, 5) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("epochs", "steps"), [(6, 5), (10, 100), (1, 20)])
def test_onecycle(epochs, steps):
    total = epochs * steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False)
    expected = []
    for step in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    assert factors(ScheduleSettings(schedule="onecycle"), epochs, steps) == pytest.approx(expected)


def test_warmup_rises_in_a_straight_line():
    settings = ScheduleSettings(schedule="constant", warmup_epochs=2)
    assert factors(settings, 3, 2) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


@given(
    st.sampled_from(["multistep", "cosine", "onecycle", "constant"]), st.integers(1, 50), st.integers(1, 50)
)
def test_a_factor_stays_between_nothing_and_one(name, epochs, steps):
    values = factors(ScheduleSettings(schedule=name), epochs, steps)
    assert all(0 <= value <= 1 + 1e-12 for value in values)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "onecycle", "warmup_epochs": 1},
        {"schedule": "cosine", "milestones": (1,)},
        {"schedule": "linear"},
        {"warmup_epochs": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        ScheduleSettings(**settings)


def test_a_run_without_steps_is_refused():
    with pytest.raises(UsageError, match="at least one"):
        make_schedule(ScheduleSettings(), epochs=0, steps_per_epoch=5)
