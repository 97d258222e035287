"""The Method protocol, and methods that sample each picture once or keep the best candidate by the adapter's score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dpt.embedded import EMBEDDED, model_location
from dpt.errors import UserError, fail
from dpt.generation_defaults import GenerationDefaults, generation_defaults
from dpt.sampling.options import NO_CORRECTION, Correction, SamplerConfig

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from dpt.adapter import Adapter
    from dpt.backbone import Backbone
    from dpt.backbone.folder import ModelFolder
    from dpt.sampling.draw import Request, SamplingSettings
    from dpt.sampling.guidance import Predict


@dataclass(frozen=True)
class GenerationConfig:
    """The base model and the sampling options that all methods of a comparison share."""

    pretrained_model_name_or_path: str = EMBEDDED
    """The base model: a folder or a hub id."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the UNet and the text encoder; default: by the device. A CPU with bf16 instructions samples more
    than twice as fast with bf16."""
    allow_other_base: bool = False
    """Use checkpoints that were trained on another base model, with a warning."""

    def defaults(self, checkpoint: Path | None = None) -> GenerationDefaults:
        """The generation defaults of the base model, or of a checkpoint on it."""
        from dpt.backbone.loading import locate_model

        return generation_defaults(locate_model(model_location(self.pretrained_model_name_or_path)), checkpoint)

    def with_defaults(self, checkpoint: Path | None = None) -> GenerationConfig:
        """With a guidance scale in any case."""
        return replace(self, sampler=self.sampler.with_defaults(self.defaults(checkpoint)))

    def model_folder(self) -> ModelFolder:
        from dpt.backbone.loading import locate_model
        from dpt.backbone.opening import model_folder

        return model_folder(locate_model(model_location(self.pretrained_model_name_or_path)))

    @property
    def guidance_scale(self) -> float:
        scale = self.sampler.guidance_scale
        return self.defaults().guidance_scale if scale is None else scale

    @property
    def dtype(self) -> str | None:
        return "float32" if self.mixed_precision == "no" else self.mixed_precision

    def open_backbone(self) -> Backbone:
        from dpt.backbone import open_backbone

        return open_backbone(model_location(self.pretrained_model_name_or_path), dtype=self.dtype)


class Method(Protocol):
    @property
    def identity(self) -> Mapping[str, Any]:
        """What the pictures depend on besides the request: hashes of weights, options. Stored with every result."""
        ...

    def make(self, requests: Sequence[Request]) -> Iterator[Image.Image]:
        """Generate a picture per request, in order. The same requests in a call give the same pictures."""
        ...


class MethodConfig(Protocol):
    """A frozen dataclass with the method's options. Creating one loads nothing."""

    @property
    def name(self) -> str:
        """Name of the results file and of the folder of pictures."""
        ...

    def open(self, generation: GenerationConfig) -> Method: ...


BASE = "base"

LONGEST_NAME = 60

MOST_CANDIDATES = 1000

BATCH_SIZE = 16

CANDIDATE_STRIDE = 1_000_000
"""Offset between the noise indices of a picture's candidates: more than the pictures of a prompt."""


def check_method_name(name: str) -> None:
    if len(name) > LONGEST_NAME or not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"the method {name!r} is used in file names: use letters, digits, - and _")


