"""A thousand classes of three images: what is printed is what happened, and the final model sees all images."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

CLASSES = 1000

MOST_BYTES = 3 * 2**30
"""Largest resident memory of the run."""

MOST_SECONDS = 600.0
"""Largest processor time of the run: 20 steps take a few, so that one slow part would be seen."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights):
    """The folder of a run, what it printed, its processor time in seconds and its memory in bytes."""
    root = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    for number in range(CLASSES):
        folder = root / "images" / f"class{number:03d}"
        folder.mkdir(parents=True)
        colour = generator.integers(0, 256, 3)
        for image in range(3):
            pixels = colour + generator.normal(0, 10, (16, 16, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    options = ["--model", "test_efficientnet", "--image-size", "32", "--strategy", "full", "--steps", "20"]
    command = [sys.executable, "-W", "always", str(Path(__file__).parents[2] / "scripts" / "finetune.py"), "train"]
    command += ["--data", "images", "--set", f"weights={weights}", *options, "--output", "run"]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "500"}
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return root / "run", done.stdout, done.stderr, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def test_the_shares_that_are_printed_are_those_of_the_splits(finished):
    folder, printed, *_ = finished
    text = " ".join(printed.split())
    splits = pd.read_csv(folder / "splits.csv")
    assert splits["split"].value_counts().to_dict() == {"train": 2000, "test": 1000}
    assert "2,000 training, 1,000 test images of 1000 classes; 33 % of the images were set apart for the test" in text
    assert splits["held_out_by"].value_counts().to_dict() == {"validation": 1000}
    assert "50 % of the training images, held out, by top1; the final model is then trained on all images" in text


def test_the_final_model_is_trained_on_all_training_images(finished):
    plan = json.loads((finished[0] / "plan.json").read_text())
    assert plan["refit"]
    assert plan["refit_steps"] > 0


def test_no_library_warns(finished):
    assert "Warning" not in finished[2]


def test_time_and_memory_are_sane(finished):
    *_, seconds, memory = finished
    assert seconds < MOST_SECONDS
    assert memory < MOST_BYTES
