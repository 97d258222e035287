"""CLIP text encoding of prompts, and which parts of a prompt it loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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
