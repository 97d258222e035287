"""The control of stage 2: the same LoRA on the same data, and no loss but that of denoising."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dpt.backbone import Backbone
from dpt.backbone.randomness import Chance
from dpt.data.batch import Batch
from dpt.data.stream import Stream
from dpt.evaluation.probes.denoising import denoising_error
from dpt.lora import Lora
from dpt.lora.store import save_lora
from dpt.training.task import Tally
from dpt.training.tasks.denoising import DENOISED, MSE, Denoising, need_captions
from dpt.training.tasks.noised import Noise, noised
from dpt.training.tasks.stage2_memory import memory

LORA_FOLDER = "lora"


class PlainLora:
    def __init__(
        self,
        backbone: Backbone,
        lora: Lora,
        validation: Mapping[str, Stream] | None = None,
        denoising: Denoising | None = None,
        noise: Noise | None = None,
        val_batch_size: int = 16,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.backbone, self.lora = backbone, lora
        self.trained = lora.weights
        self.denoising = denoising or Denoising()
        self.weights = {MSE: self.denoising.weight}
        self.noise = noise or Noise()
        self.noise.check(backbone)
        self.validation, self.val_batch_size = validation or {}, val_batch_size
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            backbone.unet.enable_gradient_checkpointing()

    def count(self, batch: Batch) -> int:
        """Nothing is summed."""
        return 0

    def losses(self, batch: Batch, chance: Chance, share: Tensor) -> dict[str, Tensor]:
        """L_mse of each picture under its caption, with the noise and the timestep that stage 2 draws for it."""
        need_captions(batch)
        seen = noised(self.backbone, batch, (DENOISED,), chance, self.noise)
        predicted = self.backbone.predict(*seen.of((DENOISED,)))
        return {MSE: self.denoising.loss(self.backbone, predicted, seen)}

    def validate(self, part: int, parts: int) -> Tally:
        if not self.validation:
            return {}
        return {MSE: denoising_error(self.backbone, self.validation, self.val_batch_size, part, parts)}

    def memory(self, examples: int) -> Mapping[str, int]:
        return memory(self.backbone, None, None, examples, self.gradient_checkpointing)

    folders = (LORA_FOLDER,)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """`base` is what the model is called."""
        return [export_lora(self.backbone, self.lora, root, base)]


def export_lora(backbone: Backbone, lora: Lora, root: Path, base: str) -> Path:
    save_lora(lora.state(), lora.config, root / LORA_FOLDER, **backbone.origin(base))
    return root / LORA_FOLDER
