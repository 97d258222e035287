"""Text encoder states, encoded once and read by training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.data.cache.contents import texts_key
from dpt.data.cache.make import SHARD_BYTES, Encoded, PartMaker
from dpt.data.cache.storage import CachePart, ShardMetadata, recorded_key
from dpt.data.example import EncodedTexts
from dpt.errors import DataError

FOLDER = "texts"

FIELDS = {"states": "states", "pooled": "match", "denoiser_pooled": "pooled", "time_ids": "time_ids"}
"""Tensors on disk, and the fields of `Condition` that they hold; the last two only for models that have them."""


class TextsMaker(PartMaker):
    """Stored in the text encoder's dtype, so that the values read are those it would compute."""

    unit = "text"

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        out: Path,
        batch_size: int = 16,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        with torch.no_grad():
            example = _tensors(backbone.encode_text([""]))
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in example.items()}
        key = texts_key(backbone.folder, backbone.dtype, recorded_key(out / FOLDER))
        super().__init__(out / FOLDER, key, texts, shapes, backbone.dtype, batch_size, shard_bytes)
        self.backbone = backbone

    def is_current(self, name: str, facts: ShardMetadata) -> bool:
        return True

    @torch.no_grad()
    def encode(self, batches: list[list[str]]) -> Iterator[Encoded]:
        for batch in batches:
            nothing: ShardMetadata = []
            yield [(text, nothing) for text in batch], _tensors(self.backbone.encode_text(batch)), {}


def _tensors(condition: Condition) -> dict[str, Tensor]:
    fields = {name: getattr(condition, field) for name, field in FIELDS.items()}
    return {name: tensor for name, tensor in fields.items() if tensor is not None}


class CachedTexts:
    """A TextCache. The stream reads it, in its workers if it has any."""

    def __init__(self, part: CachePart) -> None:
        if missing := {"states", "pooled"} - set(part.tensors):
            raise DataError(f"{part.folder} is not a cache of texts: it lacks {' and '.join(sorted(missing))}")
        self.part = part

    def read(self, texts: Sequence[str]) -> EncodedTexts | None:
        known = [text for text in dict.fromkeys(texts) if text in self.part.rows]
        if not known:
            return None
        names = [name for name in FIELDS if name in self.part.tensors]
        stacked = {FIELDS[name]: torch.stack([self.part.read(text, name) for text in known]) for name in names}
        return EncodedTexts({text: row for row, text in enumerate(known)}, Condition(**stacked))

    def __str__(self) -> str:
        n = len(self.part.rows)
        return f"states of {n} text{'' if n == 1 else 's'} in {self.part.key['dtype']}"
