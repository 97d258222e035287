"""Stable Diffusion XL: two CLIP text encoders, whose pooled vector and the image's sizes also condition the UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from dpt.backbone import loading, unet_features
from dpt.backbone.base import Condition, Grid, ImageSizes
from dpt.backbone.folder import (
    SCHEDULER,
    SDXL_UNET,
    TEXT_ENCODER,
    TOKENIZER,
    VAE,
    Component,
    ModelFolder,
    check_whole_numbers,
    class_in,
    clip_tokenizer,
    clip_with_projection,
)
from dpt.backbone.quantization import Quantization
from dpt.backbone.text import PromptEncoder, prompt_warnings, text_projections, text_transformer
from dpt.backbone.unet import UNetBackbone
from dpt.errors import UserError
from dpt.generation_defaults import generation_defaults

TEXTS = (TOKENIZER, TEXT_ENCODER, clip_tokenizer("tokenizer_2"), clip_with_projection("text_encoder_2"))

POOLED = "text_encoder_2"
"""The text encoder whose projected end token is the pooled vector."""

TEXT_TIME = "text_time"
"""The `addition_embed_type` of its UNets."""

SIZE_IDS = 6
"""Original height and width, top and left of the crop, target height and width."""


WIDTHS = ("cross_attention_dim", "in_channels", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
"""Keys of the UNet's config that have to fit the other parts."""


class SDXLBackbone(UNetBackbone):
    """A `Backbone`: both tokenizers and text encoders, VAE, UNet and noise schedule, all frozen."""

    components: tuple[Component, ...] = (*TEXTS, VAE, SDXL_UNET, SCHEDULER)

    def __init__(self, *, encoders: Mapping[str, PromptEncoder], zeros_for_empty: bool = True, **parts: Any) -> None:
        """`encoders` by their component's name; `zeros_for_empty`: whether the empty prompt is all zeros."""
        first = next(iter(encoders.values()))
        super().__init__(tokenizer=first.tokenizer, text_encoder=first.model, **parts)
        self.encoders, self.zeros_for_empty = dict(encoders), zeros_for_empty

    @classmethod
    def load(
        cls,
        folder: ModelFolder,
        device: torch.device,
        dtype: torch.dtype,
        prediction_type: str | None = None,
        quantize: Quantization | None = None,
    ) -> Self:
        tokenizers = {part.name: loading.load_tokenizer(folder, part) for part in cls.components if part.is_tokenizer}
        texts = [part for part in cls.components if part.is_text_encoder]
        check_parts_fit(folder, texts, tokenizers)
        encoders = {
            part.name: PromptEncoder(
                tokenizers[_tokenizer_of(part)], loading.load_text_encoder(folder, dtype, part).to(device)
            )
            for part in texts
        }
        return cls(
            encoders=encoders,
            zeros_for_empty=folder.option("force_zeros_for_empty_prompt", default=True),
            vae=loading.load_vae(folder, loading.vae_dtype(folder, dtype)).to(device),
            unet=loading.load_network(folder, dtype, SDXL_UNET, quantize).to(device),
            scheduler_config=loading.scheduler_config(folder),
            folder=folder,
            prediction_type=prediction_type,
            generation_defaults=generation_defaults(folder.path),
        )

    # Text

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        """The penultimate states of all encoders side by side; `pooled` and `match` are the projected end token."""
        outputs = {
            name: encoder.model(encoder.ids(prompts, self.prompt_length), output_hidden_states=True)
            for name, encoder in self.encoders.items()
        }
        states = torch.cat([output.hidden_states[-2] for output in outputs.values()], dim=-1)
        pooled = outputs[POOLED].text_embeds
        if self.zeros_for_empty and (empty := [not prompt for prompt in prompts]) and any(empty):
            kept = torch.tensor([float(not is_empty) for is_empty in empty]).to(states)
            states, pooled = states * kept[:, None, None], pooled * kept[:, None]
        return Condition(states, pooled, pooled)

    def prompt_warnings(self, prompt: str) -> list[str]:
        """Each encoder's, by name if they differ."""
        by_encoder = {
            name: prompt_warnings(encoder.tokenizer, prompt, self.prompt_length)
            for name, encoder in self.encoders.items()
        }
        first, *others = by_encoder.values()
        if all(sentences == first for sentences in others):
            return first
        return [f"{name}: {sentence}" for name, sentences in by_encoder.items() for sentence in sentences]

    @property
    def prompt_length(self) -> int:
        return min(encoder.length for encoder in self.encoders.values())

    @property
    def text_width(self) -> int:
        return sum(int(encoder.model.config.hidden_size) for encoder in self.encoders.values())

    @property
    def match_width(self) -> int:
        return int(self.encoders[POOLED].model.config.projection_dim)

    # Denoising

    @property
    def takes_sizes(self) -> bool:
        return True

    def _added(self, condition: Condition, latent_size: Grid) -> dict[str, Tensor]:
        assert condition.pooled is not None
        time_ids = condition.time_ids
        if time_ids is None:
            height, width = (side * self.vae_scale_factor for side in latent_size)
            rows = [self._default_ids(height, width)] * len(condition)
            time_ids = torch.tensor(rows, dtype=torch.float32)
        device = condition.pooled.device if condition.pooled.is_meta else self.device
        return {"text_embeds": condition.pooled.to(device, self.dtype), "time_ids": time_ids.to(device)}

    def _default_ids(self, height: int, width: int) -> tuple[float, ...]:
        return ImageSizes((height, width), (height, width)).row()

    def text_networks(self) -> Mapping[str, Any]:
        return {name: text_transformer(encoder.model) for name, encoder in self.encoders.items()}

    def text_lora_targets(self) -> list[str]:
        """Without the last layer of an encoder whose end token is not projected: its states are not read."""
        layers = {name: int(encoder.model.config.num_hidden_layers) for name, encoder in self.encoders.items()}
        return [
            target
            for name, count in layers.items()
            for target in text_projections(name, count if name == POOLED else count - 1)
        ]

    # Facts

    @property
    def architecture(self) -> str:
        return unet_features.STABLE_DIFFUSION_XL

    def modules(self) -> list[Any]:
        return [*(encoder.model for encoder in self.encoders.values()), self.vae, self.unet]


AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""Of the prompt and of the negative prompt, as the stock pipeline has them."""


class SDXLRefiner(SDXLBackbone):
    """The UNet that finishes images: it has the second text encoder only, and is conditioned on an aesthetic score."""

    components = (*TEXTS[2:], VAE, SDXL_UNET, SCHEDULER)

    @property
    def architecture(self) -> str:
        return f"{unet_features.STABLE_DIFFUSION_XL}'s refiner"

    def with_score(self, condition: Condition, score: float, latent_size: Grid) -> Condition:
        """The same for images from latents of this size and with this aesthetic score."""
        height, width = (side * self.vae_scale_factor for side in latent_size)
        rows = [[height, width, 0, 0, score]] * len(condition)
        return replace(condition, time_ids=torch.tensor(rows, dtype=torch.float32))

    def _default_ids(self, height: int, width: int) -> tuple[float, ...]:
        return height, width, 0, 0, AESTHETIC_SCORE


def is_refiner(index: dict[str, Any]) -> bool:
    """Whether this model_index.json is that of a refiner: without the first text encoder."""
    return class_in(index, TEXT_ENCODER) is None and class_in(index, TEXTS[-1]) is not None


def check_parts_fit(folder: ModelFolder, texts: Sequence[Component], tokenizers: Mapping[str, Any]) -> None:
    """Refuse parts that are sound but do not belong together."""
    unet = folder.config(SDXL_UNET)
    check_whole_numbers(unet, WIDTHS, folder.component(SDXL_UNET) / SDXL_UNET.config_file)
    for part in texts:
        keys = ("hidden_size", "vocab_size", *(["projection_dim"] if part.name == POOLED else []))
        check_whole_numbers(folder.config(part), keys, folder.component(part) / part.config_file)
    configs = {part.name: folder.config(part) for part in texts}
    width = sum(config["hidden_size"] for config in configs.values())
    pooled = int(configs[POOLED]["projection_dim"])
    if unet["cross_attention_dim"] != width:
        raise UserError(
            f"the parts of {folder.path} do not fit: the UNet reads text {unet['cross_attention_dim']} wide, "
            f"the text encoders write {width}"
        )
    loading.check_channels_fit(folder, SDXL_UNET)
    sizes = unet["projection_class_embeddings_input_dim"] - pooled
    if sizes not in (5 * unet["addition_time_embed_dim"], SIZE_IDS * unet["addition_time_embed_dim"]):
        raise UserError(
            f"the parts of {folder.path} do not fit: the UNet takes a vector "
            f"{unet['projection_class_embeddings_input_dim']} wide, and pooled text and sizes are "
            f"{pooled} + {SIZE_IDS} x {unet['addition_time_embed_dim']}"
        )
    for part in texts:
        entries, size = len(tokenizers[_tokenizer_of(part)]), configs[part.name]["vocab_size"]
        if entries > size:
            raise UserError(
                f"the parts of {folder.path} do not fit: the {_tokenizer_of(part)} has {entries} entries, "
                f"the {part.name} {size}"
            )


def _tokenizer_of(text_encoder: Component) -> str:
    return text_encoder.name.replace("text_encoder", "tokenizer")
