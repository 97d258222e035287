"""The report's style sheet, and its rates and differences as inline SVG bars."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dpt.evaluation.bench.tables import Difference, Result
from dpt.intervals import Estimate

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c20; --soft: #62626c; --rule: #dcdce2; --ground: #eeeef2;
  --right: #18794e; --wrong: #c62a2f; --box: #e5007a;
  --m0: #6e7781; --m1: #2563c9; --m2: #b45309; --m3: #7c3aed; --m4: #0f766e; --m5: #be185d; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16161a; --ink: #ececf0; --soft: #a2a2ae; --rule: #34343c; --ground: #26262c;
    --right: #4cc38a; --wrong: #ff7b80; --box: #ff4fa8;
    --m0: #9aa4ae; --m1: #6ea8fe; --m2: #f0a24a; --m3: #b197fc; --m4: #4fd1c5; --m5: #f687b3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; } small, .where, .detections, .note { color: var(--soft); }
small { font-weight: normal; } .note { font-size: .875rem; }
dl { display: grid; grid-template-columns: fit-content(35%) 1fr; gap: .15rem .75rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 0 2rem; }
.group { min-width: 0; }
.line { display: grid; grid-template-columns: 1fr auto; gap: 0 .5rem; font-size: .875rem; margin-bottom: .35rem; }
.line svg { grid-column: 1 / -1; grid-row: 2; width: 100%; height: 16px; display: block; }
.value { font-variant-numeric: tabular-nums; }
.ground { fill: var(--ground); } .bar { fill: var(--own); opacity: .75; }
.whisker { stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.zero { stroke: var(--soft); stroke-width: 1; vector-effect: non-scaling-stroke; }
.m0 { --own: var(--m0); } .m1 { --own: var(--m1); } .m2 { --own: var(--m2); }
.m3 { --own: var(--m3); } .m4 { --own: var(--m4); } .m5 { --own: var(--m5); }
.wide { overflow-x: auto; } pre { font-size: .8rem; white-space: pre-wrap; }
.facts { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.fact { border: 1px solid var(--rule); border-radius: .5rem; padding: .5rem .75rem; min-width: 0; }
.fact b { display: block; } .fact ul { list-style: none; margin: 0; padding: 0; font-size: .875rem; }
.fact li { display: flex; justify-content: space-between; gap: 0 .5rem; flex-wrap: wrap; }
.fact li span:last-child { margin-left: auto; }
.cases { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
article { border: 1px solid var(--rule); border-radius: .5rem; padding: .75rem; min-width: 0; }
article p { margin: 0; } .prompt { font-weight: 600; } .where { font-size: .8rem; }
.shots { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(min(8.5rem, 100%), 1fr));
  margin-top: .5rem; }
figure { margin: 0; min-width: 0; border-top: 3px solid var(--soft); }
figure.right { border-color: var(--right); } figure.wrong { border-color: var(--wrong); }
figure svg { display: block; width: 100%; height: auto; max-height: 24rem; } .small { image-rendering: pixelated; }
.box { fill: none; stroke: var(--box); stroke-width: 1.5; vector-effect: non-scaling-stroke; pointer-events: all; }
figure text { fill: var(--box); font-weight: 700; paint-order: stroke; stroke: #fff; stroke-width: .12em; }
figcaption { font-size: .8rem; } .right > figcaption > span, .met { color: var(--right); }
.wrong > figcaption > span, .unmet { color: var(--wrong); } figcaption ul { list-style: none; margin: 0; padding: 0; }
"""


HUES = 6
"""Method colours in the style sheet; further methods reuse them."""


def rate_charts(results: Sequence[Result]) -> str:
    return "".join(_group(category, [_rate(i, result, category) for i, result in enumerate(results)])
                   for category in results[0].rates)  # fmt: skip


def difference_charts(differences: Sequence[Difference], methods: Sequence[str]) -> str:
    ends = [
        side
        for difference in differences
        for value in difference.points.values()
        for side in (value.low, value.high, value.value)
    ]
    reach = max([0.05, *(abs(side) for side in ends if side is not None)])
    return "".join(
        _group(
            category,
            [_difference(methods.index(difference.method), difference, category, reach) for difference in differences],
        )
        for category in differences[0].points
    )


def _group(title: str, lines: Sequence[str]) -> str:
    return f'<div class="group"><h3>{escape(title)}</h3>{"".join(lines)}</div>'


def _rate(number: int, result: Result, category: str) -> str:
    value = result.rates[category]
    bar = f'<rect class="bar" x="0" y="3" width="{_at(value.value)}" height="10"/>'
    return _line(number, result.method, value.percent, "%", bar + _whisker(value, 0, 1))


def _difference(number: int, difference: Difference, category: str, reach: float) -> str:
    value = difference.points[category]
    left, right = sorted((0.0, value.value))
    start, end = _at(left, -reach, reach), _at(right, -reach, reach)
    bar = f'<rect class="bar" x="{start}" y="3" width="{end - start:.2f}" height="10"/>'
    zero = '<line class="zero" x1="50" x2="50" y1="0" y2="16"/>'
    name = f"{difference.method} - {difference.baseline}"
    return _line(number, name, value.signed, "points", bar + zero + _whisker(value, -reach, reach))


def _line(number: int, name: str, text: str, unit: str, bars: str) -> str:
    label = escape(f"{name}: {text} {unit}")
    return (
        f'<div class="line m{number % HUES}"><span class="name">{escape(name)}</span>'
        f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="ground" x="0" y="3" width="100" height="10"/>{bars}</svg>'
        f'<span class="value">{escape(text)}</span></div>'
    )


def _whisker(value: Estimate, low: float, high: float) -> str:
    if value.low is None or value.high is None:
        return ""
    start, end = _at(value.low, low, high), _at(value.high, low, high)
    ends = "".join(f'<line class="whisker" x1="{x}" x2="{x}" y1="4" y2="12"/>' for x in (start, end))
    return f'<line class="whisker" x1="{start}" x2="{end}" y1="8" y2="8"/>{ends}'


def _at(value: float, low: float = 0, high: float = 1) -> float:
    return round(100 * (value - low) / (high - low), 2)
