"""Stable Diffusion 1.x and 2.x: a UNet conditioned on one CLIP text encoder. Everything is read from the configs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import activation_memory, identity, loading, unet_features
from dpt.backbone.base import Condition, FeatureSpec, Grid, NoiseSchedule
from dpt.backbone.folder import COMPONENTS, ModelFolder
from dpt.backbone.memory_saving_layers import use_memory_saving_layers
from dpt.backbone.noise import DDPMSchedule
from dpt.backbone.text import encode_prompts, truncated_part, unknown_words
from dpt.backbone.unet_forward import UNetPartialForward, finish_forward, read_feature
from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults, generation_defaults


class UNetBackbone:
    """A `Backbone`: tokenizer, text encoder, VAE, UNet and noise schedule, all frozen."""

    components = COMPONENTS

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
        generation_defaults: GenerationDefaults | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.vae = vae
        self.unet = unet
        self.noise: NoiseSchedule = DDPMSchedule(scheduler_config, prediction_type)
        self.scheduler_config = {**scheduler_config, "prediction_type": self.noise.prediction_type}
        self.folder = folder
        self.generation_defaults = generation_defaults or GenerationDefaults()

    @classmethod
    def load(
        cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype, prediction_type: str | None = None
    ) -> UNetBackbone:
        tokenizer = loading.load_tokenizer(folder)
        loading.check_parts_fit(folder, tokenizer)
        return cls(
            tokenizer=tokenizer,
            text_encoder=loading.load_text_encoder(folder, dtype).to(device),
            vae=loading.load_vae(folder, torch.float32).to(device),
            unet=loading.load_unet(folder, dtype).to(device),
            scheduler_config=loading.scheduler_config(folder),
            folder=folder,
            prediction_type=prediction_type,
            generation_defaults=generation_defaults(folder.path),
        )

    # Text

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, self.prompt_length)

    def tokenize(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts),
            padding="longest",
            max_length=self.prompt_length,
            truncation=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )

    def prompt_warnings(self, prompt: str) -> list[str]:
        warnings = []
        if unknown := unknown_words(self.tokenizer, prompt):
            words = ("word " if len(unknown) == 1 else "words ") + ", ".join(map(repr, unknown))
            warnings.append(f"the model does not know the {words}")
        if lost := truncated_part(self.tokenizer, prompt, self.prompt_length):
            warnings.append(f"the prompt is longer than {self.prompt_length} tokens; the model does not see {lost!r}")
        return warnings

    @property
    def prompt_length(self) -> int:
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    @property
    def text_width(self) -> int:
        return int(self.text_encoder.config.hidden_size)

    @property
    def match_width(self) -> int:
        return self.text_width

    # Images

    def encode_images(
        self, images: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        posterior = self.vae.encode(images.to(self.device, torch.float32)).latent_dist
        latents = posterior.mean
        if generator is not None:
            latents = latents + posterior.std * _noise_like(latents, generator)
        return (latents - self._shift) * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.device, torch.float32) / self._scale + self._shift).sample

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def vae_scale_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_latent_size(self) -> Grid:
        size = self.unet.config.sample_size
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

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
        if pixels < 1:
            raise UserError(f"the {name} must be positive, not {pixels}")
        if pixels % self.vae_scale_factor:
            raise UserError(f"the {name} must be divisible by {self.vae_scale_factor}, not {pixels}")
        return pixels // self.vae_scale_factor

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    # Denoising

    def predict(self, latents: Tensor, t: Tensor | int, condition: Condition) -> Tensor:
        z, states = latents.to(self.device, self.dtype), condition.states.to(self.device, self.dtype)
        return self.unet(z, t, encoder_hidden_states=states).sample.to(latents.dtype)

    def features(
        self, latents: Tensor, t: Tensor | int, condition: Condition, name: str, stop_after: int | None = None
    ) -> tuple[Tensor, UNetPartialForward]:
        z, states = latents.to(self.device, self.dtype), condition.states.to(self.device, self.dtype)
        feature, partial = read_feature(self.unet, z, t, states, name, stop_after)
        return feature.to(latents.dtype), partial

    def finish(self, partial: Any, detach_after: int | None = None) -> Tensor:
        return finish_forward(self.unet, partial, detach_after).float()

    # The UNet

    @property
    def network(self) -> Any:
        return self.unet

    def blocks(self) -> dict[str, int]:
        return unet_features.block_names(self.unet.config)

    def feature_spec(self, name: str) -> FeatureSpec:
        return unet_features.parse_feature(self.unet.config, name)

    def feature_grid(self, name: str, latent_size: Grid | None = None) -> Grid:
        return unet_features.feature_grid(self.unet.config, name, latent_size or self.default_latent_size)

    def block_of(self, module: str) -> str | None:
        return unet_features.block_of(module)

    def lora_targets(self, blocks: Sequence[str]) -> list[str]:
        return unet_features.lora_targets(self.unet, blocks)

    def prepare_for_gradients(self) -> None:
        use_memory_saving_layers(self.unet)
        if self.prefers_math_attention:
            from diffusers.models.attention_processor import AttnProcessor

            self.unet.set_attn_processor(AttnProcessor())

    @property
    def prefers_math_attention(self) -> bool:
        """True for half precision on a CPU."""
        return self.device.type == "cpu" and self.dtype != torch.float32

    # Facts

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @cached_property
    def model_hash(self) -> str:
        return identity.model_hash(self.folder)

    def is_model(self, recorded_hash: str) -> bool:
        return identity.is_model(recorded_hash, self.folder)

    def origin(self, name: str) -> dict[str, str]:
        return {"base": name, "base_hash": self.model_hash, "prediction_type": self.noise.prediction_type}

    def modules(self) -> list[Any]:
        return [self.text_encoder, self.vae, self.unet]

    def inference_bytes(self) -> int:
        height, width = self.default_latent_size
        map_bytes = int(self.unet.config.block_out_channels[0]) * height * width * self.dtype.itemsize
        return activation_memory.MAPS_AT_ONCE * map_bytes

    def activation_bytes(self, feature: str | None, gradient_checkpointing: bool) -> int:
        z = torch.zeros(1, self.latent_channels, *self.default_latent_size, device="meta")
        states = torch.zeros(1, self.prompt_length, self.text_width, device="meta")
        t = torch.zeros(1, device="meta")

        def forward(unet: Any) -> object:
            if feature is None:
                return unet(z, t, encoder_hidden_states=states)
            return read_feature(unet, z, t, states, feature)

        return activation_memory.saved_activation_bytes(self.unet, forward, gradient_checkpointing)


def _noise_like(latents: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Noise drawn on the CPU, the same for every device; one generator per image, or one for all."""
    if isinstance(generator, torch.Generator):
        return torch.randn(latents.shape, generator=generator).to(latents.device)
    rows = [torch.randn(latents.shape[1:], generator=g) for g in generator]
    return torch.stack(rows).to(latents.device)
