"""The denoising loss, and the tasks that train by it alone: a LoRA (the control of stage 2), or the whole network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.backbone.base import NoiseSchedule, PartialForward
from dpt.backbone.noise import FLOW, RectifiedFlow
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY, Batch, ExampleParts
from dpt.data.stream import (
    CAPTION,
    HARD,
    RANDOM,
    TRUE,
    Pair,
    Stream,
    encode_pair_images,
    encode_texts,
    pair_condition,
    sizes_of,
)
from dpt.errors import UserError
from dpt.files import atomic_folder
from dpt.generation_defaults import FILE_NAME, write_defaults
from dpt.lora import Lora
from dpt.lora.io import save_lora
from dpt.objectives.losses import denoising_loss, min_snr_weight
from dpt.probes.probe import denoising_error, num_captioned
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.discriminative import tuning_memory
from dpt.untrusted import read_json_object


@dataclass(frozen=True)
class NoiseConfig:
    fix_timestep: int | None = None
    noise_offset: float = 0.0
    logit_mean: float = 0.0
    """Of the logit-normal timesteps of a flow matching model: below 0, more of them are noisy."""
    logit_std: float = 1.0

    def sample_t(self, noise: NoiseSchedule, rng: SampleRNG) -> Tensor:
        if self._has_own_density:
            assert isinstance(noise, RectifiedFlow), "check() was called"
            return noise.sample_logit_normal(rng, self.logit_mean, self.logit_std)
        return noise.sample_t(rng)

    @property
    def _has_own_density(self) -> bool:
        return (self.logit_mean, self.logit_std) != (0.0, 1.0)

    def check(self, backbone: Backbone) -> None:
        last = backbone.noise.num_timesteps - 1
        if self.fix_timestep is not None and not 0 <= self.fix_timestep <= last:
            raise UserError(f"--fix_timestep is between 0 and {last}, not {self.fix_timestep}")
        if self._has_own_density and backbone.noise.prediction_type != FLOW:
            raise UserError("--logit_mean and --logit_std are for flow matching models; this model draws t uniformly")

    def validation_timestep(self, backbone: Backbone) -> int:
        return backbone.noise.num_timesteps // 2 if self.fix_timestep is None else self.fix_timestep


@dataclass(frozen=True)
class NoisedBatch:
    """One timestep and one noise tensor per sample, shared by its images."""

    texts: dict[str, Condition]
    latents: Tensor  # (kinds,B,C,h,w)
    noise: Tensor  # (B,C,h,w)
    t: Tensor  # (B,)
    noisy: Tensor  # (kinds,B,C,h,w), z_t
    weights: Tensor  # (B,), of the denoising loss
    sizes: Mapping[int, Tensor] = field(default_factory=dict)  # each (B,6), for a model that takes them

    def inputs(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Condition]:
        """z_t, t and condition of each pair, (pairs*B,...), for one forward of the network."""
        z = torch.cat([self.noisy[pair.picture] for pair in pairs])
        return z, self.t.repeat(len(pairs)), pair_condition(self.texts, self.sizes, pairs)


def add_noise_to_batch(
    backbone: Backbone, batch: Batch, pairs: Sequence[Pair], rng: SampleRNG, config: NoiseConfig
) -> NoisedBatch:
    """Noised latents and encoded texts of those pairs, with one call of each encoder.

    Gradients reach text encoders that have a LoRA, and nothing else.
    """
    texts = encode_texts(backbone, batch, {pair.text for pair in pairs})
    with torch.no_grad():
        return _noised(backbone, batch, pairs, rng, config, texts)


def _noised(
    backbone: Backbone,
    batch: Batch,
    pairs: Sequence[Pair],
    rng: SampleRNG,
    config: NoiseConfig,
    texts: dict[str, Condition],
) -> NoisedBatch:
    kinds = (TRUE, HARD, RANDOM) if any(pair.picture != TRUE for pair in pairs) else (TRUE,)
    latents = encode_pair_images(backbone, batch, kinds)
    shape = latents.shape[2:]
    noise = rng.normal(shape, "noise")
    if config.noise_offset:
        noise = noise + config.noise_offset * rng.normal((shape[0], 1, 1), "noise offset")
    t = config.sample_t(backbone.noise, rng)
    if config.fix_timestep is not None:
        t = torch.full_like(t, config.fix_timestep)
    noise, t = noise.to(latents.device, non_blocking=True), t.to(latents.device, non_blocking=True)
    noisy = torch.stack([backbone.noise.add_noise(kind, noise, t) for kind in latents])
    return NoisedBatch(texts, latents, noise, t, noisy, batch.weights, sizes_of(batch))


DENOISED = Pair(TRUE, CAPTION)
"""The pair whose forward pass is completed to the output: call 2 of section 2.1."""

MSE = "mse"

LORA_FOLDER = "lora"


@dataclass(frozen=True)
class DenoisingConfig:
    weight: float = 1.0
    snr_gamma: float | None = None
    """Of min-SNR weighting; None for no weighting."""
    detach_after: str | None = None
    """This loss sends no gradient into this block or the blocks before it."""

    def __post_init__(self) -> None:
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise UserError(f"--snr_gamma must be positive, not {self.snr_gamma}")

    def detach_position(self, backbone: Backbone) -> int | None:
        """The position of `detach_after` in the forward pass."""
        if self.detach_after is None:
            return None
        blocks = backbone.blocks()
        if self.detach_after not in blocks:
            raise UserError(f"--detach_unet_feature is one of {', '.join(blocks)}, not {self.detach_after!r}")
        return blocks[self.detach_after]

    def finish(self, backbone: Backbone, partial: PartialForward, noised: NoisedBatch) -> Tensor:
        """L_mse from the partial forward of the pair `DENOISED`."""
        return self.loss(backbone, backbone.finish(partial, self.detach_position(backbone)), noised)

    def loss(self, backbone: Backbone, output: Tensor, noised: NoisedBatch) -> Tensor:
        weight, noise = noised.weights, backbone.noise
        if self.snr_gamma is not None:
            weight = weight * min_snr_weight(noise.snr(noised.t), self.snr_gamma, noise.prediction_type)
        return denoising_loss(output, noise.target(noised.latents[TRUE], noised.noise, noised.t), weight)


def require_captions(batch: Batch) -> None:
    if batch.captions is None:
        raise UserError("the data have no captions, which the denoising loss needs")


class PlainLora:
    """Trains a LoRA by the denoising loss alone."""

    folders = (LORA_FOLDER,)

    def __init__(
        self,
        backbone: Backbone,
        lora: Lora,
        validation: Mapping[str, Stream] | None = None,
        denoising: DenoisingConfig | None = None,
        noise: NoiseConfig | None = None,
        val_batch_size: int = 16,
        gradient_checkpointing: bool = False,
        grouping: Grouping = all_decay,
    ) -> None:
        self.backbone, self.lora, self.grouping = backbone, lora, grouping
        self.trained = lora.weights
        self.denoising = denoising or DenoisingConfig()
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
        return 0

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """L_mse of each image under its caption, with the same noise and timestep as in stage 2."""
        require_captions(batch)
        noised = add_noise_to_batch(self.backbone, batch, (DENOISED,), rng, self.noise)
        output = self.backbone.predict(*noised.inputs((DENOISED,)))
        return {MSE: self.denoising.loss(self.backbone, output, noised)}

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

    def export(self, root: Path, base: str = "") -> list[Path]:
        return [export_lora(self.backbone, self.lora, root, base)]


class HpsTuning(PlainLora):
    """HPS: a LoRA on winners, prefixed losers and regularisation images, exported with its negative prompt."""

    def __init__(self, *arguments: Any, negative_prompt: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.negative_prompt = negative_prompt

    def export(self, root: Path, base: str = "") -> list[Path]:
        folders = super().export(root, base)
        if self.negative_prompt:
            write_defaults(root, {"negative_prompt": self.negative_prompt})
        return folders


def export_lora(backbone: Backbone, lora: Lora, root: Path, base: str) -> Path:
    save_lora(lora.state(), lora.config, root / LORA_FOLDER, **backbone.origin(base))
    return root / LORA_FOLDER


MODEL_FOLDER = "model"

INDEX = "model_index.json"


class FullFineTuning:
    """Trains the network's own weights in float32. `compute_dtype` is the format of its matrix products."""

    folders = (MODEL_FOLDER,)
    num_validation_examples = 0

    def __init__(
        self,
        backbone: Backbone,
        denoising: DenoisingConfig | None = None,
        noise: NoiseConfig | None = None,
        gradient_checkpointing: bool = False,
        grouping: Grouping = all_decay,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        if backbone.dtype != torch.float32:
            raise UserError(f"all weights are trained in float32, and this model is in {backbone.dtype}")
        self.backbone, self.grouping, self.compute_dtype = backbone, grouping, compute_dtype
        self.trained = backbone.network.requires_grad_(True)
        self.denoising = denoising or DenoisingConfig()
        self.weights = {MSE: self.denoising.weight}
        self.noise = noise or NoiseConfig()
        self.noise.check(backbone)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            backbone.network.enable_gradient_checkpointing()

    @property
    def parts(self) -> ExampleParts:
        return CAPTION_ONLY

    @property
    def scales_loss(self) -> bool:
        return self.compute_dtype == torch.float16

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.grouping(self.trained)

    def count(self, batch: Batch) -> int:
        return 0

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """L_mse of each image under its caption, with the same noise and timestep as a LoRA's training."""
        require_captions(batch)
        noised = add_noise_to_batch(self.backbone, batch, (DENOISED,), rng, self.noise)
        with self._autocast():
            output = self.backbone.predict(*noised.inputs((DENOISED,)))
        return {MSE: self.denoising.loss(self.backbone, output.float(), noised)}

    def _autocast(self) -> AbstractContextManager[object]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.backbone.device.type, self.compute_dtype)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        return {}

    def memory(self, examples: int) -> Mapping[str, int]:
        return tuning_memory(self.backbone, None, None, examples, self.gradient_checkpointing)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """A whole diffusers folder: the trained network beside copies of the other components."""
        source = self.backbone.folder
        with atomic_folder(root / MODEL_FOLDER) as work:
            network = _component_of(self.backbone)
            self.backbone.network.save_pretrained(work / network)
            others = [component for component in source.components if component.name != network]
            for component, file in ((part, file) for part in others for file in source.loaded_files(part)):
                target = work / component.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            if (source.path / FILE_NAME).is_file():
                shutil.copyfile(source.path / FILE_NAME, work / FILE_NAME)
            names = {component.name for component in source.components}
            index = read_json_object(source.path / INDEX)
            kept = {
                name: [None, None] if isinstance(entry, list) and name not in names else entry
                for name, entry in index.items()
            }
            (work / INDEX).write_text(json.dumps(kept, indent=2) + "\n")
        return [root / MODEL_FOLDER]


def _component_of(backbone: Backbone) -> str:
    """The component whose weights are the denoising network's."""
    names = [component.name for component in backbone.folder.components]
    return next(name for name in ("unet", "transformer") if name in names)
