"""Claims about real photographs and scans; their place is in FINETUNE_IMAGE_SETS."""

import os
from pathlib import Path

import pandas as pd
import pytest

import finetune
from finetune.cli import main
from finetune.data import labels_of

SETS = os.environ.get("FINETUNE_IMAGE_SETS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SETS, reason="FINETUNE_IMAGE_SETS names no folder of image sets"),
]


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A linear probe on some flowers, trained on the command line; returns its run folder and the data."""
    folder, data = tmp_path_factory.mktemp("runs") / "flowers", Path(SETS, "flowers12")
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(data), "--limit", "120", "--strategy", "linear_probe", "--output", str(folder)])
    assert ended.value.code == 0
    return folder, data


def test_ten_flowers_of_each_kind_teach_the_probe_four_of_five_others(probed):
    metrics = finetune.RunFolder(probed[0]).read_metrics()
    assert metrics.validation.num_images == 120
    assert metrics.test.top1 > 0.8
    assert abs(metrics.test.top1 - metrics.validation.top1) < 0.12


def test_flowers_are_near_and_the_first_reason_says_so(probed):
    choice = finetune.RunFolder(probed[0]).read_decisions().choice
    assert choice.reasons[0].startswith("10 images per class (fewer than 20: small); domain similarity 0.")
    assert choice.reasons[0].endswith(" (near)")


def test_predictions_evaluation_and_python_agree(probed, tmp_path):
    folder, data = probed
    for arguments in (
        ["predict", folder, data / "test", "--output", tmp_path / "labels.csv"],
        ["evaluate", folder, "--data", data, "--output", tmp_path / "scores.json"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0
    table = pd.read_csv(tmp_path / "labels.csv")
    right = (table["label"] == [Path(path).parent.name for path in table["path"]]).mean()
    scored = finetune.Metrics.load(tmp_path / "scores.json")
    assert scored.top1 == pytest.approx(right)
    assert scored.top1 == finetune.RunFolder(folder).read_metrics().test.top1
    model = finetune.RunFolder(folder).read_model()
    assert model.predict(table["path"][:20].tolist()) == table["label"][:20].tolist()


def test_fine_tuning_beats_the_probe_on_brain_scans(tmp_path):
    data = str(Path(SETS, "brainmri3"))
    asked = finetune.Recipe(data=data, limit=300, refit=False)
    splits = finetune.load_images(data, limit=300)
    splits = finetune.ImageSplits(
        train=splits.train, validation=splits.test.select(range(0, 600, 2)), test=None, class_names=splits.class_names
    )
    model = finetune.run(asked, tmp_path / "run", splits=splits)
    evidence = finetune.RunFolder(tmp_path / "run").read_decisions().evidence
    assert model.plan.strategy in {"partial", "full"}
    assert evidence.domain_similarity < 0.5
    assert labels_of(splits.validation).max() == 2
    assert model.validation.top1 > evidence.probe_accuracy
