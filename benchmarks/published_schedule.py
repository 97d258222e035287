"""The order of computation in the published code, written with this project's modules.

Each of the six pairs has a forward of its own, truncated after the feature but for the one that denoises, and a pass of
the adapter with all queries and all heads; each kind of text and picture is encoded by a call of its own; each loss is
read by the host at once. The losses equal those of `Stage1` and `Stage2`, which batch all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch
from dpt.data.stream import EXPRESSION, HARD, RANDOM, TRUE, encode_pair_images, texts_of
from dpt.training.tasks.denoising import DENOISED, MSE, NoisedBatch
from dpt.training.tasks.discriminative import pairs_of
from dpt.training.tasks.stages import Stage1, Stage2


def losses(task: Stage1 | Stage2, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
    """In place of `task.losses`, for data that have both expressions and captions."""
    assert batch.expressions is not None and batch.negatives is not None
    backbone, discriminative, feature = task.backbone, task.discriminative, task.adapter.config.unet_feature
    noised = encode_one_by_one(task, batch, rng)
    losses: dict[str, Tensor] = {}
    decoded = []
    for pair in pairs_of(batch):
        with torch.set_grad_enabled(isinstance(task, Stage2)):
            maps, partial = backbone.features(*noised.inputs((pair,)), feature)
            if isinstance(task, Stage2) and pair == DENOISED:
                losses[MSE] = task.config.denoising.finish(backbone, partial, noised)
        decoded.append(task.adapter.decode(maps, noised.t))
        task.adapter.matching_head(decoded[-1])
        task.adapter.grounding_head(decoded[-1])
    losses |= discriminative.match_losses(torch.stack(decoded[1:]), noised.texts)
    losses |= discriminative.ground_losses(decoded[0], batch.expressions, noised.texts[EXPRESSION], num_boxes)
    for value in losses.values():
        value.item()
    return losses


@torch.no_grad()
def encode_one_by_one(task: Stage1 | Stage2, batch: Batch, rng: SampleRNG) -> NoisedBatch:
    backbone = task.backbone
    texts = {kind: backbone.encode_text(prompts) for kind, prompts in texts_of(batch).items()}
    latents = torch.cat([encode_pair_images(backbone, batch, (kind,)) for kind in (TRUE, HARD, RANDOM)])
    noise = rng.normal(latents.shape[2:], "noise").to(latents.device)
    t = rng.integers(backbone.noise.num_timesteps, "timestep").to(latents.device)
    noisy = torch.stack([backbone.noise.add_noise(kind, noise, t) for kind in latents])
    return NoisedBatch(texts, latents, noise, t, noisy, batch.weights)
