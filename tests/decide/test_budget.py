import re

import pytest

from finetune.decide.budget import (
    OVERHEAD_SECONDS,
    describe_command,
    finishing_seconds,
    refuse_short_budget,
    training_budget,
)
from finetune.decide.workload import probe_seconds
from finetune.errors import RecipeError


@pytest.fixture
def measured(evidence):
    """Evidence of a command that has run for 20 s: 12 s before the measurement and 8 s of it, with 100 test images."""
    speed = evidence.speed.changed(forward_images_per_second=50.0, reading_images_per_second=100.0)
    return evidence.changed(seconds_before=12.0, seconds=8.0, num_test=100, speed=speed)


def test_trainings_get_what_is_left_after_the_time_that_has_passed_and_the_tests_that_follow(measured):
    # 100 test images at 1 / 50 + 1 / 100 s each take 3 s.
    assert finishing_seconds(measured) == pytest.approx(3.0 + OVERHEAD_SECONDS)
    assert training_budget(100.0, measured) == pytest.approx(100.0 - 20.0 - 3.0 - OVERHEAD_SECONDS)


def test_the_first_steps_on_an_accelerator_are_counted(measured):
    on_gpu = measured.changed(speed=measured.speed.changed(device_kind="cuda"))
    assert finishing_seconds(on_gpu) == pytest.approx(finishing_seconds(measured) + 3.0)


def test_each_model_of_an_average_predicts_the_test_images(measured):
    assert training_budget(100.0, measured, 3) == pytest.approx(100.0 - 20.0 - 9.0 - OVERHEAD_SECONDS)


def test_a_budget_that_is_too_short_is_refused_with_one_that_is_enough(measured):
    with pytest.raises(RecipeError, match=r"a time budget of 21 s is too short: 20 s have passed") as error:
        training_budget(21.0, measured)
    enough = float(re.search(r"--time-budget (\d+)s", str(error.value))[1])
    assert training_budget(enough, measured) >= probe_seconds(measured)


def test_a_budget_that_suffices_exactly_and_no_budget_at_all_are_accepted():
    refuse_short_budget(10.0, 6.0, 4.0)
    refuse_short_budget(None, 1e9, 1e9)


def test_the_expected_time_of_the_command_includes_what_has_passed_and_what_follows(measured):
    assert describe_command(measured, 30.0, 1) == (
        "55 s expected for the whole command: 20 s have passed, 30 s are for training, 5 s for testing and writing"
    )
