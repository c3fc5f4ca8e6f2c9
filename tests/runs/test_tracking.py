"""Experiment trackers get the history of a run; TensorBoard and MLflow run for real."""

import pytest

import finetune
from finetune.runs import tracking
from finetune.runs.live import read_rows
from finetune.runs.tracking import check_trackers


@pytest.fixture
def recipe(image_folder, weights, tmp_path):
    tree = {"train": {"a": 8, "b": 8}, "val": {"a": 4, "b": 4}}
    data = image_folder(tmp_path / "images", splits=tree)
    known = {"model": "test_efficientnet", "weights": str(weights), "image_size": 32, "batch_size": 8}
    return finetune.Recipe(data=str(data), strategy="full", steps=6, refit=True, **known)


def numbers(rows):
    """Return the plotted numbers of a history: the value of each series at each row."""
    return {
        (f"{row['phase']}/{name.replace(':', '/')}", number): value
        for number, row in enumerate(rows, start=1)
        for name, value in row.items()
        if name not in {"phase", "step"}
    }


def test_an_unknown_tracker_is_named():
    with pytest.raises(
        finetune.RecipeError, match=r"track\.0: input should be .*'tensorboard'.*, but 'excel' was given"
    ):
        finetune.Recipe(data="x", track="excel")


def test_trackers_are_given_as_a_text_or_a_list():
    assert finetune.Recipe(data="x", track="tensorboard,mlflow").track == ("tensorboard", "mlflow")
    assert finetune.Recipe(data="x", track=["wandb"]).track == ("wandb",)


def test_a_tracker_that_is_not_installed_is_named_with_the_command_before_images_are_read(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(finetune.RecipeError, match="comet_ml is not installed; install it: pip install comet-ml"):
        check_trackers(["comet_ml"])
    with pytest.raises(finetune.RecipeError, match="tensorboard is not installed"):
        finetune.run(finetune.Recipe(data="nowhere", track="tensorboard"))


@pytest.mark.slow
def test_tensorboard_gets_every_row_of_the_history(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetune.run(recipe.changed(track="tensorboard"), tmp_path / "run")
    (file,) = (tmp_path / "run" / "tensorboard").glob("events*")
    events = EventAccumulator(str(file)).Reload()
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert found == pytest.approx(numbers(read_rows(tmp_path / "run")), rel=1e-6)


@pytest.mark.slow
def test_mlflow_gets_every_row_of_the_history_and_the_settings(recipe, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    finetune.run(recipe.changed(track="mlflow"), tmp_path / "run")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("finetune").experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.params["strategy"], run.data.params["steps"]) == ("full", "6")
    found = {
        (name, entry.step): entry.value
        for name in run.data.metrics
        for entry in client.get_metric_history(run.info.run_id, name)
    }
    assert found == pytest.approx(numbers(read_rows(tmp_path / "run")))


def test_an_error_of_a_tracker_ends_the_tracking_and_not_the_run(recipe, tmp_path, monkeypatch):
    class Broken:
        logged = 0

        def log(self, _values, step):
            self.logged += 1
            raise ConnectionError(f"no route at step {step}")

        def finish(self):
            pass

    broken = Broken()
    monkeypatch.setattr(tracking, "check_trackers", lambda _names: None)
    monkeypatch.setattr("finetune.runs.pipeline.check_trackers", lambda _names: None)
    monkeypatch.setattr(tracking, "_start", lambda *_: [broken])
    from io import StringIO

    from rich.console import Console

    from finetune.runs.report import Report

    report = Report(Console(file=StringIO(), width=200))
    model = finetune.run(recipe.changed(track="wandb"), tmp_path / "run", report)
    assert model.validation is not None
    assert "Tracking stopped: no route at step 1\n" in report.console.file.getvalue()
    assert broken.logged < len(read_rows(tmp_path / "run"))
