import math

import pytest

from finetune.decide.schedule import is_time_to_stop, learning_rate_factor, stride

SCHEDULES = ("cosine", "linear", "step", "inverse_sqrt", "constant")


def factors(num_steps, warmup_steps, schedule="cosine"):
    return [learning_rate_factor(step, num_steps, warmup_steps, schedule) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_climbs_in_equal_steps_to_the_peak(schedule):
    assert factors(100, 4, schedule)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert learning_rate_factor(0, 10, 0) == 1.0


def test_the_rate_falls_along_a_cosine():
    assert factors(10, 0) == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])


def test_a_linear_rate_falls_in_equal_steps():
    assert factors(5, 0, "linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_rate_in_steps_is_a_tenth_after_each_third():
    assert factors(9, 0, "step") == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3)


def test_an_inverse_root_falls_with_the_root_of_the_step():
    assert factors(9, 0, "inverse_sqrt") == pytest.approx([1 / math.sqrt(step) for step in range(1, 10)])


def test_an_inverse_root_counts_in_warm_ups():
    assert learning_rate_factor(4 * 11 - 1, 1000, 10, "inverse_sqrt") == pytest.approx(0.5)


def test_a_constant_rate_stays_at_the_peak():
    assert factors(20, 5, "constant")[5:] == [1.0] * 15


def test_half_way_down_the_rate_is_half_the_peak():
    assert learning_rate_factor(60, 100, 20) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 0), (2, 1), (7, 2), (100, 99), (155, 16)])
def test_no_step_is_wasted_and_one_has_the_peak(num_steps, warmup_steps, schedule):
    values = factors(num_steps, warmup_steps, schedule)
    assert min(values) > 0
    assert max(values) == values[warmup_steps] == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_never_rises_after_the_peak(schedule):
    values = factors(50, 5, schedule)[5:]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("step", [10, 11, 1000])
def test_after_the_last_step_the_rate_is_zero(step):
    assert learning_rate_factor(step, 10, 2) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(10, 10), (10, 11), (10, -1), (0, 1)])
def test_a_warm_up_that_does_not_fit_is_refused(num_steps, warmup_steps):
    with pytest.raises(ValueError, match=f"warm-up of {warmup_steps} steps does not fit into {num_steps} steps"):
        learning_rate_factor(0, num_steps, warmup_steps)


@pytest.mark.parametrize(
    ("losses", "patience", "minimum_gain", "stops"),
    [
        ([0.9, 0.8, 0.7], 2, 0.0, False),
        ([0.9, 0.8, 0.8, 0.8], 2, 0.0, True),
        ([0.9, 0.5, 0.6, 0.4], 2, 0.0, False),
        ([0.9, 0.5, 0.6], 2, 0.0, False),
        ([0.9, 0.89, 0.88], 2, 0.05, True),
        ([0.9] * 50, 0, 0.0, False),
    ],
)
def test_patience_ends_after_so_many_evaluations_without_the_least_gain(losses, patience, minimum_gain, stops):
    assert is_time_to_stop(losses, patience, minimum_gain) is stops


def test_small_gains_add_up_until_they_count():
    assert not is_time_to_stop([0.90, 0.87, 0.84], patience=2, minimum_gain=0.05)


def test_with_enough_time_the_schedule_is_walked_a_step_at_a_time():
    assert stride(10, 100, step_seconds=1.0, seconds_left=1000.0) == 1.0


def test_with_half_the_time_it_needs_a_schedule_is_walked_at_double_speed():
    assert stride(40, 100, step_seconds=1.0, seconds_left=30.0) == pytest.approx(2.0)


@pytest.mark.parametrize("seconds_left", [0.5, 0.0, -3.0])
def test_when_time_is_up_one_step_ends_the_schedule(seconds_left):
    assert stride(40, 100, step_seconds=1.0, seconds_left=seconds_left) == 60.0
