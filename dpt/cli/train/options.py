"""The training flags under their published names, and which of them change nothing beside others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from dpt.embedded import EMBEDDED

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class ModelOptions:
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """The frozen Stable Diffusion model, in the diffusers layout. A folder is used without touching the network."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Version of a hub model."""
    unet_feature: str = "up1"
    """What of the UNet is read: bottom0 …, mid, up0 …, several of equal grid joined by _, or all-CHANNELS-SIDE."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """Overrides what the model's scheduler says."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the frozen model; by default, on a GPU, what the launcher was told, or a half format. A CPU
    takes bf16 if it multiplies it, and nothing else but float32. Trained weights are float32 always."""
    adapter_precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the matrix products in the adapter's encoder and decoder."""
    gradient_checkpointing: Flag = False
    """Compute the adapter's activations twice instead of keeping them: less memory, the same numbers."""
    enable_xformers_memory_efficient_attention: Flag = False
    """Use xformers on a GPU where it is installed, instead of PyTorch's own attention."""
    allow_tf32: Flag = False
    """Let Ampere and later GPUs round float32 matrix products, as PyTorch has them round convolutions anyway: faster,
    and not the same numbers."""
    compile: Flag = False
    """Compile the UNet's transformer blocks when they are first used. What it saves: docs/results/performance.md."""
    channels_last: Flag = False
    """Lay out the weights of convolutions channels last, as the tensor cores of GPUs read them."""


@dataclass(frozen=True)
class DataOptions:
    data_root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The folder that holds coco/, ReC/ and ITM/. Without it, scenes are rendered on the spot."""
    dataset_name: str = "refall"
    """Referring expressions to train on."""
    dataset_name_matching: Literal["mscoco_hard_negative"] = "mscoco_hard_negative"
    """Captions and hard negatives to train on."""
    combine_datasets_val: tuple[str, ...] = ("refcoco", "refcoco+", "refcocog")
    """Referring expressions to validate on."""
    dataset_name_val: str | None = None
    """One set of expressions to validate on, instead of those combined."""
    val_fullset: Flag = False
    """Validate on everything, instead of every 8th, 16th, 8th expression and every 20th caption."""
    scenes: Literal["pocket", "full"] = "pocket"
    """Which world scenes are rendered of, where there is no --data_root."""
    validation_scenes: int = 256
    """How many held-out scenes to validate on, where there is no --data_root."""
    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Side of the square that pictures are brought to; by default what the model was trained at."""
    center_crop: Flag = False
    """Show the middle square instead of squashing the picture; boxes follow, and what is cut off is not asked for."""
    random_flip: Flag = False
    """Mirror half of the examples, left and right in every text exchanged; those where that is not safe stay."""
    cache: Annotated[str, tyro.conf.arg(metavar="auto|none|FOLDER")] = "auto"
    """Latents and text states to read: auto takes what `dpt cache` has put beside the data, if anything."""
    corrupt_budget: int = 0
    """How many broken pictures to do without before stopping."""
    train_batch_size: int = 16
    """Examples per device and forward."""
    val_batch_size: int = 16
    dataloader_num_workers: int = 0
    """Processes that prepare batches ahead."""


@dataclass(frozen=True)
class AdapterOptions:
    qformer_ckpt: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|FILE")] = None
    """An adapter of the same shape to begin with: its folder, a finished run's, or the published file."""
    text_encoder_type: str = "backbone"
    """Reads referring expressions: backbone for the frozen model's own text encoder, or a folder or hub id.
    The published recipe has roberta-base."""
    no_freeze_text_encoder: Flag = False
    """Train that encoder too, if it is not the frozen model's own: it is saved with the adapter, and comes back so."""
    position_embedding: Literal["sine", "learned"] = "sine"
    code_placement: Literal["keys", "sequence"] = "keys"
    """Where position and timestep codes go: keys as in the published code, or into the sequence of features too, as
    the paper's figure draws it."""
    enc_layers: int = 1
    dec_layers: int = 1
    dim_feedforward: int = 2048
    hidden_dim: int = 256
    nheads: int = 8
    dropout: float = 0.1
    """Its masks survive a resume, but another split of the global batch into processes draws others."""
    num_queries_matching: int = 10
    num_queries_rec: int = 100
    pre_norm: Flag = False
    no_contrastive_align_loss: Flag = False
    contrastive_loss_hdim: int = 64


