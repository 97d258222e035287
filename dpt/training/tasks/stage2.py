"""Stage 2, tuning (section 3): adapter and LoRA learn matching, grounding and denoising together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dpt.adapter import Adapter
from dpt.adapter.io.native import save_adapter
from dpt.adapter.phrase_encoder import PhraseEncoder
from dpt.backbone import Backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, ExampleParts
from dpt.data.stream import Stream
from dpt.errors import UserError
from dpt.lora import Lora
from dpt.probes.probe import Probe, denoising_error, num_captioned
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.denoising import (
    DENOISED,
    LORA_FOLDER,
    MSE,
    DenoisingConfig,
    NoiseConfig,
    add_noise_to_batch,
    export_lora,
    require_captions,
)
from dpt.training.tasks.discriminative import Discriminative, ObjectiveConfig, boxes_in, pairs_of
from dpt.training.tasks.held_out import HeldOutLosses
from dpt.training.tasks.memory import tuning_memory
from dpt.training.tasks.stage1 import ADAPTER_FOLDER


@dataclass(frozen=True)
class Stage2Config:
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    only_train_lora: bool = False
    gradient_checkpointing: bool = False
    val_batch_size: int = 16
    score_grounding: bool = True
    grouping: Grouping = all_decay


class TunedModules(nn.Module):
    """Adapter and LoRA as one module."""

    def __init__(self, adapter: Adapter, lora: Lora, only_lora: bool) -> None:
        super().__init__()
        self.adapter, self.lora, self.only_lora = adapter, lora.weights, only_lora
        if only_lora:
            adapter.requires_grad_(False)

    def train(self, mode: bool = True) -> TunedModules:
        """An adapter that is not trained has no dropout."""
        super().train(mode)
        if self.only_lora:
            self.adapter.eval()
        return self


class Stage2:
    folders = (ADAPTER_FOLDER, LORA_FOLDER)

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        lora: Lora,
        phrases: PhraseEncoder,
        validation: Mapping[str, Stream] | None = None,
        config: Stage2Config | None = None,
    ) -> None:
        self.backbone, self.adapter, self.lora, self.config = backbone, adapter, lora, config or Stage2Config()
        config = self.config
        self.trained = TunedModules(adapter, lora, config.only_train_lora)
        self.discriminative = Discriminative(adapter, phrases, config.objective, config.gradient_checkpointing)
        self.weights = {**config.objective.weights, MSE: config.denoising.weight}
        config.noise.check(backbone)
        self.detach_after = config.denoising.detach_position(backbone)
        self._require_gradients()
        if config.gradient_checkpointing:
            backbone.network.enable_gradient_checkpointing()
        self.validation = validation or {}
        self.probe = None
        if validation:
            timesteps = (config.noise.validation_timestep(backbone),)
            self.probe = Probe(backbone, adapter, validation, timesteps, config.val_batch_size, config.score_grounding)
        self.held_out = HeldOutLosses(
            backbone,
            self.discriminative,
            self.validation,
            config.noise,
            config.val_batch_size,
            config.score_grounding,
        )

    def _require_gradients(self) -> None:
        """Refuse a LoRA without gradients: blocks past the feature learn only by the denoising loss."""
        if self.weights[MSE]:
            return
        last, blocks = self.backbone.feature_spec(self.adapter.config.unet_feature).deepest, self.backbone.blocks()
        lora_blocks = map(self.backbone.block_of, self.lora.targets)
        if not any(blocks[block] <= last for block in lora_blocks if block is not None):
            raise UserError(
                f"--lora_blocks {' '.join(self.lora.config.blocks)} are past {self.adapter.config.unet_feature}, where "
                "only the denoising loss reaches, and --mse_loss_coef is 0: the LoRA would learn nothing"
            )

    @property
    def parts(self) -> ExampleParts:
        return self.discriminative.parts

    def count(self, batch: Batch) -> int:
        return boxes_in(batch)

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """L_stage2, in parts: one forward to the feature for all pairs, completed for the pair that denoises."""
        denoises = self.config.denoising.weight != 0
        if denoises:
            require_captions(batch)
        selected = self.discriminative.select(batch)
        probed = pairs_of(selected)
        pairs = (*probed, DENOISED) if denoises and DENOISED not in probed else probed
        if not pairs:
            raise UserError("every loss that the data allow has weight 0: there is nothing to learn")
        noised = add_noise_to_batch(self.backbone, batch, pairs, rng, self.config.noise)
        feature = self.adapter.config.unet_feature
        features, partial = self.backbone.features(*noised.inputs(pairs), feature, self.detach_after)
        losses: dict[str, Tensor] = {}
        if probed:
            rows, t = len(probed) * len(batch), noised.t.repeat(len(probed))
            losses = self.discriminative.losses(features[:rows], t, noised.texts, selected, num_boxes)
        if denoises:
            first = pairs.index(DENOISED) * len(batch)
            losses[MSE] = self.config.denoising.finish(self.backbone, partial[first : first + len(batch)], noised)
        return losses

    @property
    def scales_loss(self) -> bool:
        return self.backbone.dtype == torch.float16

    @property
    def num_validation_examples(self) -> int:
        """Examples that are probed, plus those whose losses are computed."""
        if self.probe is None:
            return 0
        return self.probe.num_examples + self.held_out.num_examples + num_captioned(self.validation)

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.config.grouping(self.trained)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        if self.probe is None:
            return {}
        denoised = denoising_error(self.backbone, self.validation, self.config.val_batch_size, part, parts, on_batch)
        held_out = self.held_out.tally(part, parts, on_batch)
        return {**self.probe.tally(part, parts, on_batch), **held_out, MSE: denoised}

    def memory(self, examples: int) -> Mapping[str, int]:
        config, phrases = self.adapter.config, self.discriminative.phrases
        return tuning_memory(self.backbone, phrases, config, examples, self.config.gradient_checkpointing)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """Save adapter and LoRA, trained or not, so that the result can be sampled."""
        save_adapter(self.adapter, root / ADAPTER_FOLDER, **self.backbone.origin(base))
        return [root / ADAPTER_FOLDER, export_lora(self.backbone, self.lora, root, base)]
