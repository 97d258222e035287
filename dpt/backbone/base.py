"""The protocols that a text-to-image model implements: `Backbone`, its `NoiseSchedule`, and the `Condition` it takes.

A new family of diffusion transformers is a row in `transformer_families.py`; nothing outside this package depends on
the network behind these protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from dpt.backbone.folder import ModelFolder
from dpt.backbone.rng import SampleRNG
from dpt.generation_defaults import GenerationDefaults

Grid = tuple[int, int]


@dataclass(frozen=True)
class Condition:
    """B encoded prompts: everything the denoiser is conditioned on, and the vector that matching compares with."""

    states: Tensor  # (B,L,D), token states
    match: Tensor  # (B,M)
    pooled: Tensor | None = None  # (B,P), what the denoiser takes beside the states
    time_ids: Tensor | None = None  # (B,I), sizes and crops, as SDXL takes them; None: those of the latents
    guidance: Tensor | None = None  # (B,), the guidance scale, where the network takes it as an input

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Condition:
        return Condition(*(None if part is None else part[rows] for part in self._parts()))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Condition:
        return self.map(lambda part: part.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(*(None if part is None else function(part) for part in self._parts()))  # type: ignore[arg-type]

    def split(self, sizes: Sequence[int]) -> list[Condition]:
        """The inverse of `stack`, for conditions of these lengths."""
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [self[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def with_sizes(self, sizes: ImageSizes) -> Condition:
        """The same for images of these sizes."""
        return replace(self, time_ids=torch.tensor([sizes.row()] * len(self), dtype=torch.float32))

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Concatenate along the batch; all come from the same model."""
        columns = zip(*(condition._parts() for condition in conditions), strict=True)
        return Condition(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class ImageSizes:
    """What SDXL is conditioned on beside the prompt: heights before widths, in pixels."""

    original: Grid
    """Before the image was scaled."""
    target: Grid
    crop: Grid = (0, 0)
    """Top and left of the crop, in the scaled image."""

    def row(self) -> tuple[int, ...]:
        """As `Condition.time_ids` has it."""
        return (*self.original, *self.crop, *self.target)


class NoiseSchedule(Protocol):
    """How latents are noised, and how a network's output relates to the clean latents.

    Timesteps t are (B,) or a scalar; latents, noise and outputs are (B,C,h,w).
    """

    prediction_type: str

    @property
    def num_timesteps(self) -> int: ...

    def sample_t(self, rng: SampleRNG, purpose: str = "timestep") -> Tensor:
        """A training timestep per sample, (B,), on the CPU."""

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t."""

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output for add_noise(latents, noise, t)."""

    def x0(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a network output implies; t may be fractional."""

    def eps(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise that a network output implies; t may be fractional."""

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio (B,), float32."""

    def level(self, t: float) -> float:
        """Noise level of a timestep, from 0 (picture) to 1 (pure noise)."""

    def timestep_at(self, level: float) -> int:
        """The timestep nearest to a noise level."""


@dataclass(frozen=True)
class FeatureSpec:
    """What a feature name stands for: one map (B,C,h,w) or several, joined in this order."""

    name: str
    blocks: tuple[int, ...]
    """Position of each map's block in the forward pass, as in `Backbone.blocks`."""
    channels: tuple[int, ...]
    """Channels of each map."""
    fused_channels: int | None = None
    """The C of `all-C-S`: each map is projected to this many channels, then all are summed."""
    fused_side: int | None = None
    """The S of `all-C-S`: each map is resized to this side."""
    is_tokens: bool = False
    """Whether the maps are tokens of a transformer: an adapter then normalises them by channel and timestep."""

    @property
    def deepest(self) -> int:
        """Position of the last block that has to run."""
        return max(self.blocks)


class PartialForward(Protocol):
    """A forward pass of B rows that stopped after some block; `Backbone.finish` completes it."""

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> PartialForward:
        """The same pass for some of its rows."""

    def concat(self, other: Any) -> PartialForward:
        """This pass's rows, then those of another that stopped after the same block."""

    def detached(self) -> PartialForward:
        """The same pass, cut off from the graph behind it."""


class Backbone(Protocol):
    """A frozen text-to-image model.

    Latents are float32; the model casts to its own dtype and back. No method disables gradients: with frozen
    weights, a graph is built only where an input requires one.
    """

    noise: NoiseSchedule
    scheduler_config: dict[str, Any]
    """From which any diffusers scheduler of this family can be made."""
    folder: ModelFolder
    generation_defaults: GenerationDefaults

    # Text

    def encode_text(self, prompts: Sequence[str]) -> Condition: ...

    def tokenize(self, texts: Sequence[str]) -> Any:
        """A transformers encoding, padded to the longest: its token i is row i of `Condition.states`."""

    def prompt_warnings(self, prompt: str) -> list[str]:
        """A sentence for each part of a prompt that the model will not see."""

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, special tokens included."""

    @property
    def text_width(self) -> int:
        """D of `Condition.states`."""

    @property
    def match_width(self) -> int:
        """M of `Condition.match`."""

    # Images

    def encode_images(
        self, images: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Images (B,3,H,W) in [-1,1] to latents: the posterior's mean, or a sample given a generator."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents (B,C,h,w) to images (B,3,H,W) in about [-1,1]."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along one side."""

    @property
    def default_latent_size(self) -> Grid:
        """(h, w) of the latents that the model was trained on."""

    @property
    def default_image_size(self) -> Grid: ...

    def latent_size(self, height: int | None = None, width: int | None = None) -> Grid:
        """(h, w) for images of this size in pixels; a side not given has the default size."""

    @property
    def takes_sizes(self) -> bool:
        """Whether the network is conditioned on `ImageSizes`; without any they are those of the latents."""

    # Denoising

    def predict(self, latents: Tensor, t: Tensor | int, condition: Condition) -> Tensor:
        """The network's output for z_t (B,C,h,w) and t (B,) or a number."""

    @property
    def guidance_is_embedded(self) -> bool:
        """Whether the guidance scale is an input of the network instead of classifier-free guidance."""

    def features(
        self, latents: Tensor, t: Tensor | int, condition: Condition, name: str, stop_after: int | None = None
    ) -> tuple[Tensor, PartialForward]:
        """The named feature (B,C,h,w), and the forward pass that was computed for it.

        The pass stops after the feature's deepest block. What is returned for `finish` may stand earlier, after
        block `stop_after`.
        """

    def finish(self, partial: PartialForward, detach_after: int | None = None) -> Tensor:
        """What `predict` returns for the rows of a partial forward; no gradient crosses the end of `detach_after`."""

    # The network

    @property
    def network(self) -> Any:
        """The denoising network: a UNet or a transformer of diffusers."""

    def blocks(self) -> Mapping[str, int]:
        """Each block's name and its position in the forward pass."""

    @property
    def default_feature(self) -> str:
        """The feature that an adapter reads unless another is chosen."""

    def feature_spec(self, name: str) -> FeatureSpec: ...

    def feature_grid(self, name: str, latent_size: Grid | None = None) -> Grid:
        """(h, w) of a feature for latents of this size."""

    def block_of(self, module: str) -> str | None:
        """The block that a module of `lora_targets` lies in; None for any other module."""

    def lora_targets(self, blocks: Sequence[str]) -> list[str]:
        """Names of the attention projections in these blocks, in the network's order."""

    def text_networks(self) -> Mapping[str, Any]:
        """The CLIP text encoders that a LoRA can join, by component; empty if there are none."""

    def text_lora_targets(self) -> list[str]:
        """`COMPONENT.MODULE` of their attention projections, as far as the condition depends on them."""

    def prepare_for_gradients(self) -> None:
        """Swap in layers that save less for the backward pass. Numbers differ by rounding at most."""

    @property
    def prefers_math_attention(self) -> bool:
        """Whether attention is faster to differentiate as plain matrix products than fused."""

    # Facts

    @property
    def architecture(self) -> str:
        """What results can be exchanged between models of: Stable Diffusion, Stable Diffusion XL, …"""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the text encoder and the network."""

    @property
    def model_hash(self) -> str:
        """The same for every copy of this model, however it was saved: see `dpt.backbone.identity`."""

    def is_model(self, recorded_hash: str) -> bool:
        """Whether a hash in a checkpoint, also one of an earlier version, is this model's. "" fits any model."""

    def origin(self, name: str) -> dict[str, str]:
        """What a checkpoint records about the model it was trained on; `name` is what the user calls it."""

    def modules(self) -> list[Any]:
        """Text encoders, VAE and network."""

    def inference_bytes(self) -> int:
        """Estimated peak of activations per image without gradients."""

    def activation_bytes(self, feature: str | None, gradient_checkpointing: bool) -> int:
        """Estimated activations saved for the backward pass per image, up to a feature or to the output."""
