"""`ckpt-chaos` (0.1.8, `pip install ckpt-chaos`) on a run of `visus train`: killed at every file event, resumed, compared.

    python benchmarks/chaos.py                 # every event; further options go to ckpt-chaos, as in --max-points 40
    python benchmarks/chaos.py --racing        # with the writer's thread at its own pace

What the tool sees: files opened for writing, renamed and removed by Python, in any thread, and `safetensors.torch.save_file`, whose
writing happens in Rust, as one event that it can also cut in half. It does not see hard links (`previous`, `step-N`), except by the
rename that puts them into place, nor fsync: `tests/test_faults.py` traces those. Its mode `unsynced` is of no use here, since
it knows a file as synced only where the descriptor that wrote it is.

The command begins a run, or goes on with it where it has settings. Temporary files get numbers in place of random names, and
training waits for each checkpoint, so that event N is the same in every process; with `--racing` neither. Checkpoints are compared
by name, not by size: their headers hold durations. A name appears only when its file is whole.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

_RUN = (
    "digits --model small --augment light --amp off --threads 1 --lr 0.02 --batch-size 400 --epochs 2 --ema"
)
_SAVING = "--checkpoint-every 3steps --keep all"


def job(out: Path, in_order: bool) -> int:
    """Begin a run in `out` or go on with it, and write its digest to `digest.txt`."""
    from visus import cli

    out.mkdir(parents=True, exist_ok=True)
    begun = sorted(out.glob("run*/config.yaml"))
    if begun:
        sys.argv = ["visus", "train", "--json", "--resume", str(begun[-1].parent)]
    else:
        sys.argv = ["visus", "train", *_RUN.split(), *_SAVING.split()]
        sys.argv += ["--json", "--out", str(out), "--name", "run"]
        if in_order:
            make_repeatable()
    output = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(output):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    if code == 0:
        (out / "digest.txt").write_text(json.loads(output.getvalue())["digest"])
    return code


def make_repeatable() -> None:
    """Number the temporary files, let training wait for each checkpoint, and write nothing by the clock."""
    import visus.files
    import visus.recording
    import visus.training
    from visus.recording import RunRecorder

    class InOrder(RunRecorder):
        def _submit(self, *arguments: object) -> None:
            super()._submit(*arguments)
            self.flush()

    numbers = itertools.count()
    visus.training.RunRecorder = InOrder
    visus.recording._PROGRESS_SECONDS = math.inf
    visus.files.uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{next(numbers):08}"))


def drive(options: list[str], pace: list[str]) -> int:
    """Let ckpt-chaos kill and judge; its exit code."""
    with tempfile.TemporaryDirectory() as work:
        command = [
            sys.executable,
            "-m",
            "ckpt_chaos",
            "run",
            "--work",
            f"{work}/chaos",
            "--max-points",
            "1000",
        ]
        command += ["--step-regex", r"resumed from step (\d+)", "--result-file", "{out}/digest.txt"]
        command += ["--checkpoint-glob", "{out}/run*/step-*.safetensors", "--ckpt-ignore-size"]
        command += ["--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL", *options]
        command += ["--", sys.executable, __file__, "job", "{out}", *pace]
        return subprocess.run(command, check=False).returncode


def main() -> int:
    """As `job OUT` the command that is killed, else what drives the tool."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["job"]:
        return job(Path(arguments[1]), "--racing" not in arguments)
    pace = [each for each in arguments if each == "--racing"]
    return drive([each for each in arguments if each != "--racing"], pace)


if __name__ == "__main__":
    sys.exit(main())
