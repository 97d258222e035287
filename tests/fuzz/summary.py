"""What was found, to be kept: as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.fuzz.campaign import SECONDS, Found
from tests.fuzz.limits import MIB

HEAD = """Written by `make fuzz` on {date} ({machine}, Python {python}). Each case is a file that is nearly right, drawn
from the parser's name and the case's number; it is read in a process whose address space may not grow by more than the
limit of its parser, and whose processor time for a case is limited to {seconds:g} s. *Refused* is a typed error of one
sentence; *other* is anything else that is not acceptance: another error, a crash, a hang. Seconds are of the processor.

| parser | cases | refused | accepted | other | slowest, s | peak memory, MiB |
|---|---|---|---|---|---|---|
"""


def write_summary(every: Sequence[Found], folder: Path) -> None:
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "seconds": SECONDS,
    }
    plain = [
        {
            "parser": one.parser,
            "cases": one.cases,
            "refused": one.refused,
            "accepted": one.accepted,
            "other": len(one.faults),
            "slowest_seconds": round(one.slowest, 4),
            "slowest_case": one.slowest_case,
            "peak_mib": round(one.peak_bytes / MIB, 1),
        }
        for one in every
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fuzz.json").write_text(json.dumps({**about, "parsers": plain}, indent=1) + "\n")
    rows = [
        f"| {one.parser} | {one.cases:,} | {one.refused:,} | {one.accepted:,} | {len(one.faults)} | {one.slowest:.2f} "
        f"| {one.peak_bytes / MIB:.0f} |"
        for one in every
    ]
    whole = (
        f"| all | {sum(one.cases for one in every):,} | {sum(one.refused for one in every):,} "
        f"| {sum(one.accepted for one in every):,} | {sum(len(one.faults) for one in every)} "
        f"| {max(one.slowest for one in every):.2f} | {max(one.peak_bytes for one in every) / MIB:.0f} |"
    )
    (folder / "fuzz.md").write_text(HEAD.format(**about) + "\n".join([*rows, whole]) + "\n")
