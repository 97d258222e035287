"""`train_hps.py` and `dpt prefer tune`: a LoRA on selected images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.common.console import PublishedFlags, flag_value, warn_of_unknown_captions
from dpt.cli.train.options import (
    FramingOptions,
    HubOptions,
    LoadingOptions,
    LoopOptions,
    ModelOptions,
    OptimisationOptions,
    OutputOptions,
    warn_unused,
)
from dpt.cli.train.stages import DenoisingOptions, LoraShapeOptions
from dpt.data.preference.source import NEGATIVE_PREFIX, POSITIVE
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.backbone import Backbone
    from dpt.data.preference.source import TuningData
    from dpt.training.tasks.denoising import HpsTuning


@dataclass(frozen=True)
class TuningDataOptions:
    """Selected and regularisation images."""

    dataset_folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The folder of `dpt prefer select`. Default: the working directory, if there is an --annotation_file."""
    annotation_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A line per image: file_name, prompt or caption, type. Default: metadata.jsonl in --dataset_folder."""
    regularization_folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Images with captions that keep the model close to the base model: real ones, or sampled from it with
    `dpt prefer draw --type regularization`."""
    regularization_annotation: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A line per image: file_name, caption. Names are relative to --regularization_folder, or to --dataset_folder."""
    negative: Literal["prefix", "adapter", "none"] = "prefix"
    """prefix: train on losers under the prefixed prompt. adapter: train on losers alone under their plain prompts, for
    the negative half of guidance. none: leave losers out."""
    negative_prefix: str = NEGATIVE_PREFIX
    """The phrase for losers; also the negative prompt that the result carries."""
    ratios: tuple[float, float, float] | None = None
    """Ratio of positive, negative and regularisation examples. Default: every image once per epoch, as published."""
    prompt_dropout: float = 0.0
    """Fraction of the captions of winners and regularisation images to leave empty."""
    negative_dropout: float = 0.0
    """Fraction of losers' captions to reduce to the prefix, which will be the negative prompt."""
    val_batch_size: int = 16
    framing: FramingOptions = field(default_factory=FramingOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)


@dataclass(frozen=True)
class TripleOptions:
    """Samples at every validation: plain, with the prefix in the prompt, and with the prefix as negative prompt."""

    validation_prompt_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """One prompt a line. Sampled into validation/step-N.png."""
    num_validation_images: int = 4
    """Images per prompt and variant."""
    validation_timesteps: int = 25
    """Denoising steps of these samples."""


