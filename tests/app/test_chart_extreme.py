"""Charts of values near the ends of what a float64 can be: curves and the numbers on their axis agree."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from chart_looking import dots, texts

from rankscope.tui.charts.figure import Axis, Chart, Figure, Level, Points, Series
from rankscope.tui.charts.plot import draw
from rankscope.tui.data.spread import half_range, median_of, middle_of
from rankscope.tui.settings.palette import Palette

pytestmark = pytest.mark.filterwarnings("error")
X = np.arange(1.0, 41.0)
FALLING = np.linspace(1.0, 0.25, 40)
SUBNORMAL = 5e-324


def numbers_of(lines: list[str], *, log: bool) -> dict[int, float]:
    """The numbers on the y axis by line, over 1e300 on a linear one and as exponents of ten on a log one."""
    found = {}
    for row, line in enumerate(lines):
        if number := re.match(r"\s*([\d.]+)(?:e(-?\d+))?\u2524", line):
            digit, tens = float(number[1]), int(number[2] or 0)
            found[row] = math.log10(digit) + tens if log else digit * 10.0 ** (tens - 300 if digit else 0)
    return found


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (200, 60)])
@pytest.mark.parametrize(
    ("log", "y"),
    [
        (False, 1.7e308 * FALLING),
        (True, 1.7e308 * FALLING),
        (True, np.full(40, 1.7e308)),
        (True, np.geomspace(1.7e308, SUBNORMAL, 40)),
        (True, np.geomspace(1.0, SUBNORMAL, 40)),
        (True, np.full(40, SUBNORMAL)),
        (True, np.geomspace(1.7e308, 1.0, 40)),
    ],
)  # fmt: skip
def test_a_curve_stands_where_the_numbers_of_its_axis_say(log: bool, y: Points, size: tuple[int, int]) -> None:
    chart = Chart("t", Axis("k"), Axis("sigma", log=log), (Series("one", X, y, 0),), (Level(float(y[-1]), ""),))
    drawing = draw(Figure("t", (chart,)), Palette(), *size)
    lines = texts(drawing.lines)
    assert all(len(line) <= size[0] for line in lines)
    numbers = numbers_of(lines, log=log)
    assert len(numbers) >= 2
    assert all(a > b for a, b in pairwise(numbers.values()))
    *_, (below, bottom) = numbers.items()
    above, top = next(iter(numbers.items()))
    per_line = (top - bottom) / (below - above)
    spots = sorted(dots(drawing.lines))
    for value, (_, at) in ((y[0], spots[0]), (y[-1], spots[-1])):
        number = math.log10(value) if log else value / 1e300
        assert (at // 4 - above) * -per_line + top == pytest.approx(number, abs=1.6 * per_line)


def test_what_is_infinite_is_left_out_and_no_median_of_large_numbers_is_infinite() -> None:
    y = np.where(X == 3, np.inf, X)
    chart = Chart("t", Axis("k"), Axis("B/A"), (Series("one", X, y, 0),))
    numbers = numbers_of(texts(draw(Figure("t", (chart,)), Palette(), 80, 24).lines), log=False)
    assert max(numbers.values()) == pytest.approx(40e-300)
    large = np.array([1.5e308, 1.6e308, 1.6e308, 1.7e308])
    assert middle_of(large) == median_of(large[::-1]) == 1.6e308
    assert half_range(large) == pytest.approx(0.025e308)
    assert median_of([math.inf, 1.0, math.inf]) == median_of([math.inf, math.inf]) == math.inf
    assert median_of([SUBNORMAL, SUBNORMAL]) == SUBNORMAL
