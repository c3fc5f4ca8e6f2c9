"""From a plan and splits to a trained model, through one loop."""

from finetune.training.checkpoints import Checkpoints
from finetune.training.session import BLEND, Look, Training, plan_phases, train

__all__ = ["BLEND", "Checkpoints", "Look", "Training", "plan_phases", "train"]
