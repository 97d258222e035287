"""The flags of `txt2img.py`: this project's, and the published ones under their names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dpt.cli.common.console import PublishedFlags
from dpt.embedded import EMBEDDED
from dpt.errors import fail
from dpt.generation_defaults import MAX_SIDE, GenerationDefaults
from dpt.sampling.options import (
    NO_CORRECTION,
    Correction,
    Guidance,
    Interval,
    SamplerConfig,
    SizeConditions,
    recommended_correction,
    resolve_correction,
)
from dpt.sampling.schedulers import check_name

DEFAULT_PROMPT = "a red circle to the left of a blue square"

NONE = "none"

Flag = tyro.conf.FlagCreatePairsOff[bool]

LIMITS = {
    "n_samples": 100_000,
    "n_candidates": 10_000,
    "batch_size": 4096,
    "num_timesteps": 10_000,
    "resolution": MAX_SIDE,
    "height": MAX_SIDE,
    "width": MAX_SIDE,
}
"""Largest value of each flag. The smallest is 1."""


@dataclass(frozen=True)
class CorrectionOptions:
    """Self-correction by the gradient of the adapter's matching score. Default: what the checkpoint recommends."""

    correction_factor: float | None = None
    """Step size along the gradient; 0 turns the correction off. Given alone it means what it means in the published
    code: --correction_target input and --correction_norm none, on every step."""
    correction_target: Literal["state", "input", "fused"] | None = None
    """What is moved. state: the latents before the step (the paper's formula). input: only what the conditional
    branch sees (the published code, and the default with --correction_factor). fused: the latents after the step, by a
    gradient from guidance's own forward pass (the cheapest)."""
    correction_norm: Literal["none", "unit", "rms", "relative"] | None = None
    """none: the gradient as it is (the default with --correction_factor). unit: its direction only. rms: its direction,
    with the factor relative to the length of unit noise. relative: relative to the length of the predicted noise."""
    correction_start: float | None = None
    """Start of the correction, as a fraction of the way from noise to image."""
    correction_end: float | None = None
    """End of the correction."""
    correction_every: int | None = None
    """Correct only every n-th step between start and end."""

    def correction(self, steps: int, defaults: GenerationDefaults, has_adapter: bool) -> Correction:
        recommended = recommended_correction(defaults.correction if has_adapter else None, steps)
        if self.correction_factor is None and not recommended.on:
            return NO_CORRECTION
        return resolve_correction(
            recommended, **{name.removeprefix("correction_"): v for name, v in self.given.items()}
        )

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def given_beside_factor(self) -> list[str]:
        return [name for name in self.given if name != "correction_factor"]


