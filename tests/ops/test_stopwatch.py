import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.errors import UsageError
from visus.ops.stopwatch import format_duration, split_seconds


@given(st.floats(0, 1e7))
def test_parts_add_up(seconds):
    hours, minutes, rest = split_seconds(seconds)
    assert hours * 3600 + minutes * 60 + rest == pytest.approx(seconds)
    assert 0 <= minutes < 60
    assert 0 <= rest < 60


@given(st.floats(0, 1e7))
def test_no_text_says_sixty(seconds):
    hours, minutes, rest = re.fullmatch(r"(\d+)h (\d+)m (\d+\.\d\d)s", format_duration(seconds)).groups()
    assert int(minutes) < 60
    assert float(rest) < 60
    assert int(hours) * 3600 + int(minutes) * 60 + float(rest) == pytest.approx(seconds, abs=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0h 0m 0.00s"),
        (59.999, "0h 1m 0.00s"),
        (3599.996, "1h 0m 0.00s"),
        (65.2, "0h 1m 5.20s"),
        (7384.5, "2h 3m 4.50s"),
    ],
)
def test_known_texts(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_what_is_no_duration_is_refused(seconds):
    with pytest.raises(UsageError, match="expected a duration"):
        format_duration(seconds)
