"""Which pictures a report shows: first where a method did worse than the baseline, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpt.evaluation.bench.rows import Row

Key = tuple[str, int]


@dataclass(frozen=True)
class Case:
    """One prompt and one noise, as each method drew it."""

    rows: dict[str, Row]

    @property
    def any(self) -> Row:
        return next(iter(self.rows.values()))


@dataclass(frozen=True)
class Section:
    title: str
    cases: tuple[Case, ...]


def sections(found: Mapping[str, Sequence[Row]], baseline: str) -> list[Section]:
    """Every picture is in one of them: none is chosen by hand, and none is left out before the size is known."""
    by_key = {name: {row.key: row for row in rows} for name, rows in found.items()}
    shared = [row.key for row in found[baseline] if all(row.key in own for own in by_key.values())]
    cases = [Case({name: own[key] for name, own in by_key.items()}) for key in shared]
    if len(found) == 1:
        return _kept([Section("Wrong", _of(cases, False)), Section("Right", _of(cases, True)),
                      Section("Not judged", _of(cases, None))])  # fmt: skip
    by_prompt: dict[str, list[float]] = {}
    for case in cases:
        by_prompt.setdefault(case.any.prompt_id, []).append(gain(case, baseline))
    ranked = sorted(cases, key=lambda case: (gain(case, baseline), _mean(by_prompt[case.any.prompt_id])))
    worse = tuple(case for case in ranked if gain(case, baseline) < 0)
    better = tuple(case for case in reversed(ranked) if gain(case, baseline) >= 0 and not _alike(case))
    alike = [case for case in cases if _alike(case)]
    return _kept([
        Section(f"Worse than {baseline}, the worst first", worse),
        Section(f"Better than {baseline}, and none worse", better),
        Section("Wrong by all", _of(alike, False)),
        Section("Right by all", _of(alike, True)),
        Section("Alike", _of(alike, None)),
    ])  # fmt: skip


def gain(case: Case, baseline: str) -> float:
    """Of the method that did worst: right or wrong beside the baseline or, where nothing was judged, CLIP's cosine."""
    base = case.rows[baseline]
    return min(_value(row) - _value(base) for name, row in case.rows.items() if name != baseline or len(case.rows) == 1)


def _alike(case: Case) -> bool:
    return len({_value(row) for row in case.rows.values()}) == 1


def _value(row: Row) -> float:
    return float(row.passed) if row.passed is not None else row.clip or 0.0


def _of(cases: Sequence[Case], passed: bool | None) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.any.passed is passed)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _kept(found: Sequence[Section]) -> list[Section]:
    return [section for section in found if section.cases]
