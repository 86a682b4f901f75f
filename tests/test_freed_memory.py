import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from visus import freed_memory
from visus.freed_memory import _glibc
from visus.inference import predict_logits
from visus.loop import fit

pytestmark = pytest.mark.skipif(_glibc() is None, reason="the C library is not glibc")

CHILD = """
import ctypes, resource, sys
from visus.freed_memory import kept_freed_memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = int(sys.argv[1])
before = resident()
with kept_freed_memory():
    with kept_freed_memory():
        faults(size)
    found = [faults(size) for _ in range(5)]
print(sum(found[1:]), resident() - before)
"""
SIZE = 2**24
PAGES = 8 * SIZE // 4096
"""Of what a step takes."""


def measured(**variables: str) -> tuple[int, int]:
    """Page faults of four steps after the first, and bytes that are still held at the end."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(SIZE)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        check=True,
    )
    faults, held = map(int, done.stdout.split())
    return faults, held


def test_a_step_is_given_the_memory_of_the_step_before_and_the_system_gets_it_back():
    faults, held = measured()
    assert faults < PAGES / 100
    assert held < 2**22


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_who_sets_the_variables_of_glibc_decides(variable):
    faults, _ = measured(**{variable: "1000000"})
    assert faults >= 3.9 * PAGES


def test_models_are_trained_and_run_inside():
    seen = []

    class Noting(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(freed_memory._inside[0])
            return super().forward(images)

    model = Noting(4, 2)
    batches = [(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))]
    fit(model, batches, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), epochs=1)
    list(predict_logits(model, batches))
    assert seen == [1, 2, 1]
    assert freed_memory._inside[0] == 0
