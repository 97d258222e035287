"""What differs between families of diffusion transformers, as a table: one row is one family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpt.backbone.base import Condition
from dpt.backbone.folder import FLOW_SCHEDULER, TEXT_ENCODER, TOKENIZER, TOKENIZER_CONFIG, VAE, Component
from dpt.backbone.text import TextInputs, encode_auraflow, encode_flux, encode_sd3

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"


Config = Mapping[str, Any]

Seam = tuple[str, int, int]
"""An input of the transformer, the width that it expects, and the width that the other component gives."""


@dataclass(frozen=True)
class BlockList:
    name: str
    layers: str
    """The config's key for its length."""
    is_joint: bool = False
    """Whether its blocks take and return one sequence, text tokens first, instead of text and image tokens."""


@dataclass(frozen=True)
class TransformerFamily:
    """How dpt reads one transformer class of diffusers."""

    name: str
    """For messages."""
    pipeline: str
    """The stock pipeline whose folders it opens."""
    transformer: Component
    texts: tuple[Component, ...]
    """Tokenizers and text encoders."""
    encode: Callable[[TextInputs, Sequence[str]], Condition]
    phrase_tokenizer: str
    """The tokenizer whose token i is row i of `Condition.states`."""
    text_tokens: int
    """Token length of T5: the default of the pipeline."""
    optional_t5: str | None
    """The text encoder that may be missing: the pipeline gives zeros for its states."""
    text_width: Callable[[Config], int]
    match_width: Callable[[Mapping[str, Config]], int]
    """From the configs of the text encoders, by component."""
    inputs: Callable[[Config, Tensor, Tensor, Condition], dict[str, Any]]
    """The network's config, latents (B,C,h,w), the network's time (B,) and a condition, as arguments of the network."""
    output: Callable[[Tensor, Tensor], Tensor]
    """The network's output for these latents, as the velocity (B,C,h,w)."""
    guidance_is_embedded: bool
    """Whether the pipeline gives its guidance scale to the network, and guides by `true_cfg_scale`."""
    network_time: Callable[[Tensor, int], Tensor]
    """From t (B,) of the schedule, and its number of timesteps."""
    gives_sigmas: bool
    """Whether the pipeline spaces the sigmas of sampling itself, instead of the scheduler."""
    blocks: tuple[BlockList, ...]
    """In the order of the forward pass."""
    after_blocks: str
    """The module that takes the image tokens after the last block."""
    image_argument: str
    """The argument of a block that holds the image tokens."""
    text_argument: str
    """The argument of a block that holds the text tokens."""
    projections: tuple[str, ...]
    """Attention projections of a block that get a LoRA."""
    patch: Callable[[Config], int]
    """Latent cells per token, along one side."""
    width: Callable[[Config], int]
    """Channels of a token."""
    default_side: Callable[[Config], int]
    """Latent cells of an image of the default size, along one side."""
    largest_side: Callable[[Config], int | None]
    """The largest latent side that the positional embedding covers; None if there is no limit."""
    seams: Callable[[Config, Config, Mapping[str, Config]], list[Seam]]
    """Widths that must agree, from the configs of transformer, VAE and text encoders."""

    def block_names(self, config: Config) -> list[str]:
        return [f"block{i}" for i in range(sum(int(config[blocks.layers]) for blocks in self.blocks))]

    @property
    def components(self) -> tuple[Component, ...]:
        return (*self.texts, VAE, self.transformer, FLOW_SCHEDULER)


def _tokenizer(name: str, *classes: str, optional: bool = False) -> Component:
    return Component(name, classes, TOKENIZER_CONFIG, optional=optional)


def _text_encoder(name: str, class_name: str, *required: str, optional: bool = False) -> Component:
    return Component(name, (class_name,), weights_stem="model", required_keys=required, optional=optional)


def _transformer(class_name: str, *required: str) -> Component:
    return Component("transformer", (class_name,), weights_stem=DIFFUSERS_WEIGHTS, required_keys=required)


_CLIP_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "projection_dim")
_T5 = ("T5TokenizerFast", "T5Tokenizer")
_T5_KEYS = ("d_model", "num_layers", "num_heads", "vocab_size")


