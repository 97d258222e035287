"""The Method protocol: generates pictures for prompts. The benchmark and the demo take any implementation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dpt.embedded import EMBEDDED, model_location
from dpt.generation_defaults import GenerationDefaults, generation_defaults
from dpt.sampling.options import SamplerConfig

if TYPE_CHECKING:
    from PIL import Image

    from dpt.backbone import Backbone
    from dpt.backbone.folder import ModelFolder
    from dpt.sampling.draw import Request


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
