import io
import json

import numpy as np
import pytest
from rich.console import Console

from finetune.data import ImageSplits, Unreadable, label_paths
from finetune.decide.choice import choose_strategy
from finetune.decide.diagnosis import Verdict
from finetune.decide.planning import make_plan
from finetune.predict.metrics import score
from finetune.progress import duration
from finetune.recipe import Recipe
from finetune.runs.folder import RunMetrics, Seconds
from finetune.runs.report import Report
from finetune.runs.sentences import describe_balance, describe_hardest_class
from finetune.work import Work


@pytest.fixture
def report():
    return Report(Console(file=io.StringIO(), width=200), verbose=True)


def printed(report):
    return report.console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (95, "1 min 35 s"), (3599, "59 min 59 s"), (3660, "1 h 1 min")],
)
def test_durations_are_in_words(seconds, text):
    assert duration(seconds) == text


def test_the_images_are_counted_by_split(report, image_folder, tmp_path):
    paths = [str(path) for path in sorted(image_folder(tmp_path).rglob("*.*"))]
    splits = label_paths(paths, [path.split("/")[-2] for path in paths])
    report.images(splits)
    assert "12 training images of 2 classes" in printed(report)


def test_the_first_unreadable_files_are_listed_and_the_others_counted(report, image_folder, tmp_path):
    paths = [str(path) for path in sorted(image_folder(tmp_path).rglob("*.*"))]
    splits = label_paths(paths, [path.split("/")[-2] for path in paths])
    broken = tuple(Unreadable(path=f"{number}[x].jpg", reason="truncated") for number in range(7))
    report.images(
        ImageSplits(train=splits.train, validation=None, test=None, class_names=splits.class_names, unreadable=broken)
    )
    assert "7 files cannot be read and are left out:" in printed(report)
    assert "    4[x].jpg: truncated\n    and 2 more\n" in printed(report)


def test_the_evidence_is_printed_with_its_errors(report, evidence):
    report.evidence(evidence)
    assert "85.0 ± 2.3 % top-1, cross-validated" in printed(report)
    assert "0.80 (0 far, 1 near)\n" in printed(report)


def test_an_uncalibrated_similarity_says_so(report, evidence):
    report.evidence(evidence.changed(similarity_calibrated=False))
    assert "0.80 (0 far, 1 near) (uncalibrated for this network)" in printed(report)


def test_every_candidate_is_shown_with_accuracy_time_and_basis(report, evidence):
    choice = choose_strategy(evidence)
    report.choice(choice, evidence.model)
    rows = [line.strip() for line in printed(report).splitlines() if line.rstrip().endswith(("prior", "measured"))]
    assert all(map(str.startswith, rows, [candidate.label for candidate in choice.candidates]))
    assert len(rows) == len(choice.candidates)


def test_the_chance_of_each_candidate_is_shown_and_explained(report, evidence):
    choice = choose_strategy(evidence)
    report.choice(choice, evidence.model)
    lines = printed(report).splitlines()
    header = next(line for line in lines if line.lstrip().startswith("candidate"))
    assert " ".join(header.split()) == "candidate expected top-1 90 % interval expected time P(best) basis"
    assert f" {100 * choice.chosen.chance:.0f} % " in lines[lines.index(header) + 1]
    assert "  P(best): probability of being the most accurate candidate\n" in printed(report)


def test_the_plan_is_printed_with_steps_rates_and_evaluation(report, evidence, image_folder, tmp_path):
    choice = choose_strategy(evidence)
    plan = make_plan(Recipe(data="x"), evidence, choice)
    report.plan(plan, splits_of(image_folder(tmp_path / "images")))
    assert f"{plan.steps} steps of {plan.batch_size} images in {plan.precision}; learning rates: " in printed(report)
    assert "evaluation: 3-fold cross-validation, by top1; the final model is then trained on all images" in printed(
        report
    )


@pytest.fixture
def metrics():
    scores = score([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], [0, 0, 1], ["cat", "dog"])
    return RunMetrics(
        validation=scores,
        validation_source="held-out training images",
        test=scores,
        seconds=Seconds(evidence=1.0, search=0.0, train=61.0, total=65.0),
        work=Work(),
    )


def test_the_result_has_accuracy_interval_hardest_class_and_the_next_command(report, metrics, tmp_path):
    report.result(metrics, tmp_path / "my run")
    text = printed(report)
    assert "66.7 % of 3 images right (95 % interval: 20.8 to 93.9); balanced accuracy 50.0 %" in text
    assert "hardest class: dog, 0 % of 1 test image right\n" in text
    assert "1 min 5 s in all: evidence 1 s, training 1 min 1 s" in text
    assert f"\nNext      finetune predict '{tmp_path / 'my run'}' IMAGES... --output predictions.csv\n" in text
    assert text.endswith(f"\n          finetune evaluate '{tmp_path / 'my run'}' --data LABELLED_IMAGES\n")


def test_the_hardest_class_is_not_one_of_many_that_are_never_right():
    scores = score(np.eye(3)[[0, 0, 0, 0]], np.array([0, 1, 1, 2]), ["a", "b", "c"])
    assert describe_hardest_class(scores) == "hardest classes: of 2 of 3, no test image is right, as of b"


def test_the_balanced_accuracy_is_said_where_few_images_of_a_class_hide_among_many():
    labels = np.array([0] * 10 + [1, 1])
    assert describe_balance(score(np.eye(2)[[0] * 12], labels, ["a", "b"])) == (
        "balanced accuracy 50.0 %, the mean over 2 classes"
    )
    assert describe_balance(score(np.eye(2)[[0] * 3], np.array([0, 0, 1]), ["a", "b"])) == ""