def _sd3_inputs(config: Config, latents: Tensor, time: Tensor, condition: Condition) -> dict[str, Any]:
    return {
        "hidden_states": latents,
        "timestep": time,
        "encoder_hidden_states": condition.states,
        "pooled_projections": condition.pooled,
    }


def _sd3_pooled_width(texts: Mapping[str, Config]) -> int:
    return sum(int(texts[name]["projection_dim"]) for name in ("text_encoder", "text_encoder_2"))


def _sd3_seams(network: Config, vae: Config, texts: Mapping[str, Config]) -> list[Seam]:
    clips = sum(int(texts[name]["hidden_size"]) for name in ("text_encoder", "text_encoder_2"))
    width = int(network["joint_attention_dim"])
    return [
        ("latents", network["in_channels"], vae["latent_channels"]),
        ("pooled text", network["pooled_projection_dim"], _sd3_pooled_width(texts)),
        ("the text of both CLIPs, filled up with zeros,", width, max(width, clips)),
        ("the text of T5", width, texts.get("text_encoder_3", {}).get("d_model", width)),
    ]


SD3 = TransformerFamily(
    name="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    transformer=_transformer(
        "SD3Transformer2DModel",
        "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads",
        "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size",
    ),
    texts=(
        TOKENIZER,
        _text_encoder("text_encoder", "CLIPTextModelWithProjection", *_CLIP_KEYS),
        _tokenizer("tokenizer_2", *TOKENIZER.classes),
        _text_encoder("text_encoder_2", "CLIPTextModelWithProjection", *_CLIP_KEYS),
        _tokenizer("tokenizer_3", *_T5, optional=True),
        _text_encoder("text_encoder_3", "T5EncoderModel", *_T5_KEYS, optional=True),
    ),
    encode=encode_sd3,
    phrase_tokenizer="text_encoder",
    text_tokens=256,
    optional_t5="text_encoder_3",
    text_width=lambda config: int(config["joint_attention_dim"]),
    match_width=_sd3_pooled_width,
    inputs=_sd3_inputs,
    output=lambda output, latents: output,
    guidance_is_embedded=False,
    network_time=lambda t, count: t,
    gives_sigmas=False,
    blocks=(BlockList("transformer_blocks", "num_layers"),),
    after_blocks="norm_out",
    image_argument="hidden_states",
    text_argument="encoder_hidden_states",
    projections=tuple(
        f"{attention}.{projection}"
        for attention in ("attn", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    ),
    patch=lambda config: int(config["patch_size"]),
    width=lambda config: int(config["num_attention_heads"]) * int(config["attention_head_dim"]),
    default_side=lambda config: int(config["sample_size"]),
    largest_side=lambda config: int(config["pos_embed_max_size"]) * int(config["patch_size"]),
    seams=_sd3_seams,
)  # fmt: skip

DEFAULT_EMBEDDED_GUIDANCE = 3.5
"""The default of FLUX's pipeline and its training scripts."""


