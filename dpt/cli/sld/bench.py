"""`dpt sld bench`: how often instructions are followed, by kind of edit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from dpt.cli.sld.options import SLDModelOptions
from dpt.cli.sld.tables import read_rows
from dpt.errors import fail
from dpt.files import atomic_file
from dpt.methods.sld.settings import EngineSettings, LoopSettings

MAX_CASES = 10_000


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class EditBenchOptions:
    """Follow instructions on rendered scenes and count by the oracle how many images show what they should.

    Writes a line per case to OUT/edits.jsonl, and OUT/table.md; the same command resumes. Correction by prompts is
    measured by `dpt sld measure`.
    """

    num: int = 29
    """Instructions per kind of edit; with the seven kinds, the default is about 200."""
    out: Path = Path("outputs/sld-edits")
    max_rounds: int = 3
    model: SLDModelOptions = field(default_factory=SLDModelOptions)


def bench(options: EditBenchOptions) -> None:
    if not 1 <= options.num <= MAX_CASES:
        fail(f"--num must be from 1 to {MAX_CASES}, not {options.num}")
    from tqdm import tqdm

    from dpt.claims.layout import layout_of
    from dpt.evaluation.suites.pocket_edits import KINDS, edit_cases
    from dpt.methods.sld.record import as_record

    loop = LoopSettings(options.max_rounds, policy="edit")
    corrector = options.model.open(EngineSettings(), loop, options.model.planner(options.out))
    file = options.out / "edits.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(file, "kind", "number")
    with atomic_file(file) as work:  # without a last line that a kill cut off
        work.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()), encoding="utf-8")
    cases = [case for kind in KINDS for case in edit_cases(kind, options.num, options.model.seed)]
    cases.sort(key=lambda case: case.number)  # an interrupted run has seen every kind
    for case in tqdm(cases, desc="edits", unit="image"):
        if (case.kind, case.number) in rows:
            continue
        before = corrector.calls
        result = corrector.follow(case.image, case.instruction, case.number)
        (detections,) = corrector.detector.detect([result.best.image])
        side = case.image.shape[0]
        row = {
            "kind": case.kind,
            "number": case.number,
            "instruction": case.instruction.text,
            "passed": case.passed(layout_of(detections, side, side)),
            "calls": corrector.calls - before,
            **{key: value for key, value in as_record(result).items() if key != "rounds"},
        }
        rows[case.kind, case.number] = row
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
    text = table(list(rows.values()))
    with atomic_file(options.out / "table.md") as work:
        work.write_text(text, encoding="utf-8")
    print(text)


def table(rows: list[dict[str, Any]]) -> str:
    """A line per kind of edit: how many were right, with the 95 % Wilson interval."""
    from dpt.intervals import Share

    lines = ["| kind | followed | of | % | calls of the network |", "|---|---|---|---|---|"]
    for kind in (*dict.fromkeys(row["kind"] for row in rows), "all"):
        own = [row for row in rows if kind in (row["kind"], "all")]
        right = sum(bool(row["passed"]) for row in own)
        calls = sum(row["calls"] for row in own) / len(own)
        lines.append(f"| {kind} | {right} | {len(own)} | {Share(right, len(own))} | {calls:.0f} |")
    return "\n".join(lines) + "\n"
