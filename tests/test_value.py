import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field, ValidationError

from finetune.auditing.findings import Audit, AuditFinding
from finetune.data import DataIdentity
from finetune.decide.answers import AnswerRule
from finetune.decide.choice import Backbone, Choice, choose_strategy
from finetune.decide.diagnosis import Verdict
from finetune.decide.evidence import Evidence, GroupFinding
from finetune.decide.forecast import ASSUMED
from finetune.decide.plan import Plan
from finetune.decide.planning import make_plan
from finetune.decide.prior import Prior
from finetune.decide.workload import size_workload
from finetune.ensemble.recommendation import Option
from finetune.errors import CacheError, RecipeError
from finetune.export.agreement import Agreement, Difference
from finetune.network.weights import WeightsReport
from finetune.predict.doubt import Experience
from finetune.predict.metrics import score
from finetune.publish.licence import Base
from finetune.reading import Reading
from finetune.recipe import AugmentationRecipe, Recipe, TableColumns, TrainingRecipe
from finetune.recipe_labels import LabelRecipe
from finetune.recipe_tuning import TuningRecipe
from finetune.runs.folder import Averaged, RunMetrics, Seconds
from finetune.runs.run_state import RunState
from finetune.serve.answers import Answer, ClassProbability, FailedImage, Health, LabelledImage, Refusal
from finetune.tuning.findings import RateTrial
from finetune.tuning.space import Dimension
from finetune.tuning.state import Finding, Trial, Tuning
from finetune.value import FrozenModel
from finetune.work import Work

AUDITED = AuditFinding(
    kind="two labels",
    split="train",
    path="a.jpg",
    label="cat",
    other_split="test",
    other_path="b.jpg",
    suggested_label="dog",
    score=0.97,
    about="cropped",
)

DIFFERENCE = Difference(equal_labels=0.995, percentile95=0.002, largest=0.01)


class Inner(FrozenModel):
    colour: str = "red"


class Outer(FrozenModel):
    number: int
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()


