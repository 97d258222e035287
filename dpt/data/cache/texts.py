"""States of texts: made, and read in place of encoding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dpt.backbone import Backbone, Condition
from dpt.data.cache.contents import texts_key
from dpt.data.cache.make import SHARD_BYTES, Encoded, PartMaker
from dpt.data.cache.storage import CachePart, ShardMetadata, recorded_key

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
    """KnownTexts of a backbone."""

    def __init__(self, part: CachePart) -> None:
        self.part = part

    def find(self, prompt: str) -> Condition | None:
        if prompt not in self.part.rows:
            return None
        return Condition(self.part.read(prompt, STATES)[None], self.part.read(prompt, POOLED)[None])

    def __str__(self) -> str:
        n = len(self.part.rows)
        return f"states of {n} text{'' if n == 1 else 's'} in {self.part.key['dtype']}"
