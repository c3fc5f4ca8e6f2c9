"""Runs on images of 13 channels, of which the first three tell nothing: every command takes them."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from rich.console import Console

import finetune
from finetune.cli import main
from finetune.data import load_images
from finetune.data.batches import PlainImages, normaliser
from finetune.data.pixels import Pixels
from finetune.errors import RecipeError
from finetune.export import export_run
from finetune.measure.measuring import measure_evidence
from finetune.predict.onnx_model import OnnxModel
from finetune.publish.card import EXAMPLE_OF_CHANNELS
from finetune.reading import Reading
from finetune.runs.folder import RunFolder
from finetune.runs.page.pictures import describe_pictures, draw_picture
from finetune.runs.report import Report
from finetune.serve.exported import ServedFile
from finetune.serve.networks import ServedNetworks
from tests.path_table import table_of_paths
from tests.serve.running import ask, running

tifffile = pytest.importorskip("tifffile")

BANDS = tuple(range(13))


def write_images(root, count, seed, channels=13):
    """Write 16-bit images of two classes, of which only the channels 5 to 8 differ: by their texture."""
    generator = np.random.default_rng(seed)
    for name in ("dry", "wet"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            values = generator.normal(2000, 150, (channels, 40, 40))
            stripes = 500 * np.sin(np.arange(40) / 2.0)
            values[5:9] += stripes[:, None] if name == "wet" else stripes
            path = root / name / f"{number:02d}.tif"
            tifffile.imwrite(path, values.astype(np.uint16), photometric="minisblack", planarconfig="separate")
    return root


def called(*arguments, status=0):
    """Run a command to its end."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == status


class StopError(Exception):
    """The program is interrupted."""


class Stopping(Report):
    """A report that interrupts the program in the middle of a training."""

    def __init__(self):
        super().__init__(Console(quiet=True))

    def progress(self, task, done, _total, _history=()):
        if task.startswith("training") and done == 2:
            raise StopError


def recipe_of(images, weights, **keys):
    given = {"image__channels": "all", "strategy": "partial", "steps": 30, "batch_size": 8, "refit": False, **keys}
    return finetune.load_recipe(
        data=str(images), model="test_efficientnet", weights=str(weights), image_size=64, **given
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("bands") / "images", 30, seed=0)


@pytest.fixture(scope="module")
def finished(images, weights, tmp_path_factory):
    """The model of a run on all channels, its folder, what it printed, and new images."""
    root = tmp_path_factory.mktemp("run")
    printed = io.StringIO()
    model = finetune.run(recipe_of(images, weights), root / "run", Report(Console(file=printed, width=400)))
    return model, root / "run", printed.getvalue(), write_images(root / "new", 12, seed=1)


@pytest.fixture
def new_paths(finished):
    return sorted(map(str, finished[3].rglob("*.tif")))


def test_the_network_of_a_run_takes_all_channels_and_tells_the_classes_apart(finished, new_paths):
    model, _, printed, _ = finished
    assert model.network.conv_stem.weight.shape[1] == 13
    assert "image.channels=all: 13 channels, as all 60 images have" in printed
    found = model.predict(new_paths)
    assert np.mean([label == Path(path).parent.name for label, path in zip(found, new_paths, strict=True)]) > 0.9


def test_the_plan_lists_the_channels_and_says_that_the_first_layer_was_adapted(finished):
    _, run, _, _ = finished
    plan = RunFolder(run).read_plan()
    assert plan.preprocessing.reading.channels == BANDS
    assert len(plan.preprocessing.mean) == len(plan.preprocessing.reading.ranges) == 13
    assert any(reason.startswith("the first layer takes 13 channels: its weights") for reason in plan.reasons)


def test_the_similarity_of_other_channels_is_not_calibrated(images):
    recipe = finetune.load_recipe(
        data=str(images), model="tf_efficientnet_lite0", image__channels=[0, 5, 6, 7], strategy="linear_probe",
        image_size=32,
    )  # fmt: skip
    evidence = measure_evidence(recipe, load_images(str(images), reading=recipe.image))
    assert not evidence.similarity_calibrated