@dataclass(frozen=True)
class ObjectiveOptions:
    fix_timestep: int | None = None
    """Always this timestep, in training and validation; validation has the middle one by default."""
    noise_offset: float = 0.0
    i2t_loss_coef: float = 1.0
    t2i_loss_coef: float = 1.0
    ce_loss_coef: float = 1.0
    bbox_loss_coef: float = 5.0
    giou_loss_coef: float = 2.0
    contrastive_align_loss_coef: float = 1.0
    eos_coef: float = 0.1
    """Weight of queries that point at nothing."""
    temperature_NCE: float = 0.07
    """Of the contrastive align loss."""
    set_loss: Literal["hungarian"] = "hungarian"
    """How queries are assigned. The other two published choices were never written."""
    set_cost_class: float = 1.0
    set_cost_bbox: float = 5.0
    set_cost_giou: float = 2.0
    no_detection: Flag = False
    """Do not score grounding in validation."""

    def grounds(self, without_alignment: bool = False) -> bool:
        """Whether any loss of grounding weighs something."""
        alignment = 0.0 if without_alignment else self.contrastive_align_loss_coef
        return any((self.ce_loss_coef, self.bbox_loss_coef, self.giou_loss_coef, alignment))


@dataclass(frozen=True)
class OptimisationOptions:
    seed: int = 1337
    num_train_epochs: int | None = None
    """Length in passes over the data: 100 with --data_root, unless told."""
    max_train_steps: int | None = None
    """Length in optimizer steps, instead: 3000 on rendered scenes, unless told."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    text_encoder_lr: float | None = None
    """A learning rate of its own for the text encoder that --no_freeze_text_encoder trains."""
    scale_lr: Flag = False
    """Multiply the learning rate by the effective batch."""
    lr_scheduler: str = "constant"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial."""
    lr_warmup_steps: int = 0
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
    """AdamW's moments in 8 bits, on a GPU with bitsandbytes; those of an adapter take some 35 MB in 32."""
    max_grad_norm: float = 1.0
    """0 leaves gradients as they are."""
    max_bad_steps: int = 3
    """Stop after so many steps in a row that were not finite. None of them is applied."""


@dataclass(frozen=True)
class OutputOptions:
    output_dir: Path = Path("logs")
    run_name: str = ""
    """A folder in --output_dir for this run."""
    checkpointing_steps: int | None = None
    """Steps between checkpoints: 500, or a quarter of a shorter run. A run also saves at its end and when stopped."""
    checkpoints_total_limit: int | None = None
    """Keep only so many, the newest."""
    resume_from_checkpoint: Annotated[str, tyro.conf.arg(metavar="latest|none|FOLDER")] = "latest"
    """latest goes on where the folder's run was left, or begins; a folder is used or refused, never replaced."""
    reset_optimizer: Flag = False
    """Resume the weights but not AdamW's moments."""
    validation_steps: int | None = None
    """Steps between validations, 0 for none; by default --checkpointing_steps or 500, and at the end. A run that trains
    on fewer examples than a validation reads is validated only if this is given."""
    logging_steps: int = 10
    """Steps between two readings of the losses."""
    report_to: Annotated[str | None, tyro.conf.arg(metavar="tensorboard|wandb|all|none")] = None
    """Trackers besides log.jsonl; by default tensorboard where it is installed."""
    logging_dir: Path = Path("logs")
    """Where tensorboard's files go, in the run's folder."""


@dataclass(frozen=True)
class HubOptions:
    push_to_hub: Flag = False
    """When the run is finished, upload its adapter to the Hugging Face hub. Whether that may be is asked at once."""
    hub_token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = field(default=None, repr=False)
    """Who uploads, by default who has logged in (hf auth login, or HF_TOKEN). It is never written down."""
    hub_model_id: Annotated[str | None, tyro.conf.arg(metavar="NAME|OWNER/NAME")] = None
    """The repository, which is made if it is not there; by default it is called as the run's folder."""


@dataclass(frozen=True)
class RefusedOptions:
    """Published flags that nothing can come of here: given, they end the run with the reason."""

    masks: Flag = False
    local_rank: int | None = None
    validation_epochs: int | None = None
    dataset_config_name: str | None = None
    dataset_script: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    img_root: str | None = None
    max_train_samples: int | None = None
    cache_dir: str | None = None
    neg_prob: float | None = None
    hard_neg: Flag = False
    relativistic: Flag = False
    unhinged: Flag = False
    neg_img: Flag = False
    mixed_neg: Flag = False
    transformer_decoder_only: Flag = False
    mend_loss_coef: str | None = None


