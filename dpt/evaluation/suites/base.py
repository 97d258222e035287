"""A suite: prompts with claims, and the config by which detections count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dpt.claims.detections import DetectConfig
from dpt.claims.facts import Claim, ColourOfBest, FewerThan, Prompt, RelationByCentres, RelationOfBest
from dpt.errors import UserError

Layout = Literal["flat", "folders"]

_HASHED_NAMES: dict[type, str] = {
    RelationByCentres: "Beside",
    RelationOfBest: "Placed",
    ColourOfBest: "Coloured",
    FewerThan: "Fewer",
}
"""Former class names, which `Suite.hash` keeps using."""


@dataclass(frozen=True)
class Suite:
    name: str
    id: str
    """The name with a version. Part of the seed of every image."""
    prompts: tuple[Prompt, ...]
    detect_config: DetectConfig | None
    """None if its images are not judged."""
    judge: str = ""
    """The name of the judge, if it differs from the suite's."""
    layout: Layout = "flat"
    detector: str | None = None
    """The default detector."""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.category for prompt in self.prompts))

    @property
    def needs_colours(self) -> bool:
        return any(noun.colour for prompt in self.prompts for noun in prompt.nouns)

    @property
    def hash(self) -> str:
        """SHA-256 of every prompt with its claims, and of the detection config."""
        digest = hashlib.sha256(self.id.encode())
        for prompt in self.prompts:
            claims = [[_hashed_name(claim), asdict(claim)] for claim in prompt.facts]
            digest.update(json.dumps([prompt.id, prompt.category, prompt.text, claims]).encode())
        digest.update(json.dumps(asdict(self.detect_config) if self.detect_config else None).encode())
        return digest.hexdigest()


def _hashed_name(claim: Claim) -> str:
    return _HASHED_NAMES.get(type(claim), type(claim).__name__)


def image_file(layout: Layout, prompt_id: str, index: int) -> Path:
    """The path of an image within its method's folder."""
    if layout == "folders":
        return Path(prompt_id) / "samples" / f"{index:04d}.png"
    return Path(f"{prompt_id}-{index}.png")


def check_classes(prompts: Iterable[Prompt], classes: tuple[str, ...] | None, detector: str) -> None:
    """Raise if a closed-set detector lacks a noun of the prompts."""
    if classes is None:
        return
    for prompt in prompts:
        for noun in prompt.nouns:
            if noun.shape is not None and noun.shape not in classes:
                known = ", ".join(classes)
                raise UserError(f"{prompt.origin}: {detector} does not detect {noun.shape!r}; its classes are {known}")
