"""Turn a folder of images into a trained, explained image classifier.

The steps are `load_recipe` -> `load_images` -> `measure_evidence` -> `choose_strategy` -> `make_plan` -> `train` ->
`score`; `run` carries out all of them. A name is imported when it is first used, so that `import finetune` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
"""Version of the toolkit; that of the distribution is read from here."""

if TYPE_CHECKING:
    from finetune.auditing.findings import Audit
    from finetune.auditing.procedure import audit
    from finetune.classifier import ImageClassifier
    from finetune.data import ImageSplits, load_images
    from finetune.decide.choice import Choice, choose_strategy
    from finetune.decide.diagnosis import Verdict, diagnose
    from finetune.decide.evidence import Evidence
    from finetune.decide.plan import Plan
    from finetune.decide.planning import make_plan
    from finetune.errors import (
        CacheError,
        DataError,
        DivergenceError,
        ExportError,
        FinetuneError,
        ModelError,
        PublishError,
        RecipeError,
        RunFolderError,
        ServeError,
        TuningError,
    )
    from finetune.measure import measure_evidence
    from finetune.predict.metrics import Metrics, score
    from finetune.predict.model import TrainedModel
    from finetune.recipe import Recipe, load_recipe
    from finetune.runs.folder import RunFolder
    from finetune.runs.pipeline import plan_only, resume, run, run_plan
    from finetune.training import train
    from finetune.tuning import resume_tuning, tune

_HOMES = {
    "Audit": "auditing.findings",
    "audit": "auditing.procedure",
    "measure_evidence": "measure",
    "ImageClassifier": "classifier",
    "Verdict": "decide.diagnosis",
    "diagnose": "decide.diagnosis",
    "CacheError": "errors",
    "DataError": "errors",
    "DivergenceError": "errors",
    "ExportError": "errors",
    "FinetuneError": "errors",
    "ModelError": "errors",
    "PublishError": "errors",
    "RecipeError": "errors",
    "RunFolderError": "errors",
    "ServeError": "errors",
    "TuningError": "errors",
    "Evidence": "decide.evidence",
    "ImageSplits": "data",
    "load_images": "data",
    "Metrics": "predict.metrics",
    "score": "predict.metrics",
    "plan_only": "runs.pipeline",
    "resume": "runs.pipeline",
    "run": "runs.pipeline",
    "run_plan": "runs.pipeline",
    "Plan": "decide.plan",
    "make_plan": "decide.planning",
    "TrainedModel": "predict.model",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "RunFolder": "runs.folder",
    "Choice": "decide.choice",
    "choose_strategy": "decide.choice",
    "train": "training",
    "resume_tuning": "tuning",
    "tune": "tuning",
}
"""Module of the package that defines each public name, relative to `finetune`."""

__all__ = [
    "Audit",
    "CacheError",
    "Choice",
    "DataError",
    "DivergenceError",
    "Evidence",
    "ExportError",
    "FinetuneError",
    "ImageClassifier",
    "ImageSplits",
    "Metrics",
    "ModelError",
    "Plan",
    "PublishError",
    "Recipe",
    "RecipeError",
    "RunFolder",
    "RunFolderError",
    "ServeError",
    "TrainedModel",
    "TuningError",
    "Verdict",
    "audit",
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
    """Import a public name from the module that defines it.

    Raises:
        AttributeError: the name is not public.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute '{name}'")
    return getattr(import_module(f"finetune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
