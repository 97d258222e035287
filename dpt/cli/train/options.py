"""The training flags under their published names, and which of them have no effect beside others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from dpt.cli.common.console import PublishedFlags
from dpt.embedded import EMBEDDED
from dpt.errors import fail
from dpt.records import to_flat

if TYPE_CHECKING:
    from dpt.training.engine.observers import RunObserver

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class OptimisationOptions:
    """Length, batch and learning rate."""

    max_train_steps: int | None = None
    """Length in optimizer steps. Default: 3000 on rendered scenes."""
    num_train_epochs: int | None = None
    """Length in epochs, if --max_train_steps is not given. Default: 100 with --data_root."""
    train_batch_size: int = 16
    """Examples per device and forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    learning_rate: float = 1e-4
    text_encoder_lr: float | None = None
    """Learning rate of the text encoder that --no_freeze_text_encoder trains, or of the LoRA of
    --lora_text_encoders. Default: --learning_rate."""
    scale_lr: Flag = False
    """Multiply the learning rate by the effective batch."""
    lr_scheduler: str = "constant"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial."""
    lr_warmup_steps: int = 0
    seed: int = 1337
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    weight_decay_on: Literal["all", "matrices"] = "all"
    """all, as published, or matrices: not on biases, norms, embeddings and scalars such as the logit scale."""
    adam_epsilon: float = 1e-8
    ema_decay: float = 0.0
    """Validate and export a moving average of the weights, with this decay (0.999 for instance); 0 for none. It warms
    up: the decay of step n is at most (1 + n) / (10 + n)."""
    use_8bit_adam: Flag = False
    """Keep AdamW's moments in 8 bits, on a GPU with bitsandbytes. For an adapter this saves about 25 MB."""
    max_grad_norm: float = 1.0
    """Clip the gradient norm to this; 0 does not clip."""
    max_bad_steps: int = 3
    """Stop after this many steps in a row whose loss or gradient is not finite. No such step is applied."""


@dataclass(frozen=True)
class ModelOptions:
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """The frozen model, in the diffusers layout: Stable Diffusion with a UNet, or one of the transformers in
    docs/models.md. A folder is used without network access."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Revision of a hub model."""
    unet_feature: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The feature that the adapter reads. Default: up1, as published; up0 of Stable Diffusion XL; the block after a
    third of a transformer. Of a UNet: bottom0 …, mid, up0 …, several of equal grid joined by _, or all-CHANNELS-SIDE.
    Of a transformer: block0 …, or several joined by _."""
    vae: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """Another VAE instead of the model's own, such as SDXL's fp16-fix, which then works in half precision."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """Overrides the prediction type of the model's scheduler."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the frozen model. Default: the launcher's on a GPU, or a half format; float32 on a CPU, which
    can use bf16 if it supports it. Trained weights are always float32."""
    adapter_precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the matrix products in the adapter's encoder and decoder."""
    quantize: Literal["nf4", "int8"] | None = None
    """Store the frozen network's linear layers in 4 bits (nf4, by bitsandbytes) or 8 bits (int8, by torchao)."""
    gradient_checkpointing: Flag = False
    """Recompute activations in the backward pass instead of storing them: less memory, the same numbers."""
    enable_xformers_memory_efficient_attention: Flag = False
    """Use xformers' attention on a GPU, if it is installed."""
    allow_tf32: Flag = False
    """Let Ampere and later GPUs round float32 matrix products: faster, slightly different numbers."""
    compile: Flag = False
    """Compile the UNet's transformer blocks on first use. Measured in docs/results/performance.md."""
    channels_last: Flag = False
    """Store convolution weights channels last, which GPU tensor cores prefer."""


