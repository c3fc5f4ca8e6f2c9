"""Train a network as planned: prepare the material, train each phase, evaluate it on held-out images, and finish."""

from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluation import HeldOutPredictions, is_worse
from finetune.training.other_weights import network_with, probe_weights, with_weights
from finetune.training.phases import plan_phases
from finetune.training.state import TrainingDivergedError, TrainingState, history_so_far
from finetune.training.training import begin, evaluate_at, finish, train

__all__ = [
    "Checkpoints",
    "HeldOutPredictions",
    "TrainingDivergedError",
    "TrainingState",
    "begin",
    "evaluate_at",
    "finish",
    "history_so_far",
    "is_worse",
    "network_with",
    "plan_phases",
    "probe_weights",
    "train",
    "with_weights",
]
