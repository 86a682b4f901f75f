import pytest
import torch
from pydantic import ValidationError
from torch import nn

from visus.errors import UsageError
from visus.ops.optim import (
    OptimizerSettings,
    complete_buffers,
    make_optimizer,
    match_layout,
    resolve_optimizer,
)


def trained(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = make(model)
    for _ in range(5):
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_sgd_is_that_of_the_notes():
    ours = trained(lambda model: make_optimizer(model, OptimizerSettings()))
    notes = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    theirs = trained(lambda model: torch.optim.SGD(model.parameters(), **notes))
    torch.testing.assert_close(ours, theirs)


def test_adamw_is_that_of_torch():
    ours = trained(lambda model: make_optimizer(model, OptimizerSettings(optimizer="adamw")))
    torch.testing.assert_close(ours, trained(lambda model: torch.optim.AdamW(model.parameters())))


@pytest.mark.parametrize("name", ["lamb", "lion", "adan", "rmsprop"])
def test_those_of_timm_move_the_weights(name):
    settings = OptimizerSettings(optimizer=name, lr=0.01)
    start = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    assert not torch.equal(trained(lambda model: make_optimizer(model, settings)), start)


def test_without_momentum_there_is_no_nesterov():
    optimizer = make_optimizer(nn.Linear(1, 1), OptimizerSettings(momentum=0))
    assert optimizer.defaults["nesterov"] is False


def test_defaults_depend_on_the_optimizer():
    assert resolve_optimizer(OptimizerSettings()).lr == 0.1
    assert resolve_optimizer(OptimizerSettings(optimizer="adamw")).weight_decay == 0.01
    assert resolve_optimizer(OptimizerSettings(lr=0.5, weight_decay=0)).weight_decay == 0


def test_a_mistyped_name_gets_the_nearest():
    with pytest.raises(UsageError, match=r"unknown optimizer 'adamv'.*adamw"):
        make_optimizer(nn.Linear(1, 1), OptimizerSettings(optimizer="adamv"))


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].requires_grad_(False)
    assert len(make_optimizer(model, OptimizerSettings()).param_groups[0]["params"]) == 2
    with pytest.raises(UsageError, match="frozen"):
        make_optimizer(model.requires_grad_(False), OptimizerSettings())


@pytest.mark.parametrize(
    "settings", [{"lr": 0}, {"lr": float("nan")}, {"momentum": 1}, {"weight_decay": -1}, {"beta": 1}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        OptimizerSettings(**settings)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_buffers_take_the_layout_that_the_parameters_have_now(name):
    """Continued in channels-last layout, an optimizer that began in the plain one computes the same."""

    def after_three_steps(change_layout):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3)
        optimizer = make_optimizer(model, OptimizerSettings(optimizer=name))
        for step in range(3):
            if change_layout and step == 1:
                model.to(memory_format=torch.channels_last)
                match_layout(optimizer)
            model(torch.ones(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.weight

    torch.testing.assert_close(after_three_steps(True), after_three_steps(False))


def test_a_parameter_that_is_thawed_later_is_updated_as_though_it_were_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.0))
    model[0].requires_grad_(False)
    for epoch in range(2):
        before = model[0].weight.clone()
        complete_buffers(optimizer)
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        if epoch == 0:
            assert torch.equal(model[0].weight, before)
            optimizer.zero_grad()
            model[0].requires_grad_(True)
    # The first update with Nesterov momentum is the gradient, and 0.9 of it once more.
    torch.testing.assert_close(model[0].weight, before - 0.1 * 1.9 * model[0].weight.grad)


def test_vectors_are_spared_on_request_and_factors_make_groups():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model.no_weight_decay = lambda: {"2.weight"}
    factors = {"0.weight": 0.5, "0.bias": 0.5}
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay_on="weights"), factors)
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(0.1, 0.0, 4), (0.05, 5e-4, 1), (0.05, 0.0, 1)]
    assert "factor" not in optimizer.param_groups[0]
    assert len(make_optimizer(model, OptimizerSettings()).param_groups) == 1


def test_those_of_timm_get_the_factors_on_a_rate_of_their_own():
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimizerSettings(optimizer="adan"), {"bias": 0.1})
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(0.1 * rates[0])


def test_what_timm_refuses_is_said_in_one_sentence():
    for name in ("sgdp", "adafactor"):
        with pytest.raises(
            UsageError, match=f"--optimizer {name}: has no learning rate of its own; give --lr"
        ):
            make_optimizer(nn.Linear(2, 2), OptimizerSettings(optimizer=name))
