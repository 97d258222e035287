"""python -m tests.fuzz [PARSER …] [--cases N] [--first N] [--case N [--keep FILE]] [--write FOLDER]"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import attempt, campaign, say
from tests.fuzz.every import PARSERS
from tests.fuzz.summary import write_summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Give every parser broken input.")
    parser.add_argument("parsers", nargs="*", help="by default all of them")
    parser.add_argument("--cases", type=int, default=10_000, help="of each")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", type=int, help="only this one, here, without limits")
    parser.add_argument("--keep", type=Path, help="where to put its file")
    parser.add_argument("--write", type=Path, help="a folder for the summary: fuzz.json and fuzz.md")
    args = parser.parse_args()
    if unknown := [name for name in args.parsers if name not in PARSERS]:
        parser.error(f"there is no parser {unknown[0]!r}; there are {', '.join(PARSERS)}")
    chosen = args.parsers or list(PARSERS)
    if args.case is not None:
        return repeat(chosen[0], args.case, args.keep)
    every = []
    for name in chosen:
        found = campaign(PARSERS[name], args.cases, args.first)
        every.append(found)
        print(
            f"{name}: {found.cases} cases, {found.refused} refused, {found.accepted} accepted, "
            f"{len(found.faults)} faults, slowest {found.slowest:.3f} s (case {found.slowest_case}), "
            f"{found.peak_bytes / 2**20:.0f} MiB, {found.seconds:.0f} s in all",
            flush=True,
        )
        say(found)
        if args.write:
            write_summary(every, args.write)
    return 1 if any(found.faults for found in every) else 0


def repeat(name: str, number: int, keep: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="dpt-fuzz-") as folder:
        target = PARSERS[name].make(Path(folder))
        content = PARSERS[name].case(target, number)
        target.file.write_bytes(content)
        if keep:
            keep.write_bytes(content)
        outcome, told = attempt(target.read)
    print(f"{len(content)} bytes, beginning {content[:200]!r}\n{outcome}: {told}")
    return 1 if outcome == "fault" else 0


if __name__ == "__main__":
    sys.exit(main())
