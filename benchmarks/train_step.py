"""What a training step costs: ours beside the published schedule and beside the least that it could be.

    python benchmarks/train_step.py --stage 2 [--size narrow] [--batch 4] [--rounds 5] [--gpu] [--out FOLDER]

The ways take turns, so that what else the machine does slows all.

- plain: the UNet alone, forward and backward, on the pictures that denoise (stage 2). Its layers are diffusers' own;
  plain, memory-saving: they are ours, which keep less for the backward pass.
- bare: one batched forward of all six pairs to the feature and one batched pass of the adapter, forward and backward;
  no text, no pictures, no losses worth the name (stage 1).
- published: the schedule of the published code. ours: what `train_stage1.py` and `train_stage2.py` do; with a cache,
  latents and text states are read, not computed.

The optimizer is left out: it is the same for all. Kept is what waits in memory for the backward pass; peak is the most
that a step takes beyond the weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import published_schedule
import torch
from flops import Counted, best_rate, dense_rate
from models import SizeName, adapter_for, as_it_came, open_size
from parts import Clock, parts_of
from timing import compared, in_turns, keep, kept_bytes, peak_bytes, seconds_of, table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpt.adapter.model import BackbonePhraseEncoder
from dpt.backbone import Backbone, Condition
from dpt.backbone.device import apply_speedups
from dpt.backbone.rng import SampleRNG
from dpt.cli.common.console import parse_options
from dpt.data.example import Batch, collate
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import texts_of
from dpt.lora import Lora, LoraConfig
from dpt.training.tasks.denoising import DENOISED, add_noise_to_batch
from dpt.training.tasks.discriminative import pairs_of
from dpt.training.tasks.stages import Stage1, Stage2, Stage2Config

Task = Stage1 | Stage2
AS_IT_CAME = ("plain", "published")
FORMATS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Options:
    stage: Literal[1, 2] = 2
    size: SizeName = "narrow"
    batch: int = 4
    rounds: int = 5
    side: int | None = None
    """Of the latents; by default the size's own."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    adapter_precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    gpu: bool = False
    out: Path | None = None


def main(options: Options) -> dict[str, Any]:
    device = torch.device("cuda" if options.gpu else "cpu")
    backbone = open_size(options.size, device, FORMATS[options.mixed_precision])
    for sentence in apply_speedups(backbone, compiled=options.compile, channels_last=options.channels_last):
        print(sentence)
    task = task_for(options, backbone)
    side = options.side or backbone.default_latent_size[0]
    begun = time.perf_counter()
    batch = examples(backbone, side * backbone.vae_scale_factor, options.batch)
    loading = time.perf_counter() - begun
    batch = batch.to(device)
    ways = ways_for(task, batch)
    steps = {name: stepping(task, loss, name in AS_IT_CAME) for name, loss in ways.items()}
    timed = compared(in_turns(steps, options.rounds, device))
    memory = {
        name: (kept(task, loss, name in AS_IT_CAME), peak_bytes(steps[name], device)) for name, loss in ways.items()
    }
    least = next(iter(ways))
    title = f"stage {options.stage}, {options.size}, latents {side} x {side}, batch {options.batch}"
    rows = [
        [*one.cells, *(f"{value / 2**20:.0f}" for value in memory[one.name]),
         f"{memory[one.name][0] / memory[least][0]:.2f}", f"{options.batch / one.ms * 1e3:.3g}"]
        for one in timed
    ]  # fmt: skip
    heads = [title, "ms", f"against {least} (range)", "kept, MiB", "peak, MiB", f"kept against {least}", "examples/s"]
    shares = shares_of(task, batch, loading, device)
    parts = table(["of our step", "%"], [[name, f"{100 * share:.1f}"] for name, share in shares.items()])
    rate, sentence = utilisation(backbone, steps["ours"], device)
    numbers = {
        "options": options, "times": timed, "memory": memory, "shares": shares, "rate": rate,
        "estimate": dict(task.memory(options.batch)),
    }  # fmt: skip
    name = f"stage{options.stage}-{options.size}" + ("-checkpointed" if options.gradient_checkpointing else "")
    keep(options.out, name, f"{table(heads, rows)}\n\n{parts}\n\n{sentence}", numbers, device)
    return numbers


def task_for(options: Options, backbone: Backbone, shape: Mapping[str, Any] | None = None) -> Task:
    """`shape`: of the adapter, if not the published one."""
    adapter = adapter_for(backbone, text_encoder_type="backbone", dropout=0.0, **(shape or {}))
    adapter.matmul_dtype = torch.bfloat16 if options.adapter_precision == "bf16" else torch.float32
    phrases, checkpointing = BackbonePhraseEncoder(backbone), options.gradient_checkpointing
    backbone.prepare_for_gradients()
    if options.stage == 1:
        return Stage1(backbone, adapter, phrases, gradient_checkpointing=checkpointing)
    config = Stage2Config(gradient_checkpointing=checkpointing)
    return Stage2(backbone, adapter, Lora(backbone, LoraConfig()), phrases, config=config)


def examples(backbone: Backbone, pixels: int, count: int) -> Batch:
    source = SceneSource(POCKET_WORLD, 0, "train", Framing.for_model(backbone, pixels))
    return collate([source.example(index) for index in range(count)])


