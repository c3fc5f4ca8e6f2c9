"""Draw the charts of a report: accuracy against time, learning curves, and what the probabilities are worth."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from finetune.decide.candidates import Candidate
from finetune.history import Row
from finetune.predict.intervals import wilson_interval
from finetune.predict.metrics import CALIBRATION_BINS, Metrics
from finetune.runs.page.figures import BOTTOM, Figure

WIDTHS = {"narrow": 328.0, "wide": 520.0}
"""Widths of the two drawings of each chart, in pixels: for narrow windows, and for all others."""

MARK = 21.0
"""Side of the square that a numbered mark takes, in pixels."""

MOST_DOTS = 12
"""Largest number of evaluations that are marked on their line."""

NARROWEST = 0.95
"""Largest lower end of an axis of accuracies: on a shorter axis, whole percentages would repeat."""

LEAST_LABELLED = 10
"""Smallest number of labelled images whose accuracy is drawn."""

MOST_POINTS = 300
"""Largest number of points of a line. A longer history is drawn as means of neighbouring steps."""

SMOOTHING = 40
"""Fraction of a curve, 1 / SMOOTHING of its steps, over which the train loss is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run reached, to be drawn next to what was expected."""

    metrics: Metrics
    """Metrics on the images that it was evaluated on."""
    seconds: float
    """Wall time of the training, in seconds."""
    images: str
    """The images, in words."""


class Mark(NamedTuple):
    """An accuracy in a chart of accuracy against time."""

    seconds: float
    """Time of the training, in seconds."""
    accuracy: float
    """Accuracy, 0 .. 1."""
    interval: tuple[float, float]
    """Interval of the accuracy."""
    kind: str
    """Class of the style sheet: `chosen`, `plain` or `measured`."""
    number: str
    """Text in the mark; empty: the mark is a diamond."""
    about: str
    """Text that the browser shows when a pointer rests on the mark."""


class Line:
    """A line of a chart: points of a history, in order."""

    def __init__(self, name: str, kind: str, points: Sequence[tuple[float, float]]) -> None:
        """Hold a line; `kind` is its class in the style sheet."""
        self.name, self.kind, self.points = name, kind, points


def both_widths(draw: Callable[[float], Markup]) -> Markup:
    """Return a chart drawn twice, for a narrow and for a wide window; the style sheet shows one of them."""
    parts = [Markup('<div class="{}">{}</div>').format(name, draw(width)) for name, width in WIDTHS.items()]
    return Markup("").join(parts)


def percent(value: float) -> str:
    """Return a share as a whole percentage, which is not broken at the end of a line."""
    return f"{100 * value:.0f}\u00a0%"


def keep_apart(places: Sequence[float], room: float, ends: tuple[float, float]) -> list[float]:
    """Return positions of marks that are at least `room` apart, in the same order and as near to their own as possible.

    >>> keep_apart([50.0, 10.0, 50.0], room=20.0, ends=(0.0, 100.0))
    [40.0, 10.0, 60.0]

    Args:
        places: position of each mark, in pixels.
        room: smallest distance of two marks, in pixels.
        ends: smallest and largest position.
    """
    # The sorted positions x_i with x_(i+1) >= x_i + room that have the least squared shift: isotonic regression of
    # x_i - i room (Barlow et al. 1972).
    order = np.argsort(places, kind="stable")
    steps = room * np.arange(len(places))
    found = isotonic_regression(np.asarray(places)[order] - steps).x
    moved = np.clip(found, ends[0], max(ends[1] - steps[-1], ends[0])) + steps
    return [round(float(moved[place]), 1) for place in np.argsort(order)]


def frontier(candidates: Sequence[Candidate], measured: Measured) -> Markup:
    """Return the chart of expected accuracy against expected time, with the measured accuracy.

    Args:
        candidates: candidates to draw, the chosen one first; each is drawn with its number in this order, from 1.
        measured: what the run reached.
    """
    marks = []
    for number, each in enumerate(candidates, start=1):
        ends = " to ".join(percent(end) for end in each.expected_interval)
        about = f"{each.label}: {percent(each.expected_top1)} expected, 90 % interval {ends}"
        kind = "chosen" if number == 1 else "plain"
        seconds = max(each.expected_seconds, 1.0)
        marks.append(Mark(seconds, each.expected_top1, each.expected_interval, kind, str(number), about))
    accuracy, interval = measured.metrics.main, measured.metrics.main_interval
    about = f"measured on {measured.images}: {100 * accuracy:.1f} %"
    marks.append(Mark(max(measured.seconds, 1.0), accuracy, interval, "measured", "", about))
    chosen = candidates[0]
    return accuracy_against_time(
        marks,
        f"Accuracy against time of {len(candidates)} candidates; chosen: {chosen.label}, "
        f"{percent(chosen.expected_top1)} expected; {about}",
    )


def accuracy_against_time(marks: Sequence[Mark], about: str) -> Markup:
    """Return the chart of accuracies with their intervals against time.

    Args:
        marks: what to draw; a mark without a number is a diamond.
        about: sentence for those who do not see the chart.
    """
    times = [mark.seconds for mark in marks]
    low = max(0.0, math.floor(20 * min(NARROWEST, *(mark.interval[0] for mark in marks))) / 20)
    x = (min(times) / 1.6, max(times) * 1.6)

    def draw(width: float) -> Markup:
        figure = Figure(width, x, (low, 1.0), height=300.0, is_log=True)
        figure.axes("time of training", "accuracy", duration_tick, percent)
        ends = figure.x.first + MARK / 2, figure.x.last - MARK / 2
        places = keep_apart([figure.x(seconds) for seconds in times], MARK, ends)
        for mark, place in zip(marks, places, strict=True):
            at = figure.x.value(place)
            figure.interval(at, mark.interval, mark.kind)
            if mark.number:
                figure.point(at, mark.accuracy, mark.kind, mark.about, radius=9.0)
                figure.text(at, mark.accuracy, f"number {mark.kind}", mark.number, (0.0, 4.0))
            else:
                figure.diamond(at, mark.accuracy, mark.kind, mark.about)
        return figure.draw(about)

    return both_widths(draw)


def curves(
    lines: Sequence[Line], y_name: str, y_text: Callable[[float], str], about: str, top: float | None = None
) -> Markup:
    """Return the chart of lines over the steps of a training.

    Args:
        lines: the lines, the most important one last.
        y_name: name of the vertical axis.
        y_text: function that writes a value of the vertical axis.
        about: sentence for those who do not see the chart.
        top: highest value of the vertical axis; None: that of the lines.
    """
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    steps = max(x for line in lines for x, _ in line.points)
    # A few steps with a huge loss must not flatten the rest: the axis ends at twice the 98th percentile.
    high = top if top is not None else min(max(values), 2.0 * float(np.percentile(values, 98))) * 1.05
    low = 0.0 if top is None else max(0.0, math.floor(10 * min(values)) / 10 - 0.05)

    def draw(width: float) -> Markup:
        figure = Figure(width, (0.0, float(steps)), (low, max(high, low + 1e-9)), height=220.0)
        figure.axes("step", y_name, lambda step: f"{step:,.0f}", y_text)
        for line in lines:
            inside = [(x, min(max(y, low), high)) for x, y in line.points if math.isfinite(y)]
            figure.line(inside, line.kind)
            for x, y in inside if line.kind in {"accent", "dashed"} and len(inside) <= MOST_DOTS else ():
                figure.point(x, y, line.kind, f"{line.name}, step {x:.0f}: {y_text(y)}", radius=3.0)
        return figure.draw(about)

    return both_widths(draw)


def series(rows: Sequence[Row], key: str, is_smooth: bool = False) -> list[tuple[float, float]]:
    """Return the points (step, value) of a quantity in a history, at most `MOST_POINTS` of them.

    Args:
        rows: rows of one phase, in order.
        key: name of the quantity; rows without it are left out.
        is_smooth: whether each value is the mean over neighbouring steps.
    """
    points = [(float(row["step"]), float(row[key])) for row in rows if key in row]
    if is_smooth and points:
        reach = max(1, len(points) // SMOOTHING // 2)
        values = [value for _, value in points]
        means = [fmean(values[max(0, place - reach) : place + reach + 1]) for place in range(len(values))]
        points = [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
    size = max(1, math.ceil(len(points) / MOST_POINTS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(step for step, _ in group), fmean(value for _, value in group)) for group in groups]


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Markup:
    """Return the chart of the share of right predictions against their probability, above the number of images.

    Args:
        confidence: probability of the predicted class of each image, (n_images,).
        right: whether the predicted class is right, (n_images,).
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    rows = []
    for place in range(CALIBRATION_BINS):
        own = bins == place
        if own.any():
            hits, count = int(right[own].sum()), int(own.sum())
            rows.append((place, float(confidence[own].mean()), hits, count))
    most = max(count for *_, count in rows)

    def draw(width: float) -> Markup:
        figure = Figure(width, (0.0, 1.0), (0.0, 1.0), height=320.0)
        figure.y = figure.y._replace(first=figure.height - BOTTOM - 56.0)
        figure.axes("probability of the predicted class", "share that is right", percent, percent)
        figure.line([(0.0, 0.0), (1.0, 1.0)], "ideal")
        for _, mean, hits, count in rows:
            about = f"{count} images with {percent(mean)} on average: {percent(hits / count)} right"
            figure.interval(mean, wilson_interval(hits, count), "chosen")
            figure.point(mean, hits / count, "chosen", about, radius=3.0 + 4.0 * math.sqrt(count / len(right)))
        counts = figure.y._replace(
            low=0.0, high=float(most), first=figure.height - BOTTOM - 4.0, last=figure.height - BOTTOM - 48.0
        )
        share, figure.y = figure.y, counts
        for place, _, _, count in rows:
            ends = (place / CALIBRATION_BINS, (place + 1) / CALIBRATION_BINS)
            figure.bar(
                ends, (0.0, float(count)), "plain", f"{count} images from {percent(ends[0])} to {percent(ends[1])}"
            )
        figure.y = share
        return figure.draw("Reliability: share of right predictions against their probability")

    return both_widths(draw)


