"""Sampling defaults that belong to a model or a checkpoint: guidance scale, negative prompt, recommended correction.

They are read from `generation_defaults.json` beside a model and beside a checkpoint. A checkpoint's entries win over
its model's, and a flag wins over both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.records import from_plain
from dpt.untrusted import read_json_object

FILE_NAME = "generation_defaults.json"

MAX_SIDE = 16_384
"""Pixels of an image's height or width."""

LARGEST_FILE = 100_000
"""Bytes."""

PARTS_OF_A_RESULT = ("adapter", "lora")


@dataclass(frozen=True)
class RecommendedCorrection:
    """A self-correction measured with this checkpoint, for any number of steps."""

    strength: float
    """Sum of the factors over a full run: each step's factor is strength / num_timesteps."""
    target: str
    norm: str
    start: float = 0.0
    end: float = 1.0
    every: int = 1
    measured: str = ""
    """Where it was measured."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Values of sampling flags that are not given. Without a file: Stable Diffusion's 7.5 and no correction."""

    guidance_scale: float = 7.5
    negative_prompt: str = ""
    correction: RecommendedCorrection | None = None
    sources: Mapping[str, Path] = field(default_factory=dict, compare=False)
    """The file that each entry was read from."""

    def describe(self, names: Collection[str]) -> list[str]:
        """A line about each entry in `names` that came from a file."""
        return [
            f"by default: {self._words(name)} (from {_shown(self.sources[name])})"
            for name in names
            if name in self.sources
        ]

    def _words(self, name: str) -> str:
        value = getattr(self, name)
        if not isinstance(value, RecommendedCorrection):
            return f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else repr(value)}"
        measured = f", measured on {value.measured}" if value.measured else ""
        return (
            f"self-correction, which steers each image towards its prompt; strength {value.strength:g}{measured}; "
            "--correction_factor 0 turns it off"
        )


def _shown(file: Path) -> Path:
    """Relative to the working directory, for a file in it."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


ENTRIES = ("guidance_scale", "negative_prompt", "correction")


def generation_defaults(*places: Path | None) -> GenerationDefaults:
    """The defaults beside each of these files or folders; later places win over earlier ones."""
    content: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for place in places:
        file = None if place is None else file_beside(place)
        if file is not None:
            entries = _read(file)
            content |= entries
            sources |= dict.fromkeys(entries, file)
    defaults = from_plain(GenerationDefaults, content, " and ".join(map(str, dict.fromkeys(sources.values()))))
    return GenerationDefaults(defaults.guidance_scale, defaults.negative_prompt, defaults.correction, sources)


def write_defaults(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the file of a checkpoint; `entries` are some of `ENTRIES`."""
    from_plain(GenerationDefaults, dict(entries), str(folder / FILE_NAME))
    with atomic_file(folder / FILE_NAME) as work:
        work.write_text(json.dumps(dict(entries), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def file_beside(place: Path, name: str = FILE_NAME) -> Path | None:
    """The file of that name in the folder of a model or of a result, of which `place` may be a part."""
    folder = place if place.is_dir() else place.parent
    candidates = [folder, folder.parent] if folder.name in PARTS_OF_A_RESULT else [folder]
    return next((file for folder in candidates if (file := folder / name).is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    content = read_json_object(file, LARGEST_FILE)
    if unknown := sorted(set(content) - set(ENTRIES)):
        raise UserError(f"{file}: unknown key {unknown[0]!r}; known are {', '.join(ENTRIES)}")
    if not from_plain(GenerationDefaults, content, str(file)).guidance_scale >= 0:
        raise UserError(f"{file}: guidance_scale must be a number of at least 0")
    return content