def _pack(latents: Tensor) -> Tensor:
    """(B,C,h,w) to tokens of 2 x 2 cells, (B,hw/4,4C)."""
    cells = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B,C,h/2,2,w/2,2)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpack(tokens: Tensor, latents: Tensor) -> Tensor:
    """The inverse of `_pack`, to the shape of these latents."""
    channels, height, width = latents.shape[1:]
    cells = tokens.unflatten(1, (height // 2, width // 2)).unflatten(3, (channels, 2, 2))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _flux_inputs(config: Config, latents: Tensor, time: Tensor, condition: Condition) -> dict[str, Any]:
    rows, columns = (torch.arange(side // 2, device=latents.device) for side in latents.shape[-2:])
    places = torch.stack(torch.meshgrid(rows.new_zeros(1), rows, columns, indexing="ij"), dim=-1).flatten(0, 2)
    scale = condition.guidance
    if scale is None:
        scale = torch.full_like(time, DEFAULT_EMBEDDED_GUIDANCE)
    return {
        "hidden_states": _pack(latents),
        "timestep": time,
        "encoder_hidden_states": condition.states,
        "pooled_projections": condition.pooled,
        "img_ids": places.to(latents.dtype),
        "txt_ids": latents.new_zeros(condition.states.shape[1], 3),
        "guidance": scale if config["guidance_embeds"] else None,
    }


def _flux_seams(network: Config, vae: Config, texts: Mapping[str, Config]) -> list[Seam]:
    return [
        ("packed latents", network["in_channels"], 4 * vae["latent_channels"]),
        ("pooled text", network["pooled_projection_dim"], texts["text_encoder"]["hidden_size"]),
        ("the text of T5", network["joint_attention_dim"], texts["text_encoder_2"]["d_model"]),
    ]


FLUX = TransformerFamily(
    name="FLUX.1",
    pipeline="FluxPipeline",
    transformer=_transformer(
        "FluxTransformer2DModel",
        "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
        "joint_attention_dim", "pooled_projection_dim", "guidance_embeds",
    ),
    texts=(
        TOKENIZER,
        TEXT_ENCODER,
        _tokenizer("tokenizer_2", *_T5),
        _text_encoder("text_encoder_2", "T5EncoderModel", *_T5_KEYS),
    ),
    encode=encode_flux,
    phrase_tokenizer="text_encoder_2",
    text_tokens=512,
    optional_t5=None,
    text_width=lambda config: int(config["joint_attention_dim"]),
    match_width=lambda texts: int(texts["text_encoder"]["hidden_size"]),
    inputs=_flux_inputs,
    output=_unpack,
    guidance_is_embedded=True,
    network_time=lambda t, count: t / count,
    gives_sigmas=True,
    blocks=(
        BlockList("transformer_blocks", "num_layers"),
        BlockList("single_transformer_blocks", "num_single_layers"),
    ),
    after_blocks="norm_out",
    image_argument="hidden_states",
    text_argument="encoder_hidden_states",
    projections=tuple(
        f"attn.{projection}"
        for projection in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    ),
    patch=lambda config: 2,
    width=lambda config: int(config["num_attention_heads"]) * int(config["attention_head_dim"]),
    default_side=lambda config: 128,
    largest_side=lambda config: None,
    seams=_flux_seams,
)  # fmt: skip

AURAFLOW = TransformerFamily(
    name="AuraFlow",
    pipeline="AuraFlowPipeline",
    transformer=_transformer(
        "AuraFlowTransformer2DModel",
        "sample_size", "patch_size", "in_channels", "num_mmdit_layers", "num_single_dit_layers",
        "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pos_embed_max_size",
    ),
    texts=(_tokenizer("tokenizer", *_T5), _text_encoder("text_encoder", "UMT5EncoderModel", *_T5_KEYS)),
    encode=encode_auraflow,
    phrase_tokenizer="text_encoder",
    text_tokens=256,
    optional_t5=None,
    text_width=lambda config: int(config["joint_attention_dim"]),
    match_width=lambda texts: int(texts["text_encoder"]["d_model"]),
    inputs=lambda config, latents, time, condition: {
        "hidden_states": latents, "timestep": time, "encoder_hidden_states": condition.states,
    },
    output=lambda output, latents: output,
    guidance_is_embedded=False,
    network_time=lambda t, count: t / count,
    gives_sigmas=False,
    blocks=(
        BlockList("joint_transformer_blocks", "num_mmdit_layers"),
        BlockList("single_transformer_blocks", "num_single_dit_layers", is_joint=True),
    ),
    after_blocks="norm_out",
    image_argument="hidden_states",
    text_argument="encoder_hidden_states",
    projections=FLUX.projections,
    patch=lambda config: int(config["patch_size"]),
    width=lambda config: int(config["num_attention_heads"]) * int(config["attention_head_dim"]),
    default_side=lambda config: int(config["sample_size"]),
    largest_side=lambda config: math.isqrt(int(config["pos_embed_max_size"])) * int(config["patch_size"]),
    seams=lambda network, vae, texts: [
        ("latents", network["in_channels"], vae["latent_channels"]),
        ("the text of T5", network["joint_attention_dim"], texts["text_encoder"]["d_model"]),
    ],
)  # fmt: skip

FAMILIES = {family.transformer.classes[0]: family for family in (SD3, FLUX, AURAFLOW)}
"""By the class of the transformer."""


def is_lora_target(module: str) -> bool:
    """Whether a module of this name is an attention projection of some family's blocks."""
    return any(
        module.startswith(f"{blocks.name}.")
        and (parts := module.removeprefix(f"{blocks.name}.").split(".", 1))[0].isdigit()
        and parts[1:]
        and parts[1] in family.projections
        for family in FAMILIES.values()
        for blocks in family.blocks
    )
