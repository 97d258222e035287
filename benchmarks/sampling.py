"""What self-correction costs beside plain classifier-free guidance: seconds as ratios, and products counted.

    python benchmarks/sampling.py [--batch 4] [--model FOLDER] [--ckpt RESULT] [--rounds 5] [--gpu]

Without a model, seconds are those of a narrow UNet of Stable Diffusion's blocks, 35 million weights; they are random,
since they do not matter here. The ways take turns, so that whatever else the machine does slows all of them. Products
are counted at the full size of Stable Diffusion 2.1 on tensors without content.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dpt.adapter import Adapter, config_for
from dpt.backbone import Backbone, Text
from dpt.checkpoints import open_checkpoint
from dpt.cli.flags import parse_options
from dpt.sampling.loop import Call, denoise
from dpt.sampling.options import ALWAYS, Correction, Guidance, Interval
from dpt.sampling.schedulers import make_scheduler
from dpt.sampling.scorer import Scorer
from dpt.sampling.self_correction import SelfCorrected, guided

TOKENS = 77
HALF = Interval(0, 0.5)
WAYS = {
    "plain": Correction(),
    "state": Correction(1e-3),
    "input": Correction(1e-3, "input"),
    "fused": Correction(1e-3, "fused"),
    "state, rms, to 0.6": Correction(1e-3, "state", "rms", Interval(0, 0.6)),
    "fused, rms, to 0.6": Correction(1e-3, "fused", "rms", Interval(0, 0.6)),
    "state, relative": Correction(1e-3, "state", "relative"),
    "fused, relative": Correction(1e-3, "fused", "relative"),
    "state, first half": Correction(1e-3, interval=HALF),
    "state, every second": Correction(1e-3, every=2),
    "fused, first half": Correction(1e-3, "fused", interval=HALF),
}


@dataclass(frozen=True)
class Size:
    widths: tuple[int, ...]
    heads: int | tuple[int, ...]
    text_width: int
    linear: bool


NARROW = Size((64, 128, 256, 256), 8, 256, False)
FULL = Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, True)
"""Stable Diffusion 2.1."""
SCHEDULE = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


@dataclass(frozen=True)
class Options:
    model: Path | None = None
    """Time this model instead, with an adapter of random weights and the published size."""
    ckpt: Path | None = None
    """Or with this one."""
    batch: int = 4
    """Pictures drawn together."""
    rounds: int = 5
    steps: int = 4
    side: int = 32
    """Of the latents."""
    gpu: bool = False


def main(options: Options) -> None:
    device = torch.device("cuda" if options.gpu else "cpu")
    backbone = without_texts(NARROW, device) if options.model is None else Backbone.open(options.model, device=device)
    stored = None if options.ckpt is None else open_checkpoint(options.ckpt).adapter
    adapter = stored or adapter_for(backbone).eval()
    text, negative = (texts(backbone, device, options.batch) for _ in range(2))
    noise = torch.randn(options.batch, 4, options.side, options.side, device=device)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(options.rounds + 1):
        for way, correction in WAYS.items():
            scorer = Scorer(backbone, adapter)
            denoiser, around = guided(backbone, text, negative, Guidance(), correction, scorer)
            scheduler = make_scheduler("ddim", backbone.scheduler_config)
            begun = time.perf_counter()
            denoise(denoiser, scheduler, noise, options.steps, around=around)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is for warming up
                seconds[way].append((time.perf_counter() - begun) / options.steps)
    size = f"batch {options.batch}, {options.rounds} rounds of {options.steps} steps"
    print(f"| {size} | ms a step | against plain | (range) |")
    print("|---|---|---|---|")
    for way, own in seconds.items():
        ratios = [mine / base for mine, base in zip(own, seconds["plain"], strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"| {way} | {1e3 * statistics.median(own):.0f} | {statistics.median(ratios):.2f} | {spread} |")
    counted()


class Counted(TorchDispatchMode):
    """FlopCounterMode's counts; that one follows modules too, which it cannot through `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def counted() -> None:
    everywhere = {way: one for way, one in WAYS.items() if one.interval == ALWAYS and one.every == 1}
    found = products(everywhere)
    print("\n| Stable Diffusion 2.1, 64 x 64 | GFLOP a corrected step | against plain |")
    print("|---|---|---|")
    for way, flops in found.items():
        print(f"| {way} | {flops:,.0f} | {flops / found['plain']:.2f} |")


@torch.no_grad()
def products(ways: Mapping[str, Correction]) -> dict[str, float]:
    """GFLOP a step that is corrected, a multiplication and an addition being two, for one picture at the full size."""
    meta = torch.device("meta")
    with meta:
        backbone = without_texts(FULL, meta)
        adapter = adapter_for(backbone).eval()
        text, z = texts(backbone, meta), torch.zeros(1, 4, 64, 64)
    found = {}
    for way, correction in ways.items():
        step = SelfCorrected(backbone, text, text, Guidance(), correction, Scorer(backbone, adapter))
        call = Call(0, 2, torch.tensor(500), torch.ones(1, device=meta), goes_on=True)
        with Counted() as counter:
            x = step.before(z, call) if correction.on else z
            step(x, call.t)
        found[way] = counter.total / 1e9
    return found


def without_texts(size: Size, device: torch.device) -> Any:
    """A backbone of a UNet alone."""
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=size.widths,
        cross_attention_dim=size.text_width,
        attention_head_dim=size.heads,  # type: ignore[arg-type]
        use_linear_projection=size.linear,
    )
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=size.text_width))
    return Backbone(
        tokenizer=None,
        text_encoder=encoder,
        vae=None,
        unet=unet.to(device).eval().requires_grad_(False),
        scheduler_config=SCHEDULE,
        folder=None,  # type: ignore[arg-type]
    )


def adapter_for(backbone: Backbone) -> Adapter:
    return Adapter(config_for(backbone.unet.config, "up1", backbone.text_width, backbone.text_width))


def texts(backbone: Backbone, device: torch.device, batch: int = 1) -> Text:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    return Text(normal(batch, TOKENS, backbone.text_width), normal(batch, backbone.text_width))


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "sampling.py"))
