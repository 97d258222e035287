"""What every family of models has in common: a VAE, one denoising network with a count of its passes, and a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import identity
from dpt.backbone.base import Grid, NoiseSchedule
from dpt.backbone.device import execution_device
from dpt.backbone.folder import ModelFolder
from dpt.errors import UserError


@dataclass
class PassCounter:
    passes: float = 0.0
    """Forward passes of one image each; with guidance a step takes two. A partial pass counts by its share of the
    blocks, and so does a backward pass, once."""


_active: list[PassCounter] = []


@contextmanager
def count_passes() -> Iterator[PassCounter]:
    """Count the passes of all backbones in this context."""
    counter = PassCounter()
    _active.append(counter)
    try:
        yield counter
    finally:
        _active.remove(counter)


def add_passes(latents: Tensor, share: float = 1.0) -> None:
    """Called by a backbone for each pass. Latents that need a gradient are followed by a backward pass."""
    backward = latents.requires_grad and torch.is_grad_enabled()
    for counter in _active:
        counter.passes += len(latents) * share * (1 + backward)


class DiffusersModel:
    """The part of `Backbone` that does not depend on the network: images, sizes and identity."""

    vae: Any
    noise: NoiseSchedule
    folder: ModelFolder

    @property
    def network(self) -> Any:
        raise NotImplementedError

    @property
    def default_latent_size(self) -> Grid:
        raise NotImplementedError

    # Images

    def encode_images(
        self, images: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        posterior = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        latents = posterior.mean.float()
        if generator is not None:
            latents = latents + posterior.std * _noise_like(latents, generator)
        return (latents - self._shift) * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.device, torch.float32) / self._scale + self._shift
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def vae_scale_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_multiple(self) -> int:
        """Latent sizes are multiples of this."""
        return 1

    @property
    def default_image_size(self) -> Grid:
        height, width = self.default_latent_size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def latent_size(self, height: int | None = None, width: int | None = None) -> Grid:
        default_height, default_width = self.default_image_size
        return (
            self._latent_side("height", default_height if height is None else height),
            self._latent_side("width", default_width if width is None else width),
        )

    def _latent_side(self, name: str, pixels: int) -> int:
        unit = self.vae_scale_factor * self.latent_multiple
        if pixels < 1:
            raise UserError(f"the {name} must be positive, not {pixels}")
        if pixels % unit:
            raise UserError(f"the {name} must be divisible by {unit}, not {pixels}")
        return pixels // self.vae_scale_factor

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    @property
    def guidance_is_embedded(self) -> bool:
        return False

    @property
    def takes_sizes(self) -> bool:
        return False

    def text_networks(self) -> Mapping[str, Any]:
        return {}

    def text_lora_targets(self) -> list[str]:
        return []

    # Facts

    @property
    def device(self) -> torch.device:
        return execution_device(self.network)

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def prefers_math_attention(self) -> bool:
        """True for half precision on a CPU."""
        return self.device.type == "cpu" and self.dtype != torch.float32

    @cached_property
    def model_hash(self) -> str:
        return identity.model_hash(self.folder.original)

    def is_model(self, recorded_hash: str) -> bool:
        return identity.is_model(recorded_hash, self.folder.original)

    def origin(self, name: str) -> dict[str, str]:
        return {"base": name, "base_hash": self.model_hash, "prediction_type": self.noise.prediction_type}


def _noise_like(latents: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Noise drawn on the CPU, the same for every device; one generator per image, or one for all."""
    if isinstance(generator, torch.Generator):
        return torch.randn(latents.shape, generator=generator).to(latents.device)
    rows = [torch.randn(latents.shape[1:], generator=g) for g in generator]
    return torch.stack(rows).to(latents.device)
