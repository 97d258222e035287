"""The lines of `dpt sld measure` and `dpt sld bench`, and the tables of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from dpt.intervals import Share
from dpt.untrusted import parse_json, read_text

Rows = Sequence[Mapping[str, Any]]

Candidates = Sequence[tuple[str, Sequence[bool]]]
"""Category and verdicts of the images of each prompt."""


def read_rows(file: Path, name: str, number: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Finished lines by these two keys; a line that a kill cut off is done again."""
    rows = {}
    for line in read_text(file).splitlines() if file.exists() else ():
        try:
            row = parse_json(line)
            rows[str(row[name]), int(row[number])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def page(rows: Rows, calls_per_image: int, name: str, candidates: Candidates = ()) -> str:
    """The table by category, and the totals in sentences."""
    base = name.removesuffix("-sld")
    head = f"| category | {base} | {base} + SLD | right that became wrong | calls more per image | per wrong image |"
    lines = [head, "|---|---|---|---|---|---|"]
    categories = list(dict.fromkeys(row["category"] for row in rows))
    for category in (*categories, "all"):
        lines.append(_line(category, [row for row in rows if category in (row["category"], "all")]))
    lines += ["", *_sentences(rows, calls_per_image)]
    if candidates:
        lines += ["", *_best_of(rows, calls_per_image, base, candidates)]
    return "\n".join(lines) + "\n"


EDITS = ("delete", "move", "add", "make")
"""The first words of plans; "make red circle #1 a blue circle" recolours."""


def examples(rows: Rows) -> list[Mapping[str, Any]]:
    """For each edit the first image that it alone made right, and one where a round made several kinds at once."""
    single: dict[str, Mapping[str, Any]] = {}
    several = None
    for row in rows:
        if row["before"] or not row["after"] or len(row["rounds"]) != 2 or row["rounds"][1]["action"] != "edit":
            continue
        plan = row["rounds"][1]["plan"]
        words = {edit.split()[0] for edit in plan}
        if any("unreadable" in edit for edit in plan):
            continue
        if len(plan) == 1:
            single.setdefault(plan[0].split()[0], row)
        elif len(words) > 2 and several is None:
            several = row
    found = [single[word] for word in EDITS if word in single]
    return found if several is None else [*found, several]


def _line(category: str, rows: Rows) -> str:
    right = [row for row in rows if row["before"]]
    wrong = [row for row in rows if not row["before"]]
    cells = [
        _share(rows, "before"),
        _share(rows, "after"),
        f"{sum(not row['after'] for row in right)} of {len(right)}",
        f"{_mean(rows, 'calls'):.0f}",
        f"{_mean(wrong, 'calls'):.0f}",
    ]
    return f"| {category} | {' | '.join(cells)} |"


def _sentences(rows: Rows, calls_per_image: int) -> list[str]:
    right = [row for row in rows if row["before"]]
    broken = Share(sum(not row["after"] for row in right), len(right))
    gated = Share(sum(row["before"] or row["after"] for row in rows), len(rows))
    false = Share(sum(row["status"] == "right" and not row["after"] for row in rows), len(rows))
    by_rounds = [sum(row["after"] and row.get("best_round") == n for row in rows) for n in range(1, 4)]
    failed = sum(row["status"] == "failed" for row in rows)
    lines = [
        f"- {len(rows)} images. An image takes {calls_per_image} calls of the network; SLD took "
        f"{_mean(rows, 'calls'):.0f} more on average, and {_mean(rows, 'seconds'):.2f} seconds.",
        f"- Right images that became wrong: {broken} %.",
        f"- If only images that the judge rejects were corrected (gated): {gated} % right.",
        f"- Called right by the loop, and wrong by the judge: {false} %.",
        f"- Right after one round: {by_rounds[0]}, two: {by_rounds[1]}, three: {by_rounds[2]}.",
    ]
    return [*lines, f"- Could not be corrected: {failed}."] if failed else lines


def _best_of(rows: Rows, calls_per_image: int, base: str, candidates: Candidates) -> list[str]:
    """Rates of the best of n images: right if any of the first n is."""
    most = max(len(verdicts) for _, verdicts in candidates)
    equal = 1 + _mean(rows, "calls") / calls_per_image
    categories = list(dict.fromkeys(category for category, _ in candidates))
    lines = [
        f"The best of n images of {base}, chosen by the judge ({len(candidates)} prompts). SLD cost as much as "
        f"n = {equal:.2f}, so n = {ceil(equal)} is the comparison at equal calls.",
        "",
        f"| n | {' | '.join((*categories, 'all'))} | calls per image |",
        f"|---|{'---|' * (len(categories) + 2)}",
    ]
    for n in range(1, most + 1):
        cells = []
        for category in (*categories, "all"):
            own = [verdicts for name, verdicts in candidates if category in (name, "all")]
            cells.append(str(Share(sum(any(v[:n]) for v in own), len(own))))
        lines.append(f"| {n} | {' | '.join(cells)} | {n * calls_per_image} |")
    return lines


def _share(rows: Rows, key: str) -> str:
    return str(Share(sum(bool(row[key]) for row in rows), len(rows)))


def _mean(rows: Rows, key: str) -> float:
    return sum(row[key] for row in rows) / max(1, len(rows))
