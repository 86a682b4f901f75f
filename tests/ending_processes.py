"""What test_endings.py runs: `visus train` in two processes, one of which meets something.

`python ending_processes.py FOLDER CASE ...`. They are forked from one that has imported everything, and that does what torchrun
would: keep the store, and where both are of one machine end the other with SIGTERM once one has ended. What came of each case goes
to stdout as JSON.
"""

import errno
import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

import visus.assembling
import visus.checkpoint
import visus.config
import visus.data.batching
import visus.loop
import visus.preparing
import visus.recording
import visus.run_files
import visus.training
from visus import cli
from visus.errors import DataError, UsageError

SMALL = (
    "train digits --model small -b 100 --amp off --threads 1 --checkpoint-every 2steps --epochs 2 --name run"
)
LONG = f"{SMALL} --epochs 200"
CASES = {}
PATIENCE_SECONDS = 60


def case(arguments=SMALL, *, rank=0, to=None, one_machine=False):
    """A function that is called in process `rank` before it begins; `to` is sent a signal after some steps: `all`, or one."""

    def keep(function):
        CASES[function.__name__] = (arguments, rank, function, to, one_machine)
        return function

    return keep


def fails(module, name, error, *, after=0):
    """Let the function `name` of `module` raise `error` at its call number `after`."""
    whole, calls = getattr(module, name), iter(range(10**9))

    def fail(*arguments, **options):
        if next(calls) >= after:
            raise error
        return whole(*arguments, **options)

    setattr(module, name, fail)


@case()
def settings_that_the_first_refuses():
    fails(visus.training, "resolve_config", UsageError("the settings make no sense"))


@case(one_machine=True)
def a_full_disk_at_the_beginning():
    fails(visus.run_files, "write_config", OSError(errno.ENOSPC, "No space left on device", "config.yaml"))


@case(rank=1, one_machine=True)
def a_device_that_one_lacks():
    fails(visus.training, "own_device", UsageError("no such device"))


@case(rank=1)
def data_that_one_lacks():
    fails(visus.training, "prepare", DataError("no such data"))


@case(rank=1)
def other_data_in_one():
    visus.preparing.fingerprint = lambda data: "another"


@case("train nowhere --model small --name run")
def data_that_nobody_has():
    pass


@case()
def an_interrupt_before_the_first_step():
    fails(visus.assembling, "build_model", KeyboardInterrupt())


@case(LONG, rank=1)
def an_image_that_has_gone():
    fails(visus.data.batching, "normalise", DataError("an image has gone"), after=4)


@case(LONG, rank=1, one_machine=True)
def a_fault_in_one():
    fails(visus.data.batching, "normalise", TypeError("a mistake"), after=4)


@case(LONG, rank=1)
def a_fault_in_validation():
    fails(visus.loop, "validate", DataError("cannot be scored"))


@case(f"{LONG} --lr 1e20")
def a_loss_that_is_not_finite():
    # The first alone looks at it before a checkpoint.
    pass


@case(LONG, rank=1, one_machine=True)
def a_process_that_is_killed():
    kill_at_call(4)


@case(LONG)
def the_first_process_is_killed():
    kill_at_call(4)


def kill_at_call(number):
    whole, calls = visus.data.batching.normalise, iter(range(10**9))

    def die(*arguments):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    visus.data.batching.normalise = die


@case(LONG, to=("all", signal.SIGTERM), one_machine=True)
def a_signal_to_all():
    save_slowly()


@case(LONG, to=("all", signal.SIGUSR1), one_machine=True)
def a_signal_of_the_cluster():
    save_slowly()


@case(LONG, to=(1, signal.SIGINT), one_machine=True)
def a_signal_to_one():
    save_slowly()


def save_slowly():
    save = visus.recording.save_checkpoint

    def slow(*arguments, **options):
        time.sleep(0.7)
        return save(*arguments, **options)

    visus.recording.save_checkpoint = slow


@case("RESUME", rank=1)
def another_checkpoint_in_one():
    load = visus.training.load_checkpoint

    def other(path):
        checkpoint = load(path)
        checkpoint.document["checksum"] = "0" * 64
        return checkpoint

    visus.training.load_checkpoint = other


def begin(rank, port, folder, arguments, act):
    torch.set_num_threads(1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {
        **shared,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with (folder / f"{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    act()
    visus.recording.plot_curves = lambda *_: None
    sys.argv = ["visus", *arguments, *(() if "--resume" in arguments else ("--out", str(folder)))]
    cli.main()


def run(name, folder):
    arguments, rank, act, to, one_machine = CASES[name]
    folder = folder / name
    folder.mkdir()
    words = arguments.split()
    if arguments == "RESUME":
        words = ["train", "--resume", str(folder.parent / "a_signal_to_all" / "run")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for each in range(2):
        child = os.fork()
        if not child:
            begin(each, str(port), folder, words, act if each == rank else (lambda: None))
        children[each] = child
    # Only now, since its threads would not be in the children.
    store = torch.distributed.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    if to:
        send(folder, children, *to)
    ended, codes = time.monotonic() + PATIENCE_SECONDS, {}
    while len(codes) < 2 and time.monotonic() < ended:
        for each, child in children.items():
            if each not in codes and (status := os.waitpid(child, os.WNOHANG))[0]:
                codes[each] = (os.waitstatus_to_exitcode(status[1]), time.monotonic())
                if one_machine and len(codes) == 1 and codes[each][0]:
                    time.sleep(0.1)
                    os.kill(children[1 - each], signal.SIGTERM)
        time.sleep(0.01)
    for each in children.keys() - codes.keys():
        os.kill(children[each], signal.SIGKILL)
        os.waitpid(children[each], 0)
    del store
    times = [at for _, at in codes.values()]
    return {
        "codes": {each: code for each, (code, _) in codes.items()},
        "first": min(codes, key=lambda each: codes[each][1]) if codes else None,
        "apart": max(times) - min(times) if len(times) == 2 else None,
        "said": [(folder / f"{each}.log").read_text() for each in range(2)],
        "pids": children,
        "run": str(folder / "run"),
    }


def send(folder, children, whom, what):
    """Once there are two checkpoints."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and not (folder / "run" / "previous.safetensors").exists():
        time.sleep(0.02)
    for each in children.values() if whom == "all" else [children[whom]]:
        os.kill(each, what)


if __name__ == "__main__":
    results = {name: run(name, Path(sys.argv[1])) for name in sys.argv[2:] or CASES}
    sys.stdout.write(json.dumps(results))
