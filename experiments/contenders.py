"""Run one contender of the benchmark on one image set with one seed; the last line of its output is JSON.

    python -m experiments.contenders fastai --data DIR/flowers12 --seed 0 --image-size 128

All contenders have the same network (EfficientNet-Lite0), pretrained weights, image size, training images and test
images. The time of a contender is measured from the moment when its libraries are imported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

import finetune
from experiments.anytime import BUDGETS, FASTAI_EPOCHS, RESERVE, SCRIPT_EPOCHS
from experiments.bare_network import bare_training, measure_limits
from experiments.benchmark_network import BATCH, MEAN, NETWORK, STD, by_path, pretrained
from experiments.paths import ROOT
from experiments.rows import Row
from experiments.user_script import run_script
from finetune.data import labels_of, load_images, paths_of
from finetune.decide.plan import Plan
from finetune.errors import RecipeError
from finetune.measure import measure_evidence
from finetune.predict.model import Predictor
from finetune.runs.image_tables import PREDICTIONS
from finetune.training import train


def run_finetune(
    strategy: str,
    data: Path,
    seed: int,
    image_size: int,
    cached: bool = True,
    limit: int | None = None,
    steps: int = 0,
    stages: int = 0,
) -> Row:
    """Return the test images that this toolkit classifies correctly, and its times in seconds.

    Args:
        strategy: the strategy to train, or `auto`.
        data: folder with train and test.
        seed: seed of the run.
        image_size: side of the square images, in pixels.
        cached: whether activations at the frozen boundary are cached.
        limit: number of training images; by default all.
        steps: number of optimizer steps; 0 stands for the planned number.
        stages: number of last stages that `partial` trains; 0 stands for the planned number.
    """
    started: dict[str, float] = {}

    def note(task: str, _done: int, _total: int, _history: object = ()) -> None:
        if task.startswith("training ("):
            started.setdefault("training", time.perf_counter())

    is_compared = strategy in {"partial", "full"}  # these strategies are compared with the bare network
    before = bare_training(image_size) if is_compared else 0.0
    start = time.perf_counter()
    fixed: dict[str, Any] = {"steps": steps} if steps else {}
    if stages:
        fixed["training__trainable_stages"] = stages
    if is_compared:
        fixed["training__progressive_resizing"] = 0.0  # every image takes as much work as in the bare network
    recipe = finetune.load_recipe(data=str(data), strategy=strategy, seed=seed, image_size=image_size, **fixed)
    splits = load_images(recipe.data, limit=limit)
    evidence = measure_evidence(recipe, splits)
    plan = finetune.make_plan(recipe, evidence, finetune.choose_strategy(evidence, recipe))
    if not cached:
        plan = plan.changed(cached_views=0)
    decided = time.perf_counter()
    model = train(plan, splits, note)
    trained = time.perf_counter()
    assert splits.test is not None
    predicted = model.probabilities(splits.test).argmax(axis=1)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "until_decided": decided - start,
        "until_training": started.get("training", trained) - start,
        "until_trained": trained - start,
        "train_images": len(splits.train),
        "training_images_per_second": _training_rate(model, plan),
        "bare_training": (before + bare_training(image_size)) / 2 if is_compared else None,
        "correct": by_path(paths_of(splits.test), predicted == labels_of(splits.test)),
        "strategy": plan.strategy,
        "work": (evidence.work + model.work).model_dump(),
    }


def _training_rate(model: Predictor, plan: Plan) -> float | None:
    """Return the images per second of the median step of the first phase; None if the plan has no steps."""
    durations = np.diff([float(row["seconds"]) for row in model.history if row["phase"] == model.history[0]["phase"]])
    return plan.batch_size / float(np.median(durations)) if len(durations) else None


def run_within(budget: int, data: Path, seed: int, image_size: int) -> Row:
    """Return the test images that a run of this toolkit classifies correctly within a time budget, and its seconds.

    It is the whole run: everything is measured, decided and trained, and its folder is written. A budget that is too
    short is refused, in which case there is only the sentence that says so.

    Args:
        budget: time budget in seconds.
        data: folder with train and test.
        seed: seed of the run.
        image_size: side of the square images, in pixels.
    """
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        recipe = finetune.load_recipe(data=str(data), seed=seed, image_size=image_size, time_budget=budget)
        try:
            model = finetune.run(recipe, Path(folder) / "run", start=start)
        except RecipeError as refusal:  # the budget is too short for any training
            return {"refused": str(refusal)}
        seconds = time.perf_counter() - start
        rows = pd.read_parquet(Path(folder) / "run" / PREDICTIONS)
    tested = rows[rows["split"] == "test"]
    right = tested["label"] == tested["predicted"]
    return {"seconds": seconds, "correct": by_path(tested["path"], right), "strategy": model.plan.strategy}


def run_fastai(epochs: int, data: Path, seed: int, image_size: int) -> Row:
    """Return the test images that fastai's `fine_tune`, used as documented, classifies correctly, and its seconds.

    Args:
        epochs: number of epochs of all layers, which follow one epoch of the head.
        data: folder with train and test.
        seed: seed of the run.
        image_size: side of the square images, in pixels.
    """
    from fastai.vision.all import (
        Callback,
        CancelValidException,
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        set_seed,
        vision_learner,
    )

    class WithoutValidation(Callback):  # type: ignore[misc]
        """Skip the evaluation of held-out images after each epoch, to save its time."""

        def before_validate(self) -> None:
            raise CancelValidException

    start = time.perf_counter()
    set_seed(seed, reproducible=True)
    loaders = ImageDataLoaders.from_folder(
        data,
        train="train",
        valid="test",  # predicted once, at the end
        item_tfms=Resize(int(image_size / 0.875)),
        batch_tfms=[*aug_transforms(size=image_size), Normalize.from_stats(MEAN, STD, cuda=False)],
        bs=BATCH,
        num_workers=len(os.sched_getaffinity(0)),
    )
    learner = vision_learner(loaders, NETWORK, pretrained=False, normalize=False, metrics=accuracy)
    body = learner.model[0].model
    state = {name: value for name, value in pretrained(1000).state_dict().items() if not name.startswith("classifier")}
    body.load_state_dict(state, strict=True)
    files = sorted(get_image_files(data / "test"))
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs, cbs=WithoutValidation())
        scores, _ = learner.get_preds(dl=loaders.test_dl(files))
    names = list(loaders.vocab)
    right = [names[int(best)] == file.parent.name for best, file in zip(scores.argmax(dim=1), files, strict=True)]
    return {"seconds": time.perf_counter() - start, "correct": by_path(map(str, files), right)}


def run_autogluon(budget: int, data: Path, seed: int, image_size: int) -> Row:
    """Return the test images that AutoGluon classifies correctly within a time budget, and its seconds.

    It runs in the environment of the interpreter that $AUTOGLUON_PYTHON names.

    Args:
        budget: time budget in seconds.
        data: folder with train and test.
        seed: seed of the run.
        image_size: side of the square images, in pixels.
    """
    with TemporaryDirectory() as folder:
        network = pretrained(0)
        torch.save(network.state_dict(), Path(folder) / "pytorch_model.bin")
        about = {"architecture": NETWORK, "num_features": network.num_features, "mean": MEAN, "std": STD}
        about["input_size"] = (3, image_size, image_size)
        (Path(folder) / "config.json").write_text(json.dumps(about))
        command = [os.environ["AUTOGLUON_PYTHON"], "-m", "experiments.autogluon_fit", "--data", str(data)]
        command += ["--weights", folder, "--seconds", str(budget - RESERVE), "--batch", str(BATCH)]
        command += ["--seed", str(seed)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": found["seconds"], "correct": by_path(found["right"], found["right"].values())}


def show_help(repetitions: int = 5) -> Row:
    """Return the median seconds that the command takes to show its help, including the start of the interpreter."""
    command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--help"]
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds)}


CONTENDERS: dict[str, Callable[[Path, int, int], Row]] = {
    "linear_probe": lambda data, seed, size: run_finetune("linear_probe", data, seed, size),
    "partial": lambda data, seed, size: run_finetune("partial", data, seed, size),
    "partial, not cached": lambda data, seed, size: run_finetune("partial", data, seed, size, cached=False),
    "partial, 2 stages": lambda data, seed, size: run_finetune("partial", data, seed, size, stages=2),
    "partial, 2 stages, not cached": lambda data, seed, size: run_finetune(
        "partial", data, seed, size, cached=False, stages=2
    ),
    "linear_probe, 60": lambda data, seed, size: run_finetune("linear_probe", data, seed, size, limit=60),
    "linear_probe, 400": lambda data, seed, size: run_finetune("linear_probe", data, seed, size, limit=400),
    "full, short": lambda data, seed, size: run_finetune("full", data, seed, size, steps=40),
    **{f"finetune {seconds}": partial(run_within, seconds) for seconds in BUDGETS},
    **{f"fastai {epochs}": partial(run_fastai, epochs) for epochs in FASTAI_EPOCHS},
    **{f"script {epochs}": partial(run_script, epochs) for epochs in SCRIPT_EPOCHS},
    **{f"autogluon {seconds}": partial(run_autogluon, seconds) for seconds in BUDGETS},
    "bare": lambda data, _, size: measure_limits(data, size),
    "help": lambda _data, _seed, _size: show_help(),
}
"""Contenders by name, each as a function of the image folder, the seed and the image size."""


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=sorted(CONTENDERS))
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test, a folder for each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128, help="side of the square images, in pixels")
    arguments = parser.parse_args()
    result = CONTENDERS[arguments.contender](arguments.data, arguments.seed, arguments.image_size)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
