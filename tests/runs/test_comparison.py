"""Comparisons of runs on the images that all of them were evaluated on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

import finetune
from finetune.cli import main
from finetune.errors import RunFolderError
from finetune.runs.comparing import class_differences, compare, holm, mcnemar, paired_interval
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import PREDICTIONS
from finetune.runs.page.comparison import draw_comparison
from finetune.runs.page.writing import write_comparison


@pytest.fixture(scope="module")
def first(tmp_path_factory, weights):
    """The folder of a run."""
    from conftest import make_image_folder

    data = make_image_folder(tmp_path_factory.mktemp("data") / "images", {"a": 20, "b": 20, "c": 20})
    recipe = finetune.Recipe(
        data=str(data), model="test_efficientnet", weights=str(weights), image_size=32, strategy="linear_probe"
    )
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "first")
    finetune.run(recipe, folder.path)
    return folder


def change(folder, path, edit):
    """Return a copy of a run whose predictions are changed by a function."""
    shutil.copytree(folder.path, path)
    predictions = pd.read_parquet(path / PREDICTIONS)
    edit(predictions)
    predictions.to_parquet(path / PREDICTIONS, index=False)
    return RunFolder(path)


def with_results(right):
    """Return a function that makes the first test predictions right or wrong, as listed."""

    def edit(predictions):
        rows = predictions.index[predictions["split"] == "test"]
        label = predictions.loc[rows, "label"].to_numpy()
        wrong = np.where(label == "a", "b", "a")
        hits = np.resize(np.asarray(right, dtype=bool), len(rows))
        predictions.loc[rows, "predicted"] = np.where(hits, label, wrong)

    return edit


def test_runs_are_compared_image_by_image(first, tmp_path):
    one = change(first, tmp_path / "one", with_results([True, True, False]))
    other = change(first, tmp_path / "other", with_results([True, False, False]))
    comparison = compare([one, other])
    (test,) = comparison.tests
    assert comparison.images == "9 test images"
    assert (test.count, test.gained, test.lost) == (9, 0, 3)
    assert test.difference == pytest.approx(-1 / 3)
    assert test.p_value == binomtest(0, 3).pvalue == 0.25
    assert "the 9 images do not tell them apart" in test.sentence
    (drawn,) = draw_comparison(comparison, one.read_plan()).tests
    assert len(drawn.lost_pictures) == 3
    assert all(each.picture.image for each in drawn.lost_pictures)


def test_images_are_matched_by_their_paths_and_not_by_their_order(first, tmp_path):
    reversed_rows = change(first, tmp_path / "other", lambda _table: None)
    table = pd.read_parquet(reversed_rows.path / PREDICTIONS)
    table[::-1].iloc[2:].to_parquet(reversed_rows.path / PREDICTIONS, index=False)
    (test,) = compare([first, reversed_rows]).tests
    assert (test.count, test.gained, test.lost) == (7, 0, 0)


def test_images_of_one_name_count_once_each(first, tmp_path):
    def of_one_name(predictions):
        predictions.loc[predictions["split"] == "test", "path"] = "0001.png"

    one = change(first, tmp_path / "one", of_one_name)
    other = change(first, tmp_path / "other", of_one_name)
    (test,) = compare([one, other]).tests
    assert (test.count, test.gained, test.lost) == (9, 0, 0)


def test_a_clear_difference_is_called_one(first, tmp_path):
    good = change(first, tmp_path / "good", with_results([True]))
    bad = change(first, tmp_path / "bad", with_results([False]))
    (test,) = compare([bad, good]).tests
    assert test.p_value == 2 * 0.5**9
    assert test.sentence.endswith(f"{good.path} is more accurate")


def test_held_out_images_are_compared_where_no_test_image_is_common(first, tmp_path):
    def untested(predictions):
        predictions.loc[predictions["split"] == "test", "path"] = "another image"

    assert compare([first, change(first, tmp_path / "other", untested)]).images == "51 held-out images"


def test_runs_without_a_common_image_are_refused(first, tmp_path):
    def move(predictions):
        predictions["path"] = "other" + predictions["path"]

    with pytest.raises(RunFolderError, match=r"no image was tested, or held out, by all of .*; compare runs of"):
        compare([first, change(first, tmp_path / "other", move)])


def test_runs_with_other_labels_are_refused(first, tmp_path):
    def relabel(predictions):
        predictions["label"] = "c"

    with pytest.raises(RunFolderError, match=r"is labelled '[ab]' in .*, but 'c' in .*; compare runs of the same data"):
        compare([first, change(first, tmp_path / "other", relabel)])


def test_the_same_run_twice_is_refused(first):
    with pytest.raises(RunFolderError, match="a run is given twice"):
        compare([first, first])


def test_the_command_prints_the_test_and_writes_the_page(first, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = change(first, tmp_path / "<b>other", with_results([True, False]))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(first.path), str(other.path)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"{other.path} against {first.path}: " in printed
    assert printed.splitlines()[-1] == "comparison.html"
    page = (tmp_path / "comparison.html").read_text("utf-8")
    assert "<b>other" not in page
    assert "McNemar" in page
    with pytest.raises(RunFolderError, match=r"comparison\.html exists and is not overwritten; give another --output"):
        write_comparison([first, other], tmp_path / "comparison.html")


def test_an_output_for_one_run_is_refused(first, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(first.path), "--output", "mine.html"])
    assert ended.value.code == 2
    assert "the report of one run is written into its folder" in capsys.readouterr().err


def compare_by_command(capsys, *words):
    """Return the exit status of `finetune compare`, and what it printed on stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, words)])
    return ended.value.code, *capsys.readouterr()


