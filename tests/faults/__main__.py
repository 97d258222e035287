"""All fault injections: `make faults`, or some of them with `python -m tests.faults --parts bits machines`.

Prints each fault and writes OUT/faults.json: for each part the number of faults of each kind, and all differences from
the expected outcome. Exit code 1 if there is any difference.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dpt.cli.common.console import parse_options
from tests.faults import part_commands, part_machines, part_processes, subjects
from tests.faults.damage import flip_bits
from tests.faults.kills import campaign
from tests.training import tiny_stage1

DIFFERENCES = "differences"


@dataclass(frozen=True)
class Options:
    parts: tuple[str, ...] = ()
    """By default all of them."""
    kills: int = 110
    """Of each stage."""
    seed: int = 1
    out: Path = Path("runs/faults")


def killed(build: Callable[[Path], subjects.Subject]) -> Callable[[Path, Options], dict[str, Any]]:
    """Kills at random moments: a third inside a save, a third at a given file operation."""

    def part(folder: Path, options: Options) -> dict[str, Any]:
        began = time.monotonic()
        subject = build(tiny_stage1.model(folder / "model"))
        tally = campaign(subject, folder, options.kills, options.seed, print)
        return {subject.name: {**asdict(tally), "seconds": round(time.monotonic() - began)}}

    return part


def bits(folder: Path, options: Options) -> dict[str, Any]:
    """Flip every bit of every file of a small checkpoint."""
    subject = subjects.line()
    subject.start(folder / "run").run()
    newest = folder / "run" / f"checkpoint-{subject.steps}"
    flips = [flip for file in sorted(newest.iterdir()) for flip in flip_bits(newest, file.name)]
    unnoticed = [f"bit {flip.bit} of {flip.file} was not noticed" for flip in flips if not flip.noticed]
    return {"checkpoint": {"bits": len(flips), DIFFERENCES: unnoticed}}


PARTS: Mapping[str, Callable[[Path, Options], dict[str, Any]]] = {
    "kills of a line": killed(lambda model: subjects.line()),
    "kills of stage 1": killed(subjects.stage1),
    "kills of stage 2": killed(subjects.stage2),
    "commands": lambda folder, options: part_commands.run(folder, options.seed),
    "bits": bits,
    "processes": lambda folder, options: part_processes.run(folder),
    "machines": lambda folder, options: part_machines.run(folder),
}


def machine() -> str:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{os.cpu_count()} cores" + (f", {model[1]}" if model else "")


def main(options: Options) -> int:
    torch.set_num_threads(1)  # a process with threads cannot be forked
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "faults.json"
    bad = []
    if unknown := [name for name in options.parts if name not in PARTS]:
        print(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for name in options.parts or PARTS:
        folder = Path(tempfile.mkdtemp(prefix="dpt-faults-"))
        results = PARTS[name](folder, options)
        bad += [f"{name}, {case}: {difference}" for case, facts in results.items() for difference in facts[DIFFERENCES]]
        report = json.loads(file.read_text()) if file.exists() else {}
        entry = {"date": str(date.today()), "machine": machine(), "seed": options.seed, **results}
        report[name] = entry
        file.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({name: entry}, indent=1), flush=True)
        shutil.rmtree(folder)
    for one in bad:
        print(f"NOT AS IT SHOULD BE: {one}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(parse_options(Options, sys.argv[1:], "python -m tests.faults")))
