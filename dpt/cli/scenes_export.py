"""`dpt scenes export`: rendered scenes as a data folder in the published formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportOptions:
    """Write rendered scenes, their captions, expressions and hard negatives in the published formats."""

    out: Path
    """The data folder to make; it may not be there yet, or must be empty."""
    num: int
    """Training scenes."""
    seed: int = 0
    world: str = "pocket"
    """pocket or full."""
    val: int | None = None
    """Scenes for each of validation captions, validation and test expressions; default: a tenth of num."""
    format: str = "jpg"
    """jpg (as published) or png."""


def export(options: ExportOptions) -> None:
    from dpt.data.scenes.export import RANGE, Plan, export_scenes
    from dpt.data.scenes.world import WORLDS
    from dpt.errors import fail

    val = max(1, options.num // 10) if options.val is None else options.val
    for flag, number in (("num", options.num), ("val", val)):
        if not 1 <= number <= RANGE:
            fail(f"--{flag} must be between 1 and {RANGE}, not {number}")
    if options.world not in WORLDS:
        fail(f"there is no world {options.world!r}; the worlds are {', '.join(sorted(WORLDS))}")
    if options.format not in ("jpg", "png"):
        fail(f"--format must be jpg or png, not {options.format!r}")
    export_scenes(Plan(options.num, val, options.seed, options.world, options.format), options.out)
    print(f"wrote {options.out}: see manifest.json there for what it holds")
