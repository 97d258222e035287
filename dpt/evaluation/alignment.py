"""CLIP similarity of generated images and prompts, with and without a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpt.backbone import Backbone
from dpt.data.images import to_pil
from dpt.evaluation.suites import registry
from dpt.generation_defaults import generation_defaults
from dpt.lora import Lora
from dpt.sampling.draw import Request, SamplingSettings, draw
from dpt.score.clip import Clip

NUM_TIMESTEPS = 20
"""As in the published evaluation."""

SEED = 0

BATCH_SIZE = 16


def read_prompts(file: Path) -> tuple[str, ...]:
    """Read the prompts of COCO-NSS1K (.json) or of a text file."""
    suite = registry.load(f"{'coco-nss1k' if file.suffix == '.json' else 'prompts'}={file}")
    return tuple(prompt.text for prompt in suite.prompts)


def alignment(backbone: Backbone, lora: Lora, prompts: Sequence[str], clip: Clip) -> dict[str, Any]:
    """Mean CLIP similarity with the LoRA and without it, from the same noise."""
    with lora.disabled():
        base = list(_cosines(backbone, prompts, clip))
    tuned = list(_cosines(backbone, prompts, clip))
    return {
        "clip": clip.identity,
        "prompts": len(prompts),
        "cut": clip.count_truncated(prompts),
        "base": float(np.mean(base)),
        "tuned": float(np.mean(tuned)),
    }


def _cosines(backbone: Backbone, prompts: Sequence[str], clip: Clip) -> Iterator[float]:
    settings = SamplingSettings(NUM_TIMESTEPS, generation_defaults(backbone.folder.path).guidance_scale)
    for first in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[first : first + BATCH_SIZE]
        requests = [Request(text, SEED, first + i) for i, text in enumerate(batch)]
        images = draw(backbone, requests, settings, batch_size=BATCH_SIZE, exact=False)
        yield from clip.cosine([np.asarray(to_pil(image)) for image in images], batch)
