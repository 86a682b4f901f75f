"""A search for settings: runs whose settings Optuna chooses, in a study that several processes may share."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import filelock
import pydantic
import yaml
from pydantic import ConfigDict, Field

from visus.checkpoint import load_checkpoint
from visus.config import TrainConfig, remake_config
from visus.display import Display, plural
from visus.errors import DataError, NonFiniteError, UsageError, VisusError, unknown_name
from visus.ops.groups import counted_groups, is_one_group
from visus.ops.intervals import Interval, wilson
from visus.ops.rng import derive_seed
from visus.runs import RunFolder
from visus.tested_runs import groups_in
from visus.testing import ONE_GROUP, evaluate_checkpoint
from visus.training import resume, train

_STUDY = "visus"
_STORAGE = "study.db"
_LOCK = "study.lock"
_SETTLED_SECONDS = 10.0
_UNPRUNED = 5
"""Trials that are run to their end before others are measured against them."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Span:
    """Numbers from `low` to `high`, evenly or with `log` by factors, whole ones in steps of `step`."""

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = False
    step: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        """Optuna would refuse it only when the study is there."""
        if self.high < self.low:
            raise ValueError("high must not be below low")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together")


Space = dict[str, Span | Annotated[list[Any], Field(min_length=1)]]
"""By the names of settings: a span of numbers, or a list of values."""

DEFAULT_SPACE: Space = {"lr": Span(1e-3, 1.0, log=True), "weight_decay": Span(1e-5, 1e-2, log=True)}
"""What is searched where nothing else is said; made for sgd."""


def _kinds(hint: Any) -> set[Any]:
    """The types in an annotation, such as int and None in `int | None`."""
    return set().union(*map(_kinds, get_args(hint))) if get_args(hint) else {hint}


_WHOLE = frozenset(
    name
    for name, hint in get_type_hints(TrainConfig).items()
    if int in _kinds(hint) and float not in _kinds(hint)
)
"""Settings that are whole numbers."""


@dataclass(frozen=True)
class Trial:
    """A run of the study."""

    number: int
    state: str
    """`complete`, `pruned` (ended early, since it fell behind), `failed`, or `running`."""
    accuracy: float | None
    """The best on the validation part; of a trial that was ended early, the best until then."""
    settings: dict[str, Any]
    run: str


@dataclass(frozen=True)
class Search:
    """What a study has found so far."""

    study: str
    trials: list[Trial]
    best: Trial | None
    accuracy_ci95: Interval | None
    """Of the best trial as one run; the best of many is above its true accuracy by more than this says."""
    groups: int | None
    """How many groups of validation images that interval counts; `None` where it counts images."""
    test: dict[str, Any] | None
    """Of the best trial, where the data has a test part; no other trial was chosen or dropped by it."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A row for each trial, the best first, and how to repeat that."""
        names = sorted({name for each in self.trials for name in each.settings})
        ranked = sorted(
            self.trials, key=lambda each: -1.0 if each.accuracy is None else each.accuracy, reverse=True
        )
        rows = [["trial", "state", "accuracy", *names]]
        for each in ranked:
            accuracy = "" if each.accuracy is None else f"{100 * each.accuracy:.2f}%"
            values = [_shown(each.settings.get(name, "")) for name in names]
            rows.append([str(each.number), each.state, accuracy, *values])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.best and self.accuracy_ci95:
            interval = _extent(self.accuracy_ci95, self.groups)
            lines += [
                "",
                f"best: trial {self.best.number}, {100 * (self.best.accuracy or 0):.2f}% of the validation images "
                f"(95 % interval {interval}, as for one run; "
                f"the best of {len(self.trials)} looks better than it is)",
            ]
            if self.test:
                interval = _extent(self.test["accuracy_ci95"], self.test.get("groups"))
                lines.append(
                    f"on the {self.test['n']} test images: {100 * self.test['accuracy']:.2f}% ({interval})"
                )
            lines.append(f"again: visus train --config {self.best.run}/config.yaml")
        return "\n".join(lines)


