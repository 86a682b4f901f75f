"""How long a person waits for `visus --help`, beside an empty Python process and the import of torch.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial

from measuring import alternate, header, table

_COMMANDS = {
    "an empty process": ["-c", ""],
    "visus --help": ["-m", "visus", "--help"],
    "visus train --help": ["-m", "visus", "train", "--help"],
    "import visus": ["-c", "import visus"],
    "import torch": ["-c", "import torch"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of a Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Print a table, and whether torch was loaded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    code = "import sys\nfrom visus.cli import app\ntry: app(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    figures = alternate({name: partial(seconds, each) for name, each in _COMMANDS.items()}, repeats)
    print(f"{header()}; n = {repeats}; torch loaded by --help: {loaded.stdout.split()[-1]}")
    print(table(figures, "an empty process", "seconds"))


if __name__ == "__main__":
    main()
