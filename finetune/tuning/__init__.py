"""The search for hyper-parameters: six steps, trials in Optuna's storage, a winner that goes on from where it is."""

from finetune.tuning.procedure import resume_tuning, tune

__all__ = ["resume_tuning", "tune"]
