"""A probe's answers, counted: shares by question, type of negative, timestep and k, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dpt.evaluation.intervals import Share
from dpt.evaluation.probes.probe import FOREMOST, IMAGE, REC, TEXT, Answer

MATCHING = (TEXT, IMAGE)


@dataclass(frozen=True)
class Cell:
    """All answers of one question, type and timestep."""

    question: str
    sort: str
    timestep: int
    asked: int
    right: dict[str, int] = field(default_factory=dict)
    """By k: how many had a right answer among the k surest."""


def count(answers: Iterable[Answer]) -> list[Cell]:
    asked: Counter[tuple[str, str, int]] = Counter()
    right: Counter[tuple[str, str, int, int]] = Counter()
    for answer in answers:
        key = answer.question, answer.sort, answer.timestep
        asked[key] += 1
        for k in FOREMOST if answer.question == REC else (1,):
            right[(*key, k)] += answer.within(k)
    return [
        Cell(*key, asked[key], {str(k): right[(*key, k)] for k in (FOREMOST if key[0] == REC else (1,))})
        for key in sorted(asked)
    ]


def share(
    cells: Iterable[Cell],
    questions: tuple[str, ...],
    sort: str | None = None,
    timestep: int | None = None,
    k: int = 1,
) -> Share:
    """Over all cells that fit."""
    chosen = [
        cell
        for cell in cells
        if cell.question in questions and sort in (None, cell.sort) and timestep in (None, cell.timestep)
    ]
    return Share(sum(cell.right[str(k)] for cell in chosen), sum(cell.asked for cell in chosen))


def sorts(cells: Iterable[Cell]) -> list[str]:
    """Types of negatives that were asked, in the order of first mention."""
    return list(dict.fromkeys(cell.sort for cell in cells if cell.question in MATCHING and cell.sort))


def timesteps(cells: Iterable[Cell]) -> list[int]:
    return sorted({cell.timestep for cell in cells})