@dataclass(frozen=True)
class FramingOptions:
    """How images become squares."""

    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Side of the square training images. Default: the size the model was trained at."""
    center_crop: Flag = False
    """Crop the middle square instead of squashing; boxes too. Expressions for what is cut off are left out."""
    random_flip: Flag = False
    """Mirror half of the images and swap left and right in their texts, where that is safe. A cache then also holds the
    mirrored latents and texts."""


@dataclass(frozen=True)
class LoadingOptions:
    """How images are read."""

    corrupt_budget: int = 0
    """Number of broken images to skip, or to replace by others, before stopping."""
    dataloader_num_workers: int = 0
    """Processes that prepare batches in advance."""

    def check(self) -> None:
        for name in ("corrupt_budget", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                fail(f"--{name} must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class DataOptions:
    data_root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder that holds coco/, ReC/ and ITM/; for --plain_lora also images with metadata.jsonl or .txt files.
    Default: scenes rendered on the fly."""
    dataset_name: str = "refall"
    """Referring expressions to train on."""
    dataset_name_matching: Literal["mscoco_hard_negative"] = "mscoco_hard_negative"
    """Captions and hard negatives to train on."""
    combine_datasets_val: tuple[str, ...] = ("refcoco", "refcoco+", "refcocog")
    """Referring expressions to validate on."""
    dataset_name_val: str | None = None
    """Validate on this set of expressions instead of all of them combined."""
    val_fullset: Flag = False
    """Validate on everything instead of a fixed part: every 8th or 16th expression, every 20th caption."""
    scenes: Literal["pocket", "full"] = "pocket"
    """The world of rendered scenes, without --data_root."""
    validation_scenes: int = 256
    """Number of held-out scenes to validate on, without --data_root."""
    cache: Annotated[str, tyro.conf.arg(metavar="auto|none|FOLDER")] = "auto"
    """Cached latents and text states: auto uses what `dpt cache` wrote beside the data, if anything."""
    val_batch_size: int = 16
    val_fraction: float = 0.0
    """Of a folder of images with captions: hold out this fraction, and validate the denoising loss on it."""
    framing: FramingOptions = field(default_factory=FramingOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)


@dataclass(frozen=True)
class AdapterOptions:
    """What the adapter starts from, its shape, and what it reads."""

    qformer_ckpt: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|FILE")] = None
    """Initialise from an adapter of the same shape: its folder, a finished run, or the published file."""
    allow_other_base: Flag = False
    """Start from an adapter that was trained to read another model, with a warning. Stage 1 always allows it."""
    text_encoder_type: str = "backbone"
    """Encoder of referring expressions: backbone for the frozen model's own, or a folder or hub id. The published
    recipe uses roberta-base."""
    no_freeze_text_encoder: Flag = False
    """Train that encoder too, if it is not the frozen model's own. It is saved with the adapter."""
    position_embedding: Literal["sine", "learned"] = "sine"
    code_placement: Literal["keys", "sequence"] = "keys"
    """Where position and timestep embeddings are added: to queries and keys (the published code), or to the feature
    sequence too (the paper's figure)."""
    enc_layers: int = 1
    dec_layers: int = 1
    dim_feedforward: int = 2048
    hidden_dim: int = 256
    nheads: int = 8
    dropout: float = 0.1
    """In the adapter. A resumed run draws the same masks, unless the batch is split over other processes."""
    num_queries_matching: int = 10
    num_queries_rec: int = 100
    pre_norm: Flag = False
    no_contrastive_align_loss: Flag = False
    contrastive_loss_hdim: int = 64
    feature_norm: Annotated[bool | None, tyro.conf.arg(metavar="True|False")] = None
    """Normalise the feature's channels, then scale and shift them by the timestep. Default: for transformers only."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """Timesteps, weights of the losses (*_loss_coef; 0 leaves a loss out) and of the assignment cost (set_cost_*)."""

    fix_timestep: int | None = None
    """Use only this timestep, in training and validation. Default: a random one, and the middle one in validation."""
    noise_offset: float = 0.0
    logit_mean: float = 0.0
    """Mean of a flow matching model's logit-normal timesteps. Below 0 more are noisy, where layout is decided."""
    logit_std: float = 1.0
    i2t_loss_coef: float = 1.0
    t2i_loss_coef: float = 1.0
    ce_loss_coef: float = 1.0
    bbox_loss_coef: float = 5.0
    giou_loss_coef: float = 2.0
    contrastive_align_loss_coef: float = 1.0
    eos_coef: float = 0.1
    """Weight of the no-object class."""
    temperature_NCE: float = 0.07
    """Temperature of the contrastive align loss."""
    set_loss: Literal["hungarian"] = "hungarian"
    """How queries are matched to boxes. The other two published choices were never implemented."""
    set_cost_class: float = 1.0
    set_cost_bbox: float = 5.0
    set_cost_giou: float = 2.0
    no_detection: Flag = False
    """Leave grounding out of validation."""

    def grounds(self, without_alignment: bool = False) -> bool:
        """Whether any grounding loss has a weight."""
        alignment = 0.0 if without_alignment else self.contrastive_align_loss_coef
        return any((self.ce_loss_coef, self.bbox_loss_coef, self.giou_loss_coef, alignment))