@dataclass(frozen=True)
class ShapeOptions:
    """The adapter's shape, for published-layout files that differ from the default. Native checkpoints record it."""

    unet_feature: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The UNet feature that a published adapter reads, if not up1."""
    num_queries_matching: int | None = None
    """Number of matching queries of a published adapter, if not 10."""
    nheads: int | None = None
    """Attention heads of a published adapter, if not 8."""
    num_queries_rec: int | None = None
    position_embedding: Literal["sine", "learned"] | None = None
    enc_layers: int | None = None
    dec_layers: int | None = None
    dim_feedforward: int | None = None
    hidden_dim: int | None = None
    pre_norm: Flag = False
    no_contrastive_align_loss: Flag = False
    contrastive_loss_hdim: int | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields of an `AdapterConfig` that were given."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        if values.pop("no_contrastive_align_loss", False):
            values["contrastive_align_loss"] = False
        return values


@dataclass(frozen=True)
class RefinerOptions:
    """The second model of Stable Diffusion XL, which finishes the images of the first."""

    refiner: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """The refiner: it adds noise to each image and removes it again."""
    refiner_strength: float = 0.3
    """Fraction of the steps that the refiner takes again."""


PUBLISHED = PublishedFlags(
    ignored={
        "dropout": "has no effect: sampling uses no dropout",
        "text_encoder_type": "has no effect: sampling reads no referring expression",
        "no_freeze_text_encoder": "has no effect: sampling trains nothing",
        "fix_timestep": "has no effect: the scheduler sets the timesteps",
        "masks": "has no effect: sampling segments nothing",
        "no_detection": "has no effect: sampling locates nothing",
    }
)


@dataclass(frozen=True)
class GuidanceOptions:
    """The negative prompt, and what guidance does beside its scale."""

    negative_prompt: str | None = None
    """The negative prompt. Default: from the generation_defaults.json of the checkpoint or the model, else empty."""
    guidance_start: float = 0.0
    """Start of guidance, as a fraction of the way from noise to image."""
    guidance_end: float = 1.0
    """End of guidance."""
    guidance_rescale: float = 0.0
    """How much of the contrast added by guidance to take back: 0 to 1."""
    true_cfg_scale: float = 1.0
    """Classifier-free guidance of a distilled model (FLUX), which takes --guidance_scale as an input of its network;
    1 is none, and then a negative prompt has no effect."""

    @property
    def interval(self) -> Interval:
        return Interval(self.guidance_start, self.guidance_end)


@dataclass(frozen=True)
class SizeOptions:
    """The size of the images. Default: the size the model was trained at."""

    height: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    width: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Height and width at once."""

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Height and width."""
        if self.resolution is None:
            return self.height, self.width
        return self.resolution, self.resolution


@dataclass(frozen=True)
class TunedModelOptions:
    """The model, the checkpoint, and where and in which number format they run."""

    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """A model in the diffusers layout (docs/models.md). A folder is used without network access."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Revision of a hub model."""
    ckpt: Annotated[str | None, tyro.conf.arg(metavar="PATH|none")] = None
    """An adapter, a LoRA or both: a training result, the published checkpoint, or a LoRA file. Default: the embedded
    model's own checkpoint, for the embedded model."""
    allow_other_base: Flag = False
    """Use a checkpoint that was trained on another base model, with a warning."""
    gpu: Annotated[str | None, tyro.conf.arg(aliases=["-g", "--gpuid"], metavar="N|cpu")] = None
    """Index of the GPU, or cpu. Default: the first GPU, or the CPU if there is none."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format on a GPU, by default a half format; a CPU uses float32, or bfloat16 on request."""
    vae: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """Another VAE instead of the model's own, such as SDXL's fp16-fix, which then works in half precision."""
    quantize: Literal["nf4", "int8"] | None = None
    """Store the network's linear layers in 4 bits (nf4, by bitsandbytes) or 8 bits (int8, by torchao)."""
    compile: Flag = False
    """Compile the network's transformer blocks on first use."""
    channels_last: Flag = False
    """Store convolution weights channels last, which GPU tensor cores prefer."""
    allow_tf32: Flag = False
    """Let Ampere and later GPUs round float32 matrix products: faster, slightly different numbers."""


