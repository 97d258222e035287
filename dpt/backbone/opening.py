"""From a folder or hub id to a `Backbone`."""

from __future__ import annotations

from pathlib import Path

import torch

from dpt.backbone.base import Backbone
from dpt.backbone.config_limits import check_whole_numbers
from dpt.backbone.device import resolve_device, resolve_dtype
from dpt.backbone.folder import UNET, VAE, ModelFolder, class_in, read_model_index
from dpt.backbone.loading import locate_model
from dpt.backbone.mmdit import TransformerBackbone
from dpt.backbone.quantization import Quantization
from dpt.backbone.sdxl import TEXT_TIME, SDXLBackbone, SDXLRefiner, is_refiner
from dpt.backbone.transformer_families import FAMILIES, TransformerFamily
from dpt.backbone.unet import UNetBackbone
from dpt.errors import UserError
from dpt.untrusted import read_json_object

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", *(family.pipeline for family in FAMILIES.values()))
"""Of the folders that dpt opens."""


def open_backbone(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    prediction_type: str | None = None,
    vae: str | Path | None = None,
    quantize: Quantization | None = None,
) -> Backbone:
    """Open a diffusers folder (never touching the network) or a hub id.

    `prediction_type` overrides the config of a DDPM-like scheduler; `vae` is a folder or hub id of another VAE.
    `quantize` stores the linear layers of the network's blocks in 4 or 8 bits.
    """
    chosen = resolve_device(device)
    precision = resolve_dtype(chosen, dtype)
    path = locate_model(path_or_hub_id, revision)
    folder, family = model_folder(path), transformer_family(path)
    if vae is not None:
        folder = folder.with_vae(locate_model(vae, files=VAE_FILES))
    if family is None:
        return _unet_backbone(path).load(folder, chosen, precision, prediction_type, quantize)
    if prediction_type is not None:
        raise UserError(f"--prediction_type is for Stable Diffusion: a {family.pipeline} predicts the flow's velocity")
    return TransformerBackbone.load(family, folder, chosen, precision, quantize)


VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors", "vae/config.json", "vae/*.safetensors")
"""Fetched of a VAE on the hub."""


def open_refiner(path_or_hub_id: str | Path, base: Backbone, *, dtype: str | torch.dtype | None = None) -> SDXLRefiner:
    """Open the refiner of Stable Diffusion XL that finishes the latents of this base model, on its device."""
    path = locate_model(path_or_hub_id)
    if not is_refiner(read_model_index(path)):
        raise UserError(
            f"--refiner {path_or_hub_id} is no SDXL refiner: it has a first text encoder, as base models do"
        )
    folder = unet_folder(path, SDXLRefiner)
    refiner = SDXLRefiner.load(folder, base.device, base.dtype if dtype is None else resolve_dtype(base.device, dtype))
    if not base.takes_sizes or refiner.latent_channels != base.latent_channels:
        raise UserError(f"--refiner {path_or_hub_id} is for Stable Diffusion XL, and the model is {base.architecture}")
    return refiner


def model_folder(path: Path) -> ModelFolder:
    """The folder of any model that `open_backbone` opens, checked but not loaded."""
    family = transformer_family(path)
    if family is None:
        return unet_folder(path, _unet_backbone(path))
    folder = ModelFolder.check(path, family.components)
    for part in folder.components:
        if part is not VAE:
            check_whole_numbers(folder.config(part), part.required_keys, folder.component(part) / part.config_file)
    return folder


def unet_folder(path: Path, kind: type[UNetBackbone]) -> ModelFolder:
    """The folder of a model of this kind, or a UserError that names the pipeline it belongs to."""
    index = read_model_index(path)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES and not all(
        class_in(index, part) in (part.classes or (class_in(index, part),)) for part in kind.components
    ):
        raise UserError(f"{path} is a {pipeline}, which dpt cannot open; it opens folders of {', '.join(PIPELINES)}")
    return ModelFolder.check(path, kind.components)


def _unet_backbone(path: Path) -> type[UNetBackbone]:
    """The backbone for a folder with a UNet; a refiner of SDXL is refused."""
    file = path / UNET.name / UNET.config_file
    config = read_json_object(file) if file.is_file() else {}
    if config.get("addition_embed_type") != TEXT_TIME:
        return UNetBackbone
    if is_refiner(read_model_index(path)):
        raise UserError(
            f"{path} is an SDXL refiner, which only finishes the images of a base model: open the base model, and "
            "give this folder to txt2img.py as --refiner"
        )
    return SDXLBackbone


def transformer_family(path: Path) -> TransformerFamily | None:
    """The row of FAMILIES that opens a folder; None for a folder with a UNet."""
    if not (path / "model_index.json").is_file():
        return None
    index = read_model_index(path)
    entry = index.get("transformer")
    if index.get(UNET.name) or not isinstance(entry, list) or len(entry) != 2:
        return None
    if family := FAMILIES.get(str(entry[1])):
        return family
    raise UserError(
        f"{path} is a {index.get('_class_name')} with a {entry[1]}, which dpt cannot open; it opens folders of "
        f"{', '.join(PIPELINES)}"
    )
