"""One object for the frozen model. Everything it says about itself is read from its configuration files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import loading
from dpt.backbone.device import resolve_device, resolve_dtype
from dpt.backbone.features import PartialForward, finish_forward, read_feature
from dpt.backbone.folder import ModelFolder
from dpt.backbone.loading import locate_model
from dpt.backbone.memory_saving_layers import use_memory_saving_layers
from dpt.backbone.noise import NoiseSchedule
from dpt.backbone.text import (
    Condition,
    ConditionCache,
    encode_prompts,
    encode_with_cache,
    truncated_part,
    unknown_words,
)
from dpt.errors import UserError


class Backbone:
    """A Stable Diffusion model: tokenizer, text encoder, VAE, UNet and noise schedule, all frozen.

    Latents are float32 throughout; `predict` casts to the UNet's format and back. No method switches
    gradients off, but with frozen weights a graph is built only where an input asks for one.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        unet: Any,
        scheduler_config: dict[str, Any],
        folder: ModelFolder,
        prediction_type: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.vae = vae
        self.unet = unet
        self.noise = NoiseSchedule(scheduler_config, prediction_type)
        self.scheduler_config = {**scheduler_config, "prediction_type": self.noise.prediction_type}
        self.folder = folder
        self.known_texts: ConditionCache | None = None

    @classmethod
    def open(
        cls,
        path_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        prediction_type: str | None = None,
    ) -> Backbone:
        """Open a diffusers folder (never touching the network) or a hub id.

        `prediction_type` overrides what the scheduler's configuration says.
        """
        chosen = resolve_device(device)
        precision = resolve_dtype(chosen, dtype)
        folder = ModelFolder.check(locate_model(path_or_hub_id, revision))
        tokenizer = loading.load_tokenizer(folder)
        loading.check_parts_fit(folder, tokenizer)
        return cls(
            tokenizer=tokenizer,
            text_encoder=loading.load_text_encoder(folder, precision).to(chosen),
            vae=loading.load_vae(folder, torch.float32).to(chosen),
            unet=loading.load_unet(folder, precision).to(chosen),
            scheduler_config=loading.scheduler_config(folder),
            folder=folder,
            prediction_type=prediction_type,
        )

    # Text

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        """states (B,L,D) and pooled (B,D), the state at the end token, without projection."""
        if self.known_texts is not None:
            return encode_with_cache(self.known_texts, prompts, self._encode_text, self.device)
        return self._encode_text(prompts)

    def _encode_text(self, prompts: Sequence[str]) -> Condition:
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, self.prompt_length)

    def prompt_warnings(self, prompt: str) -> list[str]:
        """What of this prompt the model will not see, one sentence each."""
        found = []
        if unknown := unknown_words(self.tokenizer, prompt):
            words = ("word " if len(unknown) == 1 else "words ") + ", ".join(map(repr, unknown))
            found.append(f"the model does not know the {words}")
        if lost := truncated_part(self.tokenizer, prompt, self.prompt_length):
            found.append(f"the prompt is longer than {self.prompt_length} tokens; the model does not see {lost!r}")
        return found

    # Images

    def encode_images(
        self, images: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Images (B,3,H,W) in [-1,1] to latents (B,C,h,w): posterior mean, or a sample given a generator."""
        posterior = self.vae.encode(images.to(self.device, torch.float32)).latent_dist
        latents = posterior.mean
        if generator is not None:
            latents = latents + posterior.std * _noise_like(latents, generator)
        return (latents - self._shift) * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents (B,C,h,w) to images (B,3,H,W), in [-1,1] but for overshoot."""
        return self.vae.decode(latents.to(self.device, torch.float32) / self._scale + self._shift).sample

    # Diffusion

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.noise.add_noise(latents, noise, t)

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What `predict` should return for add_noise(latents, noise, t)."""
        return self.noise.target(latents, noise, t)

    def predict(self, latents: Tensor, t: Tensor | int, states: Tensor) -> Tensor:
        """The UNet's output for z_t (B,C,h,w), t (B,) or a number, and text states (B,L,D)."""
        z, c = latents.to(self.device, self.dtype), states.to(self.device, self.dtype)
        return self.unet(z, t, encoder_hidden_states=c).sample.to(latents.dtype)

    def features(self, latents: Tensor, t: Tensor | int, states: Tensor, name: str) -> Tensor:
        """The named feature (B,C,h,w) of z_t; nothing after it is computed."""
        return self.begin(latents, t, states, name)[0]

    def begin(
        self, latents: Tensor, t: Tensor | int, states: Tensor, name: str, pause_after: int | None = None
    ) -> tuple[Tensor, PartialForward]:
        """The named feature, and the pass that `finish_forward` goes on with: see `read_feature`."""
        z, c = latents.to(self.device, self.dtype), states.to(self.device, self.dtype)
        feature, at = read_feature(self.unet, z, t, c, name, pause_after)
        return feature.to(latents.dtype), at

    def finish(self, at: PartialForward, detach_after: int | None = None) -> Tensor:
        """What `predict` would return for the rows of a pass that was begun; float32."""
        return finish_forward(self.unet, at, detach_after).float()

    def prepare_for_gradients(self) -> None:
        """Layers that keep less for it, and attention as plain products where the fused one is slow to differentiate.

        Numbers differ by rounding only.
        """
        use_memory_saving_layers(self.unet)
        if self.differentiates_plain_attention_faster:
            from diffusers.models.attention_processor import AttnProcessor

            self.unet.set_attn_processor(AttnProcessor())

    @property
    def differentiates_plain_attention_faster(self) -> bool:
        """In a half format on a CPU."""
        return self.device.type == "cpu" and self.dtype != torch.float32

    # What it is

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def prediction_type(self) -> str:
        return self.noise.prediction_type

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def downscale_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_latent_size(self) -> tuple[int, int]:
        """(height, width) the UNet was trained at."""
        size = self.unet.config.sample_size
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def default_image_size(self) -> tuple[int, int]:
        height, width = self.default_latent_size
        return height * self.downscale_factor, width * self.downscale_factor

    @property
    def text_width(self) -> int:
        return int(self.text_encoder.config.hidden_size)

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, start and end token included."""
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 over the configuration and weight files of the five parts."""
        return self.folder.content_hash()

    def origin(self, called: str) -> dict[str, str]:
        """What is kept of this model beside what was trained on it."""
        return {"base": called, "base_hash": self.model_hash, "prediction_type": self.prediction_type}

    def latent_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(h, w) for a picture of that size; a side not given is the default one."""
        default_height, default_width = self.default_image_size
        return (
            self._latent_side("height", default_height if height is None else height),
            self._latent_side("width", default_width if width is None else width),
        )

    def _latent_side(self, name: str, pixels: int) -> int:
        if pixels < 1:
            raise UserError(f"the {name} must be positive, not {pixels}")
        if pixels % self.downscale_factor:
            raise UserError(f"the {name} must be divisible by {self.downscale_factor}, not {pixels}")
        return pixels // self.downscale_factor

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)


def _noise_like(latents: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Noise made on the CPU, the same for every device; one generator per image, or one for all."""
    if isinstance(generator, torch.Generator):
        return torch.randn(latents.shape, generator=generator).to(latents.device)
    rows = [torch.randn(latents.shape[1:], generator=one) for one in generator]
    return torch.stack(rows).to(latents.device)
