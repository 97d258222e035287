"""Tune a LoRA on winners, prefixed losers and regularisation images, and export it with its negative prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpt.generation_defaults import write_defaults
from dpt.training.tasks.denoising import PlainLora


class HpsTuning(PlainLora):
    """The denoising loss alone; the exported LoRA carries its negative prompt."""

    def __init__(self, *arguments: Any, negative_prompt: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.negative_prompt = negative_prompt

    def export(self, root: Path, base: str = "") -> list[Path]:
        folders = super().export(root, base)
        if self.negative_prompt:
            write_defaults(root, {"negative_prompt": self.negative_prompt})
        return folders
