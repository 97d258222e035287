"""`train_stage1.py` and `train_stage2.py`: their flags, and the samples after training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from dpt.cli.common.console import PublishedFlags
from dpt.cli.train import main as train
from dpt.cli.train.options import PUBLISHED, Flag, TrainOptions
from dpt.cli.train.setup import SAMPLE_SEED, SampleSheets
from dpt.embedded import EMBEDDED
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.lora import LoraConfig
    from dpt.score.clip import Clip
    from dpt.training.engine.observers import RunObserver


def on_same_model(options: TrainOptions) -> str:
    """The flag that gives another command the same model; empty for the default one."""
    return "" if options.base_model == EMBEDDED else f" --pretrained_model_name_or_path {options.base_model}"


NO_SAMPLES = "has no effect: stage 1 leaves the UNet as it is; sample with txt2img.py"


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Stage1Options(TrainOptions):
    """Stage 1: train an adapter for matching and grounding on the features of a frozen UNet.

    The same command resumes a run that was stopped. Exit code 75 means that the run was stopped by a signal and saved.
    """

    published: ClassVar[PublishedFlags] = PublishedFlags(
        refused={**PUBLISHED.refused, "snr_gamma": "weighs the denoising loss, which stage 1 does not have"},
        ignored={**PUBLISHED.ignored, "validation_prompts": NO_SAMPLES, "num_validation_images": NO_SAMPLES},
    )

    @property
    def task_name(self) -> str:
        return "stage1"

    @property
    def next_command(self) -> str:
        data = "" if self.data.data_root is None else f" --data_root {self.data.data_root}"
        return f"dpt train stage2 --qformer_ckpt {self.root}{data}{on_same_model(self)}"

    def unused_flags(self) -> dict[str, str]:
        return {
            **super().unused_flags(),
            "prediction_type": "stage 1 reads features, which do not depend on the prediction type",
        }


def main_stage1(arguments: Sequence[str] | None = None) -> int:
    return train.main(Stage1Options, "train_stage1.py", "dpt.cli.train.tasks:stage1", arguments)


SAMPLES = "samples.png"

ALIGNMENT = "alignment.json"

FOR_ALL_LOSSES = ("fix_timestep", "noise_offset", "logit_mean", "logit_std")
"""The flags of the objective that the denoising loss uses too."""


@dataclass(frozen=True)
class LoraShapeOptions:
    lora_rank: int = 4
    lora_alpha: float | None = None
    """W + alpha / rank B A. Default: the rank, as published."""
    lora_blocks: tuple[str, ...] = ("all",)
    """Blocks whose attention gets a LoRA: all (the published code), down (the paper's figure), mid, up, or feature
    names of blocks. Of a transformer: all, or block0 …"""
    lora_text_encoders: Flag = False
    """Also train a LoRA of the CLIP text encoders' attention, at --text_encoder_lr. A cache of text states is then not
    read."""

    @property
    def config(self) -> LoraConfig:
        from dpt.lora import LoraConfig

        return LoraConfig(self.lora_rank, self.lora_alpha, self.lora_blocks, self.lora_text_encoders)


@dataclass(frozen=True)
class LoraOptions(LoraShapeOptions):
    only_train_lora: Flag = False
    """Do not train the adapter; it is saved all the same."""
    plain_lora: Flag = False
    """Control run: no adapter, only the denoising loss, on the same data with the same noise."""


@dataclass(frozen=True)
class DenoisingOptions:
    mse_loss_coef: float = 1.0
    """Weight of the denoising loss."""
    snr_gamma: float | None = None
    """Weight the denoising loss by min-SNR with this gamma, 5 for instance."""
    detach_unet_feature: Annotated[str | None, tyro.conf.arg(metavar="BLOCK")] = None
    """The denoising loss trains nothing up to this block: bottom0 ..., mid, up0 ..., skips included; or block0 ..."""


@dataclass(frozen=True)
class SampleOptions:
    validation_prompts: tuple[str, ...] = ()
    """Prompts to sample into samples.png when the run is finished."""
    num_validation_images: int = 4
    """Images per prompt."""
    sample_steps: int = 0
    """Also sample the validation prompts every N steps, from the same noise, without and with the LoRA, into
    samples/ and the trackers. 0: only at the end."""
    prompts_path_val: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """When the run is finished, sample these with and without the LoRA and measure the CLIP cosine of image and prompt:
    COCO-NSS1K (.json), or one prompt a line. Written to alignment.json."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """The CLIP model for --prompts_path_val. The embedded model has its own."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Stage2Options(TrainOptions):
    """Stage 2: train an adapter and a LoRA of the UNet together, for matching, grounding and denoising.

    The same command resumes a run that was stopped. Exit code 75 means that the run was stopped by a signal and saved.
    """

    lora: LoraOptions = field(default_factory=LoraOptions)
    denoising: DenoisingOptions = field(default_factory=DenoisingOptions)
    samples: SampleOptions = field(default_factory=SampleOptions)

    @property
    def trains_text_encoders(self) -> bool:
        return self.lora.lora_text_encoders

    @property
    def task_name(self) -> str:
        return "plain-lora" if self.lora.plain_lora else "stage2"

    @property
    def next_command(self) -> str:
        return f'dpt txt2img --prompt "…" --ckpt {self.root} --compare{on_same_model(self)}'

    def observers(self, task: Any) -> Sequence[RunObserver]:
        samples = self.samples
        if not samples.sample_steps:
            return ()
        prompts = samples.validation_prompts
        return (SampleSheets(samples.sample_steps, prompts, samples.num_validation_images, self.root, task),)

    def check(self) -> None:
        if self.lora.plain_lora and self.adapter.qformer_ckpt is not None:
            fail("--plain_lora has no adapter: leave --qformer_ckpt out")
        if self.lora.plain_lora and self.lora.only_train_lora:
            fail("--plain_lora trains nothing but a LoRA: leave --only_train_lora out")
        weight = self.denoising.mse_loss_coef
        if not (isfinite(weight) and weight >= 0):
            fail(f"--mse_loss_coef must be a number of at least 0, not {weight}")
        if self.lora.plain_lora and not self.denoising.mse_loss_coef:
            fail("--plain_lora has no other loss than denoising: with --mse_loss_coef 0 it would learn nothing")
        if self.lora.plain_lora and self.denoising.detach_unet_feature is not None:
            fail("--plain_lora has no other loss than denoising: --detach_unet_feature would leave blocks untrained")
        if self.samples.num_validation_images < 1:
            fail(f"--num_validation_images must be at least 1, not {self.samples.num_validation_images}")
        if self.samples.sample_steps < 0:
            fail(f"--sample_steps cannot be negative, as {self.samples.sample_steps} is")
        if self.samples.sample_steps and not self.samples.validation_prompts:
            fail('--sample_steps needs prompts to sample: give --validation_prompts "…"')
        if self.samples.prompts_path_val is not None:
            from dpt.evaluation.alignment import read_prompts

            read_prompts(self.samples.prompts_path_val)
            self._open_clip()
        elif self.samples.clip is not None:
            fail("--clip has no effect without --prompts_path_val")

    def unused_flags(self) -> dict[str, str]:
        unused = super().unused_flags()
        if self.lora.plain_lora:
            of_adapter = [field.name for field in fields(self.adapter)] + ["unet_feature", "adapter_precision"]
            of_objective = [field.name for field in fields(self.objective) if field.name not in FOR_ALL_LOSSES]
            unused |= dict.fromkeys([*of_adapter, *of_objective], "--plain_lora has no adapter")
        elif self.lora.only_train_lora:
            unused["dropout"] = "--only_train_lora leaves the adapter as it is, and without dropout"
        if not self.samples.validation_prompts:
            unused["num_validation_images"] = "there are no --validation_prompts"
        if not self.denoising.mse_loss_coef:
            unused["snr_gamma"] = "--mse_loss_coef is 0"
            unused["detach_unet_feature"] = "--mse_loss_coef is 0"
        return unused

    def _open_clip(self) -> Clip:
        from dpt.embedded import EMBEDDED, EMBEDDED_CLIP, clip_location
        from dpt.score.clip import Clip

        name = self.samples.clip
        if name is None:
            if self.model.pretrained_model_name_or_path != EMBEDDED:
                fail("--prompts_path_val needs a CLIP: give --clip")
            name = EMBEDDED_CLIP
        return Clip.open(clip_location(name))

    def after(self, task: Any) -> None:
        if self.samples.validation_prompts:
            self._draw_samples(task)
        if self.samples.prompts_path_val is not None:
            self._measure_alignment(task, self.samples.prompts_path_val)

    def _measure_alignment(self, task: Any, file: Path) -> None:
        from dpt.evaluation.alignment import alignment, read_prompts

        record = alignment(task.backbone, task.lora, read_prompts(file), self._open_clip())
        (self.root / ALIGNMENT).write_text(json.dumps(record, indent=1) + "\n")
        print(
            f"CLIP cosine of {record['prompts']} prompts and their images: {record['base']:.4f} without the LoRA, "
            f"{record['tuned']:.4f} with it ({self.root / ALIGNMENT})"
        )

    def _draw_samples(self, task: Any) -> None:
        from dpt.data.images import to_pil
        from dpt.evaluation.contact_sheet import contact_sheet
        from dpt.sampling.draw import Request, SamplingSettings, draw

        per_prompt = self.samples.num_validation_images
        defaults = task.backbone.generation_defaults
        settings = SamplingSettings(guidance_scale=defaults.guidance_scale)
        requests = [
            Request(prompt, SAMPLE_SEED, k, defaults.negative_prompt)
            for prompt in self.samples.validation_prompts
            for k in range(per_prompt)
        ]
        images = [to_pil(image) for image in draw(task.backbone, requests, settings)]
        sheet = contact_sheet(images, [request.prompt for request in requests], columns=per_prompt)
        sheet.save(self.root / SAMPLES)
        print(f"samples of the validation prompts are in {self.root / SAMPLES}")


def main_stage2(arguments: Sequence[str] | None = None) -> int:
    return train.main(Stage2Options, "train_stage2.py", "dpt.cli.train.tasks:stage2", arguments)
