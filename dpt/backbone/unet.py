"""Stable Diffusion 1.x and 2.x: a UNet conditioned on one CLIP text encoder. Everything is read from the configs.

`sdxl.py` has what differs for Stable Diffusion XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import loading, memory, unet_features
from dpt.backbone.base import Condition, FeatureSpec, Grid, NoiseSchedule
from dpt.backbone.diffusers_model import DiffusersModel, add_passes
from dpt.backbone.folder import COMPONENTS, UNET, Component, ModelFolder
from dpt.backbone.memory import use_memory_saving_layers
from dpt.backbone.noise import DDPMSchedule
from dpt.backbone.quantization import Quantization
from dpt.backbone.text import encode_prompts, prompt_warnings, text_projections, text_transformer, tokenize
from dpt.backbone.unet_features import UNetPartialForward, finish_forward, read_feature
from dpt.generation_defaults import GenerationDefaults, generation_defaults


class UNetBackbone(DiffusersModel):
    """A `Backbone`: tokenizer, text encoder, VAE, UNet and noise schedule, all frozen."""

    components: tuple[Component, ...] = COMPONENTS

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
        cls,
        folder: ModelFolder,
        device: torch.device,
        dtype: torch.dtype,
        prediction_type: str | None = None,
        quantize: Quantization | None = None,
    ) -> UNetBackbone:
        tokenizer = loading.load_tokenizer(folder)
        loading.check_parts_fit(folder, tokenizer)
        return cls(
            tokenizer=tokenizer,
            text_encoder=loading.load_text_encoder(folder, dtype).to(device),
            vae=loading.load_vae(folder, torch.float32).to(device),
            unet=loading.load_network(folder, dtype, UNET, quantize).to(device),
            scheduler_config=loading.scheduler_config(folder),
            folder=folder,
            prediction_type=prediction_type,
            generation_defaults=generation_defaults(folder.path),
        )

    # Text

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, self.prompt_length)

    def tokenize(self, texts: Sequence[str]) -> Any:
        return tokenize(self.tokenizer, texts, self.prompt_length)

    def prompt_warnings(self, prompt: str) -> list[str]:
        return prompt_warnings(self.tokenizer, prompt, self.prompt_length)

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

    @property
    def default_latent_size(self) -> Grid:
        size = self.unet.config.sample_size
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    # Denoising

    def predict(self, latents: Tensor, t: Tensor | int, condition: Condition) -> Tensor:
        z, states = latents.to(self.device, self.dtype), condition.states.to(self.device, self.dtype)
        added = self._added(condition, (latents.shape[-2], latents.shape[-1]))
        add_passes(latents)
        return self.unet(z, t, encoder_hidden_states=states, added_cond_kwargs=added).sample.to(latents.dtype)

    def features(
        self, latents: Tensor, t: Tensor | int, condition: Condition, name: str, stop_after: int | None = None
    ) -> tuple[Tensor, UNetPartialForward]:
        z, states = latents.to(self.device, self.dtype), condition.states.to(self.device, self.dtype)
        added = self._added(condition, (latents.shape[-2], latents.shape[-1]))
        add_passes(latents, (self.feature_spec(name).deepest + 1) / len(self.blocks()))
        feature, partial = read_feature(self.unet, z, t, states, name, stop_after, added)
        return feature.to(latents.dtype), partial

    def finish(self, partial: Any, detach_after: int | None = None) -> Tensor:
        add_passes(partial.hidden, 1 - partial.done / len(self.blocks()))
        return finish_forward(self.unet, partial, detach_after).float()

    def _added(self, condition: Condition, latent_size: Grid) -> dict[str, Tensor] | None:
        """What the UNet takes beside latents, timestep and text states."""
        return None

    # The UNet

    @property
    def network(self) -> Any:
        return self.unet

    def blocks(self) -> dict[str, int]:
        return unet_features.block_names(self.unet.config)

    @property
    def default_feature(self) -> str:
        return unet_features.default_feature(self.unet.config)

    def feature_spec(self, name: str) -> FeatureSpec:
        return unet_features.parse_feature(self.unet.config, name)

    def feature_grid(self, name: str, latent_size: Grid | None = None) -> Grid:
        return unet_features.feature_grid(self.unet.config, name, latent_size or self.default_latent_size)

    def block_of(self, module: str) -> str | None:
        return unet_features.block_of(module)

    def lora_targets(self, blocks: Sequence[str]) -> list[str]:
        return unet_features.lora_targets(self.unet, blocks)

    def text_networks(self) -> Mapping[str, Any]:
        return {"text_encoder": text_transformer(self.text_encoder)}

    def text_lora_targets(self) -> list[str]:
        layers = int(self.text_encoder.config.num_hidden_layers)
        return text_projections("text_encoder", layers)

    def prepare_for_gradients(self) -> None:
        use_memory_saving_layers(self.unet)
        if self.prefers_math_attention:
            from diffusers.models.attention_processor import AttnProcessor

            self.unet.set_attn_processor(AttnProcessor())

    # Facts

    @property
    def architecture(self) -> str:
        return unet_features.STABLE_DIFFUSION

    def modules(self) -> list[Any]:
        return [self.text_encoder, self.vae, self.unet]

    def inference_bytes(self) -> int:
        height, width = self.default_latent_size
        map_bytes = int(self.unet.config.block_out_channels[0]) * height * width * self.dtype.itemsize
        return memory.MAPS_AT_ONCE * map_bytes

    def activation_bytes(self, feature: str | None, gradient_checkpointing: bool) -> int:
        z = torch.zeros(1, self.latent_channels, *self.default_latent_size, device="meta")
        states = torch.zeros(1, self.prompt_length, self.text_width, device="meta")
        pooled = torch.zeros(1, self.match_width, device="meta")
        t = torch.zeros(1, device="meta")
        added = self._added(Condition(states, pooled, pooled), self.default_latent_size)

        def forward(unet: Any) -> object:
            if feature is None:
                return unet(z, t, encoder_hidden_states=states, added_cond_kwargs=added)
            return read_feature(unet, z, t, states, feature, added=added)

        return memory.saved_activation_bytes(self.unet, forward, gradient_checkpointing)
