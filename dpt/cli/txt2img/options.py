"""The flags of `txt2img.py`: this project's, and the published ones under their names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dpt.embedded import EMBEDDED
from dpt.errors import fail
from dpt.sampling.options import Correction, Guidance, Interval, resolve_correction
from dpt.sampling.schedulers import SCHEDULER_NAMES, check_name

DEFAULT_PROMPT = "a red circle to the left of a blue square"

SCHEDULER_HELP = f"One of {', '.join(SCHEDULER_NAMES)}; own is what the model's folder says."

NONE = "none"


Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class CorrectionOptions:
    correction_factor: float | None = None
    """How far to follow the gradient of the adapter's matching score at each step; 0 is not at all. Left out: as far,
    and in the way, that was measured to be best on the embedded model, if there is an adapter."""
    correction_target: Literal["state", "input", "fused"] | None = None
    """What is moved: the state, before it is denoised (the paper; the default with a --correction_factor); only what
    the conditional branch sees of it (the published code); or the next state, by a gradient that guidance's own forward
    pass is made to yield (the default without)."""
    correction_norm: Literal["none", "unit", "rms", "relative"] | None = None
    """none: the gradient as it is; the default with a --correction_factor. unit: its direction, the factor being its
    length. rms: its direction, the factor being its length as a share of that of noise; the default without. relative:
    as a share of that of the predicted noise, which is nearly the same and costs more."""
    correction_start: float | None = None
    """From here on, as a share of the way from noise to picture."""
    correction_end: float | None = None
    """Up to here."""
    correction_every: int | None = None
    """Only every so many steps of these."""

    def correction(self, steps: int, has_adapter: bool) -> Correction:
        said = {name.removeprefix("correction_"): value for name, value in self.given.items()}
        return resolve_correction(steps, has_adapter, **said)

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def given_beside_factor(self) -> list[str]:
        return [name for name in self.given if name != "correction_factor"]


@dataclass(frozen=True)
class ShapeOptions:
    """What an adapter is like. Its own checkpoint says so: needed only where a published file does not."""

    unet_feature: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """What a published adapter reads, if not up1."""
    num_queries_matching: int | None = None
    """How many of a published adapter's queries match, if not 10."""
    nheads: int | None = None
    """A published adapter's attention heads, if not 8."""
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
    def told(self) -> dict[str, Any]:
        """Fields of an `AdapterConfig`, as far as they were given."""
        found = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        if found.pop("no_contrastive_align_loss", False):
            found["contrastive_align_loss"] = False
        return found


@dataclass(frozen=True)
class UnusedOptions:
    """Published flags that nothing hangs on here: given, they are warned about."""

    dropout: float | None = None
    text_encoder_type: str | None = None
    no_freeze_text_encoder: Flag = False
    fix_timestep: int | None = None
    masks: Flag = False
    no_detection: Flag = False

    @property
    def warnings(self) -> list[str]:
        given = [name for name, value in asdict(self).items() if value not in (None, False)]
        return [f"--{name} has no effect: {UNUSED[name]}" for name in given]


UNUSED = {
    "dropout": "nothing is dropped while drawing",
    "text_encoder_type": "no referring expression is read while drawing",
    "no_freeze_text_encoder": "nothing is trained while drawing",
    "fix_timestep": "the scheduler lays out the timesteps",
    "masks": "nothing is segmented while drawing",
    "no_detection": "nothing is located while drawing",
}


