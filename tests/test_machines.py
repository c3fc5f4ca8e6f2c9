"""Two launchers on this host, as on two machines: the processes know of each other, and each machine has its own
cache."""

import pandas as pd
import pytest
import timm
import torch
from conftest import run_two_machines

from finetune.cli import main
from finetune.runs.folder import RunFolder

pytestmark = pytest.mark.slow

SCRIPT = """
import os
import sys
from finetune.cli import main
from finetune.predict import rows

rows.CHUNK = 4
assert (os.environ["LOCAL_RANK"], os.environ["GROUP_WORLD_SIZE"]) == ("0", "2")
main(sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_two_machines_train_one_model(image_folder, script, tmp_path):
    images = image_folder(tmp_path / "images", {"a": 12, "b": 10})
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pt")
    weights = f"weights={tmp_path / 'weights.pt'}"
    options = ("--model", "test_efficientnet", "--set", weights, "--image-size", "32", "--steps", "3")
    run_two_machines(
        tmp_path, script, "train", "--data", images, *options, "--strategy", "full", "--output", tmp_path / "run"
    )
    run = RunFolder(tmp_path / "run")
    assert run.is_finished()
    first, second = (
        {entry.name for entry in (tmp_path / f"cache of machine {rank}" / "features").iterdir()} for rank in (0, 1)
    )
    assert second
    assert second <= first


def test_two_machines_write_the_predictions_of_one(trained, write_run, image_folder, script, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = write_run(trained(), tmp_path / "run")
    image_folder(tmp_path / "images", {"a": 9, "b": 8})
    run_two_machines(tmp_path, script, "predict", run, "images", "--output", "two.parquet")
    monkeypatch.setattr("finetune.predict.rows.CHUNK", 4)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), "images", "--output", "one.parquet"])
    assert ended.value.code == 0
    assert len(pd.read_parquet("two.parquet")) == 17
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
