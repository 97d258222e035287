"""The steps of the published code, in our words: what is computed when, not how each part is.

Each of the six pairs has a forward of its own, truncated after the feature but for the one that denoises, and a pass of
the adapter with all queries and all heads; each kind of text and of picture has its own call of an encoder; each loss
is read by the host at once. The losses are those of `Stage1` and `Stage2`, which make one call of it all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch
from dpt.data.pairs import EXPRESSION, HARD, RANDOM, TRUE, encode_pair_images, texts_of
from dpt.training.tasks.denoising import DENOISED, MSE
from dpt.training.tasks.discriminative import pairs_of
from dpt.training.tasks.noising import NoisedBatch
from dpt.training.tasks.stage1 import Stage1
from dpt.training.tasks.stage2 import Stage2


def losses(task: Stage1 | Stage2, batch: Batch, chance: SampleRNG, share: Tensor) -> dict[str, Tensor]:
    """In place of `task.losses`, for data that have both expressions and captions."""
    assert batch.expressions is not None and batch.matching is not None
    backbone, learning, feature = task.backbone, task.discriminative, task.adapter.config.unet_feature
    seen = noised(task, batch, chance)
    found: dict[str, Tensor] = {}
    decoded = []
    for pair in pairs_of(batch):
        with torch.set_grad_enabled(isinstance(task, Stage2)):
            read, at = backbone.features(*seen.inputs((pair,)), feature)
            if isinstance(task, Stage2) and pair == DENOISED:
                found[MSE] = task.config.denoising.finish(backbone, at, seen)
        decoded.append(task.adapter.decode(read, seen.t))
        task.adapter.matching_head(decoded[-1])
        task.adapter.grounding_head(decoded[-1])
    found |= learning.match_losses(torch.stack(decoded[1:]), seen.texts)
    found |= learning.ground_losses(decoded[0], batch.expressions, seen.texts[EXPRESSION], share)
    for value in found.values():
        value.item()
    return found


@torch.no_grad()
def noised(task: Stage1 | Stage2, batch: Batch, chance: SampleRNG) -> NoisedBatch:
    backbone = task.backbone
    texts = {kind: backbone.encode_text(said) for kind, said in texts_of(batch).items()}
    z = torch.cat([encode_pair_images(backbone, batch, (kind,)) for kind in (TRUE, HARD, RANDOM)])
    noise = chance.normal(z.shape[2:], "noise").to(z.device)
    t = chance.integers(backbone.noise.num_timesteps, "timestep").to(z.device)
    return NoisedBatch(
        texts, z, noise, t, torch.stack([backbone.noise.add_noise(one, noise, t) for one in z]), batch.weights
    )