@dataclass(frozen=True)
class Options:
    """Draw pictures for a prompt, or for each of a file of prompts."""

    prompt: str = DEFAULT_PROMPT
    """What to draw."""
    prompts_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead: one prompt a line or, in a .jsonl file, under "prompt". Started by a launcher, processes share them."""
    n_samples: int = 3
    """How many pictures of a prompt."""
    n_candidates: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Draw so many instead, and keep the --n_samples that the adapter finds to match best, the best first."""
    seed: int = 42
    """Picture k depends on the model, the prompt, the seed, k and the settings, and on nothing else."""
    negative_prompt: str = ""
    """What to steer away from."""
    num_timesteps: int = 25
    """Denoising steps. 25 is what the embedded model is evaluated with; the published script takes 50."""
    guidance_scale: float = 7.5
    """Strength of classifier-free guidance; 1 is none, and twice as fast."""
    guidance_start: float = 0.0
    """Guide from here on, as a share of the way from noise to picture."""
    guidance_end: float = 1.0
    """Guide up to here."""
    guidance_rescale: float = 0.0
    """How much of the contrast that guidance adds to a prediction to take back: 0 to 1."""
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    scheduler: Annotated[str, tyro.conf.arg(metavar="NAME", help=SCHEDULER_HELP)] = "ddim"
    height: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """By default the size the model was trained at."""
    width: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """By default the size the model was trained at."""
    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Height and width at once."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Pictures drawn together on a GPU (4 by default). On a CPU they are always drawn one by one."""
    compare: Flag = False
    """Draw each picture by the model itself, with the checkpoint's LoRA, and corrected too: side by side, from the
    same noise, with the adapter's score and, of scenes that it can read, what the oracle says."""
    trace: Flag = False
    """Plot the adapter's score along the steps, and the picture that is foreseen at some of them."""
    outdir: Path = Path("outputs")
    """Each run makes a new folder in here."""
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """A Stable Diffusion model in the diffusers layout. A folder is used without touching the network."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Version of a hub model."""
    ckpt: Annotated[str | None, tyro.conf.arg(metavar="PATH|none")] = None
    """An adapter, a LoRA or both: a result of training, the published checkpoint, or a LoRA file. By default that
    of the embedded model, for the embedded model."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format on a GPU, by default a half format; a CPU uses float32, or bfloat16 if asked and it can."""
    compile: Flag = False
    """Compile the UNet's transformer blocks when they are first used. What it saves: docs/results/performance.md."""
    channels_last: Flag = False
    """Lay out the weights of convolutions channels last, as the tensor cores of GPUs read them."""
    allow_tf32: Flag = False
    """Let Ampere and later GPUs round float32 matrix products, as PyTorch has them round convolutions anyway: faster,
    and not the same numbers."""
    gpu: Annotated[str | None, tyro.conf.arg(aliases=["-g", "--gpuid"], metavar="N|cpu")] = None
    """Number of the GPU, or cpu. By default the first GPU, or the CPU where there is none."""
    shape: ShapeOptions = field(default_factory=ShapeOptions)
    idle: UnusedOptions = field(default_factory=UnusedOptions)

    @property
    def guidance_interval(self) -> Interval:
        return Interval(self.guidance_start, self.guidance_end)

    @property
    def size(self) -> tuple[int | None, int | None]:
        if self.resolution is None:
            return self.height, self.width
        return self.resolution, self.resolution

    @property
    def sheet_for_each(self) -> bool:
        """Whether each prompt has a sheet of its own, or all share one."""
        return self.compare and self.prompts_file is not None

    @property
    def without_effect(self) -> list[str]:
        """A sentence for each flag that was given and changes nothing."""
        found = self.idle.warnings
        if self.correction.correction_factor == 0:
            found += [
                f"--{name} has no effect: --correction_factor is 0" for name in self.correction.given_beside_factor
            ]
        if self.guidance_scale == 1:
            guiding = ("guidance_start", "guidance_end", "guidance_rescale", "negative_prompt")
            given = [name for name in guiding if getattr(self, name) != getattr(Options, name)]
            found += [f"--{name} has no effect: --guidance_scale 1 is no guidance" for name in given]
        return found

    @property
    def drawn(self) -> int:
        """Pictures of a prompt that are drawn, if not all kept."""
        return self.n_samples if self.n_candidates is None else self.n_candidates


def check(options: Options) -> None:
    """What can be found wrong without loading anything."""
    if options.prompts_file is not None and options.prompt != DEFAULT_PROMPT:
        fail("--prompt and --prompts_file are two answers to one question: leave one out")
    if not options.prompt.strip():
        fail("the prompt is empty")
    for name in ("n_samples", "batch_size", "resolution"):
        value = getattr(options, name)
        if value is not None and value < 1:
            fail(f"--{name} must be at least 1, not {value}")
    if options.n_candidates is not None and options.n_candidates < options.n_samples:
        fail(f"--n_candidates {options.n_candidates} are too few to keep --n_samples {options.n_samples} of")
    if options.resolution is not None and (options.height is not None or options.width is not None):
        fail("--resolution is height and width at once: leave it out, or --height and --width")
    for one, other in (("compare", "n_candidates"), ("compare", "trace"), ("trace", "n_candidates")):
        if getattr(options, one) and getattr(options, other):
            fail(f"--{one} and --{other} do not go together")
    check_name(options.scheduler)
    Guidance(options.guidance_scale, options.guidance_interval, options.guidance_rescale)
    options.correction.correction(options.num_timesteps, has_adapter=True)
