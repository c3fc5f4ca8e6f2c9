import json
import os
import subprocess
import sys

import pytest
import torch

from finetune.images import load_images
from finetune.pipeline import run_plan
from finetune.plan import Plan
from finetune.recipe import Recipe
from finetune.run_folder import RunFolder
from finetune.strategy import choose_strategy
from finetune.training import train

WAYS = {
    "full": {"strategy": "full"},
    "full, uneven parts": {"strategy": "full", "batch_size": 5, "accumulation": 2, "imbalance": "class_weights"},
    "full, best": {"strategy": "full", "keep": "best", "evaluations": 3},
    "partial": {"strategy": "partial", "refit": True},
    "norm_tuning": {"strategy": "norm_tuning", "validation": "cross_validation"},
}
PIPELINE = "partial"
"""Trained a second time, through the pipeline into a run folder."""

SCRIPT = """
import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
folder, rank, written = Path(sys.argv[1]), os.environ["RANK"], []
own = torch.save


def save(content, file, *rest, **options):
    written.append(str(file))
    own(content, file, *rest, **options)


from finetune.images import load_images
from finetune.pipeline import run_plan
from finetune.plan import Plan
from finetune.training import train

for file in sorted(folder.glob("*.plan.json")):
    plan = Plan.load(file)
    model = train(plan, load_images(plan.data))
    content = {"state": model.network.state_dict(), "validation": model.validation.model_dump(),
               "history": list(model.history), "temperature": model.temperature, "work": model.work.model_dump()}
    torch.save(content, folder / f"{file.name}.{rank}.pt")
torch.save = save
run_plan(folder / "run" / "plan.json")
(folder / f"written.{rank}.json").write_text(json.dumps(written))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def plans(folder, small_plan, make_images, make_weights):
    """The plans by name, as files in the folder."""
    data, weights = make_images(folder / "images", splits=IMAGES), make_weights(folder)
    ...
