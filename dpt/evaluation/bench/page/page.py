"""The page put together: what was run, what was counted, what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from dpt.evaluation.bench.page.charts import STYLE, difference_charts, rate_charts
from dpt.evaluation.bench.page.gallery import WIDEST, Album, sections
from dpt.evaluation.bench.results import ImageResult
from dpt.evaluation.bench.tables import NOT_HELD_OUT, SCORES, Difference, Result
from dpt.evaluation.fidelity import Fidelity
from dpt.intervals import Estimate

MOST = (24, 12, 12, 12, 12)
"""Cases that are shown of each section at most."""

KEPT_BACK = 0.5
"""Share of the budget that the first section may take, so that something is left for the others."""


@dataclass(frozen=True)
class Counted:
    """All that a report is made of."""

    record: Mapping[str, Any]
    baseline: str
    results: Sequence[Result]
    differences: Sequence[Difference]
    rows: Mapping[str, Sequence[ImageResult]]
    fidelity: Fidelity | None = None
    kept: Mapping[str, Sequence[ImageResult]] = field(default_factory=dict)
    """Lines of methods that an earlier report counted: without pictures here."""


def page(counted: Counted, album: Album) -> str:
    suite = str(counted.record["asked"]["suite"]).partition("=")[0]
    title = f"Benchmark: {suite}"
    body = "".join([
        f"<h1>{escape(title)}</h1>", _what_was_run(counted), _rates(counted), _differences(counted),
        _others(counted), _gallery(counted, album),
    ])  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _what_was_run(counted: Counted) -> str:
    asked = counted.record["asked"]
    told = {
        "pictures": ", ".join(f"{one.method} {one.pictures:,}" for one in counted.results),
        "drawn with": f"{asked.get('num_timesteps')} steps of {asked.get('scheduler')}, "
        f"guidance {asked.get('guidance_scale')}, {asked.get('per_prompt')} pictures for each prompt",
    }
    identities: dict[str, Any] = next(iter(counted.record["methods"].values()))
    by = ("judge", "detector", "clip", "itm", "suite_hash")
    told |= {key: str(identities[key]) for key in by if key in identities}
    told |= {f"boxes, {one.method}": f"{one.clipped:,} cut to the picture, {one.outside:,} outside and not counted"
             for one in counted.results if one.clipped or one.outside}  # fmt: skip
    lines = "".join(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(value)}</dd>" for key, value in told.items())
    return f"<dl>{lines}</dl>"


def _rates(counted: Counted) -> str:
    if not counted.results[0].rates:
        return '<p class="note">Nothing was judged.</p>'
    note = "In percent, with the 95 % interval of a bootstrap over prompts. Categories weigh the same."
    return f'<h2>Right pictures</h2><p class="note">{note}</p><div class="charts">{rate_charts(counted.results)}</div>'


def _differences(counted: Counted) -> str:
    apart = [one for one in counted.differences if one.points]
    if not apart:
        return ""
    note = (
        "Percentage points, prompt by prompt from the same noise, with the 95 % interval of a paired bootstrap. "
        "An interval that holds 0 shows no difference."
    )
    charts = difference_charts(apart, [one.method for one in counted.results])
    return f'<h2>Differences</h2><p class="note">{note}</p><div class="charts">{charts}</div>'


def _others(counted: Counted) -> str:
    """What is counted beside the verdicts."""
    cards = []
    for one in counted.results:
        cards += [_card(f"{one.method}: the suite's own measures, %", _said(one.measures, "percent"))]
        cards += [_card(f"{one.method}: {title}", _said(getattr(one, name), "plain")) for name, title in SCORES.items()]
        if one.readable:
            cards.append(_card(f"{one.method}: objects readable, %", {"of all that were seen": one.readable.percent}))
    for apart in counted.differences:
        cards += [
            _card(f"{apart.method} - {apart.baseline}: {title}", _said(getattr(apart, name), "plain_signed"))
            for name, title in SCORES.items()
        ]
    shown = "".join(cards)
    notes = [NOT_HELD_OUT] if any(one.itm for one in counted.results) else []
    if counted.fidelity:
        values = {name: f"{value:.3f}" for name, value in counted.fidelity.named.items()}
        notes.append(counted.fidelity.note)
        shown += _card("Fréchet distance", values)
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f'<h2>Beside the judge</h2>{told}<div class="facts">{shown}</div>' if shown else ""


def _said(values: Mapping[str, Estimate], how: str) -> dict[str, str]:
    return {name: getattr(value, how) for name, value in values.items()}


def _card(title: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    lines = "".join(f"<li><span>{escape(k)}</span><span>{escape(v)}</span></li>" for k, v in values.items())
    return f'<div class="fact"><b>{escape(title)}</b><ul>{lines}</ul></div>'


def _gallery(counted: Counted, album: Album) -> str:
    whole = album.budget
    parts = []
    beside = counted.baseline if counted.baseline in counted.rows else next(iter(counted.rows))
    found = sections(counted.rows, beside)
    for number, section in enumerate(found):
        album.budget = int(whole * KEPT_BACK) if number == 0 and len(found) > 1 else whole
        parts.append(album.section(section, MOST[number]))
    told = [
        "Methods side by side, from the same noise, with the boxes that were counted.",
        f"{album.shown:,} cases are shown and {album.left_out:,} left out:",
        f"at most {MOST[0]} of a sort, and {whole / 1e6:g} MB of pictures in all.",
    ]
    if counted.kept:
        told.append(f"Of {', '.join(counted.kept)} there are no pictures here: they were counted by an earlier report.")
    if album.reduced:
        told.append(f"Pictures wider than {WIDEST} pixels are shown reduced.")
    return f'<h2>Pictures</h2><p class="note">{escape(" ".join(told))}</p>{"".join(parts)}'
