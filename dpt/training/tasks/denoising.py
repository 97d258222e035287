"""The denoising loss, and the task that trains a LoRA by it alone: the control of stage 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpt.backbone import Backbone
from dpt.backbone.base import PartialForward
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY, Batch, ExampleParts
from dpt.data.pairs import CAPTION, HARD, TRUE, Pair
from dpt.data.stream import Stream
from dpt.errors import UserError
from dpt.lora import Lora
from dpt.lora.io import save_lora
from dpt.objectives.denoising import denoising_loss, min_snr_weight
from dpt.probes.denoising import denoising_error, num_captioned
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.memory import tuning_memory
from dpt.training.tasks.noising import NoiseConfig, NoisedBatch, add_noise_to_batch

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
        known = backbone.blocks()
        if self.detach_after not in known:
            raise UserError(f"--detach_unet_feature is one of {', '.join(known)}, not {self.detach_after!r}")
        return known[self.detach_after]

    def finish(self, backbone: Backbone, at: PartialForward, seen: NoisedBatch) -> Tensor:
        """L_mse of a pass of the true pictures under their captions."""
        return self.loss(backbone, backbone.finish(at, self.block(backbone)), seen)

    def finish_mending(self, backbone: Backbone, at: PartialForward, seen: NoisedBatch) -> Tensor:
        """L_mend = mean (1 - abar)^2 (output - what would lead to the true z_0)^2.

        Sampling settles early, where noise is strong, which of many pictures it will be. Where that is wrong in one
        fact, the nearest right picture is the one that has this fact right. The less noise, the less is left to mend:
        hence the weight.
        """
        target, spread = backbone.noise.leading_to(seen.z[TRUE], seen.noisy[HARD], seen.t)  # type: ignore[attr-defined]
        return denoising_loss(backbone.finish(at, self.block(backbone)), target, spread**4)

    def loss(self, backbone: Backbone, predicted: Tensor, seen: NoisedBatch) -> Tensor:
        weight = seen.weights
        if self.snr_gamma is not None:
            weight = weight * min_snr_weight(backbone.noise.snr(seen.t), self.snr_gamma, backbone.noise.prediction_type)
        return denoising_loss(predicted, backbone.noise.target(seen.z[TRUE], seen.noise, seen.t), weight)


def need_captions(batch: Batch) -> None:
    if batch.captions is None:
        raise UserError("the data have no captions, under which the denoising loss reads pictures")


LORA_FOLDER = "lora"


class PlainLora:
    def __init__(
        self,
        backbone: Backbone,
        lora: Lora,
        validation: Mapping[str, Stream] | None = None,
        denoising: Denoising | None = None,
        noise: NoiseConfig | None = None,
        val_batch_size: int = 16,
        gradient_checkpointing: bool = False,
        grouping: Grouping = all_decay,
    ) -> None:
        self.backbone, self.lora, self.grouping = backbone, lora, grouping
        self.trained = lora.weights
        self.denoising = denoising or Denoising()
        self.weights = {MSE: self.denoising.weight}
        self.noise = noise or NoiseConfig()
        self.noise.check(backbone)
        self.validation, self.val_batch_size = validation or {}, val_batch_size
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            backbone.network.enable_gradient_checkpointing()

    @property
    def parts(self) -> ExampleParts:
        return CAPTION_ONLY

    def count(self, batch: Batch) -> int:
        """Nothing is summed."""
        return 0

    def losses(self, batch: Batch, chance: SampleRNG, share: Tensor) -> dict[str, Tensor]:
        """L_mse of each picture under its caption, with the noise and the timestep that stage 2 draws for it."""
        need_captions(batch)
        seen = add_noise_to_batch(self.backbone, batch, (DENOISED,), chance, self.noise)
        predicted = self.backbone.predict(*seen.of((DENOISED,)))
        return {MSE: self.denoising.loss(self.backbone, predicted, seen)}

    @property
    def scales_loss(self) -> bool:
        return self.backbone.dtype == torch.float16

    @property
    def num_validation_examples(self) -> int:
        return num_captioned(self.validation)

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.grouping(self.trained)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        if not self.validation:
            return {}
        return {MSE: denoising_error(self.backbone, self.validation, self.val_batch_size, part, parts, on_batch)}

    def memory(self, examples: int) -> Mapping[str, int]:
        return tuning_memory(self.backbone, None, None, examples, self.gradient_checkpointing)

    folders = (LORA_FOLDER,)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """`base` is what the model is called."""
        return [export_lora(self.backbone, self.lora, root, base)]


def export_lora(backbone: Backbone, lora: Lora, root: Path, base: str) -> Path:
    save_lora(lora.state(), lora.config, root / LORA_FOLDER, **backbone.origin(base))
    return root / LORA_FOLDER
