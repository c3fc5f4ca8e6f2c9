import math

import pytest

from finetune.schedule import learning_rate_factor


def factors(num_steps, warmup_steps):
    return [learning_rate_factor(step, num_steps, warmup_steps) for step in range(num_steps)]


def test_the_warm_up_climbs_in_equal_steps_to_the_peak():
    assert factors(100, 4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert learning_rate_factor(0, 10, 0) == 1.0


def test_the_rate_falls_along_a_cosine():
    assert factors(10, 0) == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])


def test_half_way_down_the_rate_is_half_the_peak():
    assert learning_rate_factor(60, 100, 20) == pytest.approx(0.5)


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 0), (2, 1), (7, 2), (100, 99), (155, 16)])
def test_no_step_is_wasted_and_one_has_the_peak(num_steps, warmup_steps):
    values = factors(num_steps, warmup_steps)
    assert min(values) > 0
    assert max(values) == values[warmup_steps] == 1.0


def test_the_rate_never_rises_after_the_peak():
    values = factors(50, 5)[5:]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("step", [10, 11, 1000])
def test_after_the_last_step_the_rate_is_zero(step):
    assert learning_rate_factor(step, 10, 2) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(10, 10), (10, 11), (10, -1), (0, 1)])
def test_a_warm_up_that_does_not_fit_is_refused(num_steps, warmup_steps):
    with pytest.raises(ValueError, match=f"warm-up of {warmup_steps} steps does not fit into {num_steps} steps"):
        learning_rate_factor(0, num_steps, warmup_steps)
