"""Train a network as planned, through one loop."""

from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluation import HeldOutPredictions, is_worse
from finetune.training.phases import plan_phases
from finetune.training.training import Training, train

__all__ = ["Checkpoints", "HeldOutPredictions", "Training", "is_worse", "plan_phases", "train"]
