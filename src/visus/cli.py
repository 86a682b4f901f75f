"""The command line: one short function per command. Errors become one sentence and an exit code.

Results go to stdout, everything for people to stderr. Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable
from copy import copy
from dataclasses import asdict
from importlib.metadata import version
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from visus.errors import Interrupted, UsageError, VisusError

if TYPE_CHECKING:
    from visus.checkpoint import Checkpoint


_DEFAULTS = {
    "model": "resnet18",
    "val_fraction": "0.1",
    "split_seed": "0",
    "mixup": "0",
    "cutmix": "0",
    "erasing": "0",
    "max_pixels": "100",
    "max_bad": "0.01",
    "cache": "auto",
    "sampler": "shuffle",
    "loss": "cross-entropy",
    "label_smoothing": "0",
    "epochs": "10",
    "batch_size": "100",
    "accumulate": "1",
    "optimizer": "sgd",
    "lr": "0.1 for sgd, 0.001 for adamw",
    "momentum": "0.9",
    "weight_decay": "0.0005 for sgd, 0.01 for adamw",
    "weight_decay_on": "all",
    "backbone_factor": "1",
    "freeze": "none",
    "schedule": "multistep",
    "gamma": "0.1",
    "warmup_epochs": "0",
    "ema_decay": "0.999",
    "device": "auto",
    "amp": "auto",
    "batchnorm": "global",
    "seed": "0",
    "out": "runs",
    "checkpoint_every": "5m",
    "keep": "last",
    "on_nonfinite": "stop",
}
"""What `train` takes where nothing else is said, as `TrainConfig` has it, which the help has no time to load."""


class _Training(TyperCommand):
    """A command with the flags of `train`, whose help tells their defaults."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for each in self.params:
            # A command of its own may have another default of its own.
            if isinstance(each, TyperOption) and each.default is None and each.name in _DEFAULTS:
                each.show_default = _DEFAULTS[each.name]


class _Commands(TyperGroup):
    """Typer ends of an interrupt without a word; ours is said like any other end."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            ending = Interrupted("interrupted", 130)
            ending.said = getattr(error, "said", None)
            raise ending from error


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("visus"))
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train image classifiers, know how far to trust them, and keep what you trained.",
)


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is."),
    ] = False,
) -> None:
    """Of no command."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)

_UNTESTED = {
    **dict.fromkeys(("epochs", "patience"), "which has an end of its own"),
    **dict.fromkeys(("schedule", "milestones", "gamma", "warmup_epochs"), "in which the rate only rises"),
    **dict.fromkeys(("ema", "ema_decay", "swa"), "which keeps no weights"),
    "val_batch_size": "which validates nothing",
    "on_nonfinite": "which ends there",
    "compile": "which does without",
    **dict.fromkeys(("track", "no_report"), "which makes no run"),
}
"""Flags of `train` that would change nothing in `find-lr`, and why."""

