"""Draw figures as SVG: scales, axes and marks, whose colours are those of the page's style sheet.

Every text passes through `Markup.format`, which escapes it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

HEIGHT = 280.0
"""Height of a figure unless it asks for another one, in pixels."""

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 28.0, 40.0
"""Margins of a figure around its axes, in pixels."""

TICK_ROOM = 52.0
"""Smallest distance of the ticks of a horizontal axis, in pixels."""

DURATIONS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 18000, 36000, 86400, 172800, 604800)
"""Ticks of an axis of time, in seconds."""


class Scale(NamedTuple):
    """A scale from values to pixels."""

    low: float
    """Value at the first pixel."""
    high: float
    """Value at the last pixel."""
    first: float
    """Position of the lowest value, in pixels."""
    last: float
    """Position of the highest value, in pixels."""
    is_log: bool = False
    """Whether equal distances are equal ratios."""

    def __call__(self, value: float) -> float:
        """Return the position of a value, in pixels."""
        low, high = (math.log(end) if self.is_log else end for end in (self.low, self.high))
        place = math.log(max(value, 1e-12)) if self.is_log else value
        share = (place - low) / (high - low) if high > low else 0.5
        return round(self.first + share * (self.last - self.first), 1)

    def value(self, place: float) -> float:
        """Return the value at a position in pixels: the inverse of a call."""
        share = (place - self.first) / (self.last - self.first)
        if self.is_log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Return at most about `most` round values within the scale; a scale of ratios has those of `DURATIONS`."""
        if self.is_log:
            apart = abs(self.last - self.first) / max(most, 1)
            shown: list[float] = []
            for value in DURATIONS:
                if self.low <= value <= self.high and (not shown or abs(self(value) - self(shown[-1])) >= apart):
                    shown.append(float(value))
            return shown
        return round_values(self.low, self.high, most)


def round_values(low: float, high: float, most: int) -> list[float]:
    """Return at most about `most` multiples of 1, 2 or 5 times a power of ten between two values.

    >>> round_values(0.0, 1.0, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / max(most, 1)
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


class Figure:
    """An SVG figure with a horizontal and a vertical axis."""

    def __init__(
        self, width: float, x: tuple[float, float], y: tuple[float, float], height: float = HEIGHT, is_log: bool = False
    ) -> None:
        """Begin a figure of a size in pixels, with the ranges of both axes; `is_log`: the horizontal one has ratios."""
        self.width, self.height = width, height
        self.x = Scale(*x, LEFT, width - RIGHT, is_log)
        self.y = Scale(*y, height - BOTTOM, TOP)
        self._marks: list[Markup] = []

    def add(self, template: str, *values: object) -> None:
        """Add an element; the values are escaped."""
        self._marks.append(Markup(template).format(*values))

    def axes(self, x_name: str, y_name: str, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> None:
        """Add grid lines, ticks and the names of both axes."""
        left, right, bottom = self.x.first, self.x.last, self.height - BOTTOM
        for value in self.y.ticks(5):
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', left, right, self.y(value), self.y(value))
            self.add(
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>',
                left - 8,
                self.y(value) + 4,
                y_text(value),
            )
        for value in self.x.ticks(int((right - left) / TICK_ROOM)):
            self.add(
                '<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>',
                self.x(value),
                bottom + 18,
                x_text(value),
            )
        self.add('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', left, right, bottom, bottom)
        self.add('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>', right, self.height - 4, x_name)
        self.add('<text class="name" x="{}" y="{}">{}</text>', 0, 12, y_name)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Add a line through points; `kind` is its class in the style sheet."""
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self.add('<polyline class="line {}" points="{}"/>', kind, places)

    def interval(self, x: float, ends: tuple[float, float], kind: str) -> None:
        """Add a vertical interval, cut at the edges of the figure."""
        low, high = (min(max(end, self.y.low), self.y.high) for end in ends)
        self.add(
            '<line class="interval {}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            kind,
            self.x(x),
            self.x(x),
            self.y(low),
            self.y(high),
        )

    def point(self, x: float, y: float, kind: str, about: str, radius: float = 4.0) -> None:
        """Add a point with a text that the browser shows when a pointer rests on it."""
        self.add(
            '<circle class="point {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>',
            kind,
            self.x(x),
            self.y(y),
            radius,
            about,
        )

    def diamond(self, x: float, y: float, kind: str, about: str) -> None:
        """Add a diamond with a text that the browser shows when a pointer rests on it."""
        left, top = self.x(x), self.y(y)
        places = f"{left},{top - 7} {left + 7},{top} {left},{top + 7} {left - 7},{top}"
        self.add('<polygon class="point {}" points="{}"><title>{}</title></polygon>', kind, places, about)

    def bar(self, x: tuple[float, float], y: tuple[float, float], kind: str, about: str) -> None:
        """Add a bar between two values of each axis."""
        left, right, bottom, top = self.x(x[0]), self.x(x[1]), self.y(y[0]), self.y(y[1])
        self.add(
            '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>',
            kind, left + 1, top, round(max(right - left - 2, 0.5), 1), round(max(bottom - top, 0.0), 1), about,
        )  # fmt: skip

    def text(self, x: float, y: float, kind: str, text: str, shift: tuple[float, float] = (0.0, 0.0)) -> None:
        """Add a text, centred at a point and shifted by some pixels."""
        self.add(
            '<text class="{}" x="{}" y="{}" text-anchor="middle">{}</text>',
            kind,
            self.x(x) + shift[0],
            self.y(y) + shift[1],
            text,
        )

    def draw(self, about: str) -> Markup:
        """Return the figure, with a sentence for those who do not see it."""
        head = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">')
        opened = head.format(self.width, self.height, self.width, self.height, about)
        return Markup("{}{}</svg>").format(opened, Markup("").join(self._marks))


def interval_bar(value: float, ends: Sequence[float], width: float = 120.0) -> Markup:
    """Return a small figure of a share in 0 .. 1 with its interval, to stand in a row of a table."""
    scale = Scale(0.0, 1.0, 5.0, width - 5.0)
    return Markup(
        '<svg class="bar-of-interval" viewBox="0 0 {} 14" width="{}" height="14" aria-hidden="true">'
        '<line class="grid" x1="5" x2="{}" y1="7" y2="7"/><line class="interval" x1="{}" x2="{}" y1="7" y2="7"/>'
        '<circle class="point" cx="{}" cy="7" r="3.5"/></svg>'
    ).format(width, width, width - 5.0, scale(ends[0]), scale(ends[1]), scale(value))