def read_space(path: Path) -> Space:
    """The space in a YAML file, as in `lr: {low: 0.001, high: 1, log: true}`; `UsageError` where it is none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return pydantic.TypeAdapter(Annotated[Space, Field(min_length=1)]).validate_python(found)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as a space ({' '.join(str(error).split())})") from None
    except pydantic.ValidationError as error:
        place = ".".join(str(each) for each in error.errors()[0]["loc"][:1]) or "the file"
        reasons = [str(each["ctx"]["error"]) for each in error.errors() if each["type"] == "value_error"]
        raise UsageError(
            f"{path}: {place}: expected a list of values, or low and high, with log or step if wanted"
            + "".join(f"; {reason}" for reason in reasons)
        ) from None


def tune(
    settings: Mapping[str, Any],
    space: Space | None = None,
    *,
    trials: int = 30,
    display: Display | None = None,
) -> Search:
    """Run until `trials` trials of the study have ended, by completion or early, and say what was found.

    `settings` are those of `make_config` that all trials share; `out` is the folder of the study, whose runs are `trial-0`, ...
    in it, beside `study.db` (SQLite). The same call goes on with it, trials that were killed among them, and several processes may
    share it. A trial that is below the median of the others after an epoch is ended. One whose settings are refused has failed, and
    does not count; where `trials` have failed and none has ended, the search ends. Raises `UsageError` for another space than the
    study's, or settings that do not exist.
    """
    display = display or Display(quiet=True)
    study = _open_study(settings, DEFAULT_SPACE if space is None else space)
    while (ended := _count(study, "COMPLETE", "PRUNED")) < trials:
        if not ended and (failed := _count(study, "FAIL")) >= trials:
            display.line(f"all {failed} trials have failed; choose another space, and another --out")
            break
        orphan = _orphan(study, settings)
        _run_trial(study, orphan or _ask(study, settings), settings, display, begun=orphan is not None)
    return _result(study, Path(settings["out"]), settings.get("device", "auto"), display)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("expected Optuna for visus tune, found none; pip install 'visus[tune]'") from None
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


def _open_study(settings: Mapping[str, Any], space: Space) -> Any:
    """The study in the folder, begun where there is none yet."""
    optuna = _optuna()
    known = [field.name for field in dataclasses.fields(remake_config(settings))]
    for name in space:
        if name not in known:
            raise unknown_name("setting in the space", name, known)
        if name in settings:
            raise UsageError(f"{name} is searched and given; leave it out of the one or the other")
        _check_values(name, space[name])
    folder = Path(settings["out"])
    if not (folder / _STORAGE).exists() and any(folder.glob("trial-*")):
        raise UsageError(f"{folder}: expected {_STORAGE} beside its trials, found none; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    # Two that make the tables at once would be in each other's way.
    with filelock.FileLock(folder / _LOCK):
        study = optuna.create_study(
            storage=f"sqlite:///{folder / _STORAGE}",
            study_name=_STUDY,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=1),
        )
    wanted = pydantic.TypeAdapter(Space).dump_python(space, mode="json")
    stored = study.user_attrs.get("space")
    if stored not in (None, wanted):
        raise UsageError(
            f"{folder}: the study there searches another space ({json.dumps(stored)}); choose another --out for this one"
        )
    study.set_user_attr("space", wanted)
    return study


def _count(study: Any, *states: str) -> int:
    """Trials in one of the `states`, by Optuna's names."""
    wanted = tuple(_optuna().trial.TrialState[each] for each in states)
    return len(study.get_trials(states=wanted, deepcopy=False))


def _ask(study: Any, settings: Mapping[str, Any]) -> Any:
    """A new trial; what it tries is a function of the seed, its number and the trials before it."""
    number = len(study.get_trials(deepcopy=False))
    seed = derive_seed(int(settings.get("seed", 0)), "tune", number)
    study.sampler = _optuna().samplers.TPESampler(seed=seed % 2**32, constant_liar=True)
    return study.ask()


def _orphan(study: Any, settings: Mapping[str, Any]) -> Any:
    """A trial whose process is gone, to go on with; `None` where each one that has not ended is being run."""
    optuna = _optuna()
    for each in study.get_trials(states=(optuna.trial.TrialState.RUNNING,), deepcopy=False):
        run = RunFolder(_folder(settings, each.number))
        # One that has just made its folder is about to lock it.
        if (
            run.config.is_file()
            and time.time() - run.config.stat().st_mtime > _SETTLED_SECONDS
            and run.is_free()
        ):
            return optuna.trial.Trial(study, each._trial_id)
    return None


def _folder(settings: Mapping[str, Any], number: int) -> Path:
    return Path(settings["out"]) / f"trial-{number}"


class _Reporting(Display):
    """Tells the study of each validation, and ends a run that has fallen behind."""

    def __init__(self, trial: Any) -> None:
        super().__init__(quiet=True)
        self._trial = trial
        self._epoch = 0

    def line(self, text: str) -> None:
        """What the run says is left to its folder."""

    def epoch(self, epoch: int, epochs: int, lr: float, best_accuracy: float | None) -> None:
        """Remember which one it is."""
        super().epoch(epoch, epochs, lr, best_accuracy)
        self._epoch = epoch

    def phase(self, phase: str, loss: float, correct: int, n: int, seconds: float, speed: float) -> None:
        """Report a validation."""
        super().phase(phase, loss, correct, n, seconds, speed)
        if phase != "val":
            return
        self._trial.report(correct / n, self._epoch)
        if self._trial.should_prune():
            raise _optuna().TrialPruned