def cached(backbone: Backbone, batch: Batch) -> Batch:
    """As a warm cache gives it."""
    negatives = batch.negatives
    assert negatives is not None and negatives.random is not None
    with torch.no_grad():
        z = backbone.encode_images(batch.images)
        hard, random = (
            replace(each, images=backbone.encode_images(each.images)) for each in (negatives.hard, negatives.random)
        )
    return replace(batch, latent=True, images=z, negatives=replace(negatives, hard=hard, random=random))


class Remembered:
    """Text states as a warm cache has them."""

    def __init__(self, backbone: Backbone, batch: Batch) -> None:
        prompts = sorted({text for texts in texts_of(batch).values() for text in texts})
        with torch.no_grad():
            text = backbone.encode_text(prompts)
        self.known = {prompt: text[i : i + 1] for i, prompt in enumerate(prompts)}

    def __call__(self, prompts: list[str]) -> Condition:
        return Condition.stack([self.known[prompt] for prompt in prompts])


def total(task: Task, losses: Mapping[str, Tensor]) -> Tensor:
    return sum((task.weights[name] * losses[name] for name in losses if name in task.weights), torch.tensor(0.0))


def ways_for(task: Task, batch: Batch) -> dict[str, Callable[[], Tensor]]:
    """The total loss of each way, by name; the least that could be first."""
    backbone, adapter, pairs = task.backbone, task.adapter, pairs_of(batch)
    share, chance = torch.tensor(float(len(batch)), device=backbone.device), SampleRNG(1, range(len(batch)))
    encode, remembered, latents = backbone.encode_text, Remembered(backbone, batch), cached(backbone, batch)

    def ours() -> Tensor:
        return total(task, task.losses(batch, chance, share))

    def with_cache() -> Tensor:
        backbone.encode_text = remembered  # type: ignore[method-assign,assignment]
        try:
            return total(task, task.losses(latents, chance, share))
        finally:
            backbone.encode_text = encode  # type: ignore[method-assign]

    def published() -> Tensor:
        return total(task, published_schedule.losses(task, batch, chance, share))

    rest = {"published": published, "ours": ours, "ours, cached": with_cache}
    if isinstance(task, Stage2):
        one = add_noise_to_batch(backbone, batch, (DENOISED,), chance, task.config.noise)
        target = backbone.noise.target(one.latents[0], one.noise, one.t)
        plain = lambda: (backbone.predict(*one.inputs((DENOISED,))) - target).square().mean()  # noqa: E731
        return {"plain": plain, "plain, memory-saving": plain, **rest}
    seen = add_noise_to_batch(backbone, batch, pairs, chance, task.noise)
    z, t, condition = seen.inputs(pairs)

    def bare() -> Tensor:
        with torch.no_grad():
            features, _ = backbone.features(z, t, condition, adapter.config.unet_feature)
        grounding, matching = adapter.decode_split(features, t, len(batch))
        return grounding.square().mean() + matching.square().mean()

    return {"bare": bare, **rest}


def stepping(task: Any, loss: Callable[[], Tensor], its_own: bool = False) -> Callable[[], None]:
    """`its_own`: with the layers that the UNet came with."""

    def step() -> None:
        with as_it_came(task.backbone.network) if its_own else nullcontext():
            loss().backward()
        task.trained.zero_grad(set_to_none=True)

    return step


def kept(task: Task, loss: Callable[[], Tensor], its_own: bool = False) -> int:
    with as_it_came(task.backbone.network) if its_own else nullcontext():
        return kept_bytes(loss, (task.backbone.network, task.trained))


def shares_of(task: Task, batch: Batch, loading: float, device: torch.device) -> dict[str, float]:
    """Of a step with its data: what each part takes; the rest is the adapter, the losses and what is between."""
    step = stepping(task, ways_for(task, batch)["ours"])
    clock = Clock(parts_of(task.backbone), device)
    with clock.running():
        seconds_of(step, device)
        clock.seconds.clear()
        whole = seconds_of(step, device)
    inside = {"data": loading, **clock.seconds}
    found = {name: seconds / (whole + loading) for name, seconds in inside.items() if seconds > 0}
    return {**found, "adapter, losses, the rest": 1 - sum(found.values())}


def operations(step: Callable[[], object], device: torch.device) -> int:
    # Fused attention is not among what can be counted on a CPU.
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext(), Counted() as counter:
        step()
    return counter.total


def utilisation(
    backbone: Backbone, step: Callable[[], None], device: torch.device
) -> tuple[dict[str, float | None], str]:
    """Products of our step a second, beside what one large product reaches here, and beside what the maker says."""
    flop = operations(step, device)
    seconds = min(seconds_of(step, device) for _ in range(3))
    achieved, best, dense = flop / seconds, best_rate(device, backbone.dtype), dense_rate(device)
    sentence = (
        f"Our step: {flop / 1e12:.3g} TFLOP, {achieved / 1e12:.3g} TFLOP/s, "
        f"{100 * achieved / best:.0f} % of one large product's rate in the UNet's format ({best / 1e12:.3g} TFLOP/s)"
    )
    sentence += f", {100 * achieved / dense:.0f} % of the maker's {dense / 1e12:.0f} TFLOP/s." if dense else "."
    return {"flop": flop, "rate": achieved, "best_rate": best, "makers_rate": dense}, sentence


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "train_step.py"))
