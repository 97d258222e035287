"""Prompts to conditions, by the text encoders of each family's pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpt.backbone.base import Condition
from dpt.backbone.device import execution_device


@dataclass(frozen=True)
class PromptEncoder:
    """A tokenizer and the text encoder that reads its tokens."""

    tokenizer: Any
    model: Any

    def tokens(self, prompts: Sequence[str], length: int) -> Any:
        return self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )

    def ids(self, prompts: Sequence[str], length: int) -> Tensor:
        ids: Tensor = self.tokens(prompts, length).input_ids
        return ids.to(execution_device(self.model))

    @property
    def length(self) -> int:
        """Tokens of a prompt that the encoder sees at most; T5 has no limit of its own."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(min(self.tokenizer.model_max_length, limit or self.tokenizer.model_max_length))


@dataclass(frozen=True)
class TextInputs:
    """What an encoding takes: the pipeline's encoders by their component's name, and the network's text width."""

    encoders: Mapping[str, PromptEncoder]
    width: int
    t5_tokens: int
    t5_is_zero: bool = False
    """Whether there is no T5, or one whose states are all zero; then one of its tokens stands for all."""

    def __getitem__(self, name: str) -> PromptEncoder:
        return self.encoders[name]


def is_zero_t5(encoders: Mapping[str, PromptEncoder], name: str) -> bool:
    """Whether there is no T5 of this name, or one that ends in a normalisation by zeros."""
    return name not in encoders or not bool(encoders[name].model.encoder.final_layer_norm.weight.any())


def encode_sd3(text: TextInputs, prompts: Sequence[str]) -> Condition:
    """The states of both CLIPs side by side, then those of T5; without T5, one zero state for all of them.

    `pooled` and `match` are the projected end tokens of both CLIPs.
    """
    length = text["text_encoder"].length
    clips = [text[name] for name in ("text_encoder", "text_encoder_2")]
    outputs = [clip.model(clip.ids(prompts, length), output_hidden_states=True) for clip in clips]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    states = pad(states, (0, text.width - states.shape[-1]))
    if text.t5_is_zero:
        tail = states.new_zeros(len(states), 1, text.width)
    else:
        t5 = text["text_encoder_3"]
        tail = t5.model(t5.ids(prompts, text.t5_tokens))[0].to(states.dtype)
    return Condition(torch.cat([states, tail], dim=1), pooled, pooled)


def encode_auraflow(text: TextInputs, prompts: Sequence[str]) -> Condition:
    """The states of T5, zero for padding; `match` is their mean over the prompt's tokens."""
    t5 = text["text_encoder"]
    tokens = t5.tokens(prompts, text.t5_tokens).to(execution_device(t5.model))
    mask = tokens.attention_mask[:, :, None]
    states = t5.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0] * mask
    return Condition(states, states.sum(dim=1) / mask.sum(dim=1))


def encode_flux(text: TextInputs, prompts: Sequence[str]) -> Condition:
    """The states of T5; `pooled` and `match` are the end token of CLIP."""
    clip, t5 = text["text_encoder"], text["text_encoder_2"]
    pooled = clip.model(clip.ids(prompts, clip.length)).pooler_output
    states = t5.model(t5.ids(prompts, text.t5_tokens))[0]
    return Condition(states, pooled, pooled)
