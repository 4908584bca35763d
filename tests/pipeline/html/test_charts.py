"""Charts: where ticks, lines and points lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.html.charts import HEIGHT, WIDTH, Axis, Series, chart, linear_ticks, log_ticks, tick_text


def test_a_chart_puts_its_points_where_the_axes_say():
    drawn = chart(
        "t", "d", Axis("x", 0, 10), Axis("y", 1, 100, log=True), [Series("s", [0, 10, 5], [1, 100, 10], color=0)]
    )
    points = drawn.lines[0].path.removeprefix("M").split("L")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split()) for point in points)
    assert 0 < x0 < x1 < WIDTH
    assert 0 < y1 < y0 < HEIGHT
    assert (x2, y2) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.1)


def test_a_gap_in_the_data_is_a_gap_in_the_line():
    drawn = chart("t", "d", Axis("x"), Axis("y"), [Series("s", [0, 1, 2, 3, 4], [1, 2, np.nan, 3, 4], color=0)])
    path = drawn.lines[0].path
    assert path.count("M") == 2
    assert path.count("L") == 2


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e6))
@settings(max_examples=200, deadline=None)
def test_linear_ticks_are_few_round_and_inside(low, width):
    high = low + width
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    step = ticks[1] - ticks[0]
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in ticks)
    assert f"{step:.0e}"[0] in "125"


@given(st.floats(-12, 3), st.floats(0.05, 12))
@settings(max_examples=200, deadline=None)
def test_logarithmic_ticks_are_few_and_inside(power, decades):
    low, high = 10.0**power, 10.0 ** (power + decades)
    ticks = log_ticks(low, high)
    assert len(ticks) <= 9
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1,500"),
        (2e6, "2M"),
        (1e-6, "10⁻⁶"),
        (5e-4, "5·10⁻⁴"),
        (0.30000000000000004, "0.3"),
    ],
)
def test_a_tick_reads_as_a_person_would_write_it(value, text):
    assert tick_text(value) == text
