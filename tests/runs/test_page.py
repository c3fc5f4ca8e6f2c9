"""The report of a run as a page: what it says, that it is one file, and that names of classes are shown as text."""

import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import finetune
from finetune.cli import main
from finetune.predict.metrics import score
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import PREDICTIONS
from finetune.runs.page import charts, figures
from finetune.runs.page.confusions import OTHERS, SHOWN_CLASSES, count_confusions, make_matrix, most_confused
from finetune.runs.page.figures import Scale
from finetune.runs.page.writing import REPORT, write_report
from finetune.training import evaluation

NASTY = "<img src=x onerror=alert(1)>"
"""Name of a class that would be an element of the page if it were not escaped."""

MOST_BYTES = 3e6
"""Largest size of a report."""


def text_of(page):
    """Return the text of a page between its tags, without entities."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def make_noisy_folder(root, names=(NASTY, "b", "c"), count=9):
    """Write images whose colours say little about their classes, so that there are errors."""
    generator = np.random.default_rng(0)
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (40, 40, 3)) * 0.7
            pixels[..., place % 3] += 40 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    (root / names[-1] / "broken.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, weights):
    return finetune.Recipe(
        data=str(make_noisy_folder(tmp_path_factory.mktemp("data") / "noise")), model="test_efficientnet",
        weights=str(weights), image_size=32, steps=4, batch_size=8, strategy="full",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """The folder of a cross-validated run with errors."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "STANDARD_ERRORS", (float("inf"), float("inf")))
        finetune.run(recipe, folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def page(finished):
    return (finished / REPORT).read_text("utf-8")


def test_a_run_writes_its_report_with_the_numbers_of_its_metrics(finished, page):
    metrics = RunFolder(finished).read_metrics()
    said = text_of(page)
    for own in (metrics.test, metrics.validation):
        low, high = own.top1_interval
        assert f"{100 * own.top1:.1f}" in said
        assert f"{100 * low:.1f} to {100 * high:.1f} %" in said
        for row in own.per_class:
            figures_of_class = (
                rf"{row.num_images} .*{100 * row.recall:.1f}.*{100 * row.precision:.1f}.*{100 * row.f1:.1f}"
            )
            assert re.search(re.escape(row.name) + " " + figures_of_class, said)
    assert f"{metrics.test.log_loss:.3f}" in said


def test_the_report_tells_the_choice_and_the_plan(finished, page):
    decisions = RunFolder(finished).read_decisions()
    said = text_of(page)
    for sentence in (*decisions.choice.reasons, decisions.choice.forecast.sentence, *decisions.plan.reasons):
        assert sentence in said
    for candidate in decisions.choice.candidates:
        assert f"{candidate.label} {100 * candidate.expected_top1:.1f} %" in said


def test_the_report_has_every_section_and_the_held_out_images(page):
    said = text_of(page)
    for title in (
        "How the training went", "Which class is taken for which", "Can the probabilities be trusted?",
        "The most confident errors", "The most confused classes, side by side", "What was left out",
        "What the learning curve says", "Use the model", "finetune predict", "3 test images", "24 held-out images",
    ):  # fmt: skip
        assert title in said
    # The maps of held-out images are those of the last training, which has seen them.
    assert said.count("(a class activation map, of the final model)") == 1
    assert page.count("data:image/jpeg") > 4
    assert "data:image/png" in page


def test_the_report_names_the_files_that_were_left_out(page):
    assert re.search(
        r"1 file could not be read and was left out\. .*broken\.png not an image of a known format", text_of(page)
    )


def test_the_report_is_one_file_that_needs_no_network(page):
    assert len(page.encode()) < MOST_BYTES
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]+)""", re.sub(r"&lt;.*?&gt;", "", page))
    assert links
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert "default-src 'none'" in page


def test_the_name_of_a_class_is_shown_as_text(finished, page):
    assert "<img src=x" not in page
    assert text_of(page).count(NASTY) > 5
    assert NASTY in {row.name for row in RunFolder(finished).read_metrics().test.per_class}


def test_the_command_writes_the_same_report_anew(finished, page, copied, capsys):
    (copied / REPORT).unlink()
    main_ends(["report", str(copied)], 0)
    assert capsys.readouterr().out.strip() == str(copied / REPORT)
    again = (copied / REPORT).read_text("utf-8")
    assert text_of(again).replace(str(copied), str(finished)) == text_of(page).replace(str(copied), str(finished))
    assert again.count("data:image/jpeg") == page.count("data:image/jpeg")


def main_ends(arguments, status):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status


def test_a_run_of_an_earlier_version_says_what_is_missing_and_how_to_get_it(copied, capsys):
    (copied / PREDICTIONS).unlink()
    main_ends(["report", str(copied)], 2)
    said = capsys.readouterr().err
    assert "has no predictions.parquet, because an earlier version made this run; train it again" in said
    assert "Traceback" not in said


def test_images_that_are_not_there_any_more_leave_a_note_and_no_picture(copied):
    model = RunFolder(copied).read_model()
    predictions = pd.read_parquet(copied / PREDICTIONS)
    predictions["path"] = "/moved/" + predictions["path"].str.rsplit("/", n=1).str[-1]
    predictions.to_parquet(copied / PREDICTIONS, index=False)
    said = write_report(RunFolder(copied), model).read_text("utf-8")
    assert "data:image/jpeg" not in said
    assert "not found any more" in said


def test_a_report_without_steps_says_so_instead_of_an_empty_chart(recipe, tmp_path):
    finetune.run(recipe.changed(strategy="linear_probe", steps=None), tmp_path / "run")
    said = (tmp_path / "run" / REPORT).read_text("utf-8")
    assert "Nothing was trained step by step" in said
    assert "learning rate of the head" not in said


def test_the_report_of_an_ensemble_has_the_table_of_options(recipe, tmp_path, recommend_place, monkeypatch):
    recommend_place(monkeypatch, -1)
    monkeypatch.setattr(evaluation, "STANDARD_ERRORS", (float("inf"), float("inf")))
    finetune.run(recipe.changed(ensemble="snapshots:2"), tmp_path / "run")
    said = text_of((tmp_path / "run" / REPORT).read_text("utf-8"))
    assert "The mean of 2 models" in said
    assert "mean of 2 (kept)" in said
    assert "a class activation map of the first member" in said
    assert "timm.create_model" not in said


def test_a_thousand_classes_stay_within_the_size_and_show_those_with_the_most_errors(copied, small_network):
    names = [f"a long name of the class with the number {number}" for number in range(1000)]
    old = pd.read_parquet(copied / PREDICTIONS)
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 3)
    predicted = np.where(generator.random(3000) < 0.4, generator.integers(0, 1000, 3000), labels)
    confidence = generator.uniform(0.3, 1.0, 3000)
    table = pd.DataFrame({
        "path": np.resize(old["path"].to_numpy(), 3000), "split": "test", "label": np.take(names, labels),
        "predicted": np.take(names, predicted), "fold": pd.NA, "probability": confidence,
        "label_probability": np.where(labels == predicted, confidence, 0.1),
    })  # fmt: skip
    table.to_parquet(copied / PREDICTIONS, index=False)
    probabilities = np.eye(1000)[predicted] * confidence[:, None]
    metrics = RunFolder(copied).read_metrics()
    own = score(probabilities, labels, names)
    metrics.changed(test=own, validation=own).save(copied / "metrics.json")
    model = replace(RunFolder(copied).read_model(), network=small_network(num_classes=1000), class_names=tuple(names))
    table = pd.concat([table, table.assign(split="validation")])
    table.to_parquet(copied / PREDICTIONS, index=False)
    path = write_report(RunFolder(copied), model)
    assert path.stat().st_size < MOST_BYTES
    assert f"The {300} classes with the lowest recall of 1000" in text_of(path.read_text("utf-8"))


def test_a_matrix_of_many_classes_keeps_those_with_the_most_errors_and_all_images():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 100, 2000)
    predicted = np.where(
        (labels < SHOWN_CLASSES) & (generator.random(2000) < 0.5), (labels + 1) % SHOWN_CLASSES, labels
    )
    counts = count_confusions(labels, predicted, 100)
    matrix = make_matrix(counts, [f"{number:02d}" for number in range(100)])
    assert matrix.names == (*(f"{number:02d}" for number in range(SHOWN_CLASSES)), OTHERS)
    assert matrix.counts.sum() == 2000
    assert matrix.counts[-1, -1] == (labels >= SHOWN_CLASSES).sum()


def test_confused_classes_become_neighbours_and_the_pair_is_named():
    counts = np.diag([9, 9, 9, 9])
    counts[0, 3] = counts[3, 0] = 4
    counts[1, 2] = 3
    matrix = make_matrix(counts, list("abcd"))
    together = matrix.orders["confused classes together"]
    assert abs(together[0] - together[3]) == abs(together[1] - together[2]) == 1
    assert matrix.orders["by name"] == [0, 1, 2, 3]
    assert matrix.orders["most errors first"][:2] == [0, 2]
    assert most_confused(counts, 5) == [(0, 3, 4, 4), (1, 2, 3, 0)]


def test_the_axis_of_accuracies_that_are_all_1_has_no_label_twice():
    mark = charts.Mark(10.0, 1.0, (0.99, 1.0), "chosen", "1", "all right")
    for chart in (charts.accuracy_against_share(np.linspace(0.5, 1, 20), np.ones(20, dtype=bool)),
                  charts.accuracy_against_time([mark, mark], "all right")):  # fmt: skip
        (wide, *_) = str(chart).split("</svg>")
        labels = re.findall(r'text-anchor="end">([^<]*%)<', wide)
        assert len(labels) == len(set(labels)) > 1


def test_the_accuracy_is_drawn_against_the_share_of_images_that_is_labelled():
    confidence = np.linspace(1.0, 0.5, 100)
    right = np.arange(100) < 80  # the 20 least probable are wrong
    chart = str(charts.accuracy_against_share(confidence, right))
    assert "all images labelled: 80\u00a0% right" in chart
    assert str(charts.accuracy_against_share(np.ones(3), np.array([True, False, True]))).count("<svg") == 2


def test_marks_keep_apart_in_order_and_within_the_chart():
    assert charts.keep_apart([50.0, 10.0, 50.0], 20.0, (0.0, 100.0)) == [40.0, 10.0, 60.0]
    assert charts.keep_apart([95.0, 95.0], 20.0, (0.0, 100.0)) == [80.0, 100.0]


def test_a_scale_of_times_has_ticks_that_do_not_touch():
    scale = Scale(1.0, 3600.0, 0.0, 300.0, is_log=True)
    ticks = scale.ticks(5)
    assert {60.0, 300.0} & {*ticks}
    assert min(np.diff([scale(tick) for tick in ticks])) >= 60.0
    assert scale.value(scale(60.0)) == pytest.approx(60.0, rel=0.02)


def test_texts_of_figures_are_escaped():
    figure = figures.Figure(300.0, (0.0, 1.0), (0.0, 1.0))
    figure.point(0.5, 0.5, "plain", NASTY)
    figure.text(0.5, 0.5, "number", NASTY)
    assert "<img" not in figure.draw(NASTY)


def test_long_histories_are_drawn_with_few_points():
    rows = [{"step": step, "phase": "validation", "train_loss": float(step % 7)} for step in range(1, 10_001)]
    points = charts.series(rows, "train_loss", is_smooth=True)
    assert len(points) <= charts.MOST_POINTS
    assert all(abs(value - 3.0) < 0.1 for _, value in points)


def test_the_report_takes_the_numbers_of_the_files_and_computes_none_of_its_own(copied):
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["test"]["top1"] = 0.1234
    (copied / "metrics.json").write_text(json.dumps(metrics))
    assert "12.3" in text_of(write_report(RunFolder(copied)).read_text("utf-8"))


@pytest.mark.slow
def test_a_wheel_contains_the_templates(tmp_path):
    root = Path(finetune.__file__).parent.parent
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = Path("finetune/runs/page/templates")
    expected = {str(folder / path.name) for path in (root / folder).iterdir()}
    assert len(expected) >= 6
    assert expected <= {*zipfile.ZipFile(wheel).namelist()}
