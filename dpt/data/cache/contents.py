"""The key of a cache, and the images and texts of a data folder that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from dpt.backbone.folder import VAE, ModelFolder
from dpt.backbone.identity import hash_as_recorded
from dpt.backbone.text import ENCODING
from dpt.data.files.annotations import read_expressions
from dpt.data.files.hard_negatives import open_hard_negatives
from dpt.data.files.reading import REC, DataRoot
from dpt.data.images import PREPROCESSING, Framing
from dpt.data.mixture import mirrored_text
from dpt.errors import DataError

FORMAT = 1
"""Of the files of a cache."""


CacheKey = Mapping[str, Any]
"""Plain JSON values."""

NEW: CacheKey = MappingProxyType({})
"""Default of `recorded`: there is no earlier cache whose hashes could be reused."""


FREE = ("dtype", "random_flip")
"""Entries in which latents may differ from the run: any dtype can be read, mirrored latents can go unused."""


def latents_key(
    model: ModelFolder, framing: Framing, dtype: torch.dtype = torch.float32, made: CacheKey = NEW
) -> CacheKey:
    """Names the VAE only: another UNet or text encoder does not change latents."""
    return {
        "format": FORMAT,
        "preprocessing": PREPROCESSING,
        "vae": hash_as_recorded(made.get("vae"), model, VAE),
        "resolution": framing.resolution,
        "center_crop": framing.center_crop,
        "random_flip": framing.random_flip,
        "dtype": name_of(dtype),
    }


def texts_key(model: ModelFolder, dtype: torch.dtype, made: CacheKey = NEW) -> CacheKey:
    """`dtype`: that of the text encoder, and so of its states."""
    return {
        "format": FORMAT,
        "preprocessing": ENCODING,
        "text_encoder": hash_as_recorded(made.get("text_encoder"), model, *model.text_components),
        "dtype": name_of(dtype),
    }


def differences(made: CacheKey, needed: CacheKey, free: tuple[str, ...] = ()) -> list[str]:
    """The entries that differ, as sentences."""
    names = [name for name in {**needed, **made} if name not in free and made.get(name) != needed.get(name)]
    return [f"{name} is {_short(made.get(name))}, not {_short(needed.get(name))}" for name in names]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(value: Any) -> str:
    """repr, with hashes abbreviated."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


@dataclass(frozen=True)
class CacheContents:
    pictures: list[str]
    """Paths under coco/images."""
    texts: list[str]


def cache_contents(root: DataRoot, texts: bool, random_flip: bool) -> CacheContents:
    """The images and texts of all sets of expressions and both parts of the hard negatives, as far as they exist."""
    pictures: set[str] = set()
    prompts: set[str] = set()
    for file in sorted((root.path / REC).glob("finetune_*.json")):
        for row in read_expressions(file):
            pictures.add(f"train2014/{row.file_name}")
            prompts.add(row.text)
    for part in ("train", "val"):
        if not (root.hard_negatives(part).is_dir() or root.hard_negatives_table(part).is_file()):
            continue
        negatives = open_hard_negatives(root, part)
        for id_ in tqdm(negatives.ids, desc=f"reading {part} captions", unit="caption", leave=False, disable=None):
            negative = negatives.row(id_)
            pictures.update(f"{part}2014/{name}" for name in (negative.file_name, *negative.images))
            prompts.update((negative.title, *negative.captions) if texts else ())
    if not pictures:
        raise DataError(f"{root.path} has neither expressions nor captions with hard negatives to cache images for")
    if not texts:
        return CacheContents(sorted(pictures), [])
    if random_flip:
        prompts.update([other for text in prompts if (other := mirrored_text(text)) is not None])
    return CacheContents(sorted(pictures), sorted(prompts))
