"""The model, CLIP and checkpoints that are part of this checkout."""

from __future__ import annotations

from pathlib import Path

from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults, generation_defaults

EMBEDDED = "ckpt/pocket"

EMBEDDED_CLIP = "ckpt/pocket/clip"

EMBEDDED_CKPT = "ckpt/pocket-dpt"

EMBEDDED_CONTROL = "ckpt/pocket-plain"

CHECKOUT = Path(__file__).resolve().parents[1]


def model_location(name: str) -> str:
    """The path of a model; the embedded one is found from any working directory."""
    if name != EMBEDDED:
        return name
    embedded = CHECKOUT / EMBEDDED
    if not embedded.is_dir():
        raise UserError(f"the embedded model is missing: there is no folder {EMBEDDED} in {CHECKOUT}")
    return str(embedded)


def clip_location(name: str) -> str:
    return str(CHECKOUT / EMBEDDED_CLIP) if name == EMBEDDED_CLIP else name


def embedded_defaults() -> GenerationDefaults:
    """The generation defaults of the embedded model and the checkpoint trained on it."""
    return generation_defaults(CHECKOUT / EMBEDDED, CHECKOUT / EMBEDDED_CKPT)


def checkpoint_for(model: str) -> Path | None:
    """The default checkpoint of a model: the embedded model has one."""
    trained = CHECKOUT / EMBEDDED_CKPT
    return trained if model == EMBEDDED and trained.is_dir() else None