def test_timm_alone_reads_the_model_and_its_logits_are_the_same(finished, new_paths):
    model, run, _, _ = finished
    network = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    assert config["input_size"] == (13, 64, 64)
    assert tuple(config["mean"]) == model.plan.preprocessing.mean
    about = model.plan.preprocessing
    pixels = Pixels(table_of_paths(new_paths), about.shorter_side, about.reading)
    squares = torch.stack([view for view, _ in PlainImages(pixels, about).__getitems__(range(6))])
    inputs = normaliser(about, torch.device("cpu"), "contiguous")(squares)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), model.network.eval()(inputs), rtol=1e-4, atol=1e-4)


def test_the_example_of_the_model_card_runs_with_timm_alone(finished, capsys):
    _, run, _, _ = finished
    example = EXAMPLE_OF_CHANNELS.format(repository="user/bands", temperature=1.0, channels=13)
    exec(compile(example.replace("hf-hub:user/bands", f"local-dir:{run}"), "card", "exec"), {})
    assert capsys.readouterr().out.split()[0] in {"dry", "wet"}


def test_a_model_that_is_read_again_predicts_the_same(finished, new_paths):
    model, run, _, _ = finished
    np.testing.assert_array_equal(RunFolder(run).read_model().predict_proba(new_paths), model.predict_proba(new_paths))


def test_predictions_leave_out_files_with_fewer_channels(finished, tmp_path, capfd):
    _, run, _, _ = finished
    write_images(tmp_path / "files", 1, seed=2)
    tifffile.imwrite(
        tmp_path / "files" / "four.tif",
        np.zeros((4, 9, 9), np.uint16),
        photometric="minisblack",
        planarconfig="separate",
    )
    called("predict", run, tmp_path / "files", "--output", tmp_path / "labels.csv", status=3)
    assert len(list(csv.DictReader((tmp_path / "labels.csv").open()))) == 2
    assert "image.channels asks for channel 4, but it has channels 0 to 3" in capfd.readouterr().err


def test_an_evaluation_reads_all_channels(finished, tmp_path):
    _, run, _, new = finished
    called("evaluate", run, "--data", new, "--output", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 24
    assert metrics["top1"] > 0.9


def test_features_are_those_of_all_channels(finished, tmp_path):
    _, run, _, new = finished
    called("embed", run, new, "--output", tmp_path / "features.parquet")
    assert (tmp_path / "features.parquet").exists()


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (BANDS, "The pictures show the channels 0, 1 and 2 as red, green and blue; the network sees all 13."),
        (("NIR", 3), "The pictures show the channels NIR and 3 as red and green; the network sees both."),
        ((0, 1, 2), ""),
        (None, ""),
    ],
)
def test_what_pictures_show_is_said_unless_it_is_what_the_network_sees(channels, expected):
    assert describe_pictures(Reading(channels=channels)) == expected


def test_a_picture_shows_the_first_three_channels():
    view = np.random.default_rng(0).integers(0, 256, (20, 20, 13), dtype=np.uint8)
    assert draw_picture(view, 20) == draw_picture(view[..., :3], 20)
    assert draw_picture(view[..., :2], 20).image


def test_the_report_of_a_run_is_written_and_says_which_channels_its_pictures_show(finished):
    _, run, _, _ = finished
    rows = pd.read_parquet(run / "predictions.parquet")
    rows.loc[0, "predicted"] = next(name for name in ("dry", "wet") if name != rows.loc[0, "label"])
    rows.to_parquet(run / "predictions.parquet")
    called("report", run)
    page = (run / "report.html").read_text("utf-8")
    assert "The pictures show the channels 0, 1 and 2 as red, green and blue; the network sees all 13." in page


