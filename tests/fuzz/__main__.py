"""python -m tests.fuzz [PARSER …] [--cases N] [--first N] [--case N [--keep FILE]] [--write FOLDER]"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import attempt, campaign, print_faults
from tests.fuzz.parsers import PARSERS
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
    results = []
    for name in chosen:
        result = campaign(PARSERS[name], args.cases, args.first)
        results.append(result)
        print(
            f"{name}: {result.cases} cases, {result.refused} refused, {result.accepted} accepted, "
            f"{len(result.faults)} faults, slowest {result.slowest:.3f} s (case {result.slowest_case}), "
            f"{result.peak_bytes / 2**20:.0f} MiB, {result.seconds:.0f} s in all",
            flush=True,
        )
        print_faults(result)
        if args.write:
            write_summary(results, args.write)
    return 1 if any(result.faults for result in results) else 0


def repeat(name: str, number: int, keep: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="dpt-fuzz-") as folder:
        target = PARSERS[name].make(Path(folder))
        content = PARSERS[name].case(target, number)
        target.file.write_bytes(content)
        if keep:
            keep.write_bytes(content)
        outcome, message = attempt(target.read)
    print(f"{len(content)} bytes, beginning {content[:200]!r}\n{outcome}: {message}")
    return 1 if outcome == "fault" else 0


if __name__ == "__main__":
    sys.exit(main())
