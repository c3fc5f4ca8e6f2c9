from dataclasses import replace

import numpy as np
import pytest

from finetune.errors import ExportError
from finetune.export.agreement import Agreement, Difference, compare, difference, refuse_if_different
from finetune.export.images import choose_images

SAME = Difference(equal_labels=1.0, percentile95=0.0, largest=0.0)


def undecided(_):
    """The prediction of a model that knows nothing."""
    return np.full(3, 1 / 3)


def agreement(**changes):
    return Agreement(
        origin="3 of 3 given images", num_images=200, num_shapes=20, exported=SAME.changed(**changes),
        decoded_in_full=SAME, own_precision=None,
        distance=None,
    )  # fmt: skip


def test_the_figures_are_those_of_the_largest_difference_of_each_image():
    first = np.array([[0.6, 0.3, 0.1]] * 100)
    second = first.copy()
    second[:4] = [0.3, 0.6, 0.1]
    second[4:50] = [0.59, 0.3, 0.11]
    found = difference(first, second)
    assert found.equal_labels == pytest.approx(0.96)
    assert found.percentile95 == pytest.approx(0.01)
    assert found.largest == pytest.approx(0.3)


@pytest.mark.parametrize("changes", [{"equal_labels": 0.98}, {"percentile95": 0.021}])
def test_a_model_that_differs_is_refused_with_the_figures(changes):
    with pytest.raises(ExportError, match=r"does not agree with the run on 200 images \(.*nothing was written"):
        refuse_if_different(agreement(**changes))


def test_a_model_within_the_tolerance_is_accepted():
    refuse_if_different(agreement(equal_labels=0.99, percentile95=0.02, largest=0.5))


@pytest.mark.usefixtures("few_images")
def test_another_model_is_found_to_differ(trained, image_folder, tmp_path):
    images = choose_images(tmp_path, image_folder(tmp_path / "images", {"a": 3}))
    uniform = compare(trained(temperature=0.01), undecided, 36, images)
    assert uniform.exported.percentile95 > 0.02


@pytest.mark.usefixtures("few_images")
def test_the_reference_is_float32_and_the_runs_own_precision_is_compared_with_it(trained, image_folder, tmp_path):
    images = choose_images(tmp_path, image_folder(tmp_path / "images", {"a": 3}))
    model = trained()
    coarse = replace(model, plan=model.plan.changed(forward=model.plan.forward.changed(precision="bfloat16")))
    found = compare(coarse, undecided, 36, images)
    assert found.own_precision is not None
    assert 0 < found.own_precision.largest < 0.1
    assert found.exported == compare(model, undecided, 36, images).exported
    assert found.lines()[-1].startswith("  the run itself, in its own precision: ")
