import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import slow

from finetune.cli import main
from finetune.errors import ExportError, RunFolderError
from finetune.export import agreement, export_run
from finetune.predict.labelling import label_files
from finetune.predict.neighbours import Neighbours
from finetune.predict.onnx_model import OnnxModel
from finetune.runs.doubt import NEIGHBOURS
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import PREDICTIONS
from tests.export.pictures import SHAPES, smooth_image, write_pictures
from tests.path_table import table_of_paths
from tests.predict.damage import damaged_png

needs_onnx = [pytest.importorskip(name) for name in ("onnx", "onnxscript", "onnxruntime")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("images"), 6)


@pytest.fixture(autouse=True)
def _few_images(request):
    """Compare on few images, except in slow tests."""
    if "slow" not in request.keywords:
        request.getfixturevalue("few_images")


def write_experienced(write_run, model, folder, paths):
    """Write a run that keeps training images and held-out answers, and export its model."""
    write_run(model, folder, paths)
    model.plan.save(folder / "plan.json")
    Neighbours.among(model.features_of(table_of_paths(paths[1:]))).save(folder / NEIGHBOURS)
    best = np.linspace(0.34, 0.4, 40)
    held = {"split": "validation", "label": "a", "predicted": ["a"] * 35 + ["b"] * 5}
    pd.DataFrame({**held, "probability": best, "label_probability": best}).to_parquet(folder / PREDICTIONS)
    export_run(folder)
    return folder


@pytest.fixture(scope="module")
def run(trained, write_run, images, tmp_path_factory):
    """A run folder with its exported model."""
    paths = [str(path) for path in sorted(images.rglob("*.*"))]
    return write_experienced(write_run, trained(), tmp_path_factory.mktemp("runs") / "run", paths)


@pytest.fixture
def plain_run(trained, write_run, tmp_path):
    return write_run(trained(), tmp_path / "run")


def test_the_file_labels_images_like_the_run(run, images):
    paths = [str(path) for path in sorted(images.rglob("*.*"))]
    ((expected, _),) = label_files(RunFolder(run).read_model(), iter([paths]), top_k=2)
    ((found, _),) = label_files(OnnxModel(run / "model.onnx"), iter([paths]), top_k=2)
    pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(expected), atol=1e-3)


def labelled_with_doubt(model, images, output, capsys):
    """Return the table of a prediction with limits and sets, and what it said about them."""
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(model), str(images), "--unknown-at", "0.8", "--sets", "0.8", "--output", str(output)])
    assert ended.value.code == 0
    return pd.read_csv(output, keep_default_na=False), capsys.readouterr().err


@pytest.mark.parametrize("kind", ["network", *slow("ensemble")])
def test_the_file_withholds_labels_and_makes_sets_like_the_run(
    run, averaged, write_run, images, tmp_path, capsys, kind
):
    paths = [str(path) for path in sorted(images.rglob("*.*"))]
    folder = run if kind == "network" else write_experienced(write_run, averaged(), tmp_path / "run", paths)
    expected, sentences = labelled_with_doubt(folder, images, tmp_path / "run.csv", capsys)
    found, repeated = labelled_with_doubt(folder / "model.onnx", images, tmp_path / "file.csv", capsys)
    assert repeated == sentences
    assert set(expected["withheld"]) >= {"", "unlike the training images"}
    pd.testing.assert_frame_equal(found, expected, atol=1e-3, rtol=0.0)


def test_a_file_without_held_out_answers_has_no_doubt(run, images, tmp_path, capsys):
    import onnx

    exported = onnx.load(run / "model.onnx")
    kept = [(each.key, each.value) for each in exported.metadata_props if each.key != "experience"]
    del exported.metadata_props[:]
    onnx.helper.set_model_props(exported, dict(kept))
    onnx.save(exported, tmp_path / "model.onnx")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path / "model.onnx"), str(images), "--unknown-at", "0.9"])
    assert ended.value.code == 2
    assert "has no held-out images, because an earlier version made it; export the run again" in capsys.readouterr().err


def test_the_file_leaves_out_an_image_with_damaged_pixels_and_predicts_the_others(run, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(damaged_png())
    paths = sorted(images.rglob("*.*"))
    given = [str(path) for path in (paths[0], tmp_path / "bad.png", *paths[1:])]
    ((table, unreadable),) = label_files(OnnxModel(run / "model.onnx"), iter([given]))
    assert table["path"] == [str(path) for path in paths]
    assert [file.path for file in unreadable] == [str(tmp_path / "bad.png")]


def test_predicting_with_the_file_imports_no_torch(run, images, tmp_path):
    arguments = ["predict", str(run / "model.onnx"), str(images), "--output", str(tmp_path / "labels.csv")]
    code = f"import sys; from finetune.cli import app; app({arguments!r}, standalone_mode=False)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert pd.read_csv(tmp_path / "labels.csv").columns.tolist() == [
        "path",
        "label",
        "probability",
        "p_a",
        "p_b",
        "p_ü",
    ]


