"""Compute small charts: the places of their ticks, lines and points.

The macro `figure` of pieces.html.j2 draws them as inline SVG.

A report needs no plotting library, no script and no network. Colours are CSS classes (`c0`, `quiet`, …) of the page,
which can therefore be light or dark. Every chart carries a description for those who do not see it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 420, 280
_SPARK_WIDTH, _SPARK_HEIGHT = 96, 26
_LEFT_MARGIN, _RIGHT_MARGIN, _TOP_MARGIN, _BOTTOM_MARGIN = 56, 14, 14, 46


@dataclass(frozen=True)
class Series:
    """One line of a chart; points that are not finite break it."""

    name: str
    x: ArrayLike
    y: ArrayLike
    style: str = "line"  # line | dashed | points | steps (x holds one edge more than y)
    color: int | None = None  # number of the palette, or None for the quiet colour of references


@dataclass(frozen=True)
class Axis:
    """The label and range of an axis; a bound left out comes from the series."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False

    def ticks(self, low: float, high: float) -> list[float]:
        """Choose about five round values within [low, high]."""
        return log_ticks(low, high) if self.log else linear_ticks(low, high)


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """List multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """List powers of ten inside [low, high], with their multiples by 2 and 5 where the range is short."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    factors = (1, 2, 5) if math.log10(high / low) <= 2.5 else (1,)
    stride = max(1, math.ceil((last - first) / 6))
    ticks = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def tick_text(value: float) -> str:
    """Write a short label: 0.25, 1,500, 2M, 10⁻⁶."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e3:
        return f"{value:,.0f}"
    if size < 1e-3:
        power = math.floor(math.log10(size) + 1e-9)
        factor = round(value / 10.0**power, 6)
        superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{superscript}" if factor == 1 else f"{factor:g}·10{superscript}"
    return f"{value:.6g}"


@dataclass(frozen=True)
class _Scale:
    """The map from data to pixels along one axis."""

    low: float
    high: float
    log: bool
    begin_px: float
    end_px: float

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        data = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                data = np.log10(data)
            low, high = math.log10(low), math.log10(high)
        return self.begin_px + (data - low) / (high - low) * (self.end_px - self.begin_px)


def _scale(axis: Axis, every: Sequence[ArrayLike], begin_px: float, end_px: float) -> _Scale:
    data = np.concatenate([np.asarray(values, dtype=np.float64).ravel() for values in every])
    data = data[np.isfinite(data) & ((data > 0) | (not axis.log))]
    low = float(data.min()) if len(data) else 0.1
    high = float(data.max()) if len(data) else 1.0
    margin = 1.08 if axis.log else (high - low) * 0.05
    low = axis.low if axis.low is not None else (low / margin if axis.log else low - margin)
    high = axis.high if axis.high is not None else (high * margin if axis.log else high + margin)
    if not low < high:  # one value only: give it room
        low, high = (low / 2, high * 2) if axis.log else (low - 0.5, high + 0.5)
    return _Scale(low, high, axis.log, begin_px, end_px)


class Tick(NamedTuple):
    """A grid line: its place in pixels, and the label beside it."""

    at: str
    text: str


class DrawnLine(NamedTuple):
    """One series in pixels: the path of an SVG <path>, and the centres of its circles."""

    name: str
    style: str
    color: str  # CSS class
    path: str
    points: list[tuple[str, str]]


class Box(NamedTuple):
    """The part of the chart between the axes, in pixels."""

    left: int
    right: int
    top: int
    bottom: int


_BOX = Box(_LEFT_MARGIN, WIDTH - _RIGHT_MARGIN, _TOP_MARGIN, HEIGHT - _BOTTOM_MARGIN)


@dataclass(frozen=True)
class Chart:
    """A chart in pixels, as the template draws it."""

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[DrawnLine]
    width: int = WIDTH
    height: int = HEIGHT
    box: Box = _BOX


def chart(title: str, description: str, x_axis: Axis, y_axis: Axis, series: Sequence[Series]) -> Chart:
    """Lay out a chart of `series` with a title, a description and two axes."""
    x = _scale(x_axis, [line.x for line in series], _LEFT_MARGIN, WIDTH - _RIGHT_MARGIN)
    y = _scale(y_axis, [line.y for line in series], HEIGHT - _BOTTOM_MARGIN, _TOP_MARGIN)
    return Chart(
        title,
        description,
        x_axis.label,
        y_axis.label,
        _ticks(x_axis, x),
        _ticks(y_axis, y),
        [_draw(line, x, y) for line in series],
    )


@dataclass(frozen=True)
class Sparkline:
    """A chart of the height of a line of text: no axes, no labels."""

    description: str
    lines: list[DrawnLine]
    width: int
    height: int


def sparkline(description: str, series: Sequence[Series], log_x: bool = False) -> Sparkline | None:
    """Lay out a small chart; None without a series."""
    if not series:
        return None
    x = _scale(Axis("", log=log_x), [line.x for line in series], 0, _SPARK_WIDTH)
    y = _scale(Axis("", low=0), [line.y for line in series], _SPARK_HEIGHT - 1, 1)
    return Sparkline(description, [_draw(line, x, y) for line in series], _SPARK_WIDTH, _SPARK_HEIGHT)


def _ticks(axis: Axis, scale: _Scale) -> list[Tick]:
    return [Tick(f"{float(scale(tick)):.1f}", tick_text(tick)) for tick in axis.ticks(scale.low, scale.high)]


def _draw(line: Series, x: _Scale, y: _Scale) -> DrawnLine:
    data_x, data_y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    if line.style == "steps":  # a histogram's outline, down to the axis at both ends
        data_x, data_y = np.repeat(data_x, 2), np.concatenate(([y.low], np.repeat(data_y, 2), [y.low]))
    at_x, at_y = x(data_x), y(data_y)
    is_finite = np.isfinite(at_x) & np.isfinite(at_y)
    path, points, pen_up = [], [], True
    for px, py, shown in zip(at_x, at_y, is_finite, strict=True):
        if shown:
            path.append(f"{'M' if pen_up else 'L'}{px:.1f} {py:.1f}")
            points.append((f"{px:.1f}", f"{py:.1f}"))
        pen_up = not shown
    color = "quiet" if line.color is None else f"c{line.color}"
    return DrawnLine(line.name, line.style, color, "".join(path), points if line.style == "points" else [])
