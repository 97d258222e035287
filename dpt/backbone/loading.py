"""From a folder or hub id to the parts of a model. Safetensors only; every fault is one sentence."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dpt.backbone.folder import (
    COMPONENTS,
    SCHEDULER,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
    VAE,
    Component,
    ModelFolder,
)
from dpt.backbone.quantization import Quantization, quantize_blocks
from dpt.errors import UserError
from dpt.generation_defaults import FILE_NAME as GENERATION_DEFAULTS_FILE
from dpt.hub import HubSource, fetch_from_hub

_HUB_ID = re.compile(r"((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@([\w.-]+))?", re.ASCII)

_UNUSED_WEIGHTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*non_ema*"]


def locate_model(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    files: Sequence[str] | None = None,
    without_owner: bool = False,
) -> Path:
    """The folder that holds the model: a folder as it is, or the snapshot of OWNER/NAME or OWNER/NAME@REVISION.

    A folder never touches the network. `files` are the patterns to fetch of a model that is not in the diffusers
    layout; `without_owner` also accepts the hub's old ids, like `roberta-base`.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            warnings.warn(f"revision {revision!r} is ignored: {path} is a folder", stacklevel=2)
        return path
    if path.exists():
        raise UserError(f"{path} is a file, not a model folder")
    named = None if isinstance(path_or_hub_id, Path) else _HUB_ID.fullmatch(path_or_hub_id)
    if named is None or not (without_owner or "/" in named[1]):
        raise UserError(
            f"there is no model folder {str(path_or_hub_id)!r}: give a folder in the diffusers layout, or a hub id as "
            "OWNER/NAME"
        )
    hub_id, pinned = named.groups()
    if pinned and revision not in (None, pinned):
        raise UserError(f"{path_or_hub_id} names one revision, and --revision {revision} another")
    return _fetch(hub_id, pinned or revision, _diffusers_files() if files is None else list(files))


def _diffusers_files() -> list[str]:
    endings = ("json", "txt", "safetensors")
    numbered = [f"{part.name}_{number}" for number in (2, 3) for part in (TOKENIZER, TEXT_ENCODER)]
    folders = [*(part.name for part in COMPONENTS), *numbered, "transformer"]
    return [
        "model_index.json",
        GENERATION_DEFAULTS_FILE,
        *(f"{folder}/*.{ending}" for folder in folders for ending in endings),
    ]


def _fetch(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download

    def download() -> str:
        return snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=_UNUSED_WEIGHTS)

    cached = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    return fetch_from_hub(download, HubSource(hub_id, revision), cached)


# Buffers that older versions of transformers wrote to the file and newer ones compute.
COMPUTED = ("position_ids",)


def load_tokenizer(folder: ModelFolder, component: Component = TOKENIZER) -> Any:
    path = folder.component(component)
    kind = library_class("transformers", component.classes[0])
    with quiet_libraries():
        try:
            return kind.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise UserError(f"the {component.name} in {path} cannot be read: {first_line(error)}") from None


def load_text_encoder(folder: ModelFolder, dtype: torch.dtype, component: Component = TEXT_ENCODER) -> Any:
    return _load(library_class("transformers", component.classes[0]), folder, component, dtype)


def load_network(
    folder: ModelFolder, dtype: torch.dtype, component: Component, quantize: Quantization | None = None
) -> Any:
    network = _load(library_class("diffusers", component.classes[0]), folder, component, dtype)
    return network if quantize is None else quantize_blocks(network, quantize)


def library_class(library: Literal["diffusers", "transformers"], name: str) -> Any:
    """A class of diffusers or transformers, which are imported piece by piece, without their remarks on what is not
    installed."""
    with quiet_libraries():
        if library == "diffusers":
            return getattr(importlib.import_module("diffusers"), name)
        return getattr(importlib.import_module("transformers"), name)


def load_vae(folder: ModelFolder, dtype: torch.dtype) -> Any:
    return _load(library_class("diffusers", "AutoencoderKL"), folder, VAE, dtype)


def vae_dtype(folder: ModelFolder, dtype: torch.dtype) -> torch.dtype:
    """float32, unless the VAE's config says that it can be used in the model's format, as that of fp16-fix does."""
    return dtype if folder.config(VAE).get("force_upcast") is False else torch.float32


def check_channels_fit(folder: ModelFolder, network: Component) -> None:
    """Refuse a UNet that does not read what the VAE writes."""
    reads, writes = folder.config(network)["in_channels"], folder.config(VAE)["latent_channels"]
    if reads != writes:
        raise UserError(
            f"the parts of {folder.path} do not fit: the UNet reads {reads} channels, "
            f"the VAE writes {writes} (inpainting and upscaling models are not supported)"
        )


def check_parts_fit(folder: ModelFolder, tokenizer: Any) -> None:
    """Refuse parts that are sound but do not belong together."""
    text, unet = folder.config(TEXT_ENCODER), folder.config(UNET)
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise UserError(
            f"the parts of {folder.path} do not fit: the UNet reads text {unet['cross_attention_dim']} wide, "
            f"the text encoder writes {text['hidden_size']}"
        )
    check_channels_fit(folder, UNET)
    if len(tokenizer) > text["vocab_size"]:
        raise UserError(
            f"the parts of {folder.path} do not fit: the tokenizer has {len(tokenizer)} entries, "
            f"the text encoder {text['vocab_size']}"
        )


def scheduler_config(folder: ModelFolder, component: Component = SCHEDULER) -> dict[str, Any]:
    return folder.config(component)


def _load(kind: type[Any], folder: ModelFolder, component: Component, dtype: torch.dtype) -> nn.Module:
    path = folder.component(component)
    with quiet_libraries():
        try:
            model, report = kind.from_pretrained(
                str(path), dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # whatever the libraries raise, it is the file that is at fault
            raise UserError(f"the model in {path} cannot be loaded: {first_line(error)}") from None
    for fault in ("missing", "mismatched", "unexpected"):
        names = sorted(_tensor_name(key) for key in report.get(f"{fault}_keys", ()))
        names = [name for name in names if not name.endswith(COMPUTED)]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"the weights in {path} do not fit its config: {fault} tensor {names[0]}{more}")
    return model.eval().requires_grad_(False)


def _tensor_name(key: str | tuple[Any, ...]) -> str:
    return key if isinstance(key, str) else str(key[0])


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings, which are errors here, and no progress bars of the libraries."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    levels = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    bars = [library for library, _ in levels if library.is_progress_bar_enabled()]
    for library, _ in levels:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
