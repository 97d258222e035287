"""The lines of one method, written by several processes: each into a file of its own, brought together at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpt.evaluation.bench import rows
from dpt.evaluation.bench.asked import Asked
from dpt.folders import whole_file


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is."""

    rank: int = 0
    count: int = 1

    def holds(self, part: int) -> bool:
        return part % self.count == self.rank

    def file(self, lines: Path) -> Path:
        """Where it writes: one that is alone, where the lines belong."""
        return lines if self.count == 1 else lines.with_name(f"{lines.stem}.part-{self.rank}.jsonl")


ALONE = Shard()


def bring_together(lines: Path, asked: Sequence[Asked]) -> None:
    """What processes have left in parts, perhaps when they were killed, into one file in the order of what is asked."""
    parts = sorted(lines.parent.glob(f"{lines.stem}.part-*.jsonl"))
    if not parts:
        return
    found: dict[tuple[str, int], rows.Row] = {}
    for file in (*([lines] if lines.exists() else []), *parts):
        rows.mend(file)
        # A line is twice there if a kill came between the next two steps; whoever wrote it, it says the same.
        found |= {row.key: row for row in rows.read(file)}
    with whole_file(lines) as work:
        rows.append(work, (found[one.key] for one in asked if one.key in found))
    for file in parts:
        file.unlink()
