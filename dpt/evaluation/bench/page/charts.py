"""Rates and differences as bars with their intervals, in inline SVG that stretches with the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dpt.evaluation.bench.report import Difference, Result
from dpt.evaluation.intervals import Estimate

HUES = 6
"""How many colours the style sheet has for methods; then they come again."""


def rate_charts(found: Sequence[Result]) -> str:
    return "".join(_group(category, [_rate(i, one, category) for i, one in enumerate(found)])
                   for category in found[0].rates)  # fmt: skip


def difference_charts(apart: Sequence[Difference], methods: Sequence[str]) -> str:
    ends = [side for one in apart for value in one.points.values() for side in (value.low, value.high, value.value)]
    reach = max([0.05, *(abs(side) for side in ends if side is not None)])
    return "".join(
        _group(category, [_difference(methods.index(one.method), one, category, reach) for one in apart])
        for category in apart[0].points
    )


def _group(title: str, lines: Sequence[str]) -> str:
    return f'<div class="group"><h3>{escape(title)}</h3>{"".join(lines)}</div>'


def _rate(number: int, one: Result, category: str) -> str:
    value = one.rates[category]
    bar = f'<rect class="bar" x="0" y="3" width="{_at(value.value)}" height="10"/>'
    return _line(number, one.method, value.percent, "%", bar + _whisker(value, 0, 1))


def _difference(number: int, one: Difference, category: str, reach: float) -> str:
    value = one.points[category]
    left, right = sorted((0.0, value.value))
    start, end = _at(left, -reach, reach), _at(right, -reach, reach)
    bar = f'<rect class="bar" x="{start}" y="3" width="{end - start:.2f}" height="10"/>'
    zero = '<line class="zero" x1="50" x2="50" y1="0" y2="16"/>'
    name = f"{one.method} - {one.baseline}"
    return _line(number, name, value.signed, "points", bar + zero + _whisker(value, -reach, reach))


def _line(number: int, name: str, said: str, unit: str, inside: str) -> str:
    label = escape(f"{name}: {said} {unit}")
    return (
        f'<div class="line m{number % HUES}"><span class="name">{escape(name)}</span>'
        f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="ground" x="0" y="3" width="100" height="10"/>{inside}</svg>'
        f'<span class="said">{escape(said)}</span></div>'
    )


def _whisker(value: Estimate, low: float, high: float) -> str:
    if value.low is None or value.high is None:
        return ""
    start, end = _at(value.low, low, high), _at(value.high, low, high)
    ends = "".join(f'<line class="whisker" x1="{x}" x2="{x}" y1="4" y2="12"/>' for x in (start, end))
    return f'<line class="whisker" x1="{start}" x2="{end}" y1="8" y2="8"/>{ends}'


def _at(value: float, low: float = 0, high: float = 1) -> float:
    return round(100 * (value - low) / (high - low), 2)