NEVER_READ = "was never read by the published code, so there is nothing that it could do"

REASONS: dict[str, str] = {
    "masks": "asks for segmentation, which the published code has no working path for",
    "mend_loss_coef": "was removed: trained with that loss, the model scored 2.2 points lower (docs/results/stage2.md)",
    "img_root": "was overwritten before it was read; say --data_root",
    "max_train_samples": f"{NEVER_READ}; --max_train_steps ends a run early",
}

WARNED: dict[str, str] = {"local_rank": "is not read: the launcher tells each process which it is"}


@dataclass(frozen=True)
class TrainOptions:
    """What the training commands have in common."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    refused: RefusedOptions = field(default_factory=RefusedOptions)

    reasons: ClassVar[Mapping[str, str]] = REASONS
    warned: ClassVar[Mapping[str, str]] = WARNED

    @property
    def root(self) -> Path:
        return self.output.output_dir / self.output.run_name

    def check(self) -> None:
        """What can be found wrong of what only this command has."""

    def idle(self) -> dict[str, str]:
        """By name why a flag changes nothing beside the others, of those that would not."""
        return unused_in_training(self)

    def after(self, task: Any) -> None:
        """What there is to do with what was trained, once it is saved."""


ON_FILES_ONLY = ("dataset_name", "dataset_name_val", "combine_datasets_val", "val_fullset", "corrupt_budget")

ON_SCENES_ONLY = ("scenes", "validation_scenes")

OF_VALIDATION = (
    "val_batch_size", "validation_scenes", "val_fullset", "combine_datasets_val", "dataset_name_val", "no_detection",
)  # fmt: skip

OF_ASSIGNMENT = ("set_cost_class", "set_cost_bbox", "set_cost_giou")

OF_ALIGNMENT = ("contrastive_align_loss_coef", "contrastive_loss_hdim")


def warn_unused_flags(options: TrainOptions) -> None:
    idle = options.idle()
    for name in given_flags(options):
        if name in idle:
            warnings.warn(f"--{name} has no effect: {idle[name]}", stacklevel=2)


def given_flags(options: TrainOptions) -> Iterator[str]:
    """Flags that ask for something else than they would by themselves."""
    for one in fields(options):
        group = getattr(options, one.name)
        untouched = type(group)()
        yield from (
            field.name for field in fields(group) if getattr(group, field.name) != getattr(untouched, field.name)
        )


def unused_in_training(options: TrainOptions) -> dict[str, str]:
    """By name why a flag of any training command changes nothing, of those that would not."""
    data, objective, o = options.data, options.objective, options.optimisation
    found: dict[str, str] = {}

    def say(why: str, *names: str) -> None:
        found.update(dict.fromkeys(names, why))

    if data.data_root is None:
        say("there is no --data_root, and scenes are rendered", *ON_FILES_ONLY)
        say("rendered scenes are square", "center_crop")
    else:
        say("what is in --data_root is read, and no scene rendered", *ON_SCENES_ONLY)
        if data.dataset_name_val is not None:
            say("--dataset_name_val says what to validate on", "combine_datasets_val")
    if options.output.validation_steps == 0:
        say("--validation_steps 0 is no validation", *OF_VALIDATION)
    if o.max_train_steps is not None:
        say("--max_train_steps says where the run ends", "num_train_epochs")
    if not options.adapter.no_freeze_text_encoder:
        say("only --no_freeze_text_encoder trains a text encoder", "text_encoder_lr")
    if options.output.report_to == "none":
        say("--report_to none is no tracker", "logging_dir")
    if options.adapter.no_contrastive_align_loss:
        say("--no_contrastive_align_loss leaves that loss out", *OF_ALIGNMENT, "temperature_NCE")
    elif not objective.contrastive_align_loss_coef:
        say("--contrastive_align_loss_coef is 0", "temperature_NCE")
    if not objective.ce_loss_coef:
        say("--ce_loss_coef is 0", "eos_coef")
    if not objective.grounds(options.adapter.no_contrastive_align_loss):
        say("no loss of grounding weighs anything", *OF_ASSIGNMENT)
    return found
