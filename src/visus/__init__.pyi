from visus.checkpoint import load_checkpoint as load_checkpoint
from visus.data.batching import EvaluationBatches as EvaluationBatches
from visus.data.batching import TrainingBatches as TrainingBatches
from visus.data.batching import measure_preprocessing as measure_preprocessing
from visus.data.sources import open_source as open_source
from visus.devices import select_device as select_device
from visus.evaluation import evaluate as evaluate
from visus.evaluation import predict_labels as predict_labels
from visus.loop import fit as fit
from visus.models.build import build_model as build_model
from visus.models.small import SmallNet as SmallNet
from visus.ops.losses import SoftTargetCrossEntropy as SoftTargetCrossEntropy
from visus.ops.meters import AverageMeter as AverageMeter
from visus.ops.metrics import accuracy as accuracy
from visus.ops.metrics import correct_counts as correct_counts
from visus.ops.stopwatch import format_duration as format_duration
from visus.ops.stopwatch import split_seconds as split_seconds
from visus.plots import plot_confusion as plot_confusion
from visus.plots import plot_curves as plot_curves
from visus.recording import RunRecorder as RunRecorder
from visus.runs import read_history as read_history
from visus.training import TrainConfig as TrainConfig
from visus.training import train as train

__all__: list[str]
