"""Cost of Stable Diffusion XL at its true size, counted on PyTorch's meta device: nothing is computed.

    python benchmarks/sdxl_cost.py [--side 128]

A multiplication and an addition are two operations. A training step has no optimizer; its texts and latents are cached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flops import Counted
from models import FULL, TOKENS, XL, Size, adapter_for, network_alone, text_encoder, vae_of
from timing import table
from torch import Tensor

from dpt.backbone import Condition
from dpt.cli.common.console import parse_options
from dpt.data.stream import MATCHING
from dpt.lora import Lora, LoraConfig

PAIRS = 1 + len(MATCHING)
"""Pairs of an example in stage 2; one of them is completed for the denoising loss."""

WORDS = 49408
"""Entries of CLIP's vocabulary."""


@dataclass(frozen=True)
class Options:
    side: int | None = None
    """Of the latents; by default the model's own."""


def main(options: Options) -> None:
    heads = [
        "",
        "forward, TFLOP",
        "feature",
        "partial forward",
        "stage 2 against plain",
        "corrected step against plain",
    ]
    rows = []
    for size, features in ((FULL, ("up1",)), (XL, ("mid", "up0", "up1"))):
        for feature in features:
            cost = count(size, feature, options.side)
            rows.append([
                size.name, f"{cost.forward / 1e12:.2f}", feature, f"{cost.partial / cost.forward:.1%}",
                f"{cost.stage2:.2f}", f"{cost.corrected:.2f}",
            ])  # fmt: skip
    print(table(heads, rows))
    heads = ["a LoRA of XL, bf16, batch 1, 1024 x 1024", "weights, GB", "activations, GB", "in all, GB"]
    with torch.device("meta"):
        print(f"\n{table(heads, [memory(checkpointing) for checkpointing in (False, True)])}")


def memory(checkpointing: bool) -> list[str]:
    """As a run estimates it before its first step, without what PyTorch itself takes."""
    backbone: Any = network_alone(XL)
    backbone.unet.to(torch.bfloat16)
    halves = [backbone.unet, *(text_encoder(XL, number, WORDS) for number in range(len(XL.texts)))]
    weights = 2 * sum(p.numel() for part in halves for p in part.parameters())
    weights += 4 * sum(p.numel() for p in vae_of(XL).parameters())
    activations = backbone.activation_bytes(None, checkpointing)
    name = "with gradient checkpointing" if checkpointing else "without"
    return [name, *(f"{size / 1e9:.1f}" for size in (weights, activations, weights + activations))]


@dataclass(frozen=True)
class Cost:
    forward: int
    partial: int
    stage2: float
    """A step of stage 2 against one of a plain LoRA."""
    corrected: float
    """A guided step with the `fused` correction against one without."""


def count(size: Size, feature: str, side: int | None = None) -> Cost:
    with torch.device("meta"):
        return _count(size, feature, side or size.side)


def _count(size: Size, feature: str, side: int) -> Cost:
    backbone = network_alone(size)
    adapter = adapter_for(backbone, feature, text_encoder_type="backbone", dropout=0.0)
    z, pairs = torch.zeros(1, 4, side, side), condition(backbone, PAIRS)
    one, both = pairs[:1], pairs[:2]
    with torch.no_grad():
        forward = flops(lambda: backbone.predict(z, 500, one))
        partial = flops(lambda: backbone.features(z, 500, one, feature))

    def corrected() -> None:
        x = z.clone().requires_grad_()
        maps, passed = backbone.features(x, 500, one, feature)
        adapter.match(maps, torch.zeros(1)).sum().backward()
        with torch.no_grad():
            backbone.finish(passed.detached())

    adapter.requires_grad_(False)
    with torch.no_grad():
        guided = flops(lambda: backbone.predict(torch.cat([z, z]), 500, both))
    fused = flops(corrected) + forward
    adapter.requires_grad_(True)
    Lora(backbone, LoraConfig())

    def plain() -> None:
        backbone.predict(z, 500, one).square().mean().backward()

    def stage2() -> None:
        maps, passed = backbone.features(z.expand(PAIRS, -1, -1, -1), torch.zeros(PAIRS), pairs, feature)
        grounding, matching = adapter.decode_split(maps, torch.zeros(PAIRS), 1)
        loss: Tensor = (
            grounding.square().mean() + matching.square().mean() + backbone.finish(passed[:1]).square().mean()
        )
        loss.backward()

    return Cost(forward, partial, flops(stage2) / flops(plain), fused / guided)


def condition(backbone: Any, rows: int) -> Condition:
    pooled = torch.zeros(rows, backbone.match_width)
    return Condition(torch.zeros(rows, TOKENS, backbone.text_width), pooled, pooled)


def flops(work: Callable[[], object]) -> int:
    with Counted() as counter:
        work()
    return counter.total


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "sdxl_cost.py"))
