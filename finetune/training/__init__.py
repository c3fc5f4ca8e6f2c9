"""From a plan and splits to a trained model, through one loop."""

from finetune.training.averages import BLEND, blend, fold_models, soup, with_flips
from finetune.training.checkpoints import Checkpoints
from finetune.training.judging import Look, is_worse
from finetune.training.loop import NotFiniteError
from finetune.training.phases import plan_phases
from finetune.training.session import Training, train

__all__ = [
    "BLEND", "Checkpoints", "Look", "NotFiniteError", "Training", "blend", "fold_models", "is_worse", "plan_phases",
    "soup", "train", "with_flips",
]  # fmt: skip
