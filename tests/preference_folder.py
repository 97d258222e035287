"""A small folder of preference data: images whose hidden quality is their brightness, chosen with noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dpt.keyed_random import KeyedRandom

PROMPTS = ("a red circle", "two blue squares", "a green star and a circle", "the white triangle")


def make_preferences(
    folder: Path, count: int, sizes: tuple[int, ...] = (4,), noise: float = 0.05, seed: int = 0
) -> list[dict[str, Any]]:
    """Write preference_images/ and return the entries of the published file."""
    rng = KeyedRandom("brightness", seed)
    (folder / "preference_images").mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(count):
        n = sizes[number % len(sizes)]
        levels = [rng.uniform(0.1, 0.9) for _ in range(n)]
        names = [f"{number}_{k}.png" for k in range(n)]
        for name, level in zip(names, levels, strict=True):
            texture = np.random.default_rng(number).uniform(-20, 20, (32, 32, 3))
            pixels = np.clip(level * 255 + texture, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "preference_images" / name)
        utilities = [level + noise * rng.uniform(-1, 1) for level in levels]
        entries.append({
            "id": number, "prompt": f"{PROMPTS[number % 4]} {'left ' * (number // 4 % 5)}of {number}",
            "human_preference": utilities.index(max(utilities)), "file_path": names, "user_hash": f"u{number // 2}",
            "contain_name": False,
        })  # fmt: skip
    return entries


def write_preferences(folder: Path, count: int, **options: Any) -> Path:
    file = folder / "preference_train.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(make_preferences(folder, count, **options)))
    return file
