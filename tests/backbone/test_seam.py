"""Nothing outside `dpt/backbone` depends on which network a backbone holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from dpt.backbone import Backbone, Condition, NoiseSchedule
from dpt.backbone.noise import DDPMSchedule
from dpt.backbone.unet import UNetBackbone

SOURCES = Path(__file__).parents[2] / "dpt"

OWN_PARTS = re.compile(
    r"backbone\.(unet|vae|transformer|encoders|(text_encoder|tokenizer)(_[23])?)\b|network\.config|noise\.alphas_cumprod"
    r"|isinstance\(\w*backbone"
    r"|isinstance\(.*\b(UNet2D\w*|CLIPText\w*|AutoencoderKL|\w+Transformer2DModel|\w+Backbone|SDXL\w*)\b"
)

PIPELINE = Path("sampling/pipeline_families.py")
"""Where a backbone's parts become the components of a stock pipeline of diffusers, and back."""

READER = (Path("detect/reader/detector.py"), Path("training/tasks/reader.py"))
"""Their `network` is the reader's own."""


def test_no_other_package_uses_network_internals() -> None:
    reaching = [
        f"{file.relative_to(SOURCES)}:{number}: {line.strip()}"
        for file in SOURCES.rglob("*.py")
        if "backbone" not in file.relative_to(SOURCES).parts[:1]
        and file.relative_to(SOURCES) not in (PIPELINE, *READER)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if OWN_PARTS.search(line)
    ]
    assert not reaching


def members(protocol: Any) -> set[str]:
    return {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}


def test_the_protocols_are_complete() -> None:
    assert not [name for name in members(NoiseSchedule) if not hasattr(DDPMSchedule({}), name)]
    unset = {"noise", "scheduler_config", "folder", "generation_defaults"}  # set by __init__
    assert not [name for name in members(Backbone) - unset if not hasattr(UNetBackbone, name)]


def test_conditions_are_sliced_and_stacked_completely() -> None:
    first, second = (
        Condition(torch.randn(n, 3, 4), torch.randn(n, 5), torch.randn(n, 6), torch.randn(n, 2), torch.randn(n))
        for n in (1, 2)
    )
    both = Condition.stack([first, second])
    assert len(both) == 3 and both.split([1, 2])[1].pooled is not None
    for whole, parts in zip(both._parts(), zip(first._parts(), second._parts(), strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(both.split([1, 2])[1].time_ids, second.time_ids)
    assert Condition.stack([Condition(first.states, first.match)] * 2)[:1].pooled is None


def test_noise_levels_run_from_image_to_pure_noise() -> None:
    noise = DDPMSchedule({"num_train_timesteps": 1000})
    levels = [noise.level(t) for t in range(1000)]
    assert levels == sorted(levels) and levels[-1] == 1 and 0 < levels[0] <= 0.001
    assert [noise.timestep_at(level) for level in (0.1, 0.2, 0.3)] == [100, 200, 300]