@pytest.mark.slow
@pytest.mark.parametrize(("file_format", "name"), [("onnx", "model.onnx"), ("torch-export", "model.pt2")])
def test_an_exported_model_takes_all_channels(finished, new_paths, tmp_path, file_format, name):
    pytest.importorskip("onnxscript")
    model, run, _, _ = finished
    path, agreement = export_run(run, file_format, output=tmp_path / name)
    assert agreement.exported.is_small()
    if file_format == "onnx":
        exported = OnnxModel(path)
        assert exported.reading == model.reading
        np.testing.assert_allclose(exported.predict_proba(new_paths), model.predict_proba(new_paths), atol=0.02)
        served = ServedFile(path)
        with served.predictions() as predict:
            found = predict([served.prepare(Path(each).read_bytes()) for each in new_paths[:4]])
        np.testing.assert_allclose(found, model.predict_proba(new_paths[:4]), atol=0.02)


def test_a_server_takes_files_of_all_channels(finished, new_paths):
    model, _, _, _ = finished
    with running(ServedNetworks(model)) as url:
        status, answer = ask(url, ("one.tif", Path(new_paths[0]).read_bytes()))
    assert status == 200
    (found,) = answer["images"]
    assert found["top"][0]["label"] == model.predict(new_paths[:1])[0]


@pytest.mark.parametrize("strategy", ["linear_probe", "norm_tuning", "full", "scratch"])
def test_every_strategy_trains_a_network_of_all_channels(images, weights, tmp_path, strategy):
    recipe = recipe_of(images, weights, strategy=strategy, steps=4)
    finetune.run(recipe.changed(weights=None) if strategy == "scratch" else recipe, tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_model().network.conv_stem.weight.shape[1] == 13


def test_an_interrupted_run_is_resumed_on_all_channels(images, weights, tmp_path):
    with pytest.raises(StopError):
        finetune.run(recipe_of(images, weights, strategy="full", steps=4), tmp_path / "run", Stopping())
    assert finetune.resume(tmp_path / "run").network.conv_stem.weight.shape[1] == 13


@pytest.mark.slow
def test_an_ensemble_averages_networks_of_all_channels(images, weights, tmp_path, new_paths):
    keys = {"strategy": "full", "ensemble": "seeds:2", "steps": 30}
    model = finetune.run(recipe_of(images, weights, **keys), tmp_path / "run")
    assert all(member.network.conv_stem.weight.shape[1] == 13 for member in getattr(model, "members", (model,)))
    assert model.predict_proba(new_paths).shape == (24, 2)


@pytest.mark.slow
def test_a_search_takes_all_channels(images, weights, tmp_path):
    recipe = recipe_of(images, weights, strategy="full", steps=6, tuning__trials=2)
    assert finetune.tune(recipe, tmp_path / "run").network.conv_stem.weight.shape[1] == 13


def test_a_plan_is_trained_with_its_list_of_channels(finished, tmp_path):
    _, run, _, _ = finished
    RunFolder(run).read_plan().changed(steps=8).save(tmp_path / "plan.json")
    model = finetune.run_plan(tmp_path / "plan.json", tmp_path / "run")
    assert model.reading.channels == BANDS


def test_an_audit_reads_the_channels_that_it_is_given(images, tmp_path, capsys):
    called("audit", images, "--set", "image.channels=all", "--output", tmp_path / "audit")
    assert "image.channels=all: 13 channels, as all 60 images have" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_an_audit_takes_no_other_keys(images, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(images), "--set", "training.learning_rate=1"])
    assert ended.value.code == 2
    assert "--set takes keys of the sections image and columns here" in capsys.readouterr().err


def test_a_policy_that_changes_colours_is_refused_before_anything_is_measured(images, weights, tmp_path):
    recipe = recipe_of(images, weights, augmentation__policy="trivialaugment")
    with pytest.raises(RecipeError, match=r"trivialaugment changes colours, which images of 13 channels do not have"):
        finetune.run(recipe, tmp_path / "run")


def test_a_classifier_of_scikit_learn_takes_all_channels(images, weights, new_paths):
    paths = sorted(map(str, images.rglob("*.tif")))
    classifier = finetune.ImageClassifier(
        model="test_efficientnet", strategy="linear_probe",
        settings={"image.channels": "all", "weights": str(weights), "image_size": 32},
    )  # fmt: skip
    classifier.fit(paths, [Path(path).parent.name for path in paths])
    assert classifier.predict_proba(new_paths).shape == (24, 2)
