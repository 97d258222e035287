"""States of texts: made, and read in place of encoding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dpt.backbone import Backbone, Condition
from dpt.data.cache.contents import texts_key
from dpt.data.cache.make import SHARD_BYTES, Encoded, PartMaker
from dpt.data.cache.storage import CachePart, ShardMetadata, recorded_key
from dpt.data.example import EncodedTexts

FOLDER = "texts"

STATES, POOLED = "states", "pooled"
"""Tensors on disk: `Condition.states` and `Condition.match`."""


class TextsMaker(PartMaker):
    """In the text encoder's own number format: what is read is what would be computed."""

    unit = "text"

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        out: Path,
        batch_size: int = 16,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        width = backbone.text_width
        shapes = {STATES: (backbone.prompt_length, width), POOLED: (width,)}
        key = texts_key(backbone.folder, backbone.dtype, recorded_key(out / FOLDER))
        super().__init__(out / FOLDER, key, texts, shapes, backbone.dtype, batch_size, shard_bytes)
        self.backbone = backbone

    def is_current(self, name: str, facts: ShardMetadata) -> bool:
        return True

    @torch.no_grad()
    def encode(self, batches: list[list[str]]) -> Iterator[Encoded]:
        for batch in batches:
            text = self.backbone.encode_text(batch)
            nothing: ShardMetadata = []
            yield [(one, nothing) for one in batch], {STATES: text.states, POOLED: text.match}, {}


class CachedTexts:
    """A TextCache. The stream reads it, in its workers if it has any."""

    def __init__(self, part: CachePart) -> None:
        self.part = part

    def read(self, texts: Sequence[str]) -> EncodedTexts | None:
        known = [text for text in dict.fromkeys(texts) if text in self.part.rows]
        if not known:
            return None
        states, match = (torch.stack([self.part.read(text, name) for text in known]) for name in (STATES, POOLED))
        return EncodedTexts({text: row for row, text in enumerate(known)}, Condition(states, match))

    def __str__(self) -> str:
        n = len(self.part.rows)
        return f"states of {n} text{'' if n == 1 else 's'} in {self.part.key['dtype']}"
