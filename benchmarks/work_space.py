"""What convolutions on the CPU take besides their tensors, and what `visus.summaries.work_space` says of it.

    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/work_space.py [--threads 1 2 8 32 64]

Measured is the highest moment of the gradients of one convolution, by the memory events of torch's profiler, above the gradients
themselves. Figures do not depend on what else the machine does, nor on how many processors there are for so many threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from measuring import header, highest
from torch import Tensor

from visus.summaries.work_space import work_space

SHAPES = [
    # channels in, out, groups, kernel, stride, side of the images
    *((768, 768, 768, kernel, 1, 7) for kernel in (3, 4, 5, 7, 9, 13)),
    (96, 96, 96, 7, 1, 56),
    (384, 384, 384, 7, 2, 14),
    *((3, 768, 1, kernel, kernel, 224) for kernel in (8, 14, 15, 16, 32)),
    (3, 192, 1, 16, 16, 224),
    (3, 64, 1, 7, 2, 224),
    (64, 64, 1, 3, 1, 56),
    (512, 512, 1, 3, 1, 7),
    (1024, 1024, 32, 3, 1, 7),
]
DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    """A line for each shape, type and layout, with what is measured and what is said for each number of threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 8, 32, 64])
    threads = parser.parse_args().threads
    print(f"{header()}; {torch.backends.cpu.get_cpu_capability()}; MiB measured, MiB said\n")
    heads = ["channels, groups", "kernel", "images", "type, layout", *(f"{each} threads" for each in threads)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for shape, dtype, layout in product(SHAPES, DTYPES, (torch.contiguous_format, torch.channels_last)):
        row = [
            f"{shape[0]} to {shape[1]}, {shape[2]}",
            f"{shape[3]}², stride {shape[4]}",
            f"2 x {shape[5]}²",
            f"{str(dtype).removeprefix('torch.')}, {str(layout).removeprefix('torch.').removesuffix('_format')}",
            *(beside(shape, dtype, layout, each) for each in threads),
        ]
        print(f"| {' | '.join(row)} |")


def beside(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, threads: int) -> str:
    """What is measured with so many threads, and what is said."""
    torch.set_num_threads(threads)
    gradients = backward(shape, dtype, layout)
    arguments, results = gradients()
    measured = highest(gradients) - sum(each.nbytes for each in results)
    said = work_space(torch.ops.aten.convolution_backward.default, arguments)
    return f"{measured / 2**20:.1f}, {said / 2**20:.1f}"


def backward(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> Callable[[], tuple[tuple[Any, ...], tuple[Tensor, ...]]]:
    """A function that computes both gradients of a convolution; it gives its arguments and them."""
    before, after, groups, kernel, stride, side = shape
    images = torch.rand(2, before, side, side, dtype=dtype).to(memory_format=layout)
    weights = torch.rand(after, before // groups, kernel, kernel, dtype=dtype).to(memory_format=layout)
    padding = kernel // 2 if stride < kernel else 0
    settings = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
    outputs = torch.convolution(images, weights, None, *settings)
    arguments = (torch.rand_like(outputs), images, weights, None, *settings, [True, True, False])
    return lambda: (arguments, torch.ops.aten.convolution_backward(*arguments)[:2])


if __name__ == "__main__":
    main()
