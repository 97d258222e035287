"""What a training step costs: ours beside the published schedule and beside the least that it could be.

    python benchmarks/train_step.py --stage 2 [--batch 4] [--rounds 5] [--model FOLDER] [--gpu]

Without a model: a UNet of 35 million weights on latents of 32 x 32, under the pocket's text encoder and VAE; its
weights are random, since they do not matter here. The ways take turns, so that what else the machine does slows all.

- plain: the UNet alone, forward and backward, on the pictures that denoise (stage 2).
- bare: one batched forward of all six pairs to the feature and one batched pass of the adapter, forward and backward;
  no text, no pictures, no losses worth the name (stage 1).
- published: the schedule of the published code. ours: what `train_stage1.py` and `train_stage2.py` do.

The optimizer is left out: it is the same for all. Kept is what waits in memory for the backward pass.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import published_schedule
import torch
from diffusers import UNet2DConditionModel
from sampling import NARROW
from torch import Tensor

from dpt.adapter import Adapter, config_for
from dpt.adapter.phrases import BackbonePhrases
from dpt.backbone import Backbone
from dpt.backbone.randomness import Chance
from dpt.cli.embedded import EMBEDDED, model_location
from dpt.cli.flags import parse_options
from dpt.data.batch import Batch, collate
from dpt.data.framing import Framing
from dpt.data.scene_source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.lora import Lora, LoraConfig
from dpt.training.tasks.denoising import DENOISED
from dpt.training.tasks.discriminative import pairs_of
from dpt.training.tasks.noised import noised
from dpt.training.tasks.stage1 import Stage1
from dpt.training.tasks.stage2 import Stage2

FEATURE = "up1"


@dataclass(frozen=True)
class Options:
    stage: Literal[1, 2] = 2
    batch: int = 4
    rounds: int = 5
    model: Path | None = None
    """Time this model, with an adapter of random weights and the published size."""
    side: int = 128
    """Of the pictures; a latent is a quarter of it, or an eighth, as the model's VAE has it."""
    gpu: bool = False


def main(options: Options) -> None:
    device = torch.device("cuda" if options.gpu else "cpu")
    backbone = narrow(device) if options.model is None else Backbone.open(options.model, device=device)
    width = backbone.text_width
    shape = config_for(backbone.unet.config, FEATURE, width, width, text_encoder_type="backbone", dropout=0.0)
    adapter, phrases = Adapter(shape).to(device), BackbonePhrases(backbone)
    backbone.prepare_for_gradients()
    task: Any
    if options.stage == 1:
        task = Stage1(backbone, adapter, phrases)
    else:
        task = Stage2(backbone, adapter, Lora(backbone.unet, LoraConfig()), phrases)
    source = SceneSource(POCKET_WORLD, 0, "train", Framing(options.side))
    batch = collate([source.example(index) for index in range(options.batch)]).to(device)
    ways = ways_for(task, batch)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, loss in ways.items():
            seconds = step(task, loss, device)
            if turn:  # the first is for warming up
                took[name].append(seconds)
    least = next(iter(ways))
    size = f"stage {options.stage}, batch {options.batch}, {options.rounds} rounds"
    print(f"| {size} | ms | against {least} | (range) | kept, MiB | against {least} |\n|---|---|---|---|---|---|")
    memory = {name: kept(loss) for name, loss in ways.items()}
    for name, own in took.items():
        ratios = [mine / base for mine, base in zip(own, took[least], strict=True)]
        cells = [
            name,
            f"{1e3 * statistics.median(own):.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{memory[name] / 2**20:.0f}",
            f"{memory[name] / memory[least]:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


def ways_for(task: Stage1 | Stage2, batch: Batch) -> dict[str, Callable[[], Tensor]]:
    """The total loss of each way, by name; the least that could be first."""
    backbone, adapter, pairs = task.backbone, task.adapter, pairs_of(batch)
    share, chance = torch.tensor(float(len(batch)), device=backbone.device), Chance(1, range(len(batch)))

    def total(losses: dict[str, Tensor]) -> Tensor:
        return sum((task.weights[name] * losses[name] for name in losses if name in task.weights), torch.tensor(0.0))

    def ours() -> Tensor:
        return total(task.losses(batch, chance, share))

    def published() -> Tensor:
        return total(published_schedule.losses(task, batch, chance, share))

    if isinstance(task, Stage2):
        one = noised(backbone, batch, (DENOISED,), chance, task.how.noise)
        target = backbone.target(one.z[0], one.noise, one.t)
        plain = lambda: (backbone.predict(*one.of((DENOISED,))) - target).square().mean()  # noqa: E731
        return {"plain": plain, "published": published, "ours": ours}
    seen = noised(backbone, batch, pairs, chance, task.noise)
    z, t, states = seen.of(pairs)

    def bare() -> Tensor:
        with torch.no_grad():
            features = backbone.features(z, t, states, FEATURE)
        grounding, matching = adapter.decode_apart(features, t, len(batch))
        return grounding.square().mean() + matching.square().mean()

    return {"bare": bare, "published": published, "ours": ours}


def step(task: Any, loss: Callable[[], Tensor], device: torch.device) -> float:
    begun = time.perf_counter()
    loss().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    task.trained.zero_grad(set_to_none=True)
    return seconds


def kept(loss: Callable[[], Tensor]) -> int:
    """Bytes that the backward pass of a loss waits for, the weights not counted."""
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        whole = loss()
        total = sum(found.values())
    del whole
    return total


def narrow(device: torch.device) -> Backbone:
    """The pocket with a UNet of Stable Diffusion's blocks in place of its own."""
    pocket = Backbone.open(model_location(EMBEDDED), device=device, dtype="float32")
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=NARROW.widths,
        cross_attention_dim=pocket.text_width,
        attention_head_dim=NARROW.heads,  # type: ignore[arg-type]
    )
    pocket.unet = unet.to(device).eval().requires_grad_(False)
    return pocket


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "train_step.py"))
