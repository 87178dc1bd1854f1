"""The trackers at hand, through the same hook as a plugin's. What they need is imported when they are used."""

from __future__ import annotations

from ..hooks import hookimpl
from ..options import Options
from ..specs import TrackerSpec
from .mlflow import MLflow, MLflowOptions
from .tensorboard import TensorBoard
from .wandb import Wandb, WandbOptions


@hookimpl
def kdray_trackers():
    return [
        TrackerSpec("tensorboard", TensorBoard, Options, "Curves in the run folder, for `tensorboard --logdir runs`"),
        TrackerSpec("mlflow", MLflow, MLflowOptions, "Metrics of an MLflow server or database"),
        TrackerSpec("wandb", Wandb, WandbOptions, "Curves of Weights & Biases"),
    ]
