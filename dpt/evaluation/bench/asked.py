"""Which pictures a benchmark asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpt.backbone.randomness import derived_seed
from dpt.evaluation.suites.base import Layout, Prompt, Suite, picture_file

Key = tuple[str, int]
"""A prompt's id, and which of its pictures."""


@dataclass(frozen=True)
class Asked:
    """Picture `index` of a prompt. Its noise is a function of (suite, prompt, index): the same for every method."""

    prompt: Prompt
    index: int
    suite: str
    layout: Layout = "flat"

    @property
    def key(self) -> Key:
        return self.prompt.id, self.index

    @property
    def seed(self) -> int:
        return derived_seed(0, 0, f"{self.suite}/{self.prompt.id}")

    @property
    def file(self) -> Path:
        return picture_file(self.layout, self.prompt.id, self.index)


def everything(suite: Suite, per_prompt: int) -> list[Asked]:
    return [
        Asked(prompt, index, suite.id, suite.layout) for prompt in suite.prompts for index in range(per_prompt)
    ]
