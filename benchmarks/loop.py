"""Images per second of `visus.fit`, beside a bare loop, the loop of the notes that visus began with, Lightning and fastai.

    python benchmarks/loop.py [FOLDER] [--only "(a)" visus]     # of Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist)

6,000 images, batches of 100, one epoch each, in one process, in turn. All train the same net with the same optimizer, threads and
deterministic kernels. (a) steps through batches that are ready in memory, channels last, and does nothing else. (b) decodes
each sample through PIL and `ToTensor` in two workers, and reads the loss and writes to the terminal twice a step. Lightning and
fastai run with their own progress bar, accuracy and checkpoint at the end of the epoch, where they have them by default: once with
tensors that are in memory, normalised already, and a net in channels-last layout; and once as their tutorials have it, with
(b)'s samples and workers and the plain layout. They are left out where they are not installed (`pip install visus[bench]`).
`visus.fit, bf16` is what `visus train` takes where it pays: see `visus devices`.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import alternate, header, table
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import ToTensor

import visus
from visus.amp import usable_types
from visus.data.images import ArrayImages, Split
from visus.devices import computing
from visus.display import Display
from visus.freed_memory import kept_freed_memory
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.preprocessing import Preprocessing

_BATCH_SIZE = 100
_IMAGES = 6000

Loader = DataLoader[tuple[Tensor, ...]]


def begin(
    name: str, layout: torch.memory_format = torch.channels_last
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A fresh net, and its optimizer."""
    torch.manual_seed(0)
    model = visus.build_model(name, 10, in_channels=1).to(memory_format=layout)
    return model, make_optimizer(model, OptimizerSettings(lr=0.05))


def bare(name: str, split: Split, record: Preprocessing) -> Callable[[], float]:
    """(a): the limit."""
    batches = [tuple(batch) for batch in visus.EvaluationBatches(split, record, _BATCH_SIZE)]

    def measure() -> float:
        model, optimizer = begin(name)
        model.train()
        began = time.perf_counter()
        for images, targets in batches:
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        return len(split) / (time.perf_counter() - began)

    return measure


class NotesDataset(Dataset[tuple[Tensor, int]]):
    """Each sample through PIL, as in the notes."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.pixels[:, 0].numpy()
        self.labels = split.labels.tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(np.uint8(self.images[index]))), self.labels[index]


def notes(name: str, split: Split) -> Callable[[], float]:
    """(b): two workers, `.item()` and two writes a step, the plain layout."""
    loader = sample_by_sample(split)
    terminal = io.StringIO()

    def measure() -> float:
        model, _ = begin(name, torch.contiguous_format)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
        model.train()
        loss_sum, correct = 0.0, 0
        began = time.perf_counter()
        for images, targets in loader:
            logits = model(images)
            loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(images)
            terminal.write(" " * 80 + "\r")
            correct += int((logits.argmax(1) == targets).sum().item())
            terminal.write(f"{loss.item():.4f} {loss_sum:.4f} {correct}\r")
        return len(split) / (time.perf_counter() - began)

    return measure


def ours(
    name: str, split: Split, record: Preprocessing, augment: str, amp: str = "off"
) -> Callable[[], float]:
    """`visus.fit` with progress and metrics; its batches are made as it goes."""
    batches = visus.TrainingBatches(split, record, _BATCH_SIZE, augment)

    def measure() -> float:
        model, optimizer = begin(name)
        began = time.perf_counter()
        visus.fit(model, batches, optimizer=optimizer, epochs=1, amp=amp, display=Display(Terminal()))
        return len(split) / (time.perf_counter() - began)

    return measure


def end_to_end(name: str, split: Split, checkpoint_every: str) -> Callable[[], float]:
    """`visus train` with its run folder: checkpoints, metrics, curves; the images/s that it tells of its training itself."""
    assert isinstance(split.images, ArrayImages)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pixels = split.images.pixels[:, 0].numpy()
    # A tenth more, for validation.
    more = [np.concatenate([each, each[: len(each) // 9]]) for each in (pixels, split.labels)]
    np.savez(folder / "images.npz", images=more[0], labels=more[1])
    settings = {
        "model": name,
        "epochs": 1,
        "augment": "none",
        "amp": "off",
        "lr": 0.05,
        "checkpoint_every": checkpoint_every,
    }
    config = visus.TrainConfig(data=str(folder / "images.npz"), out=str(folder), **settings)

    def measure() -> float:
        return visus.train(config).images_per_second

    return measure


def lightning(name: str, loader: Loader, layout: torch.memory_format) -> Callable[[], float]:
    """A `Trainer` with its progress bar and its checkpoint."""
    import lightning as L

    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = begin(name, layout)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, targets = batch
            logits = self.model(images)
            loss = F.cross_entropy(logits, targets)
            self.log("loss", loss, prog_bar=True)
            self.log("accuracy", (logits.argmax(1) == targets).float().mean(), on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder, quiet():
            net = Net()
            trainer = L.Trainer(
                accelerator="cpu", max_epochs=1, default_root_dir=folder, enable_model_summary=False
            )
            began = time.perf_counter()
            trainer.fit(net, loader)
            return _IMAGES / (time.perf_counter() - began)

    return measure


def fastai(name: str, loader: Loader, layout: torch.memory_format) -> Callable[[], float]:
    """A `Learner` with its recorder and accuracy."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.optimizer import OptimWrapper

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder, quiet():
            model, optimizer = begin(name, layout)
            learner = Learner(
                DataLoaders(loader, [], device=torch.device("cpu")),
                model,
                F.cross_entropy,
                opt_func=OptimWrapper(opt=optimizer),
                metrics=accuracy,
                path=folder,
            )
            began = time.perf_counter()
            learner.fit(1, 0.05)
            learner.save("last")
            return _IMAGES / (time.perf_counter() - began)

    return measure


