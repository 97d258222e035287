"""A line for each prompt of each method: small enough to be kept with a table, and all that it is counted from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from dpt.evaluation.bench.rows import Row


def summary(found: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Verdicts are in the order of the prompt's pictures; 1 is right, 0 wrong, null not judged."""
    for method, rows in found.items():
        for prompt, own in groupby(sorted(rows, key=lambda row: row.key), key=lambda row: row.prompt_id):
            pictures = list(own)
            told = {"method": method, "category": pictures[0].category, "prompt": prompt}
            verdicts = [None if one.passed is None else int(one.passed) for one in pictures]
            yield json.dumps({**told, "right": verdicts}) + "\n"
