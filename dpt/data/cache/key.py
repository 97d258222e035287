"""What a cache depends on. Two runs with the same key would compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dpt.backbone.folder import TEXT_ENCODER, TOKENIZER, VAE, ModelFolder
from dpt.backbone.text import ENCODING
from dpt.data.framing import PREPROCESSING, Framing

FORMAT = 1
"""Of the files of a cache."""

Key = Mapping[str, Any]
"""As JSON would give it back."""

FREE = ("dtype", "random_flip")
"""What latents may have otherwise than a run asks for: any format is read, and mirrored ones may go unused."""


def latents_key(model: ModelFolder, framing: Framing, dtype: torch.dtype = torch.float32) -> Key:
    """Of the model only the VAE: another UNet or text encoder changes no latents."""
    return {
        "format": FORMAT,
        "preprocessing": PREPROCESSING,
        "vae": model.content_hash(VAE),
        "resolution": framing.resolution,
        "center_crop": framing.center_crop,
        "random_flip": framing.random_flip,
        "dtype": name_of(dtype),
    }


def texts_key(model: ModelFolder, dtype: torch.dtype) -> Key:
    """`dtype` is what the text encoder runs in, and so what its states are."""
    return {
        "format": FORMAT,
        "preprocessing": ENCODING,
        "text_encoder": model.content_hash(TOKENIZER, TEXT_ENCODER),
        "dtype": name_of(dtype),
    }


def differences(made: Key, wanted: Key, free: tuple[str, ...] = ()) -> list[str]:
    """Each ingredient that differs, in words."""
    names = [name for name in {**wanted, **made} if name not in free and made.get(name) != wanted.get(name)]
    return [f"{name} is {_short(made.get(name))}, not {_short(wanted.get(name))}" for name in names]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(value: Any) -> str:
    """Of a hash, enough to tell it from another."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
