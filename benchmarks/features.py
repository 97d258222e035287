"""Adapters of several features of a transformer, trained together on shared forward passes.

    python benchmarks/features.py --features block0 block1 block2 --data_root runs/mmdit/scenes --out runs/features
    dpt probe runs/features/block0/adapter runs/features/block1/adapter --out outputs/probe

The network runs once per batch for all of them, so the comparison costs little more than one training of stage 1.
All adapters see the same examples, noise and timesteps, and start from the same weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from dpt.adapter import Adapter, config_for
from dpt.adapter.io import save_adapter
from dpt.adapter.model import open_phrase_encoder
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.cli.common.console import parse_options
from dpt.cli.train.data import framing_of, open_cache, open_data
from dpt.cli.train.options import DataOptions
from dpt.data.stream import Stream
from dpt.embedded import model_location
from dpt.errors import fail
from dpt.training.engine.settings import BatchPlan, StepRange
from dpt.training.tasks.denoising import NoiseConfig, add_noise_to_batch
from dpt.training.tasks.discriminative import Discriminative, ObjectiveConfig, boxes_in, pairs_of

WARMUP, DECAY = 50, 0.3
"""Steps in which the rate rises, and the last share of the run in which it falls to zero."""


@dataclass(frozen=True)
class Options:
    features: tuple[str, ...] = ("block0", "block1", "block2", "block3", "block4")
    """Single blocks."""
    model: str = "ckpt/pocket-mmdit"
    data_root: Path | None = None
    """Default: scenes rendered on the fly."""
    out: Path = Path("outputs/features")
    steps: int = 350
    batch: int = 8
    hidden_dim: int = 128
    learning_rate: float = 6e-4
    seed: int = 1337
    mixed_precision: Literal["no", "bf16"] = "bf16"


def main(options: Options) -> None:
    if any("_" in feature for feature in options.features):
        fail("--features takes single blocks: joined ones are trained by train_stage1.py")
    dtype = "float32" if options.mixed_precision == "no" else options.mixed_precision
    backbone = open_backbone(model_location(options.model), dtype=dtype)
    data = DataOptions(data_root=options.data_root)
    framing = framing_of(data.framing, backbone)
    source, _ = open_data(data, framing, options.seed, open_cache(data, framing, backbone))
    phrases = open_phrase_encoder("backbone", backbone)
    adapters = {feature: _adapter(backbone, feature, phrases.width, options) for feature in options.features}
    tasks = {feature: Discriminative(own, phrases, ObjectiveConfig()) for feature, own in adapters.items()}
    optimizers = {
        feature: torch.optim.AdamW(own.parameters(), lr=options.learning_rate) for feature, own in adapters.items()
    }
    plan = BatchPlan(options.batch, 1, 0, 1)
    batches = Stream(source, options.seed).batches(StepRange(plan, 0, options.steps), 0, False)
    first = next(iter(tasks.values()))
    for step in tqdm(range(options.steps), unit="step"):
        batch = first.select(next(batches))
        pairs = pairs_of(batch)
        rng = SampleRNG(options.seed, plan.positions(step, 0))
        noised = add_noise_to_batch(backbone, batch, pairs, rng, NoiseConfig())
        z, t, condition = noised.inputs(pairs)
        with torch.no_grad():
            joined, _ = backbone.features(z, t, condition, "_".join(options.features))
        num_boxes = torch.tensor(float(max(1, boxes_in(batch))))
        for (feature, task), own in zip(tasks.items(), joined.chunk(len(tasks), dim=1), strict=True):
            losses = task.losses(own, t, noised.texts, batch, num_boxes)
            _update(adapters[feature], optimizers[feature], _total(task, losses), _rate(step, options))
    for feature, adapter in adapters.items():
        save_adapter(adapter, options.out / feature / "adapter", **backbone.origin(options.model))


def _adapter(backbone: Backbone, feature: str, phrase_width: int, options: Options) -> Adapter:
    torch.manual_seed(0)
    adapter = Adapter(
        config_for(
            backbone,
            feature,
            phrase_width,
            text_encoder_type="backbone",
            hidden_dim=options.hidden_dim,
            nheads=max(1, options.hidden_dim // 32),
            dim_feedforward=2 * options.hidden_dim,
            dropout=0.0,
            code_placement="sequence",
            num_queries_rec=16,
        )
    )
    if options.mixed_precision == "bf16":
        adapter.matmul_dtype = torch.bfloat16
    return adapter


def _total(task: Discriminative, losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([weight * losses[name] for name, weight in task.objective.weights.items()]).sum()


def _rate(step: int, options: Options) -> float:
    left = (options.steps - step) / (DECAY * options.steps)
    return options.learning_rate * min(1.0, (step + 1) / WARMUP, left)


def _update(adapter: Adapter, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
    optimizer.step()


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "features.py"))
