import json

import pytest

from visus.errors import CheckpointError
from visus.preprocessing import Preprocessing

RECORD = Preprocessing((224, 224), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, "bicubic")


def test_it_survives_json():
    assert Preprocessing.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


@pytest.mark.parametrize(
    "change",
    [{"size": [224]}, {"mean": [0.5]}, {"channels": 1}, {"interpolation": "best"}, {"colour": "red"}],
)
def test_a_record_that_does_not_fit_together_is_refused(change):
    with pytest.raises(CheckpointError, match="preprocessing record"):
        Preprocessing.from_json({**RECORD.to_json(), **change})
