"""Results of all campaigns as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import SECONDS, CampaignResult
from tests.fuzz.limits import MIB
from tests.fuzz.parsers import PARSERS

HEAD = """Written by `make fuzz` on {date} ({machine}, Python {python}). Each case is a valid file after
random changes that depend on the parser's name and the case's number. It is read in a process with limited
memory and at most {seconds:g} s of processor time per case. *Refused* is a `UserError` of one sentence; *other* is
another error, a crash or a hang. Seconds are processor time.

| parser | cases | refused | accepted | other | slowest, s | peak memory, MiB |
|---|---|---|---|---|---|---|
"""


def write_summary(results: Sequence[CampaignResult], folder: Path) -> None:
    """Write fuzz.json and fuzz.md; parsers that were not run this time keep their row."""
    today = datetime.now(UTC).date().isoformat()
    about = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "seconds": SECONDS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "fuzz.json"
    previous = json.loads(file.read_text())["parsers"] if file.exists() else []
    rows = {row["parser"]: row for row in previous} | {result.parser: _row(result, today) for result in results}
    rows = {name: rows[name] for name in PARSERS if name in rows}
    file.write_text(json.dumps({**about, "parsers": list(rows.values())}, indent=1) + "\n")
    date = max(row["date"] for row in rows.values())
    lines = [_line(row["parser"], row) for row in rows.values()]
    whole = {key: sum(row[key] for row in rows.values()) for key in ("cases", "refused", "accepted", "other")}
    most = {key: max(row[key] for row in rows.values()) for key in ("slowest_seconds", "peak_mib")}
    text = HEAD.format(date=date, **about) + "\n".join([*lines, _line("all", whole | most)]) + "\n"
    (folder / "fuzz.md").write_text(text)


def _row(result: CampaignResult, date: str) -> dict[str, Any]:
    return {
        "parser": result.parser,
        "date": date,
        "cases": result.cases,
        "refused": result.refused,
        "accepted": result.accepted,
        "other": len(result.faults),
        "slowest_seconds": round(result.slowest, 4),
        "slowest_case": result.slowest_case,
        "peak_mib": round(result.peak_bytes / MIB, 1),
    }


def _line(name: str, row: Mapping[str, Any]) -> str:
    counts = " | ".join(f"{row[key]:,}" for key in ("cases", "refused", "accepted", "other"))
    return f"| {name} | {counts} | {row['slowest_seconds']:.2f} | {row['peak_mib']:.0f} |"