def sample_by_sample(split: Split) -> Loader:
    """As in tutorials, and in the notes."""
    return DataLoader(NotesDataset(split), batch_size=_BATCH_SIZE, shuffle=True, num_workers=2)


def in_memory(split: Split, record: Preprocessing) -> Loader:
    """All images as the model takes them."""
    images, targets = zip(*visus.EvaluationBatches(split, record, len(split)), strict=True)
    return DataLoader(TensorDataset(images[0], targets[0]), batch_size=_BATCH_SIZE, shuffle=True)


def peers(name: str, split: Split, record: Preprocessing) -> dict[str, Callable[[], float]]:
    """Each that is installed, twice."""
    ways = {
        "": (in_memory(split, record), torch.channels_last),
        ", as in tutorials": (sample_by_sample(split), torch.contiguous_format),
    }
    return {
        f"{title} {version(title)}{how}": peer(name, loader, layout)
        for title, peer in (("lightning", lightning), ("fastai", fastai))
        if find_spec(title)
        for how, (loader, layout) in ways.items()
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Bars and warnings go to what looks like a terminal."""
    with (
        contextlib.redirect_stdout(Terminal()),
        contextlib.redirect_stderr(Terminal()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


class Terminal(io.StringIO):
    """What `rich` takes for a terminal."""

    def isatty(self) -> bool:
        return True


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--model", nargs="+", default=["small", "resnet18"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of candidates")
    options = parser.parse_args()
    data = visus.open_source(options.folder, val_fraction=0)
    split = data.train.subset(np.arange(_IMAGES))
    record = visus.measure_preprocessing(split)
    print(f"{header('torchvision')}; {torch.get_num_threads()} threads; n = {options.repeats}")
    has_bf16 = "bf16" in usable_types(torch.device("cpu"))
    with computing(), kept_freed_memory():
        for name in options.model:
            candidates = {
                "(a) bare loop": bare(name, split, record),
                "visus.fit": ours(name, split, record, "none"),
                "visus.train": end_to_end(name, split, "5m"),
                "visus.train, a checkpoint each second": end_to_end(name, split, "1s"),
                "visus.fit, flips and padded crops": ours(name, split, record, "light"),
                **({"visus.fit, bf16": ours(name, split, record, "none", "bf16")} if has_bf16 else {}),
                "(b) loop of the notes": notes(name, split),
                **peers(name, split, record),
            }
            asked = {each: work for each, work in candidates.items() if each.startswith(tuple(options.only))}
            print(f"\n{name}\n\n{table(alternate(asked, options.repeats), '(a) bare loop', 'images/s')}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
