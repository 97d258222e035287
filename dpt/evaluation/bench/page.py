"""The report as one HTML page: options, rates and differences as inline SVG, images; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from dpt.evaluation.bench.columns import OVERALL, MethodResults
from dpt.evaluation.bench.gallery import WIDEST, Album, sections
from dpt.evaluation.bench.results import OPTIONS_KEY
from dpt.evaluation.bench.tables import NOT_HELD_OUT, SCORES, Difference, Result
from dpt.intervals import Estimate

if TYPE_CHECKING:
    from dpt.evaluation.fidelity import Fidelity

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


MOST = (24, 12, 12, 12, 12)
"""Maximum number of cases per section."""

FIRST_SECTION = 0.5
"""Maximum fraction of the budget for the first section."""


@dataclass(frozen=True)
class ReportData:
    """The content of a report."""

    record: Mapping[str, Any]
    baseline: str
    results: Sequence[Result]
    differences: Sequence[Difference]
    methods: Mapping[str, MethodResults]
    fidelity: Fidelity | None = None
    kept: Mapping[str, MethodResults] = field(default_factory=dict)
    """Methods of an earlier report, which have no images here."""


def page(data: ReportData, album: Album) -> str:
    suite = str(data.record[OPTIONS_KEY]["suite"]).partition("=")[0]
    title = f"Benchmark: {suite}"
    body = "".join([
        f"<h1>{escape(title)}</h1>", _options(data), _rates(data), _differences(data),
        _other_metrics(data), _gallery(data, album),
    ])  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _options(data: ReportData) -> str:
    options = data.record[OPTIONS_KEY]
    entries = {
        "pictures": ", ".join(f"{result.method} {result.pictures:,}" for result in data.results),
        "drawn with": f"{options.get('num_timesteps')} steps of {options.get('scheduler')}, "
        f"guidance {options.get('guidance_scale')}, {options.get('per_prompt')} images for each prompt",
    }
    identities: dict[str, Any] = next(iter(data.record["methods"].values()))
    by = ("judge", "detector", "clip", "itm", "hps", "suite_hash")
    entries |= {key: str(identities[key]) for key in by if key in identities}
    entries |= {
        f"boxes, {result.method}": f"{result.clipped:,} clipped to the image, {result.outside:,} outside, not counted"
        for result in data.results
        if result.clipped or result.outside
    }
    lines = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(value)}</dd>" for key, value in entries.items()
    )
    return f"<dl>{lines}</dl>"


def _n(result: Result) -> str:
    """The number of prompts of each category."""
    counts = {name: n for name, n in result.prompts.items() if name != OVERALL}
    if len(set(counts.values())) == 1:
        return f"n = {next(iter(counts.values())):,} prompts in each category"
    return ", ".join(f"{name} n = {n:,}" for name, n in counts.items())


def _rates(data: ReportData) -> str:
    if not data.results[0].rates:
        return '<p class="note">Nothing was judged.</p>'
    note = (
        f"In percent, with the 95 % interval of a bootstrap over prompts (Wilson where all are alike); "
        f"{_n(data.results[-1])}. Categories weigh the same."
    )
    charts = rate_charts(data.results)
    return f'<h2>Right images</h2><p class="note">{escape(note)}</p><div class="charts">{charts}</div>'


def _differences(data: ReportData) -> str:
    differences = [difference for difference in data.differences if difference.points]
    if not differences:
        return ""
    note = (
        "Percentage points, prompt by prompt from the same noise, with the 95 % interval of a paired bootstrap. "
        "An interval that contains 0 shows no difference."
    )
    charts = difference_charts(differences, [result.method for result in data.results])
    return f'<h2>Differences</h2><p class="note">{note}</p><div class="charts">{charts}</div>'


def _other_metrics(data: ReportData) -> str:
    """All metrics but the verdicts."""
    cards = []
    for result in data.results:
        cards.append(_card(f"{result.method}: the suite's metrics, %", _formatted(result.measures, "percent")))
        cards += [_card(f"{result.method}: {title}", _formatted(getattr(result, name), "plain"))
                  for name, title in SCORES.items()]  # fmt: skip
        if result.readable:
            cards.append(_card(f"{result.method}: objects readable, %", {"of all objects": result.readable.percent}))
    for difference in data.differences:
        cards += [
            _card(
                f"{difference.method} - {difference.baseline}: {title}",
                _formatted(getattr(difference, name), "plain_signed"),
            )
            for name, title in SCORES.items()
        ]
    notes = [NOT_HELD_OUT] if any(result.itm for result in data.results) else []
    if data.fidelity:
        distances = {name: f"{value:.3f}" for name, value in data.fidelity.named.items()}
        notes.append(data.fidelity.note)
        cards.append(_card("Fréchet distance", distances))
        cards.append(_card("diversity within a prompt", _formatted(data.fidelity.diversity, "plain")))
    shown = "".join(cards)
    paragraphs = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f'<h2>Other metrics</h2>{paragraphs}<div class="facts">{shown}</div>' if shown else ""


def _formatted(values: Mapping[str, Estimate], form: str) -> dict[str, str]:
    """`form`: a property of Estimate."""
    return {name: getattr(value, form) for name, value in values.items()}


def _card(title: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    lines = "".join(f"<li><span>{escape(k)}</span><span>{escape(v)}</span></li>" for k, v in values.items())
    return f'<div class="fact"><b>{escape(title)}</b><ul>{lines}</ul></div>'


def _gallery(data: ReportData, album: Album) -> str:
    budget = album.budget
    parts = []
    baseline = data.baseline if data.baseline in data.methods else next(iter(data.methods))
    shown = sections(data.methods, baseline)
    for number, section in enumerate(shown):
        album.budget = int(budget * FIRST_SECTION) if number == 0 and len(shown) > 1 else budget
        parts.append(album.section(section, MOST[number]))
    notes = [
        "Methods side by side, from the same noise, with the boxes that were counted.",
        f"{album.shown:,} cases are shown and {album.left_out:,} left out:",
        f"at most {MOST[0]} per section, and {budget / 1e6:g} MB of images in all.",
    ]
    if data.kept:
        notes.append(f"There are no images of {', '.join(data.kept)}: these results are from an earlier report.")
    if album.reduced:
        notes.append(f"Images wider than {WIDEST} pixels are shown reduced.")
    return f'<h2>Images</h2><p class="note">{escape(" ".join(notes))}</p>{"".join(parts)}'
