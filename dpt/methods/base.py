"""The Method protocol: generates pictures for prompts. The benchmark and the demo take any implementation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from dpt.sampling.draw import Request


@dataclass(frozen=True)
class GenerationConfig:
    """The base model and the sampling options that all methods of a comparison share."""

    model: str
    """A folder or a hub id."""
    num_timesteps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    allow_other_base: bool = False
    """Use checkpoints of another base model, with a warning, instead of raising."""


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
