"""What test_processes.py runs in each of several processes: `python several_processes.py SIZE PORT FILE CASE ...`.

They are forked from one that has imported everything; what the cases return goes to FILE.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from visus.checkpoint import model_digest
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.sources import open_source
from visus.errors import Interrupted
from visus.evaluation import evaluate
from visus.loop import fit
from visus.models.small import SmallNet
from visus.ops.averaging import ExponentialAverage, TailAverage
from visus.ops.batchnorm import GlobalBatchNorm
from visus.ops.losses import cross_entropy_sum
from visus.processes import AgreedStop, joined
from visus.signals import StopSignal
from visus.state import TrainingState

DATA = open_source("digits")
# 23 images in batches of 7: the last one has 2, so that one of three processes gets none.
TRAIN = DATA.train.subset(torch.arange(23).numpy())
RECORD = measure_preprocessing(TRAIN)


def begin(processes, *, dropout=0.0, lr=0.01):
    torch.manual_seed(0)
    net = SmallNet(10, 1)
    model = nn.Sequential(net.features, net.pool, nn.Flatten(), nn.Dropout(dropout), net.classifier)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    batches = TrainingBatches(
        TRAIN, RECORD, 7, "light", rank=processes.rank, world_size=processes.size, mixup=0.2
    )
    return TrainingState(model, optimizer, ExponentialAverage(model, 0.9)), batches


def run(processes, batches, state, **options):
    val = EvaluationBatches(DATA.val, RECORD, 40, processes.rank, processes.size)
    return fit(
        state.model, batches, val, optimizer=state.optimizer, state=state, processes=processes, **options
    )


def training(processes, **options):
    """Weights and history after two epochs."""
    state, batches = begin(processes)
    history = run(processes, batches, state, epochs=2, accumulate=2, clip_grad=1.0, **options)
    return {"weights": state.model.state_dict(), "average": state.weights.state_dict(), "history": history}


def tail_average(processes):
    """Weights averaged over the last updates, of images drawn by class, by a weighted loss."""
    state, batches = begin(processes)
    state.average = TailAverage(state.model, 4)
    weights = torch.linspace(0.5, 2.0, 10)
    options = {"loss": lambda logits, batch: cross_entropy_sum(logits, batch.targets, class_weights=weights)}
    history = run(processes, replace(batches, sampler="balanced"), state, epochs=2, **options)
    return {"weights": state.model.state_dict(), "average": state.weights.state_dict(), "history": history}


def local_batchnorm(processes):
    return training(processes, batchnorm="local")


def repeated(processes):
    """Twice the same, with dropout."""
    digests = []
    for _ in range(2):
        state, batches = begin(processes, dropout=0.5)
        run(processes, batches, state, epochs=2)
        digests.append(model_digest(state.model.state_dict()))
    return processes.from_each(digests)


def local_statistics(processes):
    """With statistics by shares all processes still have the same ones to validate with."""
    state, batches = begin(processes)
    run(processes, batches, state, epochs=1, batchnorm="local")
    return processes.from_each(
        [model_digest(state.model.state_dict()), model_digest(state.weights.state_dict())]
    )


def evaluation(processes):
    state, _ = begin(processes)
    for part in (DATA.test, DATA.val.subset(torch.arange(3).numpy())):
        batches = EvaluationBatches(part, RECORD, 40, processes.rank, processes.size)
        scores = evaluate(state.model, batches)
    return [scores.to_json() for scores in processes.from_each(scores)]


def normalisation(processes):
    """Output, gradients and running statistics of one batch norm, over shares of 7 images."""
    torch.manual_seed(0)
    images = torch.randn(7, 3, 4, 5, dtype=torch.float64)
    weights = torch.randn(7, 3, 4, 5, dtype=torch.float64).tensor_split(processes.size)[processes.rank]
    share = images.tensor_split(processes.size)[processes.rank].requires_grad_()
    layer = nn.BatchNorm2d(3).double()
    with GlobalBatchNorm() if processes.size > 1 else contextlib.nullcontext():
        output = layer(share)
    (output * weights).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    processes.add_up(gradients)
    return {
        "output": torch.cat(processes.from_each(output.detach())),
        "image_gradient": torch.cat(processes.from_each(share.grad)),
        "gradients": gradients,
        "running": [layer.running_mean, layer.running_var],
        "evaluated": layer.eval()(images).detach(),
    }


def unused_and_frozen(processes):
    """A model of which a part is not used and a part not trained keeps both as they are, weight decay or not."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(64, 10), "unused": nn.Linear(2, 2), "frozen": nn.Linear(64, 64)})
    model["frozen"].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.forward = lambda images: model["used"](F.relu(model["frozen"](images.flatten(1))))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    batches = TrainingBatches(TRAIN, RECORD, 7, rank=processes.rank, world_size=processes.size)
    fit(model, batches, optimizer=optimizer, epochs=1, processes=processes)
    return [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]


def stopped(processes):
    """A signal in one process stops all after the same step."""
    state, batches = begin(processes)

    def asked(epoch, start):
        for batch in batches(epoch, start):
            if state.step == 2 and processes.rank == processes.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with StopSignal() as own:
        try:
            run(processes, asked, state, epochs=9, stop=AgreedStop(own, processes))
        except Interrupted as error:
            return processes.from_each((state.step, error.exit_code))


def one_dies(processes):
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        processes.from_each(time.time())


def begin_process(rank, size, port):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
    os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})


def run_cases(file, cases):
    with joined() as together:
        found = {case: globals()[case](together) for case in cases}
        if together.first:
            torch.save(found, file)


def main(size, port, file, *cases):
    children = []
    for rank in range(int(size)):
        if not (child := os.fork()):
            begin_process(rank, size, port)
            run_cases(file, cases)
            return
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.stdout.write(" ".join(map(str, zip(children, codes, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
