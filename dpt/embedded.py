"""What is part of this checkout: the embedded model, its CLIP, and what was trained on it."""

from __future__ import annotations

from pathlib import Path

from dpt.errors import UserError

EMBEDDED = "ckpt/pocket"

EMBEDDED_CLIP = "ckpt/pocket/clip"

EMBEDDED_CKPT = "ckpt/pocket-dpt"

EMBEDDED_CONTROL = "ckpt/pocket-plain"

CHECKOUT = Path(__file__).resolve().parents[1]


def model_location(name: str) -> str:
    """Where the model is: the embedded one is found wherever the command was started."""
    if name != EMBEDDED:
        return name
    embedded = CHECKOUT / EMBEDDED
    if not embedded.is_dir():
        raise UserError(f"the embedded model is missing: there is no folder {EMBEDDED} in {CHECKOUT}")
    return str(embedded)


def clip_location(name: str) -> str:
    return str(CHECKOUT / EMBEDDED_CLIP) if name == EMBEDDED_CLIP else name


def checkpoint_for(model: str) -> Path | None:
    """What was trained on the embedded model, for the embedded model."""
    trained = CHECKOUT / EMBEDDED_CKPT
    return trained if model == EMBEDDED and trained.is_dir() else None
