import pytest

from finetune.decide.forecast import ASSUMED, forecast, likely_slope, round_number


def with_curve(evidence, slope, error, num_images=200):
    curve = evidence.probe.curve.changed(slope=slope, slope_error=error)
    return evidence.changed(num_images=num_images, probe=evidence.probe.changed(curve=curve))


def test_errors_that_halve_with_four_times_the_images_are_forecast_to_halve_again(evidence):
    known = with_curve(evidence, 0.5, 0.001)
    assert forecast(known, 0.8, more_images=600).gain == pytest.approx(0.1, abs=0.001)


def test_a_steeper_curve_promises_more(evidence):
    flat, steep = (forecast(with_curve(evidence, slope, 0.05), 0.8).gain for slope in (0.1, 0.6))
    assert flat < steep


def test_more_images_gain_more(evidence):
    few, many = (forecast(evidence, 0.8, more).gain for more in (50, 500))
    assert 0 < few < many < 0.2


def test_without_errors_nothing_is_gained(evidence):
    made = forecast(evidence, 1.0)
    assert (made.gain, made.gain_interval) == (0.0, (0.0, 0.0))


def test_the_interval_holds_the_gain_and_is_wider_where_the_slope_is_uncertain(evidence):
    sure, unsure = (forecast(with_curve(evidence, 0.3, error), 0.8) for error in (0.01, 1.0))
    for made in (sure, unsure):
        assert made.gain_interval[0] < made.gain < made.gain_interval[1]
    assert unsure.gain_interval[1] - unsure.gain_interval[0] > sure.gain_interval[1] - sure.gain_interval[0]


@pytest.mark.parametrize(
    ("error", "expected"), [(1e-6, 0.9), (1e6, ASSUMED.usual_slope), (ASSUMED.spread, (0.9 + ASSUMED.usual_slope) / 2)]
)
def test_a_slope_is_weighted_by_its_precision(error, expected):
    slope, deviation = likely_slope(0.9, error)
    assert slope == pytest.approx(expected, abs=0.001)
    assert deviation >= ASSUMED.bend


def test_as_many_images_again_are_asked_about_in_round_numbers(evidence):
    made = forecast(with_curve(evidence, 0.3, 0.1, num_images=695), 0.9)
    assert made.more_images == 700
    assert made.sentence.startswith("700 more images: about +")


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (7, 7), (15, 20), (695, 700), (1197, 1000), (86_000, 90_000)])
def test_round_numbers_have_one_digit(count, expected):
    assert round_number(count) == expected