@dataclass(frozen=True)
class TimestepOptions:
    """The timesteps that a flow matching model (Stable Diffusion 3) is trained at."""

    logit_mean: float = 0.0
    """Mean of their logit-normal distribution. Below 0, more of them are noisy, where the layout is decided."""
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        from dpt.training.engine.settings import check_logit_normal

        check_logit_normal(self.logit_mean, self.logit_std)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class HpsOptions(LoopOptions):
    """HPS: tune a LoRA on clear winners and losers of `dpt prefer select`, and on regularisation images.

    Losers are trained under "Weird image. " and their prompt. The result carries that phrase as its negative prompt,
    and every command applies it. The same command resumes a run that was stopped; exit code 75 means stopped and saved.
    """

    recipe: Literal["", "align-sd"] = ""
    """align-sd: the published hyperparameters as defaults, for 40 examples per step on one device."""
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    data: TuningDataOptions = field(default_factory=TuningDataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    lora: LoraShapeOptions = field(default_factory=LoraShapeOptions)
    denoising: DenoisingOptions = field(default_factory=DenoisingOptions)
    timesteps: TimestepOptions = field(default_factory=TimestepOptions)
    triple: TripleOptions = field(default_factory=TripleOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    hub: HubOptions = field(default_factory=HubOptions)

    @property
    def base_model(self) -> str:
        return self.model.pretrained_model_name_or_path


ALIGN_SD = HpsOptions(
    recipe="align-sd",
    optimisation=OptimisationOptions(
        max_train_steps=10_000, train_batch_size=40, learning_rate=1e-5, lr_scheduler="constant", seed=42
    ),
    output=OutputOptions(checkpointing_steps=5_000),
)
"""The published values: rank 4 on all attention layers, AdamW with weight decay 0.01, clipped at 1. Non-square images
are squashed or cropped in the middle, where the published script crops at random."""

RECIPES = {"align-sd": ALIGN_SD}

PUBLISHED = PublishedFlags(
    refused={
        "dataset_name": "is not read: --dataset_folder and --annotation_file name the images",
        "max_train_samples": "was never read by the published code; --max_train_steps ends a run early",
    },
    ignored={
        "local_rank": "is not read: the launcher tells each process its rank",
        "validation_iters": "has no effect: samples are drawn at validations, see --validation_steps",
        "evaluation_prompts": "was never read by the published code, so it can have no effect",
        "cache_dir": "was never read by the published code, so it can have no effect",
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    from dpt.cli.train.main import run_to_exit_code

    words = sys.argv[1:] if arguments is None else list(arguments)
    return run_to_exit_code(
        HpsOptions, "train_hps.py", run, words, PUBLISHED, RECIPES.get(flag_value(words, "recipe") or "")
    )


def run(options: HpsOptions) -> Any:
    from dpt.cli.train.setup import AfterValidation, check_output, with_run_name

    check(options)
    check_output(options.output)
    options = replace(options, output=with_run_name(options.output, "hps", options))
    from dpt.backbone.identity import hash_as_recorded
    from dpt.cli.train.data import framing_of
    from dpt.cli.train.hub import open_hub
    from dpt.cli.train.main import recorded_model, train_task
    from dpt.cli.train.setup import (
        config_of_groups,
        loop_settings,
        open_training_backbone,
        resolved_formats,
        start_processes,
        with_feature,
    )
    from dpt.data.stream import Stream
    from dpt.training.engine.optim import require_eight_bit

    accelerator = start_processes(options)
    if options.optimisation.use_8bit_adam:
        require_eight_bit(accelerator.device)
    hub = open_hub(options.hub, options.root) if accelerator.is_main_process else None
    backbone = open_training_backbone(options.model, accelerator)
    options = replace(options, model=with_feature(options.model, backbone))
    loading = options.data.loading
    data = open_tuning_data(options, framing_of(options.data.framing, backbone))
    task = make_task(options, backbone, data)
    if accelerator.is_main_process:
        winners = data.parts.get(POSITIVE)
        warn_of_unknown_captions(options.base_model, () if winners is None else winners.captions())
        print(f"training on {', '.join(f'{len(source)} {kind}' for kind, source in data.parts.items())} images")
    workers = loading.dataloader_num_workers
    settings = loop_settings(options, len(data.source), accelerator.num_processes, workers, default_epochs=EPOCHS)
    config = config_of_groups(
        [
            options.optimisation,
            options.model,
            options.lora,
            options.denoising,
            options.timesteps,
            options.output,
            options.data,
        ],
        settings,
        task="hps",
        model_sha256=hash_as_recorded(recorded_model(options.root), backbone.folder),
        data=data.identity,
        **resolved_formats(backbone, task),
    )
    stream = Stream(data.source, options.optimisation.seed, corrupt_budget=loading.corrupt_budget)
    sheets = AfterValidation(triple_drawer(options, task))
    return train_task(options, accelerator, task, stream, settings, config, hub, (sheets,))


EPOCHS = 1
"""Default number of epochs."""


def check(options: HpsOptions) -> None:
    data = options.data
    unused = {"unet_feature": "there is no adapter", "adapter_precision": "there is no adapter"}
    if not options.lora.lora_text_encoders:
        unused["text_encoder_lr"] = "only --lora_text_encoders trains a text encoder"
    if data.negative == "none":
        unused["negative_prefix"] = "--negative none leaves losers out"
    warn_unused([options.model, options.optimisation, options.data], unused)
    if data.dataset_folder is None and data.annotation_file is None:
        fail("--dataset_folder is missing: the folder of `dpt prefer select`")
    if data.negative == "prefix" and not data.negative_prefix.strip():
        fail("--negative_prefix is empty: losers would be trained as winners; give a phrase, or --negative none")
    if data.regularization_annotation is None and data.regularization_folder == data.dataset_folder:
        fail("--regularization_folder is the --dataset_folder: give another folder, or --regularization_annotation")
    data.loading.check()
    if data.val_batch_size < 1:
        fail(f"--val_batch_size must be at least 1, not {data.val_batch_size}")
    for name in ("num_validation_images", "validation_timesteps"):
        if getattr(options.triple, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options.triple, name)}")


def open_tuning_data(options: HpsOptions, framing: Any) -> TuningData:
    from dpt.data.preference.source import TuningConfig, tuning_data

    data = options.data
    selected, folder = data.dataset_folder or Path(), data.regularization_folder
    if folder is None and data.regularization_annotation is not None:
        folder = selected
    config = TuningConfig(data.negative, data.negative_prefix, data.ratios, data.prompt_dropout, data.negative_dropout)
    return tuning_data(
        selected,
        data.annotation_file,
        folder,
        data.regularization_annotation,
        config,
        framing,
        options.optimisation.seed,
    )


VALIDATED_PER_TYPE = 64

VALIDATION_SEED = 0


def make_task(options: HpsOptions, backbone: Backbone, data: TuningData) -> HpsTuning:
    from dpt.cli.train.tasks import grouping_with
    from dpt.data.mixture import EveryNth
    from dpt.data.stream import Stream
    from dpt.lora import Lora
    from dpt.training.tasks.denoising import DenoisingConfig, HpsTuning, NoiseConfig

    backbone.prepare_for_gradients()
    d, shape = options.denoising, options.lora
    validation = {
        kind: Stream(EveryNth(source, -(-len(source) // VALIDATED_PER_TYPE)), VALIDATION_SEED, shuffle=False)
        for kind, source in data.parts.items()
    }
    return HpsTuning(
        backbone,
        Lora(backbone, shape.config, options.optimisation.seed),
        validation,
        DenoisingConfig(d.mse_loss_coef, d.snr_gamma, d.detach_unet_feature),
        NoiseConfig(logit_mean=options.timesteps.logit_mean, logit_std=options.timesteps.logit_std),
        val_batch_size=options.data.val_batch_size,
        gradient_checkpointing=options.model.gradient_checkpointing,
        grouping=grouping_with(options.optimisation),
        negative_prompt=options.data.negative_prefix if options.data.negative == "prefix" else "",
    )


def triple_drawer(options: HpsOptions, task: HpsTuning) -> Callable[[int], None]:
    """Sample the validation prompts plainly, with the prefix in the prompt, and with it as the negative prompt."""
    file = options.triple.validation_prompt_file
    if file is None:
        return lambda step: None
    from dpt.cli.common.console import read_prompts

    prompts = read_prompts(file)

    def draw(step: int) -> None:
        from dpt.data.images import to_pil
        from dpt.evaluation.contact_sheet import contact_sheet
        from dpt.sampling.draw import Request, SamplingSettings
        from dpt.sampling.draw import draw as draw_images

        prefix, scale = options.data.negative_prefix, task.backbone.generation_defaults.guidance_scale
        settings = SamplingSettings(options.triple.validation_timesteps, scale)
        rows = [
            (prompt, number, variant)
            for prompt in prompts
            for number in range(options.triple.num_validation_images)
            for variant in (("neutral", "", ""), ("prefix in the prompt", prefix, ""), ("negative prompt", "", prefix))
        ]
        requests = [Request(f"{before}{p}", VALIDATION_SEED, n, negative) for p, n, (_, before, negative) in rows]
        images = [to_pil(image) for image in draw_images(task.backbone, requests, settings, batch_size=16, exact=False)]
        titles = [f"{prompt}: {name}" for prompt, _, (name, _, _) in rows]
        sheet = contact_sheet(images, titles, columns=3, title=f"after step {step}")
        (options.root / "validation").mkdir(exist_ok=True)
        sheet.save(options.root / "validation" / f"step-{step:06d}.png")

    return draw