@dataclass(frozen=True)
class OutputOptions:
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = None
    """A TOML file with flags; those on the command line win. Each run writes its own into its folder, as run.toml."""
    output_dir: Path = Path("logs")
    run_name: str = ""
    """Subfolder of --output_dir for this run. Default, if --output_dir is not given either: a name made of the flags,
    so that the same command finds its run again."""
    checkpointing_steps: int | None = None
    """Steps between checkpoints: 500, or a quarter of a shorter run. A run also saves at its end and when stopped."""
    checkpoints_total_limit: int | None = None
    """Keep only this many checkpoints, the newest."""
    resume_from_checkpoint: Annotated[str, tyro.conf.arg(metavar="latest|none|FOLDER")] = "latest"
    """latest continues the run in the output folder, or starts one. A named folder is used or refused."""
    reset_optimizer: Flag = False
    """Resume the weights but not the optimizer state."""
    validation_steps: int | None = None
    """Steps between validations, 0 for none; by default --checkpointing_steps or 500, and at the end. A run that trains
    on fewer examples than a validation reads is validated only if this is given."""
    keep_best: Annotated[str | None, tyro.conf.arg(metavar="METRIC")] = None
    """Also keep the result of the validation with the best METRIC in best/: itm_overall, rec_p1, or a loss
    such as loss or mse (lower is better), as the validation prints them."""
    early_stopping_patience: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """With --keep_best: end the run after N validations without a better one."""
    logging_steps: int = 10
    """Steps between log lines."""
    report_to: Annotated[str | None, tyro.conf.arg(metavar="tensorboard|wandb|all|none")] = None
    """Trackers beside log.jsonl. Default: tensorboard, if it is installed."""
    logging_dir: Path = Path("logs")
    """Subfolder of the run for tensorboard's files."""


@dataclass(frozen=True)
class HubOptions:
    push_to_hub: Flag = False
    """Upload the result to the Hugging Face hub when the run is finished. Access is checked before training."""
    hub_token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = field(default=None, repr=False)
    """Token for the upload. Default: the logged-in user (hf auth login, or HF_TOKEN). It is never written to disk."""
    hub_model_id: Annotated[str | None, tyro.conf.arg(metavar="NAME|OWNER/NAME")] = None
    """The repository, created if missing. Default: the name of the run's folder."""


NEVER_READ = "was never read by the published code, so it can have no effect"

PUBLISHED = PublishedFlags(
    refused={
        "masks": "asks for segmentation, which does not work in the published code",
        "mend_loss_coef": "was removed: trained with it, the model scored 2.2 points lower (docs/results/stage2.md)",
        "img_root": "was overwritten before it was read; use --data_root",
        "max_train_samples": f"{NEVER_READ}; --max_train_steps ends a run early",
        **dict.fromkeys(
            (
                "validation_epochs", "dataset_config_name", "dataset_script", "image_column", "caption_column",
                "cache_dir", "neg_prob", "hard_neg", "relativistic", "unhinged", "neg_img", "mixed_neg",
                "transformer_decoder_only",
            ),
            NEVER_READ,
        ),
    },
    ignored={"local_rank": "is not read: the launcher tells each process its rank"},
)  # fmt: skip


