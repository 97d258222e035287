"""Where the published files are under the data root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpt.data.scenes import published


@dataclass(frozen=True)
class DataRoot:
    path: Path

    def images(self, split: str) -> Path:
        """split: train2014 or val2014."""
        return self.path / published.IMAGES / split

    def captions(self, split: str) -> Path:
        return self.path / published.CAPTIONS / f"captions_{split}.json"

    def expressions(self, dataset: str, split: str) -> Path:
        """dataset: refall, refcoco, refcoco+ or refcocog; split: train, val, testA, testB or test."""
        return self.path / published.REC / f"finetune_{dataset}_{split}.json"

    def hard_negatives(self, part: str) -> Path:
        """The folder of one file for each caption; part: train or val."""
        return self.path / published.ITM / published.HARD_NEGATIVES.format(split=part)

    def hard_negatives_table(self, part: str) -> Path:
        folder = self.hard_negatives(part)
        return folder.with_name(f"{folder.name}.tsv")

    @property
    def negative_types(self) -> Path:
        """Only exports of rendered scenes have it."""
        return self.path / "negatives.jsonl"

    @property
    def prompts(self) -> Path:
        return self.path / published.PROMPTS
