"""Charts as inline SVG, drawn by leather; their colours come from the page's style, light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    import leather

WIDTH = 720
BAR, LINES_HEIGHT = 30, 320  # of a chart: for each bar, and whole
EDGE = 24  # of leather's own margin (5% of the width) left out
NAME = 26  # longest name at a bar
POINTS, CROWDED = 1000, 300  # of a line: more can't be told apart; more are drawn thin
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:E[+-]?\d+)?")
PLACES = {"d", "x", "y", "x1", "x2", "y1", "y2", "width", "height"}  # attributes of numbers, by leather of 28 digits


def render_bars(label: str, values: Mapping[str, Sequence[float]], names: Sequence[str] = ("",)) -> dict | None:
    """A bar for each name of `values`; of several values each covers a part of the one before, `names` tell which."""
    if not values:
        return None
    chart = _make_chart()
    shorter: list[str] = []  # the names as they fit beside a bar, all different
    for name in values:
        short = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        while short in shorter:
            short += "′"
        shorter.append(short)
    for at, name in enumerate(names):
        rows = [(float(each[at]), short) for each, short in zip(values.values(), shorter, strict=True)]
        chart.add_bars(rows, name=name, fill_color=f"var(--series-{at})")
    _keep_range(chart.add_x_scale, [0.0, *(value for each in values.values() for value in each)])
    chart.add_x_axis(tick_formatter=_format_tick)
    return _render_chart(label, chart, 110 + BAR * len(values), "bars")


def render_histogram(
    label: str, edges: Sequence[float], counts: Sequence[int], limits: Mapping[str, float], x_name: str, y_name: str
) -> dict | None:
    """Counts between edges (one more), and a line at each of `limits`."""
    if not counts:
        return None
    steps = [(edges[0], 0)]
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        steps += [(start, count), (end, count)]
    steps.append((edges[-1], 0))
    chart = _make_chart()
    chart.add_line([(float(x), float(y)) for x, y in steps], name=y_name, stroke_color="var(--series-0)", width=1)
    for at, (name, limit) in enumerate(limits.items(), 2):
        line = [(float(limit), 0.0), (float(limit), float(max(counts)))]
        chart.add_line(line, name=name, stroke_color=f"var(--series-{at})")
    _add_axes(chart, x_name, [edges[0], edges[-1], *limits.values()], [0, *counts])
    return _render_chart(label, chart, LINES_HEIGHT, "histogram")


def render_lines(label: str, series: Mapping[str, Sequence[tuple[float, float]]], x_name: str = "step") -> dict | None:
    """A line for each series of (x, y) points; what is no finite number is left out."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    drawn = {name: _thin_points(points) for name, points in finite.items() if points}
    if not drawn:
        return None
    chart = _make_chart()
    for at, (name, points) in enumerate(drawn.items()):
        twice = points * 2 if len(points) == 1 else points  # else nothing is drawn of it
        width = 8 if len(points) == 1 else 2 if len(points) < CROWDED else 1
        rows = [(float(x), float(y)) for x, y in twice]
        chart.add_line(rows, name=name, stroke_color=f"var(--series-{at})", width=width)
    xs, ys = zip(*(point for points in drawn.values() for point in points), strict=True)
    _add_axes(chart, x_name, xs, ys)
    return _render_chart(label, chart, LINES_HEIGHT, "lines")


def _make_chart() -> leather.Chart:
    import leather

    return leather.Chart()


def _add_axes(chart: leather.Chart, x_name: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Axes over all of these values."""
    _keep_range(chart.add_x_scale, xs)
    _keep_range(chart.add_y_scale, ys)
    chart.add_x_axis(tick_formatter=_format_tick, name=x_name)
    chart.add_y_axis(tick_formatter=_format_tick)


def _keep_range(add_scale: Callable, values: Sequence[float]) -> None:
    """A scale that shows all values; leather's own would show 0 to 1 where they are all one."""
    low, high = float(min(values)), float(max(values))
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else sorted((low * 0.5, low * 1.5))
    add_scale(low, high)


def _render_chart(label: str, chart: leather.Chart, height: int, style: str) -> dict:
    """The chart as a part of a page: it takes the page's width, its numbers are short."""
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": label})
    root.set("viewBox", f"{EDGE} {EDGE} {WIDTH - EDGE} {height - 2 * EDGE}")
    root.append(chart.to_svg_group(WIDTH, height))
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in PLACES:
                element.set(name, NUMBER.sub(lambda match: f"{round(float(match[0]), 1):g}", value))
    return {"kind": "chart", "label": label, "style": style, "svg": ElementTree.tostring(root, encoding="unicode")}


def _format_tick(value: Any, index: int, count: int) -> str:
    """Of an axis: 1200 → 1.2k."""
    number = float(value)
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{sign}"
    return f"{number:.4g}"


def _thin_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about POINTS of them: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / POINTS)
    thinned = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        thinned += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return thinned
