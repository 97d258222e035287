"""A generator that paints rendered scenes for prompts instead of sampling, and half of the time gets them wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.claims.facts import Box
from dpt.claims.parse import parse_prompt
from dpt.data.images import from_pil
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, SceneObject
from dpt.keyed_random import KeyedRandom
from dpt.methods.ipr.config import FineTuneConfig, IPRConfig, MeasureConfig, PromptConfig, SampleConfig
from dpt.sampling.draw import Request
from tests import tiny_models

CORNERS = {
    "left": ((6, 20), (38, 24)),
    "right": ((38, 20), (6, 24)),
    "above": ((20, 6), (24, 38)),
    "below": ((20, 38), (24, 6)),
}


def scene_for(request: Request) -> Scene:
    """The first two nouns of the prompt, in its relation or another; sometimes the second object is missing."""
    parsed = parse_prompt(request.prompt)
    rng = KeyedRandom("painted", request.prompt, request.seed, request.index)
    relation = parsed.relations[0].relation if parsed.relations and rng.chance(0.5) else rng.choice(list(CORNERS))
    nouns = list(parsed.objects[:2])
    if rng.chance(0.2):
        nouns = nouns[:1]
    objects = tuple(
        SceneObject(noun.shape or "circle", noun.colour or "red", "large", Box(x, y, x + 21, y + 21))
        for noun, (x, y) in zip(nouns, CORNERS[relation], strict=False)
    )
    return Scene(objects, "white")


def painted(backbone: Any, requests: Sequence[Request], settings: Any, **options: Any) -> Iterator[Tensor]:
    from PIL import Image

    for request in requests:
        yield from_pil(Image.fromarray(render(scene_for(request))))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("ipr-model"))


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpt.sampling.draw.draw", painted)


def config(model: Path, **changes: Any) -> IPRConfig:
    small = IPRConfig(
        str(model),
        rounds=2,
        prompt=PromptConfig("pocket", ("spatial",), prompts=6, held_out=3),
        sample=SampleConfig(per_prompt=2, num_timesteps=2),
        measure=MeasureConfig(measure_per_prompt=1),
        train=FineTuneConfig(max_train_steps=2, train_batch_size=4, lora_rank=2, checkpointing_steps=1),
    )
    return replace(small, **changes)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that decides or states a result: logs and clocks aside."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("log.jsonl", "config.json") and "step-" not in str(file)
    }


def weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "lora" / "lora.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