def test_the_command_prints_the_test_the_classes_and_what_seeds_leave_open(first, tmp_path, capsys):
    other = change(first, tmp_path / "other", with_results([True, False]))
    code, printed, _ = compare_by_command(capsys, first.path, other.path, "--json")
    assert code == 0
    found = json.loads(printed)
    (test,) = compare([first, other]).tests
    assert found["images"] == "9 test images"
    assert (found["tests"][0]["gained"], found["tests"][0]["lost"]) == (test.gained, test.lost)
    assert sum(each["reference"] - each["right"] for each in found["tests"][0]["classes"]) == test.lost - test.gained
    assert "each run is one training (the seed 0), so this compares models and not settings" in found["notes"][0]


def test_other_images_compare_runs_without_those_that_one_was_trained_on(first, tmp_path, capsys, image_folder):
    other = change(first, tmp_path / "other", lambda _table: None)
    data = image_folder(tmp_path / "more", {"a": 24, "b": 24, "c": 24})  # the first 20 of each are those of the run
    code, printed, _ = compare_by_command(capsys, first.path, other.path, "--data", data, "--json")
    assert code == 0
    found = json.loads(printed)
    trained = pd.read_csv(first.path / "splits.csv")["split"].value_counts()["train"]
    assert found["images"] == f"{72 - trained} images of {data}"
    assert found["tests"][0]["difference"] == 0.0
    assert f"{trained} images of {data} are left out, because a run was trained on them" in found["notes"]


def test_a_single_run_is_not_compared(first, capsys):
    code, _, error = compare_by_command(capsys, first.path)
    assert code == 2
    assert "is compared with another run; give two or more run folders" in error


def test_classes_are_listed_by_their_difference_and_corrected_for_their_number():
    labels = np.repeat(np.array(["a", "b", "c"], dtype=object), [10, 8, 4])
    first = np.array([True] * 10 + [False] * 8 + [True, True, False, False])
    second = np.array([True] * 10 + [True] * 8 + [True, False, False, False])
    found = class_differences(first, second, labels)
    assert [(each.name, each.count, each.reference, each.right) for each in found] == [("b", 8, 0, 8), ("c", 4, 2, 1)]
    assert found[0].p_value == pytest.approx(3 * 2 * 0.5**8)
    assert found[1].p_value == 1.0


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 5), (3, 12), (30, 8)])
def test_the_exact_test_is_that_of_the_binomial_distribution(lost, gained):
    first = np.repeat([True, False, True], [lost, gained, 10])
    second = np.repeat([False, True, True], [lost, gained, 10])
    expected = 1.0 if lost == gained == 0 else binomtest(gained, lost + gained).pvalue
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-12)


def test_p_values_of_several_comparisons_are_corrected():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_of_the_paired_difference_covers_it_in_95_percent_of_the_draws():
    generator = np.random.default_rng(0)
    cells = [0.6, 0.12, 0.08, 0.2]  # both right, gained, lost, both wrong
    draws = generator.multinomial(100, cells, 4000)
    covered = [low <= 0.04 <= high for low, high in (paired_interval(row[1], row[2], 100) for row in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
