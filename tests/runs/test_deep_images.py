"""A run on images deeper than 8 bits: its range goes with the model into predictions, evaluations and the export."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import finetune
from finetune.cli import main
from finetune.data import load_images, load_with_copies, without_undecodable
from finetune.errors import DataError
from finetune.export import export_run
from finetune.predict.files import rows_of_files
from finetune.predict.onnx_model import OnnxModel
from finetune.reading import Reading
from finetune.runs.folder import RunFolder
from finetune.runs.report import Report
from finetune.serve.networks import ServedNetworks
from tests.path_table import table_of_paths

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "science-images.md"


def write_images(root, levels, count, seed):
    """Write 16-bit images of classes that differ in intensity alone, with shot noise."""
    generator = np.random.default_rng(seed)
    for name, level in levels.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            values = generator.poisson(level * generator.uniform(0.8, 1.2), (32, 32)).astype(np.uint16)
            Image.fromarray(values).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    """A run on two classes of 300 and of 3,000 counts, its folder, what it printed, and new images of both classes."""
    root = tmp_path_factory.mktemp("deep")
    levels = {"dim": 300, "bright": 3000}
    write_images(root / "images", levels, 24, seed=0)
    recipe = finetune.Recipe(
        data=str(root / "images"), model="test_efficientnet", weights=str(weights), image_size=32,
        strategy="linear_probe",
    )  # fmt: skip
    printed = io.StringIO()
    model = finetune.run(recipe, root / "run", Report(Console(file=printed, width=400)))
    return model, root / "run", printed.getvalue(), write_images(root / "new", levels, 60, seed=1)


def test_classes_that_differ_in_intensity_alone_are_told_apart(finished, tmp_path):
    _, run, _, new = finished
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), "--data", str(new), "--output", str(tmp_path / "metrics.json")])
    assert ended.value.code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 120
    assert metrics["top1"] > 0.99


def test_the_range_is_printed_and_kept_with_the_model(finished):
    model, run, printed, _ = finished
    ((low, high),) = model.reading.ranges
    assert f"values from {low:g} to {high:,g} become 0 to 255" in printed
    stored = json.loads((run / "plan.json").read_text())["preprocessing"]["reading"]
    assert stored["range"] == [[low, high]]
    assert json.loads((run / "config.json").read_text())["reading"] == stored
    assert any("image.range" in reason for reason in model.plan.reasons)
    assert RunFolder(run).read_model().reading == model.reading


def test_a_prediction_uses_the_range_of_the_training_images(finished):
    _, run, _, new = finished
    paths = sorted(map(str, new.rglob("*.png")))
    assert RunFolder(run).read_model().predict(paths) == [path.split("/")[-2] for path in paths]


def test_a_prediction_takes_files_that_its_channels_alone_make_readable(finished, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    model, *_ = finished
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((32, 32, 5), dtype=np.uint8), photometric="minisblack", planarconfig="contig"
    )
    preprocessing = model.plan.preprocessing.changed(reading=Reading(channels=(4, 0, 1)))
    mapped = replace(model, plan=model.plan.changed(preprocessing=preprocessing))
    assert mapped.predict_proba([tmp_path / "five.tif"]).shape == (1, 2)
    with pytest.raises(DataError, match="it has 5 channels"):
        model.predict_proba([tmp_path / "five.tif"])


@pytest.mark.slow
def test_an_exported_model_uses_the_range_of_the_training_images(finished, tmp_path):
    pytest.importorskip("onnxscript")
    model, run, _, new = finished
    path, _ = export_run(run, output=tmp_path / "model.onnx")
    exported = OnnxModel(path)
    assert exported.reading == model.reading
    paths = sorted(map(str, new.rglob("*.png")))[::6]
    np.testing.assert_allclose(exported.predict_proba(paths), model.predict_proba(paths), atol=0.01)


def test_a_served_model_uses_the_range_of_the_training_images(finished):
    model, _, _, new = finished
    paths = sorted(map(str, new.rglob("*.png")))[::12]
    served = ServedNetworks(model)
    with served.predictions() as predict:
        found = predict([served.prepare(Path(path).read_bytes()) for path in paths])
    np.testing.assert_allclose(found, model.predict_proba(paths), atol=1e-5)


def test_features_of_files_and_of_a_table_are_those_of_the_same_values(finished):
    model, _, _, new = finished
    paths = sorted(map(str, new.rglob("*.png")))[::12]
    np.testing.assert_allclose(
        rows_of_files(model.features, paths), model.features_of(table_of_paths(paths)), atol=1e-4
    )


def test_images_are_left_out_by_the_reading_of_their_splits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(12):
            values = np.random.default_rng([ord(name), number]).integers(0, 255, (16, 16, 5), dtype=np.uint8)
            tifffile.imwrite(tmp_path / name / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
    splits = load_images(str(tmp_path), reading=Reading(channels=(4, 0, 1)))
    assert without_undecodable(splits).unreadable == ()


def test_an_audit_reads_images_with_the_range_of_a_run(tmp_path):
    write_images(tmp_path / "images", {"dim": 300, "bright": 3000}, 12, seed=0)
    images = str(tmp_path / "images")
    assert load_with_copies(images).reading == load_images(images).reading != Reading()


def test_images_of_another_kind_are_told_once_on_stderr(finished, tmp_path, capfd):
    _, run, _, _ = finished
    for number in range(3):
        frames = [Image.new("RGB", (8, 8), (number, level, 0)) for level in (10, 200)]
        frames[0].save(tmp_path / f"{number}.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(tmp_path)])
    assert ended.value.code == 0
    assert capfd.readouterr().err.splitlines() == [
        "3 images are animated (GIF): the first frame is read",
        "the range of the model is for images deeper than 8 bits; 8-bit images keep their values",
    ]


def test_the_guide_shows_what_is_printed_about_its_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = GUIDE.read_text("utf-8")
    code, shown = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", page, re.DOTALL).groups()
    exec(compile(code, str(GUIDE), "exec"), {})
    printed = io.StringIO()
    Report(Console(file=printed, width=100)).images(load_images("counts"))
    assert printed.getvalue() == shown


def test_the_guide_lists_every_key_of_the_section():
    assert re.findall(r"^\| `image\.(\w+)` \|", GUIDE.read_text("utf-8"), re.MULTILINE) == [*Reading.model_fields]
