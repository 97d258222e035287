"""Distilled correction: a LoRA learns what its own self-corrected sampling predicts, and then needs no correction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpt.adapter import Adapter
from dpt.adapter.io import save_adapter
from dpt.backbone import Backbone, Condition
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY, Batch, ExampleParts
from dpt.data.stream import CAPTION, encode_texts
from dpt.errors import UserError
from dpt.lora import Lora
from dpt.sampling.guidance import StepHook, StepInfo, combine, embed_guidance
from dpt.sampling.loop import denoise
from dpt.sampling.options import Correction, Guidance
from dpt.sampling.schedulers import make_scheduler, set_steps
from dpt.sampling.self_correction import SelfCorrection
from dpt.score.matching import Scorer
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.denoising import LORA_FOLDER, export_lora, require_captions
from dpt.training.tasks.discriminative import tuning_memory
from dpt.training.tasks.stages import ADAPTER_FOLDER

LOSS, LEFT = "distill", "correction_left"

SCHEDULER = "ddim"


@dataclass(frozen=True)
class DistillationConfig:
    correction: Correction
    """Of the teacher: the LoRA as it was when training began, with the adapter."""
    guidance_scale: float
    negative_prompt: str = ""
    timesteps: int = 20
    """Sampling steps of the teacher; the LoRA learns from each of them."""

    def __post_init__(self) -> None:
        if not self.correction.on or self.correction.target != "fused":
            raise UserError("a correction is distilled from the target fused, which moves the next latents")
        if self.timesteps < 2:
            raise UserError(f"a correction needs at least 2 sampling steps, not {self.timesteps}")


class CorrectionDistillation:
    """Trains a LoRA until its guided prediction is that of the teacher, plus the correction.

    A correction moves the next latents by s. The scheduler's step is linear in the prediction, with a factor a: a
    prediction that is larger by s / a moves them as far. Each caption is sampled by the teacher from noise, and every
    step of that is a training row. A step's error counts by a^2, as far as it moves the latents. What is random in the
    adapter's gradient averages out; what depends on the image and the caption is learnt.
    """

    folders = (ADAPTER_FOLDER, LORA_FOLDER)
    num_validation_examples = 0
    weights: Mapping[str, float] = {LOSS: 1.0}

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        lora: Lora,
        config: DistillationConfig,
        gradient_checkpointing: bool = False,
        grouping: Grouping = all_decay,
    ) -> None:
        self.backbone, self.adapter, self.lora, self.config = backbone, adapter.eval(), lora, config
        self.grouping, self.gradient_checkpointing = grouping, gradient_checkpointing
        self.trained = lora.weights
        self.teacher = {name: tensor.clone() for name, tensor in lora.state().items()}
        self.scorer = Scorer(backbone, adapter)
        if lora.text is not None:
            raise UserError("a correction is distilled into a LoRA of the denoiser alone, and this one has more")
        if gradient_checkpointing:
            backbone.network.enable_gradient_checkpointing()

    @property
    def parts(self) -> ExampleParts:
        return CAPTION_ONLY

    @property
    def scales_loss(self) -> bool:
        return self.backbone.dtype == torch.float16

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.grouping(self.trained)

    def count(self, batch: Batch) -> int:
        return 0

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """The weighted square error of the guided prediction, and its ratio to that of the uncorrected teacher."""
        require_captions(batch)
        backbone, config = self.backbone, self.config
        with torch.no_grad():
            text = encode_texts(backbone, batch, {CAPTION})[CAPTION]
            negative = backbone.encode_text([config.negative_prompt] * len(text))
        text, negative, guidance = embed_guidance(backbone, text, negative, Guidance(config.guidance_scale))
        steps = self._sample(text, negative, guidance, rng)
        x = torch.cat([step.x for step in steps])
        t = torch.cat([step.t for step in steps])
        text, negative = (Condition.stack([condition] * len(steps)) for condition in (text, negative))
        prediction = self._guided(x, t, text, negative, guidance)
        shift = torch.cat([step.shift for step in steps])
        error = prediction.float() - torch.cat([step.prediction for step in steps]) - shift
        lengths = torch.tensor([step.factor**2 for step in steps], device=x.device).repeat_interleave(len(batch))
        weights = batch.weights.to(x.device).repeat(len(steps)) * lengths / lengths.mean()
        loss, whole = ((weights * values.square().mean(dim=(1, 2, 3))).mean() for values in (error, shift))
        return {LOSS: loss, LEFT: loss.detach() / whole}

    def _sample(self, text: Condition, negative: Condition, guidance: Guidance, rng: SampleRNG) -> list[TeacherStep]:
        backbone, config = self.backbone, self.config
        shape = (backbone.latent_channels, *backbone.default_latent_size)
        noise = rng.normal(shape, "teacher noise").to(backbone.device)
        corrected = SelfCorrection(backbone, text, negative, guidance, config.correction, self.scorer)
        scheduler = make_scheduler(SCHEDULER, backbone.scheduler_config)
        kept = TeacherSteps(corrected, step_factors(backbone, config.timesteps, noise))
        with self._as_teacher():
            denoise(corrected, scheduler, noise, config.timesteps, hooks=[corrected, kept])
        return kept.steps

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        """Inside, the LoRA is what it was when training began."""
        own = {name: tensor.clone() for name, tensor in self.lora.state().items()}
        try:
            self._set(self.teacher)
            yield
        finally:
            self._set(own)

    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.lora.state().items():
            tensor.copy_(tensors[name])

    def _guided(self, x: Tensor, t: Tensor, text: Condition, negative: Condition, guidance: Guidance) -> Tensor:
        if guidance.scale == 1:
            return self.backbone.predict(x, t, text)
        both = Condition.stack([negative, text])
        uncond, cond = self.backbone.predict(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return combine(uncond, cond, guidance.scale)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        return {}

    def memory(self, examples: int) -> Mapping[str, int]:
        rows = 2 * self.config.timesteps * examples
        return tuning_memory(self.backbone, None, None, rows, self.gradient_checkpointing)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """The LoRA, and the adapter as it is, for best of n and for correction on top."""
        save_adapter(self.adapter, root / ADAPTER_FOLDER, **self.backbone.origin(base))
        return [root / ADAPTER_FOLDER, export_lora(self.backbone, self.lora, root, base)]


@dataclass(frozen=True)
class TeacherStep:
    x: Tensor  # (B,C,h,w), the denoiser's input
    t: Tensor  # (B,)
    prediction: Tensor  # (B,C,h,w), guided
    shift: Tensor  # (B,C,h,w), by how much the correction changes it
    factor: float  # how far the next latents move for a prediction that is larger by one


class TeacherSteps(StepHook):
    """Keeps what the corrected sampler saw and predicted."""

    def __init__(self, corrected: SelfCorrection, factors: list[float]) -> None:
        self.corrected, self.factors = corrected, factors
        self.steps: list[TeacherStep] = []

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        moved, factor = self.corrected.shift, self.factors[step.index]
        shift = torch.zeros_like(x) if moved is None else moved / factor
        self.steps.append(TeacherStep(x, step.t.to(x.device).expand(len(x)), prediction.float(), shift, factor))
        return z


def step_factors(backbone: Backbone, timesteps: int, like: Tensor) -> list[float]:
    """How far each step's next latents move for a prediction that is larger by one."""
    moved = []
    for value in (0.0, 1.0):
        scheduler = make_scheduler(SCHEDULER, backbone.scheduler_config)
        set_steps(scheduler, timesteps, like.device, (like.shape[-2], like.shape[-1]))
        prediction, zero = torch.full_like(like[:1], value), torch.zeros_like(like[:1])
        moved.append([scheduler.step(prediction, t, zero).prev_sample.flatten()[0].item() for t in scheduler.timesteps])
    return [one - zero for zero, one in zip(*moved, strict=True)]
