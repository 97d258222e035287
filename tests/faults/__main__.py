"""The long part: `make faults`, or some of it by `python -m tests.faults --parts bits machines`.

Prints every fault as it is made, and writes OUT/faults.json: by part, how many faults there were of which kind, and
whatever was not as it should be. Exit code 1 if anything was not.
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
from tests.faults.damage import bits_tried
from tests.faults.kills import campaign
from tests.training import tiny_stage1

DIFFERENCES = "differences"


@dataclass(frozen=True)
class Options:
    parts: tuple[str, ...] = ()
    """Only these; all of them unless told."""
    kills: int = 110
    """Of each stage."""
    seed: int = 1
    out: Path = Path("runs/faults")


def killed(build: Callable[[Path], subjects.Subject]) -> Callable[[Path, Options], dict[str, Any]]:
    """Killed at any moment, a third of the moments inside a save and a third at a given touch of a file."""

    def part(folder: Path, options: Options) -> dict[str, Any]:
        began = time.monotonic()
        subject = build(tiny_stage1.model(folder / "model"))
        tally = campaign(subject, folder, options.kills, options.seed, print)
        return {subject.name: {**asdict(tally), "seconds": round(time.monotonic() - began)}}

    return part


def bits(folder: Path, options: Options) -> dict[str, Any]:
    """Every single bit of every file of a small checkpoint."""
    subject = subjects.line()
    subject.begin(folder / "run").run()
    newest = folder / "run" / f"checkpoint-{subject.steps}"
    tried = [one for file in sorted(newest.iterdir()) for one in bits_tried(newest, file.name)]
    unnoticed = [f"bit {one.bit} of {one.file} was not noticed" for one in tried if not one.noticed]
    return {"checkpoint": {"bits": len(tried), DIFFERENCES: unnoticed}}


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
        found = PARTS[name](folder, options)
        bad += [f"{name}, {what}: {one}" for what, facts in found.items() for one in facts[DIFFERENCES]]
        report = json.loads(file.read_text()) if file.exists() else {}
        told = {"date": str(date.today()), "machine": machine(), "seed": options.seed, **found}
        report[name] = told
        file.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({name: told}, indent=1), flush=True)
        shutil.rmtree(folder)
    for one in bad:
        print(f"NOT AS IT SHOULD BE: {one}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(parse_options(Options, sys.argv[1:], "python -m tests.faults")))
