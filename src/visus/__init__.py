"""visus: train image classifiers, know how far to trust them, and ship them."""

from __future__ import annotations

import importlib
from typing import Any

# Where each public name lives. They are resolved on first use, so that `import visus` loads no torch; `__init__.pyi` tells editors.
_HOME = {
    "ArrayDataset": "visus.data.dataset",
    "AverageMeter": "visus.ops.meters",
    "EvaluationBatches": "visus.data.batching",
    "QuickNet": "visus.models.small",
    "RunRecorder": "visus.recording",
    "SmallNet": "visus.models.small",
    "SoftTargetCrossEntropy": "visus.ops.losses",
    "TrainConfig": "visus.config",
    "TrainingBatches": "visus.data.batching",
    "accuracy": "visus.ops.metrics",
    "Wanted": "visus.scoring",
    "audit": "visus.auditing.whole",
    "batches": "visus.data.batching",
    "build_model": "visus.models.build",
    "calibrate_checkpoint": "visus.calibration",
    "compare_runs": "visus.comparison",
    "correct_counts": "visus.ops.metrics",
    "embed": "visus.features",
    "evaluate": "visus.evaluation",
    "evaluate_checkpoint": "visus.testing",
    "explain": "visus.explaining",
    "find_lr": "visus.autotuning",
    "fit": "visus.loop",
    "format_duration": "visus.ops.stopwatch",
    "largest_batch": "visus.model_summary",
    "load_checkpoint": "visus.checkpoint",
    "make_config": "visus.config",
    "measure_preprocessing": "visus.data.batching",
    "open_source": "visus.data.sources",
    "pack_source": "visus.packing",
    "plot_confusion": "visus.plots",
    "plot_curves": "visus.plots",
    "plot_reliability": "visus.plots",
    "predict_files": "visus.prediction",
    "predict_labels": "visus.evaluation",
    "range_test": "visus.ranging",
    "read_history": "visus.runs",
    "resume": "visus.training",
    "select_device": "visus.devices",
    "split_seconds": "visus.ops.stopwatch",
    "summary": "visus.model_summary",
    "train": "visus.training",
    "tune": "visus.tuning",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'visus' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