def test_the_graph_takes_a_batch_of_any_size_and_knows_its_labels(run):
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == ["a", "b", "ü"]
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", ["height", "width", 3])
    for shape in SHAPES:
        batch = np.stack([smooth_image(*shape, seed) for seed in range(3)])
        probabilities, distances = session.run(["probabilities", "distance"], {"images": batch})
        assert (probabilities.shape, distances.shape) == ((3, 3), (3,))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "test_vit", "test_convnext"])
@pytest.mark.parametrize("file_format", ["onnx", "torch-export"])
def test_every_kind_of_model_agrees(trained, averaged, write_run, images, tmp_path, kind, file_format):
    model = averaged() if kind == "ensemble" else trained(kind, flips=True, image_size=64)
    folder = write_run(model, tmp_path / "run", sorted(images.rglob("*.*")))
    _, found = export_run(folder, file_format)
    assert found.num_images >= 200
    assert found.num_shapes >= 20
    assert found.exported.equal_labels >= 0.99
    assert found.exported.percentile95 < 0.005


def test_a_model_that_differs_leaves_no_file(trained, write_run, images, tmp_path, monkeypatch):
    folder = write_run(trained(), tmp_path / "run")
    monkeypatch.setattr(agreement, "MOST_DIFFERENCE", -1.0)
    before = sorted(folder.iterdir())
    with pytest.raises(ExportError, match="does not agree with the run on 30 images"):
        export_run(folder, "torch-export", images=images)
    assert sorted(folder.iterdir()) == before


def test_an_existing_file_is_not_overwritten(plain_run):
    (plain_run / "model.onnx").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"model\.onnx exists and is not overwritten"):
        export_run(plain_run)


def test_a_name_of_another_format_is_refused(plain_run, tmp_path):
    with pytest.raises(RunFolderError, match=r"the file of onnx ends with \.onnx, but .*model\.pt was given"):
        export_run(plain_run, output=tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_its_installation(plain_run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=rf"an export as ONNX needs {name}; .*pip install {name}$"):
        export_run(plain_run)


def test_a_prediction_without_onnxruntime_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="needs onnxruntime; install the libraries: pip install onnxruntime"):
        OnnxModel(run / "model.onnx")


def test_a_file_that_is_not_an_exported_model_is_refused(tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"other\.onnx is not a model that 'finetune export' wrote"):
        OnnxModel(tmp_path / "other.onnx")
    with pytest.raises(RunFolderError, match="there is no file"):
        OnnxModel(tmp_path / "missing.onnx")


def test_the_command_prints_the_figures_and_writes_a_program_that_runs_without_the_toolkit(
    trained, write_run, images, tmp_path, capsys
):
    folder = write_run(trained(), tmp_path / "run", sorted(images.rglob("*.*")))
    path = tmp_path / "new" / "own.pt2"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), "--format", "torch-export", "--output", str(path)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "6 of 6 test images, and 24 parts of them, resized" in printed
    assert "100.0% of labels equal" in printed
    stored = {"labels.json": ""}
    program = torch.export.load(path, extra_files=stored).module()
    assert json.loads(stored["labels.json"]) == ["a", "b", "ü"]
    for shape in SHAPES:
        batch = torch.from_numpy(np.stack([smooth_image(*shape, seed) for seed in range(3)]))
        assert program(batch).shape == (3, 3)


@pytest.mark.slow
def test_the_embedded_network_agrees(small_plan, write_run, images, tmp_path):
    import timm

    from finetune.predict.model import TrainedModel

    network = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    plan = small_plan("tf_efficientnet_lite0")
    plan = plan.changed(preprocessing=plan.preprocessing.changed(image_size=128, crop_fraction=0.875))
    model = TrainedModel(network=network, plan=plan, class_names=("a", "b", "c"), temperature=1.0)
    folder = write_run(model, tmp_path / "run", sorted(images.rglob("*.*")))
    for file_format in ("onnx", "torch-export"):
        _, found = export_run(folder, file_format)
        assert found.exported.equal_labels >= 0.99
        assert found.exported.percentile95 < 0.02