def one_of_each(evidence):
    """A value of every class of the library, filled with something else than its defaults, by class name."""
    recipe = Recipe(data="./ä", seed=3, columns=TableColumns(label="kind"), training=TrainingRecipe(clip_norm=0.5))
    choice = choose_strategy(evidence, recipe)
    plan = make_plan(recipe, evidence, choice)
    metrics = score(np.array([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2]]), np.array([0, 1, 1]), ["a", "b"])
    sets = score(np.array([[0.7, 0.8], [0.4, 0.1], [0.2, 0.9]]), np.array([[1, 1], [0, 0], [0, 1]]), ["a", "b"]).sets
    rule = AnswerRule(costs=((0, 1), (9, 0)), order=("a", "b"), are_distances=False)
    answers = score(np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 1]), ["a", "b"], rule=rule).answers
    work = Work(forward_images=10, backward_images=4, forward_equivalents=22.0, decoded_images=3, cache_hits=7)
    option = Option(
        name="mean of 2", top1=0.9, log_loss=0.3, calibration_error=0.02, train_seconds=60.0,
        predict_milliseconds=2.5, recommended=True,
    )  # fmt: skip
    seconds = Seconds(evidence=1.5, search=0.0, train=20.25, total=22.0)
    dimension = Dimension(name="learning_rate", low=1e-4, high=1e-2)
    finding = Finding(step=2, holds=True, says="20 of 20")
    best = ClassProbability(label="a", probability=0.7)
    labelled = LabelledImage(name="1.jpg", label="a", probability=0.7, top=(best,))
    failed = FailedImage(name="2.jpg", error="the file is empty")
    trial = Trial(
        number=3,
        stage="fine",
        parameters={"learning_rate": 2e-3},
        state="pruned",
        losses=(0.5, 0.4),
        accuracy=0.9,
        seconds=1.5,
    )
    values = [
        recipe,
        TuningRecipe(trials=7, search="tpe", learning_rate=(1e-4, 1e-2)),
        dimension,
        finding,
        RateTrial(rate=1e-3, untrained=1.5, trained=0.5, error=0.1),
        trial,
        Tuning(
            name="run",
            worker="here",
            search="grid",
            num_trials=7,
            asked=(dimension,),
            space=(dimension,),
            findings=(finding,),
            trials=(trial,),
            winner=3,
            seconds=2.5,
        ),
        recipe.columns,
        LabelRecipe(order=("a", "b"), costs={"b": {"a": 9}}),
        Reading(range=(100, 4000), window=False, channels=(2, "GFP", 1), pages="max"),
        recipe.training,
        AugmentationRecipe(vertical_flip=True),
        evidence,
        evidence.preprocessing,
        evidence.probe,
        evidence.probe.curve,
        evidence.speed,
        evidence.speed.forward.changed(layout="contiguous", parallel_parts=2),
        evidence.speed.training[1],
        evidence.stages[0],
        GroupFinding(
            rule="folder",
            description="folders",
            num_groups=9,
            random_accuracy=0.9,
            grouped_accuracy=0.8,
            error=0.01,
            used=True,
        ),
        size_workload(recipe, evidence, "partial"),
        choice,
        choice.candidates[0],
        choice.forecast,
        Backbone(model="a", probe_accuracy=0.8, candidate="full", expected_top1=0.9, expected_seconds=9.5),
        option,
        ASSUMED,
        Prior(
            candidates=("linear_probe", "full"),
            coefficients=((0.0, 0.1, 0.0), (-0.5, 0.1, 0.2)),
            depth=(0.0, 1.0),
            shift=0.2,
            gain=0.1,
            own=0.05,
        ),
        plan,
        plan.stages[-1],
        plan.augmentation,
        metrics,
        metrics.per_class[0],
        sets,
        sets.per_class[0],
        rule,
        answers,
        answers.least_costly,
        answers.least_costly.grades,
        work,
        seconds,
        RunMetrics(validation=metrics, validation_source="3 folds", test=None, seconds=seconds, work=work),
        Verdict(kind="flat_start", sentence="flat", numbers={"steps": 9.0}, changes=("training.learning_rate=1e-3",)),
        AUDITED,
        Audit(
            data="imgs",
            num_images=3,
            num_classes=2,
            findings=(AUDITED,),
            test_accuracy=0.9,
            test_accuracy_without_copies=0.8,
            clean_rows=(("a.jpg", "cat", "train"),),
            notes=("read",),
        ),
        DataIdentity(digest="00ff", counts={"train/cat": 3}),
        Averaged(members=("members/1", "members/2"), temperature=0.9),
        DIFFERENCE,
        Agreement(
            origin="200 of 372 test images",
            num_images=200,
            num_shapes=45,
            exported=DIFFERENCE,
            decoded_in_full=DIFFERENCE.changed(largest=0.2),
            own_precision=None,
            distance=0.001,
        ),
        Experience(probability=(0.9, 0.8), is_right=(True, False), label_probability=(0.9, 0.1), farthest=0.4),
        Base(name="timm/resnet18.a1_in1k", repository="timm/resnet18.a1_in1k", licence="apache-2.0"),
        WeightsReport(source="a file", matched=3, total=3),
        best,
        labelled,
        failed,
        Answer(images=(labelled, failed)),
        Refusal(detail="too many"),
        Health(status="ok", model="run", classes=("a", "b"), images_in_work=3, version="0.1.0"),
        RunState(
            status="failed", phase="training (fold-1)", step=3, of=9, loss=0.5, accuracy=0.75, eta=12.5,
            started="2026-11-29T07:00:00+00:00", updated="2026-11-29T07:01:00+00:00", pid=7, host="here", error="full",
        ),
    ]  # fmt: skip
    return {type(value).__name__: value for value in values}


def library_values():
    return sorted(kind.__name__ for kind in FrozenModel.__subclasses__() if kind.__module__.startswith("finetune."))


@pytest.mark.parametrize("name", library_values())
def test_every_value_is_the_same_after_a_trip_through_a_file(name, evidence, tmp_path):
    value = one_of_each(evidence)[name]
    value.save(tmp_path / "value.json")
    assert type(value).load(tmp_path / "value.json") == value


def test_a_value_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        Inner().colour = "blue"


def test_a_changed_value_is_a_checked_copy():
    first = Outer(number=1)
    second = first.changed(number=2, inner=Inner(colour="blue"))
    assert (first.number, first.inner.colour) == (1, "red")
    assert (second.number, second.inner.colour) == (2, "blue")


def test_a_change_to_a_wrong_value_is_refused_with_its_key():
    with pytest.raises(RecipeError, match=r"^Outer: number: .*'many' was given"):
        Outer(number=1).changed(number="many")


def test_saved_values_are_readable_text_with_their_own_letters(tmp_path):
    Inner(colour="grün").save(tmp_path / "value.json")
    assert Path(tmp_path / "value.json").read_text("utf-8") == '{\n  "colour": "grün"\n}\n'


def test_saving_leaves_no_other_file(tmp_path):
    Inner().save(tmp_path / "value.json")
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


STORED = Path(__file__).parent / "stored"
"""Files that a run wrote before the attributes with aliases had their names."""


def _keys_of(stored, written):
    """What was written of the keys that were stored, in sections, too."""
    if not isinstance(stored, dict):
        return written
    return {key: _keys_of(stored[key], written[key]) for key in stored}


@pytest.mark.parametrize(("kind", "name"), [(Evidence, "evidence"), (Plan, "plan")])
def test_a_file_that_an_earlier_version_wrote_is_read_and_written_with_the_same_keys(tmp_path, kind, name):
    value = kind.load(STORED / f"{name}.json")
    value.save(tmp_path / "value.json")
    stored, written = (json.loads(path.read_text()) for path in (STORED / f"{name}.json", tmp_path / "value.json"))
    assert _keys_of(stored, written) == stored  # keys that are newer have their defaults


