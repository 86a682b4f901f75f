"""The command line: one short function per command. Errors become one sentence and an exit code.

Results go to stdout, everything for people to stderr. Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visus.errors import UsageError, VisusError

if TYPE_CHECKING:
    from visus.checkpoint import Checkpoint
    from visus.data.images import Data, Split
    from visus.evaluation import Scores

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train image classifiers, know how far to trust them, and ship them.",
)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def main() -> None:
    """Run a command; the exit codes are those of the contract."""
    debug = "--debug" in sys.argv
    arguments = [each for each in sys.argv[1:] if each != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except VisusError as error:
        code = _explain(error, str(error), error.exit_code, debug)
    except typer.Abort:
        code = 130
    except KeyboardInterrupt as error:
        code = _explain(error, "interrupted", 130, debug)
    except Exception as error:
        # typer's own usage errors know how to show themselves and carry their code, 2.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            code = error.exit_code
        else:
            message = f"a fault in visus, please report it: {type(error).__name__}: {error}"
            code = _explain(error, message, 70, debug=True)
    sys.exit(code or 0)


@app.command()
def train(
    data: Annotated[
        str | None, typer.Argument(help="digits, an .npz file, or a folder of images or IDX files.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="small, or a name of torchvision's or timm's.")] = None,
    weights: Annotated[str | None, typer.Option(help="default, or a file to start from.")] = None,
    stem: Annotated[str | None, typer.Option(help="small: 3x3 first convolution for small images.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Share set aside for validation.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Which images are set aside.")] = None,
    img_size: Annotated[int | None, typer.Option(help="What the model takes.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, light or standard.")] = None,
    max_pixels: Annotated[float | None, typer.Option(help="Megapixels; larger images are left out.")] = None,
    max_bad: Annotated[float | None, typer.Option(help="Share of files that may be left out.")] = None,
    label_smoothing: Annotated[float | None, typer.Option()] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option("-b", "--batch-size", help="Images per pass.")] = None,
    val_batch_size: Annotated[int | None, typer.Option()] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches per update.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adamw, or one of timm's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    clip_grad: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    schedule: Annotated[str | None, typer.Option(help="multistep, cosine, onecycle or constant.")] = None,
    milestones: Annotated[str | None, typer.Option(help="Epochs, as in 50,75.")] = None,
    gamma: Annotated[float | None, typer.Option()] = None,
    warmup_epochs: Annotated[float | None, typer.Option()] = None,
    ema: Annotated[bool | None, typer.Option("--ema", help="Average the weights.")] = None,
    ema_decay: Annotated[float | None, typer.Option()] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, or indices such as 0.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU.")] = None,
    no_deterministic: Annotated[bool | None, typer.Option("--no-deterministic")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    out: Annotated[str | None, typer.Option(help="Folder for runs.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run's folder.")] = None,
    checkpoint_every: Annotated[str | None, typer.Option(help="As in 5m, 30s, 500steps.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings; flags go before them.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with the run in this folder.")] = None,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
) -> int:
    """Train a model on DATA and evaluate it."""
    given = dict(locals())
    from visus import training
    from visus.display import Display

    settings = _settings(given)
    display = Display(quiet=quiet)
    if resume is not None:
        run = training.resume(resume, display=display, **settings)
    else:
        stored = training.read_config(config) if config else {}
        if data is None and "data" not in stored:
            raise UsageError("expected DATA to train on, or --resume RUN; see visus train --help")
        run = training.train(training.make_config(**{**stored, **settings}), display=display)
    if as_json:
        _print_json(run.to_json())
    return 1 if run.failure or run.skipped else 0


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder for its best.")],
    data: Annotated[str, typer.Argument(help="As for train.")],
    split: Annotated[str | None, typer.Option(help="train, val or test; test, else val, else all.")] = None,
    device: Annotated[str, typer.Option()] = "auto",
    picture: Annotated[Path | None, typer.Option(help="Write the confusion matrix here.")] = None,
    as_json: JsonFlag = False,
) -> int:
    """Score a model on DATA."""
    from visus.checkpoint import load_checkpoint
    from visus.devices import select_device
    from visus.plots import plot_confusion

    loaded = load_checkpoint(checkpoint / "best.safetensors" if checkpoint.is_dir() else checkpoint)
    part = _part(loaded, data, split)
    scores = _score(loaded, part, select_device(device))
    if picture:
        plot_confusion(scores.confusion, loaded.classes, picture)
    if as_json:
        _print_json(scores.to_json())
    else:
        typer.echo(f"{part.name}: {scores}")
    return 0


@app.command()
def inspect(checkpoint: Annotated[Path, typer.Argument()], as_json: JsonFlag = False) -> int:
    """Say what a checkpoint holds."""
    from visus.checkpoint import load_checkpoint

    document = load_checkpoint(checkpoint).document
    keys = ("format", "model", "classes", "preprocess", "epoch", "step", "accuracy", "digest")
    found = {key: document.get(key) for key in keys}
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n".join(f"{key}: {value}" for key, value in found.items()))
    return 0


@app.command()
def devices(as_json: JsonFlag = False) -> int:
    """List the devices of this machine."""
    from dataclasses import asdict

    from visus.devices import describe_devices

    found = describe_devices()
    if as_json:
        _print_json([asdict(each) for each in found])
    else:
        typer.echo("\n".join(f"{each.device}: {each.name}, {each.memory_mb} MB" for each in found))
    return 0


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, by the names of the settings."""
    others = {"config", "resume", "as_json", "quiet", "no_deterministic", "milestones"}
    settings = {name: value for name, value in given.items() if value is not None and name not in others}
    if given["no_deterministic"]:
        settings["deterministic"] = False
    if given["milestones"] is not None:
        settings["milestones"] = given["milestones"].split(",")
    return settings


