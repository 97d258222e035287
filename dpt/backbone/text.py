"""From prompts to what the UNet attends to, and what of a prompt gets lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# CLIP's vocabulary has 49,408 entries and spells rare words in pieces by design. A vocabulary below this
# size was cut for a closed world: there, a word that is not one piece was never seen in training.
_CLOSED_VOCABULARY = 8192


ENCODING = 1
"""Of `encode_prompts`: to be raised when it comes to give other states, since caches hold what it gave."""


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: states (B,L,D) after the final layer norm; pooled (B,D), the one at the end token."""

    states: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Condition:
        return Condition(self.states[rows], self.pooled[rows])

    @staticmethod
    def stack(texts: Sequence[Condition]) -> Condition:
        return Condition(torch.cat([one.states for one in texts]), torch.cat([one.pooled for one in texts]))


class ConditionCache(Protocol):
    """Prompts that the same encoder has encoded before."""

    def find(self, prompt: str) -> Condition | None:
        """states (1,L,D) and pooled (1,D) on the CPU, in the encoder's own number format."""


def encode_with_cache(
    known: ConditionCache, prompts: Sequence[str], encode: Callable[[Sequence[str]], Condition], device: torch.device
) -> Condition:
    """Only what is not known is encoded."""
    found = {prompt: known.find(prompt) for prompt in prompts}
    rows = [text for text in found.values() if text is not None]
    missing = [prompt for prompt, text in found.items() if text is None]
    parts = [encode(missing)] if missing else []
    if rows:
        stored = Condition.stack(rows)
        parts.insert(0, Condition(stored.states.to(device), stored.pooled.to(device)))
    order = {prompt: at for at, prompt in enumerate([*(p for p in found if found[p] is not None), *missing])}
    return Condition.stack(parts)[[order[prompt] for prompt in prompts]]


def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str], length: int) -> Condition:
    """Prompts padded and cut to `length` tokens, as StableDiffusionPipeline does it."""
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    device = text_encoder.device
    mask = tokens.attention_mask.to(device)
    attended = mask if getattr(text_encoder.config, "use_attention_mask", False) else None
    states = text_encoder(tokens.input_ids.to(device), attention_mask=attended).last_hidden_state
    # The end token is the last one that is not padding. Searching for its id instead would stop early at an
    # unknown word, because CLIP tokenizers use the end token for those too.
    end = mask.sum(dim=1) - 1
    return Condition(states, states[torch.arange(len(states), device=device), end])


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
    """The end of the prompt that does not fit into `length` tokens, start and end token included."""
    spans = _encode(tokenizer, prompt)["offset_mapping"]
    room = length - tokenizer.num_special_tokens_to_add()
    return prompt[spans[room][0] :] if len(spans) > room else ""


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
