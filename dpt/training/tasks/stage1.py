"""Stage 1, probing (section 2): the adapter learns matching and grounding from the features of a frozen UNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpt.adapter import Adapter
from dpt.adapter.io.native import save_adapter
from dpt.adapter.phrase_encoder import PhraseEncoder
from dpt.backbone import Backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, ExampleParts
from dpt.data.stream import Stream
from dpt.errors import UserError
from dpt.probes.probe import Probe
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.denoising import NoiseConfig, add_noise_to_batch
from dpt.training.tasks.discriminative import Discriminative, ObjectiveConfig, boxes_in, pairs_of
from dpt.training.tasks.held_out import HeldOutLosses
from dpt.training.tasks.memory import probing_memory

ADAPTER_FOLDER = "adapter"


class Stage1:
    folders = (ADAPTER_FOLDER,)

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        phrases: PhraseEncoder,
        validation: Mapping[str, Stream] | None = None,
        objective: ObjectiveConfig | None = None,
        noise: NoiseConfig | None = None,
        val_batch_size: int = 16,
        score_grounding: bool = True,
        gradient_checkpointing: bool = False,
        grouping: Grouping = all_decay,
    ) -> None:
        self.backbone, self.adapter, self.grouping = backbone, adapter, grouping
        self.trained = adapter
        self.discriminative = Discriminative(adapter, phrases, objective or ObjectiveConfig(), gradient_checkpointing)
        self.weights = self.discriminative.objective.weights
        self.noise = noise or NoiseConfig()
        self.noise.check(backbone)
        self.probe = None
        if validation:
            timesteps = (self.noise.validation_timestep(backbone),)
            self.probe = Probe(backbone, adapter, validation, timesteps, val_batch_size, score_grounding)
        self.held_out = HeldOutLosses(
            backbone, self.discriminative, validation or {}, self.noise, val_batch_size, score_grounding
        )

    @property
    def parts(self) -> ExampleParts:
        return self.discriminative.parts

    def count(self, batch: Batch) -> int:
        return boxes_in(batch)

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """L_stage1, in parts: one call of each frozen part and one pass of the adapter for all six pairs."""
        batch = self.discriminative.select(batch)
        pairs = pairs_of(batch)
        if not pairs:
            raise UserError("every loss that the data allow has weight 0: there is nothing to learn")
        noised = add_noise_to_batch(self.backbone, batch, pairs, rng, self.noise)
        z, t, condition = noised.inputs(pairs)
        with torch.no_grad():
            features, _ = self.backbone.features(z, t, condition, self.adapter.config.unet_feature)
        return self.discriminative.losses(features, t, noised.texts, batch, num_boxes)

    @property
    def scales_loss(self) -> bool:
        """Features are computed without gradients: none crosses the frozen model."""
        return False

    @property
    def num_validation_examples(self) -> int:
        """Examples that are probed, plus those whose losses are computed."""
        return 0 if self.probe is None else self.probe.num_examples + self.held_out.num_examples

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.grouping(self.trained)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        if self.probe is None:
            return {}
        return {**self.probe.tally(part, parts, on_batch), **self.held_out.tally(part, parts, on_batch)}

    def memory(self, examples: int) -> Mapping[str, int]:
        return probing_memory(self.backbone, self.discriminative.phrases, self.adapter.config, examples)

    def export(self, root: Path, base: str = "") -> list[Path]:
        save_adapter(self.adapter, root / ADAPTER_FOLDER, **self.backbone.origin(base))
        return [root / ADAPTER_FOLDER]
