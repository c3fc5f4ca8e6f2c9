"""Write and read a trained network: the files `model.safetensors` and `config.json`, in timm's format."""

import copy
import json
import shutil
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from finetune.decide.plan import Plan
from finetune.device import MEMORY_FORMATS, best_device
from finetune.errors import RunFolderError
from finetune.network.backbone import size_arguments
from finetune.predict.model import TrainedModel

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Names that timm gives to its two files."""


def write_network(model: TrainedModel, folder: Path) -> None:
    """Write a trained network, its class names, its preprocessing and its temperature into a folder.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads the files, too.
    """
    preprocessing = model.plan.preprocessing
    side = preprocessing.image_size
    # The format has neither devices nor memory layouts. The copy is converted; the model itself stays unchanged.
    network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format)
    save_for_hf(
        network,
        str(folder),
        model_config={"label_names": list(model.class_names), "temperature": model.temperature},
        model_args=size_arguments(model.plan.model, side) or None,
        safe_serialization=True,
        data_config={
            "input_size": (3, side, side),
            "crop_pct": side / preprocessing.shorter_side,
            "crop_mode": "center",
            "interpolation": preprocessing.interpolation,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
        },
    )
    # safetensors makes its file readable for the owner alone; this file gets the permissions of the other one.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def read_network(folder: Path, plan: Plan) -> TrainedModel:
    """Return the network that `write_network` wrote, ready to predict.

    Args:
        folder: a run folder.
        plan: the plan of the run.

    Raises:
        RunFolderError: a file is missing, because the run is not finished.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        missing = Path(str(error.filename or WEIGHTS)).name
        raise RunFolderError(
            f"the run in {folder} is not finished ({missing} is missing); continue it: finetune train --resume {folder}"
        ) from None
    arguments = size_arguments(plan.model, plan.preprocessing.image_size)
    network = timm.create_model(plan.model, num_classes=len(config["label_names"]), **arguments)
    network.load_state_dict(state, strict=True)
    return TrainedModel(
        network=network.to(best_device()).to(memory_format=MEMORY_FORMATS[plan.forward.layout]).eval(),
        plan=plan,
        class_names=tuple(config["label_names"]),
        temperature=float(config["temperature"]),
    )
