"""The example of the README, executed as it stands."""

import re
from pathlib import Path

import torch


def test_the_example_runs_and_is_right(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["scores"].accuracy > 0.97
    assert f"of {names['scores'].n} test images" in capsys.readouterr().out