def test_an_evaluation_has_a_row_for_each_class(report, metrics):
    report.evaluation(metrics.test)
    assert "  evaluation 66.7 % of 3 images right" in printed(report)
    assert [line.split()[0] for line in printed(report).splitlines()[1:]] == ["class", "cat", "dog"]


def test_without_a_test_split_the_validation_figures_stand_alone(report, metrics, tmp_path):
    report.result(metrics.changed(test=None), tmp_path)
    assert "validation" in printed(report)
    assert "  test" not in printed(report)


FLAT = Verdict(
    kind="flat_start",
    sentence="the loss [sic] stays where it is",
    numbers={"loss": 1.1},
    changes=("training.learning_rate=1e-05", "plan.validation=cross_validation"),
)


def test_a_result_ends_with_what_stands_out_and_how_to_change_it(report, metrics, tmp_path):
    report.result(metrics.changed(verdicts=[FLAT]), tmp_path)
    assert (
        "  flat start: the loss [sic] stays where it is\n    try --set training.learning_rate=1e-05, or "
        "validation=cross_validation in plan.json (train it with --plan)\n" in printed(report)
    )


def test_a_diagnosis_without_verdicts_says_what_was_looked_at(report):
    rows = [{"phase": "validation", "step": 1, "train_loss": 1.0, "update_ratio:head": 1e-3}]
    report.diagnosis("Learning curve of x", (), rows)
    assert "nothing stands out\n  checked: 1 steps of validation; update-to-weight ratios of head" in printed(report)


def test_a_finished_task_is_printed_with_its_time(report):
    with report:
        report.progress("computing features", 1, 2)
        assert printed(report) == ""
        report.progress("computing features", 2, 2)
    assert "computing features: 2 in 0.0 s" in printed(report)


def splits_of(folder):
    paths = [str(path) for path in sorted(folder.rglob("*.*"))]
    return label_paths(paths, [path.split("/")[-2] for path in paths])


@pytest.fixture
def whole_run(evidence, metrics, image_folder, tmp_path):
    """The function that reports everything of a run on a console of a width; returns its lines and the report."""

    def run(width, **options):
        report = Report(Console(file=io.StringIO(), width=width), **options)
        choice = choose_strategy(evidence)
        with report:
            report.progress("computing features", 2, 2)
            splits = splits_of(image_folder(tmp_path / "images"))
            report.images(splits)
            report.evidence(evidence)
            report.choice(choice, evidence.model)
            report.plan(make_plan(Recipe(data="x"), evidence, choice), splits)
            report.result(metrics, tmp_path / "run")
        return printed(report).splitlines(), report

    return run


def test_a_run_is_printed_in_about_15_lines(whole_run):
    lines, _ = whole_run(100)
    assert len(lines) <= 17
    labels = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert labels == ["Found", "Measured", "Chosen", "Expected", "Plan", "Result", "Took", "Next"]


def test_the_choice_has_one_reason_without_the_rule(whole_run, evidence):
    text = " ".join(" ".join(whole_run(100)[0]).split())
    choice = choose_strategy(evidence)
    assert f"Chosen {choice.chosen.label}, " in text
    assert f" of test_resnet: {choice.main_reason} Expected " in text
    assert choice.main_reason in choice.reasons[1]
    assert "five minutes are free" not in text


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_console_and_no_word_is_broken(whole_run, width, verbose):
    lines, _ = whole_run(width, verbose=verbose)
    lines = [line for line in lines if str(line).find("finetune ") == -1 and "/" not in line]  # commands and paths
    assert max(len(line.rstrip()) for line in lines) <= width
    words = set(" ".join(whole_run(1000, verbose=verbose)[0]).split())
    assert {word for line in lines for word in line.split()} <= words


def test_the_summary_of_a_run_is_plain_and_has_what_a_script_needs(whole_run, metrics, tmp_path):
    _, report = whole_run(80)
    summary = json.loads(json.dumps(report.summary))
    assert {"model", "strategy", "candidate", "expected_top1", "run", "validation", "test", "seconds"} <= summary.keys()
    assert summary["run"] == str(tmp_path / "run")
    assert summary["test"]["top1"] == metrics.test.top1
    assert "per_class" not in summary["test"]


def test_an_average_is_explained(evidence):
    choice = choose_strategy(evidence, Recipe(data="x", strategy="full", ensemble="seeds:3"))
    report = Report(Console(file=io.StringIO(), width=200))
    report.choice(choice, evidence.model)
    assert ": full was asked for\n" in printed(report)
    assert "          3 trainings with different seeds are averaged, unless one" in printed(report)


def test_of_many_classes_an_evaluation_lists_the_hardest_unless_verbose(metrics):
    easy = metrics.test.per_class[0]
    classes = [easy.changed(name=f"class {number}", f1=number / 20) for number in range(20)]
    brief, verbose = (Report(Console(file=io.StringIO(), width=200), verbose=verbose) for verbose in (False, True))
    for report in (brief, verbose):
        report.evaluation(metrics.test.changed(per_class=classes))
    assert "class 11 " in printed(brief)
    assert "class 12 " not in printed(brief)
    assert "and 8 classes with a higher f1; --verbose prints all" in printed(brief)
    assert "class 19 " in printed(verbose)


def test_a_quiet_report_prints_nothing(evidence):
    quiet = Report(Console(file=io.StringIO(), quiet=True))
    with quiet:
        quiet.evidence(evidence)
        quiet.progress("x", 1, 1)
    assert printed(quiet) == ""
