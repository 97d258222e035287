"""Prompts to conditions: CLIP with what it loses of a prompt, and the text encoders of each transformer family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpt.backbone.base import Condition
from dpt.backbone.device import execution_device

# CLIP's vocabulary has 49,408 entries and spells rare words in pieces by design. A vocabulary below this
# size was cut for a closed world: there, a word that is not one piece was never seen in training.
_CLOSED_VOCABULARY = 8192


ENCODING = 1
"""Version of `encode_prompts`, part of a cache's key: raise it when the states it returns change."""


def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str], length: int) -> Condition:
    """States after the final layer norm, padded and truncated to `length` tokens as StableDiffusionPipeline does it.

    `match` is the state at the end token, without projection.
    """
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    device = execution_device(text_encoder)
    mask = tokens.attention_mask.to(device)
    attended = mask if getattr(text_encoder.config, "use_attention_mask", False) else None
    states = text_encoder(tokens.input_ids.to(device), attention_mask=attended).last_hidden_state
    # The end token is the last one that is not padding. Searching for its id would stop early at an unknown word,
    # because CLIP tokenizers use the end token for those too.
    end = mask.sum(dim=1) - 1
    return Condition(states, states[torch.arange(len(states), device=device), end])


def text_transformer(text_encoder: Any) -> Any:
    """The transformer inside a CLIP text encoder; since transformers 5.6, CLIPTextModel is one itself."""
    return getattr(text_encoder, "text_model", text_encoder)


def text_projections(component: str, layers: int) -> list[str]:
    """The attention projections of the first layers of a `text_transformer`."""
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return [
        f"{component}.encoder.layers.{i}.self_attn.{projection}" for i in range(layers) for projection in projections
    ]


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    """A transformers encoding, padded to the longest text."""
    return tokenizer(
        list(texts),
        padding="longest",
        max_length=length,
        truncation=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )


UNKNOWN_WORDS = "the model does not know the "


def prompt_warnings(tokenizer: Any, prompt: str, length: int) -> list[str]:
    """A sentence for each part of a prompt that a model with this tokenizer will not see."""
    warnings = []
    if unknown := unknown_words(tokenizer, prompt):
        words = ("word " if len(unknown) == 1 else "words ") + ", ".join(map(repr, unknown))
        warnings.append(f"{UNKNOWN_WORDS}{words}")
    if lost := truncated_part(tokenizer, prompt, length):
        warnings.append(f"the prompt is longer than {length} tokens; the model does not see {lost!r}")
    return warnings


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """The words of a prompt that the tokenizer cannot represent, each once, in order.

    A word is unknown if some piece of it is the unknown token, or if the vocabulary is a small, closed one
    and the word falls apart into several pieces.
    """
    pieces, spans = _pieces_by_word(tokenizer, prompt)
    closed = len(tokenizer) < _CLOSED_VOCABULARY
    lost: dict[str, str] = {}
    for word_pieces, (start, stop) in zip(pieces, spans, strict=True):
        word = prompt[start:stop]
        not_in_vocabulary = tokenizer.unk_token in word_pieces and word != tokenizer.unk_token
        falls_apart = closed and len(word_pieces) > 1 and any(map(str.isalpha, word))
        if (not_in_vocabulary or falls_apart) and any(map(str.isalnum, word)):
            lost.setdefault(word.lower(), word)
    return list(lost.values())


def truncated_part(tokenizer: Any, prompt: str, length: int) -> str:
    """The end of a prompt that does not fit into `length` tokens, special tokens included."""
    spans = _encode(tokenizer, prompt)["offset_mapping"]
    capacity = length - tokenizer.num_special_tokens_to_add()
    return prompt[spans[capacity][0] :] if len(spans) > capacity else ""


def _pieces_by_word(tokenizer: Any, prompt: str) -> tuple[list[list[str]], list[tuple[int, int]]]:
    encoding = _encode(tokenizer, prompt)
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    pieces: dict[int, list[str]] = {}
    spans: dict[int, tuple[int, int]] = {}
    offsets = encoding["offset_mapping"]
    for word, token, (start, stop) in zip(encoding.word_ids(), tokens, offsets, strict=True):
        # A special token written out in the prompt belongs to no word and loses nothing.
        if word is None:
            continue
        pieces.setdefault(word, []).append(token)
        first, last = spans.get(word, (start, stop))
        spans[word] = (min(first, start), max(last, stop))
    return list(pieces.values()), list(spans.values())


def _encode(tokenizer: Any, prompt: str) -> Any:
    return tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


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
