"""How the pocket is made: one typed recipe, kept as `recipe.json` beside this file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

RECIPE_FILE = Path(__file__).with_name("recipe.json")


@dataclass(frozen=True)
class Schedule:
    """One stage's optimisation."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    decay: float = 0.3
    """Last share of the steps over which the rate falls to zero."""
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
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=1600, batch=64, learning_rate=1e-3))


@dataclass(frozen=True)
class VaeRecipe:
    channels: tuple[int, ...] = (24, 48, 64)
    latent_channels: int = 4
    kl: float = 1e-4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=12, learning_rate=2e-3, decay=0.4))


@dataclass(frozen=True)
class UNetRecipe:
    channels: tuple[int, ...] = (64, 128, 192)
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    """Per level, finest first: does it have self- and cross-attention?"""
    head_width: int = 32
    latents: int = 60_000
    """Scenes encoded once and drawn from again, each time with a fresh caption."""
    clean_share: float = 0.35
    """First share of the steps, with few objects and truthful captions only."""
    caption_dropout: float = 0.1
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=20_000, batch=16, learning_rate=1e-3, averaging=0.9993)
    )


@dataclass(frozen=True)
class Recipe:
    seed: int = 2024
    world: str = "pocket"
    text: TextRecipe = field(default_factory=TextRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    unet: UNetRecipe = field(default_factory=UNetRecipe)


def read_recipe(file: Path = RECIPE_FILE) -> Recipe:
    return _build(Recipe, json.loads(file.read_text()), str(file))


def _build(kind: Any, content: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}; {kind.__name__} has {sorted(known)}")
    defaults = kind() if all(_has_default(f) for f in known.values()) else None
    values: dict[str, Any] = {}
    for name, value in content.items():
        default = getattr(defaults, name, None)
        if isinstance(value, dict):
            values[name] = _build(type(default) if is_dataclass(default) else Schedule, value, f"{where}: {name}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _has_default(f: Any) -> bool:
    return repr(f.default) != "<dataclasses._MISSING_TYPE object>" or callable(f.default_factory)


def as_dict(recipe: Any) -> dict[str, Any]:
    return asdict(recipe)