CheckpointArgument = Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder for its best.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, mps, or an index such as 0.")]
TtaFlag = Annotated[bool, typer.Option("--tta", help="See each image as its mirror image, too.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
cache_app = typer.Typer(no_args_is_help=True, help="List and remove decoded images.")
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Run a command; the exit codes are those of the contract."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files need not be UTF-8; they go out as the bytes that they are.
            stream.reconfigure(errors="surrogateescape")
    debug = "--debug" in sys.argv
    arguments = [each for each in sys.argv[1:] if each != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except VisusError as error:
        code = _explain(error, str(error), error.exit_code, debug)
    except (typer.Abort, KeyboardInterrupt) as error:
        code = _explain(error, "interrupted", 130, debug)
    except Exception as error:
        # typer's own usage errors know how to show themselves and carry their code, 2.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            code = error.exit_code
        elif _is_out_of_memory(error):
            message = "memory ran out; lower --batch-size or --img-size, or take a smaller model"
            code = _explain(error, message, 2, debug)
        elif isinstance(error, OSError) and error.errno in _NO_ROOM:
            message = f"{error.filename or 'a file'}: could not be written ({error.strerror}); make room, or write elsewhere"
            code = _explain(error, message, 2, debug)
        else:
            message = f"a fault in visus, please report it: {type(error).__name__}: {error}"
            code = _explain(error, message, 70, debug=True)
    sys.exit(code or 0)


@app.command(cls=_Training)
def train(
    data: Annotated[
        str | None, typer.Argument(help="digits, a folder of images, a table, shards, an .npz file, ...")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="classic, fast or finetune: defaults of others.")] = None,
    model: Annotated[
        str | None, typer.Option(help="small, quick, quick_wide, or a name of torchvision's or timm's.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="default, or a file to start from.")] = None,
    stem: Annotated[str | None, typer.Option(help="small: 3x3 first convolution for small images.")] = None,
    drop_path: Annotated[float | None, typer.Option(help="Chance to leave out residual branches.")] = None,
    val: Annotated[str | None, typer.Option(help="Other data, to validate on.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Share set aside for validation.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Which images are set aside.")] = None,
    img_size: Annotated[int | None, typer.Option(help="What the model takes.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, flip, light, standard, trivial or rand.")] = None,
    mixup: Annotated[float | None, typer.Option(help="Blend images, by shares from Beta(A, A).")] = None,
    cutmix: Annotated[float | None, typer.Option(help="Paste boxes, by shares from Beta(A, A).")] = None,
    erasing: Annotated[float | None, typer.Option(help="Chance that a rectangle is blanked.")] = None,
    max_pixels: Annotated[float | None, typer.Option(help="Megapixels; larger images are left out.")] = None,
    max_bad: Annotated[float | None, typer.Option(help="Share of files that may be left out.")] = None,
    exclude: Annotated[str | None, typer.Option(help="A list of images to leave out.")] = None,
    cache: Annotated[str | None, typer.Option(help="Decoded images: auto, ram, disk or off.")] = None,
    cache_size: Annotated[str | None, typer.Option(help="Their short side for training, or full.")] = None,
    workers: Annotated[int | None, typer.Option("-j", "--workers", help="Processes that decode.")] = None,
    sampler: Annotated[str | None, typer.Option(help="shuffle, or balanced: by class.")] = None,
    loss: Annotated[str | None, typer.Option(help="cross-entropy, bce or focal.")] = None,
    class_weights: Annotated[
        bool | None, typer.Option("--class-weights", help="Let every class count the same.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option()] = None,
    distill: Annotated[str | None, typer.Option(help="A checkpoint to learn from.")] = None,
    distill_digest: Annotated[str | None, typer.Option(help="Of its weights, to be checked.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain that end the run.")] = None,
    batch_size: Annotated[
        str | None, typer.Option("-b", "--batch-size", help="Images per pass, or auto.")
    ] = None,
    val_batch_size: Annotated[int | None, typer.Option()] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches per update.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adamw, or one of timm's.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate, or auto.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    weight_decay_on: Annotated[str | None, typer.Option(help="all, or weights: no norms, no biases.")] = None,
    layer_decay: Annotated[float | None, typer.Option(help="Factor on the rate from layer to layer.")] = None,
    backbone_factor: Annotated[float | None, typer.Option(help="On the rate of all but the head.")] = None,
    freeze: Annotated[
        str | None, typer.Option(help="none, backbone, N stages, gradual:EPOCHS; [,]batchnorm.")
    ] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of changes to frozen linear layers.")] = None,
    clip_grad: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    schedule: Annotated[str | None, typer.Option(help="multistep, cosine, onecycle or constant.")] = None,
    milestones: Annotated[str | None, typer.Option(help="Epochs, as in 50,75.")] = None,
    gamma: Annotated[float | None, typer.Option()] = None,
    warmup_epochs: Annotated[float | None, typer.Option()] = None,
    ema: Annotated[bool | None, typer.Option("--ema", help="Average the weights.")] = None,
    ema_decay: Annotated[float | None, typer.Option()] = None,
    swa: Annotated[bool | None, typer.Option("--swa", help="Average those of the last quarter.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, or indices such as 0.")] = None,
    amp: Annotated[str | None, typer.Option(help="Mixed precision: auto, off, bf16 or fp16.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Train through torch.compile.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU.")] = None,
    batchnorm: Annotated[str | None, typer.Option(help="Of several processes: global or local.")] = None,
    no_deterministic: Annotated[bool | None, typer.Option("--no-deterministic")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    out: Annotated[str | None, typer.Option(help="Folder for runs.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run's folder.")] = None,
    checkpoint_every: Annotated[str | None, typer.Option(help="As in 5m, 30s, 500steps.")] = None,
    keep: Annotated[str | None, typer.Option(help="Checkpoints: last, or all of them, numbered.")] = None,
    profile: Annotated[bool | None, typer.Option("--profile", help="Say where the time goes.")] = None,
    track: Annotated[
        str | None, typer.Option(help="Send metrics to tensorboard, mlflow or wandb as well.")
    ] = None,
    on_nonfinite: Annotated[str | None, typer.Option(help="stop, or skip the step.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings; flags go before them.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with the run in this folder.")] = None,
    allow_change: Annotated[
        list[str] | None, typer.Option(help="What may differ on --resume: a setting, data or classes.")
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write no report and no model card.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
) -> int:
    """Train a model on DATA and evaluate it."""
    given = dict(locals())
    from visus import launching, training
    from visus.config import make_config, read_config
    from visus.display import Display
    from visus.idle import refuse_idle
    from visus.runs import open_run

    if resume is not None and config is not None:
        raise UsageError("--config: a run that is resumed keeps its own settings; leave it out")
    if resume is None and allow_change:
        raise UsageError("--allow-change: is for a run that is resumed; leave it out, or give --resume RUN")
    settings = _settings(given)
    source = config or (open_run(resume).config if resume is not None else None)
    stored = read_config(source) if source else {}
    asked = {**stored, **settings}
    if count := launching.processes_to_start(asked.get("device", "auto")):
        return launching.launch(count, sys.argv[1:])
    with Display(quiet=quiet or not launching.is_first()) as display:
        if resume is not None:
            run = training.resume(resume, display=display, allow_change=allow_change or (), **settings)
        elif "data" not in asked:
            raise UsageError("expected DATA to train on, or --resume RUN; see visus train --help")
        else:
            made = make_config(**asked)
            # A flag is given by hand, also where it says what the default is.
            refuse_idle(made, settings)
            run = training.train(made, display=display)
        # Before the report, which takes a while: what the run came to is known.
        if as_json and launching.is_first():
            _print_json(run.to_json())
        if launching.is_first() and not no_report:
            from visus.reporting.page import report_on

            report_on(run.run, display)
        left_out = run.skipped and f"files that could not be used: {run.skipped}"
        failed = (run.failure or left_out) if launching.may_fail() else None
        if failed:
            display.line(f"trained and tested; the exit code is 1 for {failed}")
    return int(bool(failed))


def _loaded(checkpoint: Path) -> Checkpoint:
    """The weights to use; of a run that has no best ones yet those that it stopped with, which is said."""
    from visus.checkpoint import find_checkpoint, load_checkpoint
    from visus.runs import RunFolder

    path = find_checkpoint(checkpoint)
    loaded = load_checkpoint(path)
    if checkpoint.is_dir() and path == RunFolder(checkpoint).last:
        _tell(
            [
                f"{checkpoint}: no epoch of this run is over; the weights after step {loaded.document['step']} are used"
            ]
        )
    return loaded


def _with_flags_of(
    other: Callable[..., Any], *left_out: str, hidden: Collection[str] = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A command gets the flags of another one besides its own, in its last parameter, `**given`; its help has no `hidden` ones."""

    def add(command: Callable[..., int]) -> Callable[..., int]:
        own = dict(signature(command, eval_str=True).parameters)
        own.pop("given")
        others = signature(other, eval_str=True).parameters
        inherited = [
            _hidden(p) if name in hidden else p
            for name, p in others.items()
            if name not in own and name not in left_out
        ]
        merged: Any = command
        merged.__signature__ = Signature([*inherited, *own.values()])
        merged.__annotations__ = {p.name: p.annotation for p in (*inherited, *own.values())}
        return command

    return add


def _hidden(parameter: Parameter) -> Parameter:
    """An option that `--help` does not show."""
    kind, option = get_args(parameter.annotation)
    option = copy(option)
    option.hidden = True
    return parameter.replace(annotation=Annotated[kind, option])


def _refuse_untested(given: dict[str, Any]) -> None:
    """`UsageError` for the first of the flags `given` that is for what a range test does not do."""
    for name, reason in _UNTESTED.items():
        if given[name] is not None and given[name] is not False:
            raise UsageError(f"--{name.replace('_', '-')} is not for a range test, {reason}; leave it out")
    if given["batch_size"] == "auto":
        raise UsageError("--batch-size auto is not for a range test, which tries no batches; give a number")


@app.command("find-lr", cls=_Training)
@_with_flags_of(
    train,
    *("resume", "allow_change", "lr", "out", "name", "checkpoint_every", "keep", "profile"),
    hidden=_UNTESTED,
)
def find_lr(
    config: Annotated[Path | None, typer.Option(help="Settings; flags go before them.")] = None,
    picture: Annotated[Path, typer.Option(help="Of the loss: .png, .svg.")] = Path("find-lr.png"),
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
    **given: Any,
) -> int:
    """Find a learning rate for DATA by a range test; its flags are those of train that decide about a step."""
    from visus import autotuning
    from visus.config import make_config, read_config
    from visus.display import Display
    from visus.idle import refuse_idle
    from visus.plots import plot_range_test

    settings = _settings(given)
    asked = {**(read_config(config) if config else {}), **settings}
    if "data" not in asked:
        raise UsageError("expected DATA to find a learning rate for; see visus find-lr --help")
    _refuse_untested(given)
    made = make_config(**asked)
    refuse_idle(made, settings)
    with Display(quiet=quiet) as display:
        found = autotuning.find_lr(made, display=display)
        display.line(f"Picture: {plot_range_test(found.rates, found.losses, found.lr, picture)}")
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(f"{found.lr:g}")
    return 0


@app.command(cls=_Training)
@_with_flags_of(train, "resume", "allow_change", "name", "profile")
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Runs in all, those before included.")] = 30,
    space: Annotated[
        Path | None, typer.Option(help="YAML: what is searched; lr and weight decay if not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings; flags go before them.")] = None,
    out: Annotated[str, typer.Option(help="Folder of the study and its runs.")] = "runs/tune",
    picture: Annotated[Path | None, typer.Option(help="Of the trials; tune.png in the folder.")] = None,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
    **given: Any,
) -> int:
    """Search for settings on DATA; the flags of train are what all trials share."""
    from visus import tuning
    from visus.config import read_config
    from visus.display import Display
    from visus.plots import plot_search

    asked = {**(read_config(config) if config else {}), **_settings(given), "out": out}
    if "data" not in asked:
        raise UsageError("expected DATA to search on; see visus tune --help")
    with Display(quiet=quiet) as display:
        found = tuning.tune(
            asked, tuning.read_space(space) if space else None, trials=trials, display=display
        )
        drawn = plot_search([each.accuracy for each in found.trials], picture or Path(out) / "tune.png")
        display.line(f"Picture: {drawn}")
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(found)
    return 0


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    data: Annotated[str, typer.Argument(help="As for train.")],
    split: Annotated[
        str | None, typer.Option(help="train, val or test; test, else val, else all images.")
    ] = None,
    device: DeviceOption = "auto",
    tta: TtaFlag = False,
    ci: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Level of the intervals.")] = 0.95,
    ci_method: Annotated[
        Literal["wilson", "exact", "bootstrap"], typer.Option(help="Of the intervals of shares.")
    ] = "wilson",
    groups: Annotated[
        str | None, typer.Option(help="A column of DATA, such as patient: its values are resampled whole.")
    ] = None,
    wanted_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Find the confidence from which it is this high.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write probabilities here: .csv or .parquet.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the confusion matrix here: .png, .svg.")] = None,
    reliability: Annotated[
        Path | None, typer.Option(help="Write accuracy against confidence here: .png, .svg.")
    ] = None,
    as_json: JsonFlag = False,
) -> int:
    """Score a model on DATA."""
    from visus import launching
    from visus.ops.stopwatch import format_duration
    from visus.plots import check_picture, plot_confusion, plot_reliability
    from visus.scoring import Wanted
    from visus.testing import evaluate_checkpoint
    from visus.unlabelled import open_unlabelled, predict_unlabelled

    if count := launching.processes_to_start(device):
        return launching.launch(count, sys.argv[1:])
    for each in filter(None, (picture, reliability)):
        check_picture(each)
    began = time.perf_counter()
    loaded = _loaded(checkpoint)
    if unlabelled := open_unlabelled(data):
        if not launching.is_first():
            return 0
        said = predict_unlabelled(loaded, data, unlabelled, predictions=predictions, device=device)
        _tell(f"skipped {each.path}: {each.reason}" for each in said.skipped)
        if as_json:
            _print_json(said.to_json())
        else:
            typer.echo(said)
        return 1 if said.skipped and launching.may_fail() else 0
    wanted = Wanted(level=ci, method=ci_method, accuracy=wanted_accuracy)
    options: Any = {
        "device": device,
        "tta": tta,
        "predictions": predictions,
        "wanted": wanted,
        "groups": groups,
    }
    found = evaluate_checkpoint(loaded, data, part=split, **options)
    failed = bool(found.skipped) and launching.may_fail()
    if not launching.is_first():
        return int(failed)
    _tell([*found.notes, *(f"skipped {each.path}: {each.reason}" for each in found.skipped)])
    if picture:
        plot_confusion(
            found.scores.confusion, loaded.classes, picture, warn=lambda text: typer.echo(text, err=True)
        )
    if wanted_accuracy and found.scores.abstention is None:
        _tell([f"no confidence from which an accuracy of {100 * wanted_accuracy:g} % can be promised"])
    if reliability:
        plot_reliability({found.part: found.scores.reliability}, reliability)
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(f"{found.part}: {found.scores}")
    _tell([f"done in {format_duration(time.perf_counter() - began)}"])
    return int(failed)


@app.command()
def calibrate(
    checkpoint: CheckpointArgument,
    data: Annotated[str, typer.Argument(help="As for train.")],
    split: Annotated[str, typer.Option(help="val, or train of images that the model has not seen.")] = "val",
    picture: Annotated[
        Path | None, typer.Option(help="Write the reliability before and after here: .png, .svg.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> int:
    """Make the confidence of a model honest: fit a temperature on DATA and store it in the checkpoint."""
    from visus.calibration import calibrate_checkpoint
    from visus.plots import check_picture, plot_reliability

    if picture:
        # Before the checkpoint is changed.
        check_picture(picture)
    found = calibrate_checkpoint(checkpoint, data, part=split, device=device)
    _tell([*found.notes, *(f"skipped {each.path}: {each.reason}" for each in found.skipped)])
    if picture:
        plot_reliability({"before": found.before.reliability, "after": found.after.reliability}, picture)
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(found)
    return 1 if found.skipped else 0


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or one folder of many runs.")],
    as_json: JsonFlag = False,
) -> int:
    """Say which of several runs is better, and whether that is more than chance; of a folder of runs, a leaderboard."""
    from visus.comparison import compare_runs, leaderboard
    from visus.comparison_tables import describe_comparison, describe_leaderboard
    from visus.tested_runs import find_runs

    if len(runs) == 1 and (found := find_runs(runs[0])):
        boards, left_out = leaderboard(found)
        _tell(left_out.values())
        documents = [board.to_json() for board in boards]
        document = {key: [row for each in documents for row in each[key]] for key in ("runs", "pairs")}
        text = describe_leaderboard(boards)
    else:
        comparison = compare_runs(runs)
        document, text, left_out = comparison.to_json(), describe_comparison(comparison), {}
    if as_json:
        _print_json(document | {"left_out": left_out})
    else:
        typer.echo(text)
    return 1 if left_out else 0


@app.command()
def predict(
    checkpoint: CheckpointArgument,
    files: Annotated[list[str], typer.Argument(help="Images, or folders of images.")],
    topk: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    csv: Annotated[Path | None, typer.Option(help="Write a table here: .csv or .parquet.")] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="Write a picture of each image here that shows what spoke for its class."),
    ] = None,
    device: DeviceOption = "auto",
    tta: TtaFlag = False,
    as_json: JsonFlag = False,
) -> int:
    """Say what is on FILES."""
    from visus.display import ONE_LINE
    from visus.prediction import list_files, predict_files, write_predictions

    loaded = _loaded(checkpoint)
    named = list_files(files)
    found = []
    for each in predict_files(loaded, named, topk=topk, device=device, tta=tta):
        found.append(each)
        if each.error is not None:
            _tell([f"{each.path}: {each.error}"])
        elif not as_json:
            typer.echo(str(each).translate(ONE_LINE))
    if csv:
        write_predictions(found, csv)
    if explain:
        from visus.overlays import write_overlays

        write_overlays(loaded, named, explain, device=device)
    if as_json:
        _print_json([each.to_json() for each in found])
    return 1 if any(each.error is not None for each in found) else 0


@app.command()
def audit(
    data: Annotated[str, typer.Argument(help="As for train.")],
    val: Annotated[str | None, typer.Option(help="Other data, to compare with as validation.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose features to use, with --weights.")] = None,
    weights: Annotated[str | None, typer.Option(help="As for train.")] = None,
    run: Annotated[
        str | None, typer.Option(help="A run's folder; its model judges what it was not trained on.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a table here: .csv or .parquet.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Draw what was found here: .png.")] = None,
    fix_list: Annotated[
        Path | None, typer.Option(help="Write what to leave out here (.csv), for train --exclude.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("-j", "--workers", min=1, help="Processes that decode.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> int:
    """Say what is wrong with the images and labels of DATA; nothing is changed."""
    from visus.auditing.findings import write_findings, write_fix_list
    from visus.auditing.whole import audit
    from visus.display import Display

    with Display(quiet=quiet) as display:
        found = audit(
            data,
            val=val,
            model=model,
            weights=weights,
            run=run,
            pictures=pictures,
            workers=workers,
            progress=display.count,
        )
    _tell(found.notes)
    if csv:
        write_findings(found, csv)
    if fix_list:
        write_fix_list(found, fix_list)
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(found.to_text())
    return 1 if found.findings else 0


@app.command()
def summary(
    model: Annotated[
        str, typer.Argument(help="small, quick, quick_wide, or a name of torchvision's or timm's.")
    ],
    input_size: Annotated[
        list[str] | None, typer.Option(help="C,H,W, once for each input; the library's own if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", help="Images; -1 counts one.")] = -1,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Of the head.")] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="Whose state is part of the training step; with --fit, sgd if not given."),
    ] = None,
    amp: Annotated[str, typer.Option(help="off, bf16 or fp16.")] = "off",
    style: Annotated[str, typer.Option(help="rich, markdown, html, or classic as torchsummary.")] = "rich",
    columns: Annotated[
        str | None,
        typer.Option(help="Of type,depth,input,output,kernel,params,trained,flops,activations; or all."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Add deeper layers to the one they are in.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="params, flops or activations: a list with the largest first.")
    ] = None,
    collapse: Annotated[bool, typer.Option(help="Tell repeated blocks once.")] = True,
    fit: Annotated[
        str | None, typer.Option(help="As in 8GB: find the largest batch whose step fits.")
    ] = None,
    as_json: JsonFlag = False,
) -> int:
    """Show the layers, parameters, FLOPs and memory of a model."""
    from visus import model_summary

    sizes = [_size(each) for each in input_size] if input_size else None
    options: Any = {"num_classes": num_classes, "optimizer": optimizer, "amp": amp}
    limit = _bytes(fit) if fit else None
    if limit is not None:
        options["optimizer"] = optimizer or "sgd"
        batch_size = model_summary.largest_batch(model, sizes, limit, **options)
    table: Any = {"style": style, "depth": depth, "sort": sort, "collapse": collapse}
    if columns:
        table["columns"] = model_summary.COLUMNS if columns == "all" else columns.split(",")
    found = model_summary.summary(model, sizes, batch_size=batch_size, **options, **table)
    fitted = {}
    if limit is not None and found.peak_training_mb is not None:
        fitted = {"largest_batch": batch_size, **_margin(found.peak_training_mb, limit)}
    if as_json:
        _print_json(found.to_json() | fitted)
    else:
        typer.echo(found, nl=False)
        _tell([_FITTED.format(fit=fit, too_low=_TOO_LOW[amp], **fitted)] if fitted else [])
    return 0


_FITTED = (
    "the largest batch whose training step fits into {fit}: {largest_batch}; predicted are {margin_mb:,.1f} MiB less than that "
    "({margin_percent:.1f} %), and predictions were up to {too_low} % too low where they were measured, on 1 to 8 threads"
)
_TOO_LOW = {"off": 1, "bf16": 4, "fp16": 4}
"""In per cent, as in docs/summary.md; fp16 as bf16, whose tensors are as large."""


def _margin(peak_mb: float, limit: int) -> dict[str, float]:
    """What a predicted peak leaves of `limit` bytes."""
    limit_mb = limit / 2**20
    return {"margin_mb": limit_mb - peak_mb, "margin_percent": 100 * (1 - peak_mb / limit_mb)}


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or folders that hold runs.", metavar="RUN...")
    ],
    output: Annotated[Path | None, typer.Option(help="Where to write it.")] = None,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> int:
    """Write one page about a run, or about several side by side."""
    from visus.display import Display
    from visus.reporting.model_card import write_card
    from visus.reporting.page import write_report
    from visus.tested_runs import runs_in

    # One that is named beside its folder is there once.
    runs = list({run.resolve(): run for each in runs for run in runs_in(each)}.values())
    with Display(quiet=quiet) as display:
        page = write_report(runs, output, display=display)
    if len(runs) == 1 and output is None:
        write_card(runs[0])
    if as_json:
        _print_json({"report": str(page)})
    else:
        typer.echo(page)
    return 0


@app.command()
def watch(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or the folder of one run.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 for any.")] = 8417,
) -> int:
    """Show runs in the browser while they go on."""
    from visus.watching import Watcher, serve

    serve(Watcher(runs), port, lambda text: typer.echo(text, err=True))
    return 0


@app.command()
def inspect(checkpoint: CheckpointArgument, as_json: JsonFlag = False) -> int:
    """Say what a checkpoint holds."""
    from visus.checkpoint import find_checkpoint, load_checkpoint

    document = load_checkpoint(find_checkpoint(checkpoint)).document
    keys = ("format", "model", "classes", "preprocess", "epoch", "step", "accuracy", "temperature", "digest")
    found = {key: document.get(key) for key in keys}
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n".join(f"{key}: {value}" for key, value in found.items()))
    return 0


@app.command()
def devices(as_json: JsonFlag = False) -> int:
    """List the devices of this machine."""
    from visus.amp import usable_types
    from visus.devices import as_torch_device, describe_devices

    found = describe_devices()
    amp = {each.device: usable_types(as_torch_device(each)) for each in found}
    if as_json:
        _print_json([{**asdict(each), "amp": amp[each.device]} for each in found])
    else:
        lines = (
            f"{each.device}: {each.name}, {each.memory_mb} MB, amp: {', '.join(amp[each.device]) or 'none'}"
            for each in found
        )
        typer.echo("\n".join(lines))
    return 0


@cache_app.command("ls")
def list_cache(as_json: JsonFlag = False) -> int:
    """List the files of the decode-once cache, the one used last first."""
    from visus.data.cache import list_caches

    found = list_caches()
    if as_json:
        _print_json([each.to_json() for each in found])
    else:
        typer.echo("\n".join(map(str, found)) or "no caches", err=not found)
    return 0


@cache_app.command("rm")
def remove_cache(source: Annotated[str, typer.Argument(help="A source, as listed, or all.")]) -> int:
    """Remove the caches of SOURCE, or all."""
    from visus.data.cache import remove_caches

    removed, left = remove_caches(source)
    _tell(f"removed {each}" for each in removed)
    _tell(f"left, since a run is writing it: {each}" for each in left)
    return 1 if left else 0


@app.command()
def pack(
    data: Annotated[str, typer.Argument(help="As for train.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    cache_size: Annotated[
        int | None, typer.Option(min=1, help="Shrink to this short side, as JPEG; as they are if not given.")
    ] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of those JPEGs; 90.")] = None,
    shard_size: Annotated[str, typer.Option(help="About how large a shard gets.")] = "500MB",
    workers: Annotated[
        int | None, typer.Option("-j", "--workers", min=1, help="Processes that decode.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
) -> int:
    """Write DATA as tar shards, which any machine can read in any order."""
    from visus.display import Display
    from visus.packing import pack_source

    with Display(quiet=quiet) as display:
        found = pack_source(
            data,
            out,
            cache_size=cache_size,
            quality=quality,
            shard_bytes=_bytes(shard_size, "--shard-size"),
            workers=workers,
            progress=lambda done, total: display.count("packed", done, total),
            say=display.line,
        )
    if as_json:
        _print_json(found.to_json())
    return 1 if found.skipped else 0


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, by the names of the settings."""
    others = {
        "config",
        "resume",
        "allow_change",
        "as_json",
        "quiet",
        "no_deterministic",
        "no_report",
        "milestones",
    }
    settings = {name: value for name, value in given.items() if value is not None and name not in others}
    if given["no_deterministic"]:
        settings["deterministic"] = False
    if given["milestones"] is not None:
        settings["milestones"] = given["milestones"].split(",")
    return settings


def _size(text: str) -> tuple[int, ...]:
    """`3,32,32` as numbers."""
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise UsageError(f"--input-size: expected C,H,W as in 3,32,32, found {text!r}") from None


def _bytes(text: str, flag: str = "--fit") -> int:
    """`8GB` as bytes: units are powers of 1024, as in the table."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"{flag}: expected an amount as in 8GB or 512MB, found {text!r}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _tell(lines: Iterable[str]) -> None:
    """What is for people, on stderr."""
    from visus.display import ONE_LINE

    for line in lines:
        typer.echo(line.translate(ONE_LINE), err=True)


def _is_out_of_memory(error: Exception) -> bool:
    """torch raises a class of its own for a GPU, and a plain `RuntimeError` for the CPU and for a GPU's libraries."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(each in str(error) for each in _NO_MEMORY)


def _explain(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    rank = os.environ.get("RANK", "0")
    said = getattr(error, "said", None)
    # What all have met alike before they met each other, the first one says.
    if not said and (rank == "0" or said is False):
        from visus.display import ONE_LINE

        message = message.translate(ONE_LINE)
        typer.echo(f"visus: {message}" if rank == "0" else f"visus, process {rank}: {message}", err=True)
    return code


def _print_json(document: Any) -> None:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = json.dumps(document, allow_nan=False)
    typer.echo(text)
