"""The models, CLIP and checkpoints that are part of this checkout, or of the installed package."""

from __future__ import annotations

from pathlib import Path

from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults, generation_defaults

EMBEDDED = "ckpt/pocket"

EMBEDDED_CLIP = "ckpt/pocket/clip"

EMBEDDED_READER = "ckpt/reader"

FOLDER = "ckpt"

_PLACES = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent

CHECKOUT = next((place for place in _PLACES if (place / EMBEDDED).is_dir()), _PLACES[0])
"""What holds them: the root of the checkout, or the package itself where it was installed from a wheel."""


CHECKPOINTS = {
    "control": "-plain",
    "dpt": "-dpt",
    "ipr1": "-ipr/round-1",
    "ipr": "-ipr",
    "hps": "-hps",
    "distilled": "-dpt/distilled",
    "control-long": "-plain/long",
}
"""Methods of `dpt bench run` whose weights are in the checkout: what follows the name of the model."""


EMBEDDED_MODELS = (EMBEDDED, "ckpt/pocket-mmdit")


def checkpoints_of(model: str) -> dict[str, Path]:
    """Those of an embedded model, by the name of their method."""
    if model not in EMBEDDED_MODELS:
        return {}
    folders = {name: CHECKOUT / f"{model}{ending}" for name, ending in CHECKPOINTS.items()}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def model_location(name: str) -> str:
    """The path of a model; embedded ones are found from any working directory."""
    if name not in EMBEDDED_MODELS:
        return name
    embedded = CHECKOUT / name
    if not embedded.is_dir():
        raise UserError(f"the embedded model is missing: there is no folder {name} in {CHECKOUT}")
    return str(embedded)


def _exists(path: Path) -> bool:
    """Unlike Path.exists, False for a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def embedded_path(path: str | Path) -> Path:
    """The path, or the embedded checkpoint of that name if there is nothing at the path."""
    path = Path(path)
    embedded = CHECKOUT / path
    return embedded if path.parts[:1] == (FOLDER,) and not _exists(path) and _exists(embedded) else path


def checkpoint_path(path: str | Path) -> Path:
    """The path of a checkpoint, or of an embedded one. Raises if there is nothing."""
    path = embedded_path(path)
    if not _exists(path):
        raise UserError(f"there is no checkpoint {path}: give the folder of a finished training run, or a LoRA file")
    return path


def clip_location(name: str) -> str:
    if name == EMBEDDED_CLIP:
        return str(CHECKOUT / EMBEDDED_CLIP)
    return str(embedded_path(name)) if name.startswith(f"{FOLDER}/") else name


def embedded_defaults(model: str = EMBEDDED) -> GenerationDefaults:
    """The generation defaults of an embedded model and the checkpoint trained on it."""
    return generation_defaults(CHECKOUT / model, checkpoint_for(model))


def checkpoint_for(model: str) -> Path | None:
    """The default checkpoint of a model: embedded ones have one."""
    return checkpoints_of(model).get("dpt")