def _run_trial(study: Any, trial: Any, settings: Mapping[str, Any], display: Display, *, begun: bool) -> None:
    """Run a trial to its end, or to where it is left."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    folder = _folder(settings, trial.number)
    reporting = _Reporting(trial)
    try:
        if begun:
            run = resume(str(folder), display=reporting)
        else:
            chosen = _suggest(trial, study.user_attrs["space"])
            run = train(_settings_of(trial, settings, chosen), display=reporting)
    except optuna.TrialPruned:
        study.tell(trial, state=states.PRUNED)
        outcome = "ended early"
    except (NonFiniteError, _RefusedError) as error:
        study.tell(trial, state=states.FAIL)
        outcome = str(error) if isinstance(error, _RefusedError) else str(error).partition(";")[0]
    except (DataError, UsageError) as error:
        study.tell(trial, state=states.FAIL)
        # Before one has come to its end it may be what all have in common.
        if not _count(study, "COMPLETE", "PRUNED"):
            raise
        outcome = str(error)
    else:
        study.tell(trial, run.best["accuracy"])
        outcome = f"accuracy {100 * run.best['accuracy']:.2f}%"
    shown = ", ".join(f"{name} {_shown(value)}" for name, value in trial.params.items())
    display.line(f"trial {trial.number}: {shown}: {outcome}")


class _RefusedError(Exception):
    """Settings that do not go together."""


def _settings_of(trial: Any, settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> TrainConfig:
    """Of a trial: those that all share, and the ones that were chosen for it."""
    try:
        return remake_config({**settings, **chosen, "name": f"trial-{trial.number}"})
    except UsageError as error:
        raise _RefusedError(str(error)) from None


def _check_values(name: str, values: Any) -> None:
    """`UsageError` for what no trial could take: numbers that are none, and fractions of a setting that has whole ones only."""
    numbers = values if isinstance(values, list) else [values.low, values.high]
    for each in numbers:
        if isinstance(each, float) and not math.isfinite(each):
            raise UsageError(f"{name}: expected numbers to search, found {each}")
        if isinstance(each, float) and name in _WHOLE and not each.is_integer():
            raise UsageError(f"{name}: expected whole numbers to search, found {each:g}")


def _suggest(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial."""
    chosen = {}
    for name, values in space.items():
        if isinstance(values, list):
            chosen[name] = trial.suggest_categorical(name, values)
        elif values["step"] is not None or name in _WHOLE:
            low, high = int(values["low"]), int(values["high"])
            step, log = values["step"] or 1, values["log"]
            chosen[name] = trial.suggest_int(name, low, high, step=step, log=log)
        else:
            chosen[name] = trial.suggest_float(name, values["low"], values["high"], log=values["log"])
    return chosen


def _result(study: Any, folder: Path, device: str, display: Display) -> Search:
    trials = [_trial(each, folder) for each in study.get_trials(deepcopy=False)]
    complete = [each for each in trials if each.state == "complete"]
    if not complete:
        return Search(str(folder), trials, None, None, None, None)
    best = max(complete, key=lambda each: each.accuracy or 0.0)
    run = RunFolder(best.run)
    groups = list(groups_in(run.split, "val").values())
    if is_one_group(groups):
        display.line(f"validation: {ONE_GROUP}")
    interval, count = _over_images(run, best), None
    if counted_groups(groups) is not None:
        try:
            interval, count = _over_groups(run, device)
        except VisusError as error:
            display.line(
                f"the interval counts images, not groups, as the model cannot be asked again: {error}"
            )
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    return Search(str(folder), trials, best, interval, count, summary["test"])


def _over_images(run: RunFolder, best: Trial) -> Interval:
    n = next(each["n"] for each in run.records() if each["phase"] == "val")
    return wilson(round((best.accuracy or 0.0) * n), n)


def _over_groups(run: RunFolder, device: str) -> tuple[Interval, int | None]:
    """The interval of the accuracy on the validation part, and its groups. A run that was tested on other images has not kept which
    of validation were right: its best model is asked once more."""
    found = json.loads(run.evaluation.read_text(encoding="utf-8"))
    if found["split"] != "val":
        best = load_checkpoint(run.best)
        found = evaluate_checkpoint(best, best.config["data"], part="val", device=device).to_json()
    low, high = found["accuracy_ci95"]
    return (low, high), found.get("groups")


def _extent(interval: Interval, groups: int | None) -> str:
    over = "" if groups is None else f"over {plural(groups, 'group')} "
    return f"{over}{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _trial(found: Any, folder: Path) -> Trial:
    state = found.state.name.lower().replace("fail", "failed")
    accuracy = found.value if state == "complete" else max(found.intermediate_values.values(), default=None)
    return Trial(found.number, state, accuracy, dict(found.params), str(folder / f"trial-{found.number}"))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
