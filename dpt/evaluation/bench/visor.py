"""SR2D's own measures: are both objects there, and if so, do they lie as asked?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpt.evaluation.bench.rows import Row
from dpt.evaluation.intervals import Estimate, bootstrap, bootstrap_ratio

SUITE = "sr2d"
RELATIONS = ("left", "right", "above", "below")


def visor(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Over the prompts with a relation; a prompt, not a picture, is what is drawn independently.

    OA: both objects are there. uncond: and lie as asked. cond: lie as asked, of those where both are there (0 where
    there are none). VISOR_n: prompts of which at least n pictures show both as asked.
    """
    by_prompt: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        if row.category in RELATIONS:
            by_prompt.setdefault(row.prompt_id, []).append(_both_and_placed(row))
    if not by_prompt:
        return {}
    both = np.array([np.mean([there for there, _ in seen]) for seen in by_prompt.values()])
    placed = np.array([np.mean([right for _, right in seen]) for seen in by_prompt.values()])
    found = {
        "OA": bootstrap([both]),
        "VISOR uncond": bootstrap([placed]),
        "VISOR cond": bootstrap_ratio(placed, both),
    }
    pictures = {len(seen) for seen in by_prompt.values()}
    for n in range(1, min(pictures) + 1 if len(pictures) == 1 else 1):
        enough = [sum(right for _, right in seen) >= n for seen in by_prompt.values()]
        found[f"VISOR {n} of {min(pictures)}"] = bootstrap([enough])
    return found


def _both_and_placed(row: Row) -> tuple[bool, bool]:
    both = all(atom.met for atom in row.atoms if atom.sort == "count")
    return both, both and all(atom.met for atom in row.atoms if atom.sort == "relation")
