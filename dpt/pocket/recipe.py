"""The recipe of the pocket model, stored as `recipe.json` beside this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dpt.records import read_record

RECIPE_FILE = Path(__file__).with_name("recipe.json")


@dataclass(frozen=True)
class Schedule:
    """One stage's optimisation."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    decay: int = 500
    """The rate falls to zero over so many last steps."""
    averaging: float = 0.998
    clip: float = 1.0
    weight_decay: float = 0.01
    beta2: float = 0.99
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class TextRecipe:
    width: int = 128
    layers: int = 4
    heads: int = 4
    length: int = 32
    patch: int = 8
    image_layers: int = 4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=1600, batch=64, learning_rate=1e-3, decay=480))


@dataclass(frozen=True)
class VaeRecipe:
    channels: tuple[int, ...] = (24, 48, 64)
    latent_channels: int = 4
    kl: float = 1e-4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=12, learning_rate=2e-3, decay=800))


@dataclass(frozen=True)
class Phase:
    """A phase of the UNet's training."""

    until: int
    """The step at which it ends; the last phase lasts as long as the training does."""
    noise: float
    """Strength of the caption noise."""
    omission: float = 0.3
    """The chance, at full noise, that one kind of object goes unmentioned."""
    sorts: tuple[tuple[str, float], ...] = ()
    """Weights of the sorts of scene; empty: the world's own."""
    gap: float = 0.0
    """Pixels that must be free between any two objects; scenes that are tighter are passed over."""


@dataclass(frozen=True)
class UNetRecipe:
    channels: tuple[int, ...] = (48, 96, 160)
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    """Per level, finest first: does it have self- and cross-attention?"""
    head_width: int = 32
    beta_start: float = 0.00085
    beta_end: float = 0.018
    latents: int = 40_000
    """Scenes encoded once and drawn from again, each time with a fresh caption."""
    phases: tuple[Phase, ...] = (
        Phase(until=3000, noise=0.0, sorts=(("single", 0.7), ("pair", 0.3))),
        Phase(until=5107, noise=0.6),
        Phase(
            until=17_000,
            noise=0.6,
            omission=0.08,
            sorts=(("single", 0.3), ("pair", 0.35), ("group", 0.25), ("mixed", 0.1)),
        ),
        Phase(
            until=0,
            noise=0.5,
            omission=0.08,
            sorts=(("single", 0.2), ("pair", 0.35), ("group", 0.3), ("mixed", 0.15)),
        ),
    )
    caption_dropout: float = 0.1
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=20_500, batch=24, learning_rate=1.2e-3, decay=6000, averaging=0.999)
    )


@dataclass(frozen=True)
class Recipe:
    seed: int = 2024
    world: str = "pocket"
    text: TextRecipe = field(default_factory=TextRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    unet: UNetRecipe = field(default_factory=UNetRecipe)


def read_recipe(file: Path = RECIPE_FILE) -> Recipe:
    return read_record(Recipe, file)