@dataclass(frozen=True)
class DiffusionConfig:
    name: str
    checkpoint: Path | None = None
    lora: bool = True
    """Use the checkpoint's LoRA, if it has one."""
    correction: Correction = NO_CORRECTION
    candidates: int = 1
    """Candidates per picture; the one with the highest matching score is kept."""
    negative_prompt: str | None = None
    """For requests without one. Default: what the checkpoint carries, which with HPS is "Weird image. "."""
    negative_lora: Path | None = None
    """A LoRA tuned on what to avoid: it predicts the negative half of guidance (Diffusion-NPO)."""
    also: Path | None = None
    """A second checkpoint, whose LoRA is added to the first one's."""

    @property
    def needs_adapter(self) -> bool:
        return self.correction.on or self.candidates > 1

    def __post_init__(self) -> None:
        check_method_name(self.name)
        if not 1 <= self.candidates <= MOST_CANDIDATES:
            wrong = f"needs at least 1 candidate and at most {MOST_CANDIDATES}, not {self.candidates}"
            raise UserError(f"the method {self.name} {wrong}")
        if self.negative_lora is not None and self.needs_adapter:
            raise UserError(f"the method {self.name} cannot combine a negative LoRA with correction or candidates")
        changes = self.negative_lora is not None or bool(self.negative_prompt)
        if self.checkpoint is None and (self.needs_adapter or (self.name != BASE and not changes)):
            raise UserError(f"the method {self.name!r} has no checkpoint: use {self.name}=FOLDER")

    def open(self, generation: GenerationConfig) -> DiffusionMethod:
        from dpt.checkpoints import open_checkpoint
        from dpt.records import to_plain
        from dpt.sampling.draw import SamplingSettings
        from dpt.weights import content_hash

        sampler, scale = generation.sampler, generation.guidance_scale
        settings = SamplingSettings(sampler.num_timesteps, scale, sampler.scheduler, correction=self.correction)
        backbone = generation.open_backbone()
        identity: dict[str, Any] = {"model": backbone.model_hash}
        negative = generation_defaults(self.checkpoint).negative_prompt
        negative = negative if self.negative_prompt is None else self.negative_prompt
        if negative:
            identity["negative_prompt"] = negative
        predict_negative = None
        if self.negative_lora is not None:
            predict_negative = self._open_negative(generation, identity)
        if self.checkpoint is None:
            return DiffusionMethod(
                backbone, settings, identity=identity, negative_prompt=negative, predict_negative=predict_negative
            )
        checkpoint = open_checkpoint(self.checkpoint)
        if checkpoint.lora is None and not self.needs_adapter:
            fail(f"{self.checkpoint} has no LoRA: {self.name} would be the same as {BASE}")
        if checkpoint.adapter is None and self.needs_adapter:
            fail(f"{self.checkpoint} has no adapter, which {self.name} needs for correction or candidates")
        checkpoint.check_belongs(backbone, generation.allow_other_base)
        if checkpoint.lora is not None and self.lora:
            lora = checkpoint.attach(backbone, generation.allow_other_base)
            assert lora is not None
            lora.merge()
            identity["lora"] = content_hash(checkpoint.lora.tensors)
        if self.also is not None:
            identity["also"] = self._merge_lora(self.also, backbone, generation, "adds")
        if checkpoint.adapter is None or not self.needs_adapter:
            return DiffusionMethod(
                backbone, settings, identity=identity, negative_prompt=negative, predict_negative=predict_negative
            )
        adapter = checkpoint.adapter.to(backbone.device)
        identity |= {
            "adapter": content_hash(adapter.state_dict()),
            "correction": to_plain(self.correction),
            "candidates": self.candidates,
        }
        return DiffusionMethod(backbone, settings, adapter, self.candidates, identity, negative)

    def _open_negative(self, generation: GenerationConfig, identity: dict[str, Any]) -> Predict:
        """A second copy of the model with the negative LoRA merged."""
        assert self.negative_lora is not None
        backbone = generation.open_backbone()
        purpose = "needs for the negative half of guidance"
        identity["negative_lora"] = self._merge_lora(self.negative_lora, backbone, generation, purpose)
        return backbone.predict

    def _merge_lora(self, path: Path, backbone: Backbone, generation: GenerationConfig, purpose: str) -> str:
        """Merge the LoRA at the path, and return its hash."""
        from dpt.checkpoints import open_checkpoint
        from dpt.weights import content_hash

        checkpoint = open_checkpoint(path)
        if checkpoint.lora is None:
            fail(f"{path} has no LoRA, which {self.name} {purpose}")
        lora = checkpoint.attach(backbone, generation.allow_other_base)
        assert lora is not None
        lora.merge()
        return content_hash(checkpoint.lora.tensors)


@dataclass(frozen=True)
class DiffusionMethod:
    backbone: Backbone
    settings: SamplingSettings
    adapter: Adapter | None = None
    candidates: int = 1
    """The first candidate is the picture of a run with candidates=1."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    negative_prompt: str = ""
    """Of requests that have none."""
    predict_negative: Predict | None = None
    """The network of guidance's negative half, where it is another one."""

    def with_guidance_scale(self, scale: float | None) -> DiffusionMethod:
        """The same model and options at another guidance scale."""
        return self if scale is None else replace(self, settings=replace(self.settings, guidance_scale=scale))

    def make(self, requests: Sequence[Request]) -> Iterator[Image.Image]:

        from dpt.data.images import to_pil

        if self.negative_prompt:
            requests = [r if r.negative_prompt else replace(r, negative_prompt=self.negative_prompt) for r in requests]
        images = self._draw(requests) if self.candidates == 1 else self._draw_best(requests)
        return (to_pil(image) for image in images)

    def _draw(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        from dpt.sampling.draw import draw

        return draw(
            self.backbone,
            requests,
            self.settings,
            adapter=self.adapter,
            batch_size=BATCH_SIZE,
            exact=False,
            predict_negative=self.predict_negative,
        )

    def _draw_best(self, requests: Sequence[Request]) -> Iterator[Tensor]:

        from dpt.sampling.draw import best, draw_latents, scored
        from dpt.score.matching import Scorer

        assert self.adapter is not None, "a method with candidates has an adapter"
        candidates = [
            replace(request, index=request.index + CANDIDATE_STRIDE * number)
            for request in requests
            for number in range(self.candidates)
        ]
        batches = draw_latents(
            self.backbone, candidates, self.settings, adapter=self.adapter, batch_size=BATCH_SIZE, exact=False
        )
        scores = list(scored(batches, Scorer(self.backbone, self.adapter)))
        for start in range(0, len(scores), self.candidates):
            (chosen,) = best(scores[start : start + self.candidates], 1)
            yield chosen.decode(self.backbone)