def test_the_aliases_of_stored_files_are_the_attributes_of_the_code():
    evidence, plan = Evidence.load(STORED / "evidence.json"), Plan.load(STORED / "plan.json")
    assert (evidence.chirality, evidence.probe.inverse_regularization) == (0.635, 0.025)
    assert (evidence.speed.forward.parallel_parts, evidence.speed.training[0].parallel_parts) == (1, 1)
    assert (plan.parallel_parts, plan.forward.parallel_parts, plan.probe_inverse_regularization) == (1, 1, 0.025)


def test_a_choice_with_the_races_of_earlier_versions_is_read_without_them(evidence, tmp_path):
    choice = choose_strategy(evidence)
    content = choice.model_dump(mode="json")
    candidates = [candidate | {"race_seconds": 1.5} for candidate in content["candidates"]]
    (tmp_path / "choice.json").write_text(
        json.dumps(content | {"racing": ["partial", "full_far"], "candidates": candidates})
    )
    assert Choice.load(tmp_path / "choice.json") == choice


class Aliased(FrozenModel):
    parallel_parts: Annotated[int, Field(ge=1, alias="streams")]
    inner: Annotated[Inner, Field(alias="colours")] = Inner()


def test_a_field_with_an_alias_is_changed_by_its_name_and_saved_under_its_alias(tmp_path):
    value = Aliased(parallel_parts=2).changed(parallel_parts=3)
    value.save(tmp_path / "value.json")
    assert json.loads((tmp_path / "value.json").read_text()) == {"streams": 3, "colours": {"colour": "red"}}
    assert Aliased.load(tmp_path / "value.json") == value


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"streams": 0}, "value: streams: input should be greater than or equal to 1, but 0 was given"),
        ({}, "value: the key 'streams' is missing"),
        ({"streems": 1}, "value: unknown key 'streems'; did you mean 'streams'?"),
        ({"streams": 1, "colours": {"colr": 1}}, "value: unknown key 'colours.colr'; did you mean 'colour'?"),
    ],
)
def test_an_error_names_the_key_of_the_file_and_not_the_attribute(content, sentence):
    with pytest.raises(RecipeError) as caught:
        Aliased.parse(content, "value")
    assert str(caught.value) == sentence


def test_a_wrong_change_is_refused_with_the_name_that_was_given():
    with pytest.raises(RecipeError, match=r"^Aliased: parallel_parts: .* but 0 was given"):
        Aliased(parallel_parts=1).changed(parallel_parts=0)


def test_a_wrong_value_is_refused_with_the_kind_of_error_that_was_asked_for():
    with pytest.raises(CacheError, match=r"^the cache: number: .*'many' was given"):
        Outer.parse({"number": "many"}, "the cache", CacheError)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no file .*plan\.json; expected the outer of a run"):
        Outer.load(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [b"{'number': 1}", b"\xff\xfe\x00"], ids=["quotes", "bytes"])
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"value\.json is not valid JSON"):
        Outer.load(tmp_path / "value.json")


def load(tmp_path, content):
    (tmp_path / "value.json").write_text(json.dumps(content))
    return Outer.load(tmp_path / "value.json")


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path):
    with pytest.raises(RecipeError, match=r"value\.json: unknown key 'numbr'; did you mean 'number'\?$"):
        load(tmp_path, {"numbr": 1})


def test_an_unknown_key_in_a_section_is_named_with_the_section_and_the_sections_nearest_key(tmp_path):
    with pytest.raises(RecipeError, match=r"unknown key 'inner\.color'; did you mean 'colour'\?$"):
        load(tmp_path, {"number": 1, "inner": {"color": "red"}})


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(RecipeError, match="the key 'number' is missing"):
        load(tmp_path, {})


def test_a_wrong_value_in_a_list_is_named_with_its_place_and_shown(tmp_path):
    with pytest.raises(RecipeError, match=r"pair\.1: .* but 'x' was given"):
        load(tmp_path, {"number": 1, "pair": [0, "x"]})


def test_something_else_than_a_table_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="valid dictionary"):
        load(tmp_path, [1, 2])


def test_the_structure_of_a_value_depends_on_its_fields_and_types_and_not_on_their_documentation():
    def structure(number_type, documentation):
        class Part(FrozenModel):
            """A part."""

            number: number_type

        Part.__doc__ = documentation
        Part.model_fields["number"].description = documentation

        class Whole(FrozenModel):
            part: Part

        Whole.model_rebuild(force=True)
        return Whole.structure()

    assert structure(int, "one") == structure(int, "another")
    assert structure(int, "one") != structure(float, "one")
    assert '"number"' in structure(int, "one")
