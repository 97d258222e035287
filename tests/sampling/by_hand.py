"""A reference implementation of the sampler without hooks: all queries and the formulas of DDIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dpt.adapter import Adapter
from dpt.backbone import Backbone, Condition
from dpt.sampling.guidance import StepHook, StepInfo


def prediction(backbone: Backbone, z: Tensor, t: Tensor, text: Condition) -> Tensor:
    with torch.no_grad():
        return backbone.unet(z, t, encoder_hidden_states=text.states).sample


def guided(backbone: Backbone, z: Tensor, t: Tensor, text: Condition, negative: Condition, scale: float) -> Tensor:
    base = prediction(backbone, z, t, negative)
    return base + scale * (prediction(backbone, z, t, text) - base)


def score_gradient(
    backbone: Backbone, adapter: Adapter, z: Tensor, t: Tensor, text: Condition
) -> tuple[Tensor, Tensor]:
    """s (B,) and its gradient, through the whole UNet, one image at a time, with all the adapter's queries."""
    assert adapter.config.unet_feature == "up1" and not adapter.training
    caught: list[Tensor] = []
    hook = backbone.unet.up_blocks[1].register_forward_hook(lambda module, given, out: caught.append(out))
    scores, gradients = [], []
    with torch.enable_grad():
        for row in range(len(z)):
            row_latents = z[row : row + 1].detach().clone().requires_grad_()
            backbone.unet(row_latents, t, encoder_hidden_states=text.states[row : row + 1])
            vectors = adapter(caught.pop(), t.reshape(1)).matching[0]
            score = cosine_similarity(vectors, text.match[row][None], dim=-1).max()
            gradients.append(torch.autograd.grad(score, row_latents)[0])
            scores.append(score.detach())
    hook.remove()
    return torch.stack(scores), torch.cat(gradients)


def ddim(backbone: Backbone, z: Tensor, predicted: Tensor, t: int, before: int) -> Tensor:
    """From timestep t to the one before it (Song et al. 2021, eq. 12, eta = 0); -1 is the schedule's own end."""
    abar = backbone.noise.alphas_cumprod
    a, a_before = abar[t], abar[max(before, 0)]
    if backbone.noise.prediction_type == "v_prediction":
        clean, noise = a.sqrt() * z - (1 - a).sqrt() * predicted, (1 - a).sqrt() * z + a.sqrt() * predicted
    else:
        clean, noise = (z - (1 - a).sqrt() * predicted) / a.sqrt(), predicted
    return a_before.sqrt() * clean + (1 - a_before).sqrt() * noise


class States(StepHook):
    """The state at each call, as it comes in and as it goes out."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []
        self.left: list[Tensor] = []
        self.calls: list[StepInfo] = []

    def before(self, z: Tensor, call: StepInfo) -> Tensor:
        self.given.append(z)
        self.calls.append(call)
        return z

    def after(self, z: Tensor, call: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        self.left.append(z)
        return z
