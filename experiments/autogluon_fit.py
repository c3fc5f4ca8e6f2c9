"""Fit AutoGluon to an image set within a time limit; the last line of the output is JSON. Imports nothing of finetune.

    python -m experiments.autogluon_fit --data DIR/SET --weights FOLDER --seconds 120 --batch 32

AutoGluon needs other releases of PyTorch and timm, so `python` must be that of an environment of its own
(`pip install autogluon.multimodal==1.6.3`); `experiments.contenders` starts it there. FOLDER holds the pretrained
network as that program writes it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd

RATE = 4e-4
"""Learning rate of AutoGluon's preset for a small convolutional network (MobileNetV3)."""


def table_of(folder: Path) -> pd.DataFrame:
    """Return the paths and labels of a folder with one subfolder for each class."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return pd.DataFrame({"image": [str(file) for file in files], "label": [file.parent.name for file in files]})


def main() -> None:
    """Fit, predict the test images, and print the seconds of both and which images are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test, a folder for each class")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the pretrained network")
    parser.add_argument("--seconds", type=float, required=True, help="limit of the time")
    parser.add_argument("--batch", type=int, required=True, help="number of images of a training step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from autogluon.multimodal import MultiModalPredictor  # it is not in the environment of the tests

    start = time.perf_counter()
    training, test = table_of(arguments.data / "train"), table_of(arguments.data / "test")
    with tempfile.TemporaryDirectory() as folder:
        predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=f"{folder}/model")
        predictor.fit(
            training,
            time_limit=arguments.seconds,
            seed=arguments.seed,
            hyperparameters={
                "model.names": ["timm_image"],
                "model.timm_image.checkpoint_name": str(arguments.weights),
                "env.num_gpus": 0,
                "env.num_workers": 1,
                "env.num_workers_inference": 1,
                "env.batch_size": arguments.batch,
                "optim.lr": RATE,
            },
        )
        predicted = predictor.predict(test, as_pandas=True)
    seconds = time.perf_counter() - start
    right = (predicted.to_numpy() == test["label"].to_numpy()).tolist()
    print(json.dumps({"seconds": seconds, "right": dict(zip(test["image"], right, strict=True))}))


if __name__ == "__main__":
    main()
