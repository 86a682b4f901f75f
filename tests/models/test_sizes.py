"""Which sizes are named where one does not work."""

import pytest

from visus.models.sizes import working_sizes


@pytest.mark.parametrize(
    ("name", "near", "expected"),
    [
        ("vit_b_16", 100, [96, 112]),
        ("timm/test_vit", 161, [160, 176]),
        ("alexnet", 20, [224]),
    ],
)
def test_the_nearest_that_work_are_found(name, near, expected):
    assert working_sizes(name, near) == expected


def test_a_run_names_them(tmp_path):
    from visus.config import make_config
    from visus.errors import UsageError
    from visus.training import train

    config = make_config(data="digits", model="vit_b_16", img_size=40, out=str(tmp_path), amp="off")
    with pytest.raises(UsageError, match=r"cannot take images of 40x40 .*such as 32 and 48"):
        train(config)
