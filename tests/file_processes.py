"""What test_files_in_processes.py runs: `python file_processes.py FOLDER OUT SIZE,CACHE,WORKERS ...`, each a run in SIZE processes.

They are forked from one that has imported everything; each way ends in a run's folder of its name in OUT.
"""

import os
import socket
import sys

import torch

from visus import finishing, training
from visus.config import make_config
from visus.display import Display
from visus.recording import RunRecorder


def settings(folder, out, cache, workers):
    options = {"model": "small", "img_size": 16, "augment": "standard", "mixup": 0.2, "erasing": 0.3}
    options |= {"amp": "off", "threads": 1, "lr": 0.01, "batch_size": 8, "epochs": 2, "max_bad": 0.5}
    return make_config(data=folder, out=out, cache=cache, workers=workers, **options)


def begin(rank, size, port):
    torch.set_num_threads(1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    RunRecorder.draw_curves = lambda self, records: None
    finishing.plot_confusion = lambda *arguments, **options: None


def run(folder, out, way):
    size, cache, workers = way.split(",")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(int(size)):
        if not (child := os.fork()):
            begin(rank, size, port)
            training.train(settings(folder, f"{out}/{way}", cache, int(workers)), display=Display(quiet=True))
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), f"{way}: {codes}"


if __name__ == "__main__":
    for each in sys.argv[3:]:
        run(*sys.argv[1:3], each)