@dataclass(frozen=True)
class Options:
    """Sample images for a prompt, or for each prompt of a file."""

    prompt: str = DEFAULT_PROMPT
    prompts_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead of --prompt: one prompt a line, or a .jsonl file with a "prompt" key. Launched processes share them."""
    n_samples: int = 3
    """Images per prompt."""
    seed: int = 42
    """Image k depends on the model, the prompt, the seed, k and the settings, and on nothing else."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Images sampled together on a GPU (default 4). A CPU always samples one at a time."""
    outdir: Path = Path("outputs")
    """Parent folder: each run makes a new folder in it."""
    method: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A method of dpt bench run instead of --ckpt and the correction's flags: sld repairs each image until its prompt
    holds; METHOD+sld does so after another method."""
    n_candidates: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Sample this many per prompt and keep the --n_samples with the best matching score, best first."""
    compare: Flag = False
    """Sample each image with the base model, with the checkpoint's LoRA, and with correction: side by side, from the
    same noise, with the adapter's score and, for rendered scenes, the oracle's verdict."""
    trace: Flag = False
    """Plot the adapter's score along the steps, and the predicted x0 at some of them."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    size: SizeOptions = field(default_factory=SizeOptions)
    model: TunedModelOptions = field(default_factory=TunedModelOptions)
    refiner: RefinerOptions = field(default_factory=RefinerOptions)
    sizes: SizeConditions = field(default_factory=SizeConditions)
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    shape: ShapeOptions = field(default_factory=ShapeOptions)

    @property
    def sheet_per_prompt(self) -> bool:
        """Whether each prompt has a contact sheet of its own, or all share one."""
        return self.compare and self.prompts_file is not None

    @property
    def num_candidates(self) -> int:
        """Images sampled per prompt, kept or not."""
        return self.n_samples if self.n_candidates is None else self.n_candidates

    def with_defaults(self, defaults: GenerationDefaults) -> Options:
        """These options with the defaults in place of flags that were not given."""
        guidance = self.guidance
        if guidance.negative_prompt is None:
            guidance = replace(guidance, negative_prompt=defaults.negative_prompt)
        return replace(self, sampler=self.sampler.with_defaults(defaults), guidance=guidance)

    def applied_defaults(self, correction: Correction) -> Collection[str]:
        """The entries of the generation defaults that these flags leave in force."""
        values = {
            "guidance_scale": self.sampler.guidance_scale,
            "negative_prompt": self.guidance.negative_prompt,
        }
        names = [name for name, value in values.items() if value is None]
        return [*names, "correction"] if correction.on and self.correction.correction_factor is None else names

    def unused_flags(self, has_adapter: bool, correction: Correction) -> list[str]:
        """A sentence for each flag that was given and has no effect beside the others."""
        reasons: list[tuple[str, str]] = []
        beside = self.correction.given_beside_factor
        if not has_adapter:
            reasons += [(name, "there is no adapter") for name in beside]
        elif self.correction.correction_factor == 0:
            reasons += [(name, "--correction_factor is 0") for name in beside]
        elif not correction.on:
            why = "the checkpoint recommends no correction, and there is no --correction_factor"
            reasons += [(name, why) for name in beside]
        if self.refiner.refiner is None and self.refiner.refiner_strength != RefinerOptions.refiner_strength:
            reasons.append(("refiner_strength", "there is no --refiner"))
        if self.sampler.guidance_scale == 1:
            guiding = ("guidance_start", "guidance_end", "guidance_rescale", "negative_prompt")
            default = GuidanceOptions()
            given = [name for name in guiding if getattr(self.guidance, name) not in (getattr(default, name), "")]
            reasons += [(name, "--guidance_scale 1 turns guidance off") for name in given]
        return [f"--{name} has no effect: {why}" for name, why in reasons]


def check(options: Options) -> None:
    """Check the flags before anything is loaded."""
    if options.prompts_file is not None and options.prompt != DEFAULT_PROMPT:
        fail("give either --prompt or --prompts_file, not both")
    if not options.prompt.strip():
        fail("the prompt is empty")
    flags = {**vars(options), **vars(options.sampler), **vars(options.size)}
    for name, limit in LIMITS.items():
        value = flags[name]
        if value is not None and not 1 <= value <= limit:
            fail(f"--{name} must be between 1 and {limit}, not {value}")
    if options.n_candidates is not None and options.n_candidates < options.n_samples:
        fail(f"--n_candidates {options.n_candidates} must be at least --n_samples {options.n_samples}")
    size = options.size
    if size.resolution is not None and (size.height is not None or size.width is not None):
        fail("give either --resolution or --height and --width, not both")
    for first, second in (("compare", "n_candidates"), ("compare", "trace"), ("trace", "n_candidates")):
        if getattr(options, first) and getattr(options, second):
            fail(f"--{first} and --{second} cannot be combined")
    check_name(options.sampler.scheduler)
    scale = 1.0 if options.sampler.guidance_scale is None else options.sampler.guidance_scale
    Guidance(scale, options.guidance.interval, options.guidance.guidance_rescale, options.guidance.true_cfg_scale)
    resolve_correction(NO_CORRECTION, **{k.removeprefix("correction_"): v for k, v in options.correction.given.items()})
