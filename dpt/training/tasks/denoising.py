"""The denoising losses, on a pass of the UNet that may have been begun for another purpose: that of section 3, and one
of our own, by which the model learns to mend a picture that is about to come out wrong."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dpt.backbone import Backbone
from dpt.backbone.feature_names import block_names
from dpt.backbone.walk import Partway
from dpt.data.batch import Batch
from dpt.data.pairs import CAPTION, HARD, TRUE, Pair
from dpt.errors import UserError
from dpt.objectives.denoising import denoising_loss, min_snr_weight_at
from dpt.training.tasks.noised import Noised

DENOISED = Pair(TRUE, CAPTION)
"""Call 2 of section 2.1, which goes on to the UNet's output."""
MENDED = Pair(HARD, CAPTION)
"""Call 5, which does if the model learns to mend."""
MSE, MEND = "mse", "mend"


@dataclass(frozen=True)
class Denoising:
    weight: float = 1.0
    snr_gamma: float | None = None
    """Of min-SNR weighting; None is none."""
    detach_after: str | None = None
    """A block past which this loss sends no gradient back."""
    mend: float = 0.0
    """Weight of L_mend: from the noised hard negative, under the caption that it is false for, to the true picture."""

    def __post_init__(self) -> None:
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise UserError(f"--snr_gamma must be positive, not {self.snr_gamma}")

    def block(self, backbone: Backbone) -> int | None:
        """Where `detach_after` stands along the forward pass."""
        if self.detach_after is None:
            return None
        known = block_names(backbone.unet.config)
        if self.detach_after not in known:
            raise UserError(f"--detach_unet_feature is one of {', '.join(known)}, not {self.detach_after!r}")
        return known[self.detach_after]

    def finish(self, backbone: Backbone, at: Partway, seen: Noised) -> Tensor:
        """L_mse of a pass of the true pictures under their captions."""
        return self.loss(backbone, backbone.finish(at, self.block(backbone)), seen)

    def finish_mending(self, backbone: Backbone, at: Partway, seen: Noised) -> Tensor:
        """L_mend = mean (1 - abar)^2 (output - what would lead to the true z_0)^2.

        Sampling settles early, where noise is strong, which of many pictures it will be. Where that is wrong in one
        fact, the nearest right picture is the one that has this fact right. The less noise, the less is left to mend:
        hence the weight.
        """
        target, spread = backbone.noise.leading_to(seen.z[TRUE], seen.noisy[HARD], seen.t)
        return denoising_loss(backbone.finish(at, self.block(backbone)), target, spread**4)

    def loss(self, backbone: Backbone, predicted: Tensor, seen: Noised) -> Tensor:
        weight = None
        if self.snr_gamma is not None:
            noise = backbone.noise
            weight = min_snr_weight_at(noise.alphas_cumprod, seen.t, self.snr_gamma, noise.prediction_type)
        return denoising_loss(predicted, backbone.target(seen.z[TRUE], seen.noise, seen.t), weight)


def need_captions(batch: Batch) -> None:
    if batch.matching is None:
        raise UserError("the data have no captions, under which the denoising loss reads pictures")
