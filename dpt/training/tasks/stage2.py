"""Stage 2, tuning (section 3): adapter and LoRA learn together to match, to ground and to denoise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from dpt.probes.denoising import denoising_error, num_captioned
from dpt.probes.probe import Probe
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.denoising import DENOISED, LORA_FOLDER, MEND, MENDED, MSE, Denoising, export_lora, need_captions
from dpt.training.tasks.discriminative import Discriminative, ObjectiveConfig, boxes_in, pairs_of
from dpt.training.tasks.memory import tuning_memory
from dpt.training.tasks.noising import NoiseConfig, add_noise_to_batch
from dpt.training.tasks.stage1 import ADAPTER_FOLDER


@dataclass(frozen=True)
class Stage2Config:
    """What of the task can be had otherwise."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    denoising: Denoising = field(default_factory=Denoising)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    only_train_lora: bool = False
    gradient_checkpointing: bool = False
    val_batch_size: int = 16
    score_grounding: bool = True
    grouping: Grouping = all_decay


class TunedModules(nn.Module):
    """What is trained, under one roof."""

    def __init__(self, adapter: Adapter, lora: Lora, only_lora: bool) -> None:
        super().__init__()
        self.adapter, self.lora, self.only_lora = adapter, lora.weights, only_lora
        if only_lora:
            adapter.requires_grad_(False)

    def train(self, mode: bool = True) -> TunedModules:
        """An adapter that does not learn does not drop anything either."""
        super().train(mode)
        if self.only_lora:
            self.adapter.eval()
        return self


class Stage2:
    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        lora: Lora,
        phrases: PhraseEncoder,
        validation: Mapping[str, Stream] | None = None,
        how: Stage2Config | None = None,
    ) -> None:
        self.backbone, self.adapter, self.lora, self.how = backbone, adapter, lora, how or Stage2Config()
        self.trained = TunedModules(adapter, lora, self.how.only_train_lora)
        self.learning = Discriminative(adapter, phrases, self.how.objective, self.how.gradient_checkpointing)
        self.weights = {**self.how.objective.weights, MSE: self.how.denoising.weight, MEND: self.how.denoising.mend}
        self.how.noise.check(backbone)
        self.detach_after = self.how.denoising.block(backbone)
        self._check_reached()
        if self.how.gradient_checkpointing:
            backbone.network.enable_gradient_checkpointing()
        self.validation = validation or {}
        self.probe = None
        if validation:
            timesteps, size = (self.how.noise.middle(backbone),), self.how.val_batch_size
            self.probe = Probe(backbone, adapter, validation, timesteps, size, self.how.score_grounding)

    def _check_reached(self) -> None:
        """What is past the feature learns by denoising alone."""
        if any(self.weights[name] for name in (MSE, MEND)):
            return
        last, known = self.backbone.feature_spec(self.adapter.config.unet_feature).deepest, self.backbone.blocks()
        lora_blocks = map(self.backbone.block_of, self.lora.targets)
        if not any(known[block] <= last for block in lora_blocks if block is not None):
            raise UserError(
                f"--lora_blocks {' '.join(self.lora.config.blocks)} are past {self.adapter.config.unet_feature}, where "
                "only the denoising loss reaches, and --mse_loss_coef is 0: the LoRA would learn nothing"
            )

    @property
    def parts(self) -> ExampleParts:
        """Mending denoises the hard negatives even where no matching loss reads them."""
        parts = self.learning.parts
        return replace(parts, hard_negatives=True, random_negatives=True) if self.weights[MEND] else parts

    def count(self, batch: Batch) -> int:
        """Boxes."""
        return boxes_in(batch)

    def losses(self, batch: Batch, chance: SampleRNG, share: Tensor) -> dict[str, Tensor]:
        """L_stage2, in parts: one forward to the feature for all pairs, and to the output for those that denoise."""
        denoising = self.how.denoising
        finishing = {
            MSE: (denoising.weight, DENOISED, denoising.finish),
            MEND: (denoising.mend, MENDED, denoising.finish_mending),
        }
        finishing = {name: told for name, told in finishing.items() if told[0] != 0}
        if finishing:
            need_captions(batch)
        probed = self.learning.select(batch)
        read = pairs_of(probed)
        pairs = (*read, *(pair for _, pair, _ in finishing.values() if pair not in read))
        if not pairs:
            raise UserError("the losses that the data allow all weigh 0: there is nothing to learn")
        seen = add_noise_to_batch(self.backbone, batch, pairs, chance, self.how.noise)
        feature = self.adapter.config.unet_feature
        features, at = self.backbone.features(*seen.of(pairs), feature, self.detach_after)
        losses: dict[str, Tensor] = {}
        if read:
            rows = len(read) * len(batch)
            losses = self.learning.losses(features[:rows], seen.t.repeat(len(read)), seen.texts, probed, share)
        for name, (_, pair, finish) in finishing.items():
            first = pairs.index(pair) * len(batch)
            losses[name] = finish(self.backbone, at[first : first + len(batch)], seen)
        return losses

    @property
    def scales_loss(self) -> bool:
        return self.backbone.dtype == torch.float16

    @property
    def num_validation_examples(self) -> int:
        """Probed, then denoised."""
        return 0 if self.probe is None else self.probe.num_examples + num_captioned(self.validation)

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.how.grouping(self.trained)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        if self.probe is None:
            return {}
        denoised = denoising_error(self.backbone, self.validation, self.how.val_batch_size, part, parts, on_batch)
        return {**self.probe.tally(part, parts, on_batch), MSE: denoised}

    def memory(self, examples: int) -> Mapping[str, int]:
        config, phrases = self.adapter.config, self.learning.phrases
        return tuning_memory(self.backbone, phrases, config, examples, self.how.gradient_checkpointing)

    folders = (ADAPTER_FOLDER, LORA_FOLDER)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """Both parts, trained or not: what is written can be sampled with. `base` is what the model is called."""
        save_adapter(self.adapter, root / ADAPTER_FOLDER, **self.backbone.origin(base))
        return [root / ADAPTER_FOLDER, export_lora(self.backbone, self.lora, root, base)]
