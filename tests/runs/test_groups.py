"""Groups in a run: given and found ones, in the splits, the evidence, the plan and what is printed."""

import io

import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.data import groups_of, load_images
from finetune.decide.plan import Plan
from finetune.measure import measuring
from finetune.measure.shift import Grouping
from finetune.runs import pipeline
from finetune.runs.report import Report
from finetune.training.phases import plan_phases

RULE = r"(s\d)_"


@pytest.fixture
def data(image_folder, tmp_path):
    """Return the factory of a tree whose file names begin with one of four subjects."""

    def make(splits):
        root = image_folder(tmp_path / "images", splits=splits)
        for file in sorted(root.rglob("*.*g")):
            file.rename(file.with_name(f"s{int(file.stem) % 4}_{file.name}"))
        return root

    return make


@pytest.fixture
def planned(weights, tmp_path):
    """Return the factory of planned runs: the plan, the folder and what was printed."""

    def make(root, **keys):
        printed = io.StringIO()
        recipe = finetune.Recipe(
            data=str(root),
            model="test_efficientnet",
            weights=str(weights),
            image_size=32,
            steps=4,
            batch_size=8,
            **keys,
        )
        plan = pipeline.plan_only(recipe, tmp_path / "run", Report(Console(file=printed, width=300)))
        return plan, tmp_path / "run", printed.getvalue()

    return make


@pytest.fixture
def found(monkeypatch):
    """Let the search find the subjects, as often as it is called; return whether the groups were used."""

    def find(used=True):
        def groups(_features, splits, indices, _seed):
            names = np.asarray([row["path"].rpartition("/")[2][:2] for row in splits.train["image"]])
            return Grouping(rule=RULE, groups=names[indices], used=used)

        monkeypatch.setattr(measuring, "find_groups", groups)

    return find


def test_groups_that_were_found_are_in_the_splits_the_plan_and_the_folds(data, planned, found):
    found()
    root = data({"": {"a": 20, "b": 20}})
    plan, folder, printed = planned(root)
    assert plan.groups == RULE
    evidence = finetune.Evidence.load(folder / "evidence.json")
    assert (evidence.groups.rule, evidence.groups.used) == (RULE, True)
    assert evidence.probe_accuracy == pytest.approx(evidence.groups.grouped_accuracy, abs=0.1)
    assert printed.count("set groups: none to ignore them") == 1
    splits = load_images(plan.data, seed=plan.seed, groups=Plan.load(folder / "plan.json").groups)
    groups = groups_of(splits.train)
    assert not {*groups} & {*groups_of(splits.test)}
    for phase in plan_phases(plan, splits):
        assert not {*groups[phase.indices]} & {*groups[phase.held_out]} or not len(phase.held_out)


def test_groups_that_given_splits_share_are_printed(data, planned, found):
    found()
    _, _, printed = planned(data({"train": {"a": 20, "b": 20}, "test": {"a": 6, "b": 6}}))
    assert "but 12 validation and test images belong to groups of training images" in printed


def test_uncertain_groups_are_only_printed(data, planned, found):
    found(used=False)
    plan, folder, printed = planned(data({"": {"a": 20, "b": 20}}))
    assert plan.groups == "none"
    assert f"set groups: '{RULE}' if these images belong together" in printed
    assert not finetune.Evidence.load(folder / "evidence.json").groups.used


def test_given_groups_are_measured_and_named_in_the_plan(data, planned):
    plan, folder, printed = planned(data({"": {"a": 20, "b": 20}}), groups=RULE)
    assert plan.groups == RULE
    assert f"3 groups of training images (file names: `{RULE}`): no fold divides a group" in printed
    evidence = finetune.Evidence.load(folder / "evidence.json")
    assert 0 <= evidence.groups.grouped_accuracy <= 1


def test_evidence_and_plans_of_earlier_versions_have_no_groups(small_plan):
    content = small_plan().model_dump(mode="json", by_alias=True)
    content.pop("groups")
    assert Plan.parse(content, "plan").groups == "auto"
