import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.ops.meters import AverageMeter


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 1000)), max_size=30))
def test_it_is_the_weighted_mean(updates):
    meter = AverageMeter()
    for value, n in updates:
        meter.update(value, n)
    count = sum(n for _, n in updates)
    assert meter.count == count
    exact = math.fsum(value * n for value, n in updates) / count if count else 0.0
    assert meter.avg == pytest.approx(exact, rel=1e-12, abs=1e-9)
    assert meter.val == (updates[-1][0] if updates else 0.0)


def test_small_values_beside_a_large_one_are_kept():
    meter = AverageMeter()
    for value in [1e16, *[1.0] * 10, -1e16]:
        meter.update(value)
    assert meter.sum == 10.0


def test_an_infinite_value_stays_infinite():
    meter = AverageMeter()
    meter.update(math.inf)
    meter.update(1.0)
    assert meter.avg == math.inf


def test_reset_forgets():
    meter = AverageMeter()
    meter.update(3.0, 2)
    meter.reset()
    assert (meter.val, meter.avg, meter.sum, meter.count) == (0.0, 0.0, 0.0, 0)
