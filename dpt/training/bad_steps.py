"""A loss that is not finite now and then is skipped; one that stays so ends the run, and names its examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from dpt.errors import UserError


class BadSteps:
    def __init__(self, limit: int, examples_of: Callable[[int], Sequence[str]]) -> None:
        self.limit = limit
        self.examples_of = examples_of
        self.in_a_row = 0

    def see(self, steps: Sequence[int], bad: Sequence[int]) -> None:
        """`steps` in the order in which they were taken, and those of them that were not finite."""
        for step in steps:
            self.in_a_row = self.in_a_row + 1 if step in bad else 0
            if self.in_a_row >= self.limit:
                examples = {one: self.examples_of(one) for one in range(step - self.in_a_row + 1, step + 1)}
                raise UserError(
                    f"the loss or its gradient was not finite in {self.in_a_row} steps in a row, up to step {step}; "
                    f"none of them was applied; their examples, by step: {json.dumps(examples)}"
                )
