"""Methods of an earlier report, beside those of this one: a method need not be drawn again to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.cli.bench_record import check_asked_alike, check_one_judge
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.evaluation.bench.fidelity_table import Fidelity
    from dpt.evaluation.bench.report import Result
    from dpt.evaluation.bench.rows import Row


@dataclass(frozen=True)
class Earlier:
    """What there is of them: nothing, where no report was kept."""

    made_of: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    lines: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    fidelity: Mapping[str, Any] | None = None

    def beside(self, own: Fidelity | None) -> Fidelity | None:
        """With the distances of the earlier sets, if they were measured by the same encoder to the same pictures."""
        from dataclasses import asdict, replace

        known = self.fidelity
        if own is None or known is None:
            return own
        if any(known.get(key) != value for key, value in asdict(own).items() if key not in ("distances", "floor")):
            return own
        distances = {name: known["distances"][name] for name in self.lines if name in known["distances"]}
        return replace(own, distances={**distances, **own.distances})


def open_earlier(folder: Path | None, record: Mapping[str, Any], drawn: Mapping[str, Sequence[Row]]) -> Earlier:
    """All of its methods but those that were drawn here."""
    if folder is None:
        return Earlier()
    from dpt.evaluation.bench.summary import read_kept

    kept = read_kept(folder)
    check_asked_alike(record["asked"], kept.record["asked"], f"what {folder} counts")
    made_of = {name: one for name, one in kept.record["methods"].items() if name not in drawn}
    if not made_of:
        fail(f"all methods that {folder} counts are here too: --kept would do nothing")
    check_one_judge({**made_of, **record["methods"]}, folder)
    like = next(iter(drawn.values()))
    lines = {name: kept.rows(name, like) for name in made_of}
    for name, own in lines.items():
        kept.check(name, own)
    return Earlier(made_of, [one for one in kept.results if one.method in made_of], lines, kept.fidelity)
