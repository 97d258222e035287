"""Stage 1, probing (section 2), and stage 2, tuning (section 3), and their losses on held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dpt.adapter import Adapter
from dpt.adapter.io import save_adapter
from dpt.adapter.model import PhraseEncoder
from dpt.backbone import Backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, ExampleParts
from dpt.data.stream import Stream, load
from dpt.errors import UserError
from dpt.lora import Lora
from dpt.probes.probe import NOISE_SEED, Probe, denoising_error, num_captioned
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
from dpt.training.tasks.discriminative import (
    GROUNDING_LOSSES,
    MATCHING_LOSSES,
    Discriminative,
    ObjectiveConfig,
    boxes_in,
    pairs_of,
    probing_memory,
    tuning_memory,
)

MOST_EXAMPLES = 256
"""Of each stream. A loss is known to a few percent from so many, while six pairs of each cost a forward pass."""


class HeldOutLosses:
    """What the training losses are on examples that are not trained on.

    The timesteps are those that training draws from, so that the values can be compared with its curve.
    """

    def __init__(
        self,
        backbone: Backbone,
        discriminative: Discriminative,
        streams: Mapping[str, Stream],
        noise: NoiseConfig,
        batch_size: int = 16,
        score_grounding: bool = True,
    ) -> None:
        self.backbone, self.discriminative, self.streams = backbone, discriminative, streams
        self.noise, self.batch_size = noise, batch_size
        self.parts = discriminative.parts if score_grounding else replace(discriminative.parts, expression=False)

    @property
    def num_examples(self) -> int:
        return sum(len(self._positions(stream)) for stream in self.streams.values()) if self.names else 0

    @property
    def names(self) -> list[str]:
        """The losses that have a weight. Every process has the same ones, whatever its examples."""
        weights = self.discriminative.objective.weights
        matched = MATCHING_LOSSES if self.parts.hard_negatives else ()
        return [name for name in (*matched, *(GROUNDING_LOSSES if self.parts.expression else ())) if weights[name]]

    @torch.no_grad()
    def tally(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        """Sums over examples, or over boxes, of every `parts`-th example from `part` on."""
        totals = {name: (0.0, 0.0) for name in self.names}
        for stream in self.streams.values() if totals else ():
            own = self._positions(stream)[part::parts]
            chunks = [list(own[start : start + self.batch_size]) for start in range(0, len(own), self.batch_size)]
            for positions, batch in zip(chunks, load(stream.only(self.parts), chunks), strict=True):
                for name, (total, count) in self._sums(batch.to(self.backbone.device), positions).items():
                    totals[name] = totals[name][0] + total, totals[name][1] + count
                on_batch(len(batch))
        return totals

    def _positions(self, stream: Stream) -> range:
        """Evenly spaced, the same ones each time."""
        return range(0, len(stream), -(-len(stream) // MOST_EXAMPLES) or 1)

    def _sums(self, batch: Batch, positions: list[int]) -> Tally:
        pairs = pairs_of(batch)
        if not pairs:
            return {}
        noised = add_noise_to_batch(self.backbone, batch, pairs, SampleRNG(NOISE_SEED, positions), self.noise)
        z, t, condition = noised.inputs(pairs)
        features, _ = self.backbone.features(z, t, condition, self.discriminative.adapter.config.unet_feature)
        one = torch.ones((), device=z.device)
        losses = self.discriminative.losses(features, t, noised.texts, batch, one)
        counts = {name: len(batch) if name in MATCHING_LOSSES else boxes_in(batch) for name in losses}
        return {
            name: (float(losses[name]) * (len(batch) if name in MATCHING_LOSSES else 1), counts[name])
            for name in self.names
            if name in losses
        }


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