def _part(checkpoint: Checkpoint, source: str, name: str | None) -> Split:
    """The part of `source` to evaluate; only the source that the model was trained on has a validation part made by rule."""
    from visus.data.files import decode_once
    from visus.data.sources import open_source
    from visus.devices import available_memory_bytes
    from visus.errors import DataError

    config = checkpoint.config
    trained_on = config.get("data") in (source, str(Path(source).absolute()))
    fraction = float(config["val_fraction"]) if trained_on else 0.0
    data: Data = open_source(source, val_fraction=fraction, split_seed=int(config.get("split_seed", 0)))
    if data.classes != checkpoint.classes:
        raise DataError(
            f"{source}: expected the model's classes {list(checkpoint.classes)}, found {list(data.classes)}"
        )
    memory_bytes = available_memory_bytes() // 2
    data = decode_once(data, resize=checkpoint.preprocessing.resize, max_bad=1.0, memory_bytes=memory_bytes)
    parts = {"train": data.train, "val": data.val, "test": data.test}
    if name is not None and parts.get(name) is None:
        there = ", ".join(each for each, part in parts.items() if part)
        raise UsageError(f"{source}: expected one of the parts {there}, found --split {name}")
    chosen = parts[name] if name else data.test or data.val or data.train
    assert chosen is not None
    return chosen


def _score(checkpoint: Checkpoint, part: Split, device: Any) -> Scores:
    """With the threads and the batch size of the training run, so that its figures come out again digit for digit."""
    import torch

    from visus.data.batching import EvaluationBatches
    from visus.evaluation import evaluate
    from visus.training import rebuild_model

    torch.set_num_threads(int(checkpoint.config.get("threads", torch.get_num_threads())))
    model = rebuild_model(checkpoint).to(device).to(memory_format=torch.channels_last)
    batches = EvaluationBatches(
        part, checkpoint.preprocessing, int(checkpoint.config.get("val_batch_size", 100))
    )
    return evaluate(model, batches, classes=checkpoint.classes, device=device)


def _explain(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    typer.echo(f"visus: {message}", err=True)
    return code


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
