"""Run folders that are damaged in one place are refused with a sentence that names the file."""

import json
import re
import shutil
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.data import DataIdentity
from finetune.errors import FinetuneError, RunFolderError
from finetune.recipe import load_recipe
from finetune.runs import pipeline
from finetune.runs.folder import RunFolder
from finetune.runs.page.writing import write_report
from tests.conftest import make_image_folder

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory, weights):
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("damaged")
    recipe = load_recipe(
        data=str(make_image_folder(root / "images", {"a": 8, "b": 8})),
        model="test_efficientnet",
        weights=str(weights),
        strategy="linear_probe",
    )
    pipeline.run(recipe, root / "run")
    return root / "run"


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the folder, to damage."""
    return shutil.copytree(whole, tmp_path / "run")


def changed(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refuses(action, file):
    with pytest.raises(FinetuneError, match=re.escape(file)):
        action()


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_truncated_weights_are_refused_by_name(run, keep):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refuses(RunFolder(run).read_model, "model.safetensors")


@pytest.mark.parametrize("values", [{"label_names": ["a", "b", "c"]}, {"label_names": ["a"]}, {"label_names": None}])
def test_classes_that_do_not_fit_the_weights_are_refused(run, values):
    changed(run / "config.json", **values)
    refuses(RunFolder(run).read_model, "config.json")


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), None, "1", True])
def test_a_temperature_that_is_no_positive_number_is_refused(run, temperature):
    changed(run / "config.json", temperature=temperature)
    refuses(RunFolder(run).read_model, "config.json: temperature must be a positive number")


@pytest.mark.parametrize("content", ["", "{", "null", "[]", DEEP, '{"label_names": ["a", "b"]}', "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "plan.json", "metrics.json"])
def test_json_that_is_damaged_is_refused_by_name(run, name, content):
    (run / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    refuses(RunFolder(run).read_model, name)


@pytest.mark.parametrize("name", ["evidence.json", "choice.json", "recipe.yaml"])
def test_damaged_decisions_are_refused_by_name(run, name):
    (run / name).write_text(DEEP)
    refuses(RunFolder(run).read_decisions, name)


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", DEEP, '{"step": 1}', '{"phase": 3}', '{"phase": "x", "step": "one"}']
)
def test_a_damaged_history_is_refused_with_its_line(run, line):
    (run / "history.jsonl").write_text(f'{{"phase": "x", "step": 1}}\n{line}\n')
    refuses(RunFolder(run).read_history, "history.jsonl, line 2")


@pytest.mark.parametrize("side", [0, 10**9])
def test_a_plan_for_impossible_image_sizes_is_refused(run, side):
    plan = json.loads((run / "plan.json").read_text())
    changed(run / "plan.json", preprocessing=plan["preprocessing"] | {"image_size": side})
    refuses(RunFolder(run).read_model, "image_size")


@pytest.mark.parametrize("name", ["predictions.parquet", "environment.json"])
def test_a_report_of_damaged_tables_is_refused_by_name(run, name):
    (run / name).write_text("{")
    refuses(lambda: write_report(RunFolder(run)), name)


@pytest.mark.parametrize("members", [["../../other"], [], ["/etc"]])
def test_an_ensemble_names_only_members_inside_its_folder(run, members):
    (run / "ensemble.json").write_text(json.dumps({"members": members, "temperature": 1.0}))
    refuses(RunFolder(run).read_model, "ensemble.json")


def test_a_damaged_choice_cannot_be_resumed(run):
    (run / "metrics.json").unlink()
    (run / "choice.json").write_text("{")
    refuses(lambda: pipeline.resume(run), "choice.json")


@pytest.fixture
def interrupted(run, tmp_path):
    """The folder of a run that is not finished, and a copy of its images."""
    first = run_images(run)
    images = shutil.copytree(first, tmp_path / "images")
    for name in ("plan.json", "recipe.yaml"):
        text = (run / name).read_text()
        (run / name).write_text(text.replace(str(first), str(images)))
    (run / "metrics.json").unlink()
    return run, images


def run_images(run):
    return Path(json.loads((run / "plan.json").read_text())["data"])


def test_a_run_is_resumed_on_the_same_data_at_another_place(interrupted):
    folder, _ = interrupted
    pipeline.resume(folder)
    assert RunFolder(folder).is_finished()


def remove(images):
    (images / "a" / "000.jpg").unlink()


def move(images):
    (images / "a" / "000.jpg").rename(images / "b" / "999.jpg")


def replace(images):
    shutil.copy(images / "a" / "000.jpg", images / "a" / "002.jpg")


def swap(images):
    (images / "a").rename(images / "c")
    (images / "b").rename(images / "a")
    (images / "c").rename(images / "b")


def overwrite(images):
    file = images / "a" / "000.jpg"
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1  # a pixel
    file.write_bytes(content)


@pytest.mark.parametrize("change", [remove, move, replace, swap, overwrite])
def test_a_run_whose_data_has_changed_is_not_resumed(interrupted, change):
    folder, images = interrupted
    change(images)
    with pytest.raises(RunFolderError, match=r"the data has changed since the run in .* began"):
        pipeline.resume(folder)


def test_what_changed_is_counted(interrupted):
    folder, images = interrupted
    shutil.copytree(images / "a", images / "c")
    for file in (images / "c").iterdir():
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(RunFolderError, match=r"\d added \(c/00"):
        pipeline.resume(folder)


def test_changes_are_named_by_their_kind():
    before = DataIdentity(digest="", counts={}, images={f"{n}.jpg": "train\ta\t5\tff" for n in range(5)})
    after = dict(before.images) | {"1.jpg": "train\ta\t5\tee", "2.jpg": "train\tb\t5\tff", "3.jpg": "test\ta\t5\tff"}
    del after["0.jpg"]
    assert before.difference(before.changed(images=after)) == (
        "1 removed (0.jpg); 1 changed (1.jpg); 1 relabelled (2.jpg); 1 moved to another split (3.jpg)"
    )


def test_changes_that_are_accepted_are_recorded_and_the_training_starts_anew(interrupted):
    folder, images = interrupted
    remove(images)
    pipeline.resume(folder, accept_changes=True)
    (accepted,) = json.loads((folder / "data.json").read_text())["accepted"]
    assert accepted.startswith("1 removed (")
    assert RunFolder(folder).is_finished()


def test_a_plan_is_not_trained_on_changed_data_unless_that_is_accepted(interrupted, tmp_path):
    folder, images = interrupted
    overwrite(images)
    with pytest.raises(RunFolderError, match=r"1 changed \(a/000.jpg\); .*--accept-changes"):
        pipeline.run_plan(folder / "plan.json", tmp_path / "again")
    pipeline.run_plan(folder / "plan.json", tmp_path / "again", accept_changes=True)
    assert RunFolder(tmp_path / "again").is_finished()


def evaluate(folder, images, *words):
    """Return the exit status of `finetune evaluate`."""
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), "--data", str(images), *words])
    return ended.value.code


def test_an_evaluation_on_unchanged_data_of_the_run_compares_nothing_away(interrupted):
    folder, images = interrupted
    pipeline.resume(folder)
    assert evaluate(folder, images) == 0
    assert json.loads((folder / "data.json").read_text())["accepted"] == []


@pytest.mark.parametrize("change", [remove, move, overwrite])
def test_a_run_is_not_evaluated_on_its_changed_data_unless_that_is_accepted(interrupted, change, capsys):
    folder, images = interrupted
    pipeline.resume(folder)
    change(images)
    assert evaluate(folder, images) == 2
    assert f"{images} has changed since the run in {folder} began: 1 " in capsys.readouterr().err
    assert evaluate(folder, images, "--accept-changes") == 0
    (accepted,) = json.loads((folder / "data.json").read_text())["accepted"]
    assert accepted.startswith("evaluated on changed data: 1 ")


def test_only_the_test_split_counts_in_an_evaluation_of_data_that_has_one():
    rows = {f"{split}/a/{n}.jpg": f"{split}\ta\t5\t{split}{n}" for split in ("train", "test") for n in range(3)}
    known = DataIdentity(digest="", counts={}, images=rows)
    part = {f"a/{n}.jpg": f"test\ta\t5\ttest{n}" for n in range(3)}
    assert known.difference_from_part(known.changed(images=part)) == ""
    part["a/1.jpg"] = "test\ta\t5\tother"
    part["a/7.jpg"] = part.pop("a/2.jpg")
    assert known.difference_from_part(known.changed(images=part)) == (
        "1 changed (test/a/1.jpg); 1 removed (test/a/2.jpg); 1 added (test/a/7.jpg)"
    )
