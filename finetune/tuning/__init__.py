"""Search for hyper-parameters in six steps and train the winner to its end."""

from finetune.tuning.procedure import resume_tuning, tune

__all__ = ["resume_tuning", "tune"]
