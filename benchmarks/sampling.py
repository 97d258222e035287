"""What self-correction costs beside plain classifier-free guidance: seconds as ratios, passes and products counted.

    python benchmarks/sampling.py [--size narrow] [--batches 1 4] [--rounds 3] [--gpu] [--out docs/results/performance]

The ways take turns, so that whatever else the machine does slows all of them. Products are counted at the full size of
Stable Diffusion 2.1 on tensors without content. `published` is the published schedule, with our formula for the state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from flops import Counted
from models import FULL, SIZES, TOKENS, Size, SizeName, adapter_for, network_alone, open_size
from published_sampling import PublishedState
from timing import Timed, compared, in_turns, keep, table
from torch import Tensor

from dpt.adapter import Adapter
from dpt.backbone import Condition
from dpt.backbone.device import apply_speedups
from dpt.checkpoints import open_checkpoint
from dpt.cli.common.console import parse_options
from dpt.embedded import embedded_defaults
from dpt.sampling.guidance import StepInfo
from dpt.sampling.loop import denoise
from dpt.sampling.options import Correction, Guidance, Interval, recommended_correction
from dpt.sampling.schedulers import make_scheduler
from dpt.sampling.self_correction import SelfCorrection, guided
from dpt.score.matching import Scorer

PUBLISHED = "published"
FORMATS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
SMALL = 1e-3


def ways_for(steps: int) -> dict[str, Correction]:
    """By name; the first is what the others are compared with."""
    return {
        "plain": Correction(),
        PUBLISHED: Correction(SMALL, "state"),
        "state": Correction(SMALL, "state"),
        "input": Correction(SMALL, "input"),
        "fused": Correction(SMALL, "fused"),
        "default": recommended_correction(embedded_defaults().correction, steps),
        "state, rms, to 0.6": Correction(SMALL, "state", "rms", Interval(0, 0.6)),
        "state, relative": Correction(SMALL, "state", "relative"),
        "fused, relative": Correction(SMALL, "fused", "relative"),
        "state, every second": Correction(SMALL, "state", every=2),
    }


@dataclass(frozen=True)
class Options:
    size: SizeName = "narrow"
    ckpt: Path | None = None
    """Read by this adapter; by default, one of random weights and the published size."""
    batches: tuple[int, ...] = (1, 4)
    """Pictures drawn together."""
    rounds: int = 3
    steps: int = 10
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    gpu: bool = False
    out: Path | None = None


def main(options: Options) -> dict[str, Any]:
    device = torch.device("cuda" if options.gpu else "cpu")
    backbone = open_size(options.size, device, FORMATS[options.mixed_precision])
    for sentence in apply_speedups(backbone, compiled=options.compile, channels_last=options.channels_last):
        print(sentence)
    stored = None if options.ckpt is None else open_checkpoint(options.ckpt).adapter
    adapter = (stored or adapter_for(backbone)).to(device).eval()
    tables: list[str] = []
    numbers: dict[str, Any] = {"options": options}
    for batch in options.batches:
        drawing = {
            way: partial(draw, Drawing(backbone, adapter, batch), way, one, options.steps)
            for way, one in ways_for(options.steps).items()
        }
        passes = {
            way: check_passes(way, work, backbone, adapter, batch, options.steps) for way, work in drawing.items()
        }
        timed = compared(in_turns(drawing, options.rounds, device))
        numbers[f"batch {batch}"] = {"times": timed, "passes": passes}
        side = backbone.default_latent_size[0]
        title = f"{options.size}, latents {side} x {side}, batch {batch}, {options.steps} steps"
        rows = [
            [*one.cells, *(f"{value:g}" for value in passes[one.name].values()), corrected_step(one, passes, options)]
            for one in timed
        ]
        heads = [title, "ms", "against plain (range)", *passes["plain"], "a corrected step against a plain one"]
        tables.append(table(heads, rows))
    counted = SIZES.get(options.size, FULL)
    found = products(counted, {way: one for way, one in ways_for(25).items()})
    numbers[f"GFLOP a corrected step at the size of {counted.name}"] = found
    rows = [[way, f"{flops:,.0f}", f"{flops / found['plain']:.2f}"] for way, flops in found.items()]
    heads = [f"{counted.name}, {counted.side} x {counted.side}", "GFLOP a picture and step", "against plain"]
    tables.append(table(heads, rows))
    keep(options.out, f"sampling-{options.size}", "\n\n".join(tables), numbers, device)
    return numbers


def corrected_step(one: Timed, passes: Mapping[str, Mapping[str, float]], options: Options) -> str:
    """Of a few steps a share is not corrected: what it costs where many are."""
    read = passes[one.name]["read"]
    return f"{1 + (one.ratio - 1) * options.steps / read:.2f}" if read else ""


@dataclass
class Drawing:
    backbone: Any
    adapter: Adapter
    batch: int
    text: Condition = field(init=False)
    negative: Condition = field(init=False)
    noise: Tensor = field(init=False)

    def __post_init__(self) -> None:
        made = torch.Generator().manual_seed(1)
        height, width = self.backbone.default_latent_size
        self.text, self.negative = (texts(self.backbone, self.batch, made) for _ in range(2))
        shape = self.batch, 4, height, width
        self.noise = torch.randn(*shape, generator=made).to(self.backbone.device)


def draw(drawing: Drawing, way: str, correction: Correction, steps: int) -> Tensor:
    backbone, scorer = drawing.backbone, Scorer(drawing.backbone, drawing.adapter)
    denoiser, hooks = guided(backbone, drawing.text, drawing.negative, Guidance(), correction, scorer)
    if way == PUBLISHED:
        assert isinstance(denoiser, SelfCorrection)
        denoiser = PublishedState(denoiser)
        hooks = (denoiser,)
    return denoise(denoiser, make_scheduler("ddim", backbone.scheduler_config), drawing.noise, steps, hooks=hooks)


def check_passes(
    way: str, work: Callable[[], object], backbone: Any, adapter: Adapter, batch: int, steps: int
) -> dict[str, float]:
    """Passes of a picture: begun, taken to the end, and readings of the adapter. An error where they are not as few as
    the way says."""
    with counting(backbone, adapter) as rows:
        work()
    begun, ended, read = (rows[name] / batch for name in ("begun", "ended", "read"))
    plain = 2 * steps
    if way == PUBLISHED:
        expected = plain + read, plain + read
    elif way.startswith(("fused", "default")):
        expected = plain, plain
    else:
        expected = plain + read, plain + (read if "relative" in way else 0)
    assert (begun, ended) == expected and bool(read) == (way != "plain"), f"{way}: {rows}, expected {expected}"
    return {"passes begun": begun, "ended": ended, "read": read}


@contextmanager
def counting(backbone: Any, adapter: Adapter) -> Any:
    rows = {"begun": 0, "ended": 0, "read": 0}
    parts = {"begun": backbone.network.conv_in, "ended": backbone.network.conv_out, "read": adapter.input_proj}

    def count(name: str, module: object, given: object, out: Tensor) -> None:
        rows[name] += len(out)

    hooks = [part.register_forward_hook(partial(count, name)) for name, part in parts.items()]
    yield rows
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def products(size: Size, ways: Mapping[str, Correction]) -> dict[str, float]:
    """GFLOP a step that is corrected, a multiplication and an addition being two, for one picture at the full size; of
    the default, whose interval ends early, the mean over the whole way."""
    meta = torch.device("meta")
    with meta:
        backbone = network_alone(size)
        adapter = adapter_for(backbone).eval()
        text, z = texts(backbone, 1, None), torch.zeros(1, 4, size.side, size.side)
    found: dict[str, float] = {}
    for way, correction in ways.items():
        corrected = SelfCorrection(backbone, text, text, Guidance(), correction, Scorer(backbone, adapter))
        step: Any = PublishedState(corrected) if way == PUBLISHED else corrected
        share = (correction.interval.end - correction.interval.start) / correction.every if correction.on else 1.0
        call = StepInfo(0, 2, torch.tensor(900), torch.ones(1, device=meta), continues=True)
        with Counted() as counter:
            x = step.before(z, call) if correction.on else z
            step(x, call.t)
        found[way] = share * counter.total / 1e9 + (1 - share) * found.get("plain", 0.0)
    return found


def texts(backbone: Any, batch: int, generator: torch.Generator | None) -> Condition:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(backbone.device)

    pooled = normal(batch, backbone.match_width)
    return Condition(normal(batch, TOKENS, backbone.text_width), pooled, pooled if backbone.takes_sizes else None)


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "sampling.py"))
