import subprocess
import sys

import torch
from torch import nn

from visus.evaluation import evaluate
from visus.validating import validate


def test_the_loop_gets_the_figures_of_evaluate_without_the_rest():
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(50, 6, generator=generator), torch.randint(6, (50,), generator=generator)
    batches = list(zip(logits.split(7), labels.split(7), strict=True))
    scores = evaluate(nn.Identity(), batches)
    assert validate(nn.Identity(), batches) == (50, scores.loss, scores.accuracy)


def test_what_only_intervals_need_is_not_loaded_for_training():
    # 60 MB and half a second, before the first step.
    code = "import sys, visus.training; print([name for name in ('scipy.stats', 'scipy.optimize') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_test_of_a_run_does_without_what_is_large():
    # 20 MB each: all of scipy's distributions, and what it has for optimization.
    code = "import sys, visus.testing; print(not {'scipy.stats', 'scipy.optimize'}.isdisjoint(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
