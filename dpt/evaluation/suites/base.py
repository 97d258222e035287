"""A prompt is its text and what must be so in a picture of it; a suite is prompts and how they are judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dpt.claims.detections import DetectConfig
from dpt.claims.prompt import Prompt
from dpt.errors import UserError

Layout = Literal["flat", "folders"]


@dataclass(frozen=True)
class Suite:
    name: str
    id: str
    """With its version; the noise of every picture is drawn from it."""
    prompts: tuple[Prompt, ...]
    asking: DetectConfig | None
    """None: its pictures are not judged."""
    judge: str = ""
    """The name its verdicts go by, where that is not the suite's."""
    layout: Layout = "flat"
    detector: str | None = None
    """What judges it when nothing else is said."""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.category for prompt in self.prompts))

    @property
    def needs_colours(self) -> bool:
        return any(noun.colour for prompt in self.prompts for noun in prompt.nouns)

    @property
    def hash(self) -> str:
        """SHA-256 of every prompt with its facts, and of the rules of asking."""
        digest = hashlib.sha256(self.id.encode())
        for prompt in self.prompts:
            told = [prompt.id, prompt.category, prompt.text, [[type(f).__name__, asdict(f)] for f in prompt.facts]]
            digest.update(json.dumps(told).encode())
        digest.update(json.dumps(asdict(self.asking) if self.asking else None).encode())
        return digest.hexdigest()


def image_file(layout: Layout, prompt_id: str, index: int) -> Path:
    """Where, in a method's folder, a picture lies."""
    if layout == "folders":
        return Path(prompt_id) / "samples" / f"{index:04d}.png"
    return Path(f"{prompt_id}-{index}.png")


def check_classes(prompts: Iterable[Prompt], classes: tuple[str, ...] | None, detector: str) -> None:
    """A detector that knows only its own world cannot judge a prompt about something else."""
    if classes is None:
        return
    for prompt in prompts:
        for noun in prompt.nouns:
            if noun.shape is not None and noun.shape not in classes:
                known = ", ".join(classes)
                raise UserError(f"{prompt.origin}: {detector} does not know {noun.shape!r}; it knows {known}")