def accuracy_against_share(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Markup:
    """Return the chart of the share of right labels against the share of images that are labelled, where the labels of
    the least probable predictions are withheld.

    Args:
        confidence: probability of the predicted class of each image, (n_images,).
        right: whether the predicted class is right, (n_images,).
    """
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / count
    # Images of equal probability are labelled together, and shares of a few images say little.
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) < 0, True) & (count >= min(LEAST_LABELLED, len(order))))
    thinned = ends[:: max(1, math.ceil(len(ends) / MOST_POINTS))]
    points = [(float(count[end] / len(order)), float(accuracy[end])) for end in dict.fromkeys([*thinned, ends[-1]])]
    lowest = min(NARROWEST, *(share for _, share in points))

    def draw(width: float) -> Markup:
        figure = Figure(width, (0.0, 1.0), (max(0.0, lowest - 0.02), 1.0), height=260.0)
        figure.axes("share of the images that is labelled", "share of the labels that is right", percent, percent)
        figure.line(points, "accent")
        share, last = points[-1]
        figure.point(share, last, "chosen", f"all images labelled: {percent(last)} right")
        return figure.draw("Share of right labels against the share of images that is labelled")

    return both_widths(draw)


def duration_tick(seconds: float) -> str:
    """Return a time in few characters.

    >>> duration_tick(120.0)
    '2 min'
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def rate_tick(rate: float) -> str:
    """Return a learning rate in few characters.

    >>> rate_tick(8e-4), rate_tick(0.0)
    ('8e-04', '0')
    """
    return f"{rate:.0e}" if rate else "0"
