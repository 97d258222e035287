"""`dpt pocket build`: make the embedded model from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BuildOptions:
    """Train the pocket model's stages and write it as a diffusers folder. Stop and repeat at will: it resumes."""

    out: Path = Path("ckpt/pocket")
    """Where the finished model goes."""
    work: Path = Path("runs/pocket")
    """Where the stages keep their checkpoints and latents."""
    recipe: Path | None = None
    """A recipe file; default: the one the shipped model was made with."""
    minutes: float | None = None
    """Stop this sitting after so many minutes."""
    stages: tuple[str, ...] = ("clip", "vae", "unet")
    """Which stages to train now."""
    threads: int | None = None
    """CPU threads; one is faster than two when anything else runs."""


def build(options: BuildOptions) -> None:
    from dpt.pocket.build import STAGES, limit_threads
    from dpt.pocket.build import build as build_pocket
    from dpt.pocket.recipe import RECIPE_FILE, read_recipe

    from dpt.errors import fail

    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        fail(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    limit_threads(options.threads)
    done = build_pocket(
        read_recipe(options.recipe or RECIPE_FILE), options.work, options.out, options.minutes, options.stages
    )
    print("every stage is complete" if done else "not complete yet: run the same command again to go on")
