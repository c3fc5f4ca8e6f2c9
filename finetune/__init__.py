"""From a folder of images to a trained, explained image classifier.

The chain is `load_recipe` -> `load_images` -> `measure_evidence` -> `choose_strategy` -> `make_plan` -> `train` ->
`score`; `run` is all of it. Names are imported when they are first used, so that `import finetune` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.audit import measure_evidence
    from finetune.classifier import ImageClassifier
    from finetune.diagnosis import Verdict, diagnose
    from finetune.errors import DataError, FinetuneError, ModelError, RecipeError, RunFolderError, TuningError
    from finetune.evidence import Evidence
    from finetune.images import ImageSplits, load_images
    from finetune.metrics import Metrics, score
    from finetune.pipeline import plan_only, resume, run, run_plan
    from finetune.plan import Plan
    from finetune.planning import make_plan
    from finetune.prediction import TrainedModel
    from finetune.recipe import Recipe, load_recipe
    from finetune.run_folder import RunFolder
    from finetune.strategy import Choice, choose_strategy
    from finetune.training import train
    from finetune.tuning import resume_tuning, tune

_HOMES = {
    "measure_evidence": "audit",
    "ImageClassifier": "classifier",
    "Verdict": "diagnosis",
    "diagnose": "diagnosis",
    "DataError": "errors",
    "FinetuneError": "errors",
    "ModelError": "errors",
    "RecipeError": "errors",
    "RunFolderError": "errors",
    "TuningError": "errors",
    "Evidence": "evidence",
    "ImageSplits": "images",
    "load_images": "images",
    "Metrics": "metrics",
    "score": "metrics",
    "plan_only": "pipeline",
    "resume": "pipeline",
    "run": "pipeline",
    "run_plan": "pipeline",
    "Plan": "plan",
    "make_plan": "planning",
    "TrainedModel": "prediction",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "RunFolder": "run_folder",
    "Choice": "strategy",
    "choose_strategy": "strategy",
    "train": "training",
    "resume_tuning": "tuning",
    "tune": "tuning",
}

__all__ = [
    "Choice",
    "DataError",
    "Evidence",
    "FinetuneError",
    "ImageClassifier",
    "ImageSplits",
    "Metrics",
    "ModelError",
    "Plan",
    "Recipe",
    "RecipeError",
    "RunFolder",
    "RunFolderError",
    "TrainedModel",
    "TuningError",
    "Verdict",
    "choose_strategy",
    "diagnose",
    "load_images",
    "load_recipe",
    "make_plan",
    "measure_evidence",
    "plan_only",
    "resume",
    "resume_tuning",
    "run",
    "run_plan",
    "score",
    "train",
    "tune",
]


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute '{name}'")
    return getattr(import_module(f"finetune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