class LoopOptions:
    """The flags that every command with a training loop has."""

    optimisation: OptimisationOptions
    output: OutputOptions

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self.output.output_dir / self.output.run_name

    @property
    def base_model(self) -> str:
        """The name of the model that is trained or tuned, for the record of the result."""
        return ""

    @property
    def starts_from(self) -> Path | None:
        """The checkpoint whose training this one continues."""
        return None

    def after(self, task: Any) -> None:
        """Runs once the result is saved."""


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """The flags of both training commands."""

    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    hub: HubOptions = field(default_factory=HubOptions)

    published: ClassVar[PublishedFlags] = PUBLISHED

    @property
    def base_model(self) -> str:
        return self.model.pretrained_model_name_or_path

    @property
    def starts_from(self) -> Path | None:
        return self.adapter.qformer_ckpt

    @property
    def next_command(self) -> str:
        """What to type once the run is finished; empty if its result is not a checkpoint."""
        return f"dpt info {self.root}" if any((self.root / part).is_dir() for part in ("adapter", "lora")) else ""

    @property
    def trains_text_encoders(self) -> bool:
        """Whether those of the frozen model have a LoRA."""
        return False

    @property
    def task_name(self) -> str:
        """The beginning of the name of a run that is given none."""
        return "run"

    def observers(self, task: Any) -> Sequence[RunObserver]:
        """What watches the run beside the loop's own observers."""
        return ()

    def check(self) -> None:
        """Check the flags that only this command has."""

    def unused_flags(self) -> dict[str, str]:
        """Flags that have no effect beside the others, each with the reason."""
        return unused_flags(self)


def warn_unused_flags(options: TrainOptions) -> None:
    warn_unused([getattr(options, f.name) for f in fields(options)], options.unused_flags())


def warn_unused(groups: Iterable[Any], unused: Mapping[str, str]) -> None:
    """Warn of each given flag that has no effect, with the reason."""
    for name in given_flags(groups):
        if name in unused:
            warnings.warn(f"--{name} has no effect: {unused[name]}", stacklevel=3)


def given_flags(groups: Iterable[Any]) -> Iterator[str]:
    """Flags whose value is not the default."""
    for group in groups:
        defaults = to_flat(type(group)())
        yield from (name for name, value in to_flat(group).items() if value != defaults[name])


def unused_flags(options: TrainOptions) -> dict[str, str]:
    """Flags of both training commands that have no effect beside the others, each with the reason."""
    data, objective, output = options.data, options.objective, options.output
    alignment_off = options.adapter.no_contrastive_align_loss
    rows: list[tuple[bool, str, str]] = [
        (data.data_root is None, "there is no --data_root, so scenes are rendered",
         "dataset_name dataset_name_val combine_datasets_val val_fullset corrupt_budget"),
        (data.data_root is None, "rendered scenes are square", "center_crop"),
        (data.data_root is not None, "--data_root is read, so no scene is rendered", "scenes validation_scenes"),
        (data.dataset_name_val is not None and data.data_root is not None,
         "--dataset_name_val names the one set to validate on", "combine_datasets_val"),
        (output.validation_steps == 0, "--validation_steps 0 turns validation off",
         "val_batch_size validation_scenes val_fullset combine_datasets_val dataset_name_val no_detection"),
        (options.optimisation.max_train_steps is not None, "--max_train_steps sets the length", "num_train_epochs"),
        (not (options.adapter.no_freeze_text_encoder or options.trains_text_encoders),
         "only --no_freeze_text_encoder and --lora_text_encoders train a text encoder", "text_encoder_lr"),
        (output.report_to == "none", "--report_to none uses no tracker", "logging_dir"),
        (alignment_off, "--no_contrastive_align_loss leaves that loss out",
         "contrastive_align_loss_coef contrastive_loss_hdim temperature_NCE"),
        (not alignment_off and not objective.contrastive_align_loss_coef, "--contrastive_align_loss_coef is 0",
         "temperature_NCE"),
        (not objective.ce_loss_coef, "--ce_loss_coef is 0", "eos_coef"),
        (not objective.grounds(alignment_off), "all grounding losses have weight 0",
         "set_cost_class set_cost_bbox set_cost_giou"),
    ]  # fmt: skip
    return {name: reason for applies, reason, names in rows if applies for name in names.split()}
