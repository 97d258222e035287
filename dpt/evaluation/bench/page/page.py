"""The report page: options, rates, differences, images. All text goes through `html.escape`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.cost import OVERALL
from dpt.evaluation.bench.page.charts import STYLE, difference_charts, rate_charts
from dpt.evaluation.bench.page.gallery import WIDEST, Album, sections
from dpt.evaluation.bench.results import OPTIONS_KEY
from dpt.evaluation.bench.tables import NOT_HELD_OUT, SCORES, Difference, Result
from dpt.evaluation.fidelity import Fidelity
from dpt.intervals import Estimate

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
