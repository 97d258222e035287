"""From a folder or hub id to a `Backbone`, and the one opener of other transformers models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpt.backbone.base import Backbone
from dpt.backbone.device import resolve_device, resolve_dtype
from dpt.backbone.folder import UNET, VAE, ModelFolder, check_sizes, check_whole_numbers, class_in, read_model_index
from dpt.backbone.identity import remembered_hash
from dpt.backbone.loading import first_line, locate_model, quiet_libraries
from dpt.backbone.mmdit import TransformerBackbone
from dpt.backbone.quantization import Quantization
from dpt.backbone.sdxl import TEXT_TIME, SDXLBackbone, SDXLRefiner, is_refiner
from dpt.backbone.transformer_families import FAMILIES, TransformerFamily
from dpt.backbone.unet import UNetBackbone
from dpt.errors import UserError
from dpt.files import sha256
from dpt.untrusted import read_json_object

FILES = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class HFModelFolder:
    path: Path
    name: str
    """How results name it: the hub id, or the folder's last name."""
    model_type: str
    config: dict[str, Any]

    @property
    def identity(self) -> str:
        """The name and a hash of the weights."""
        weights = sorted(self.path.glob("*.safetensors"))

        def digest() -> str:
            return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()

        return f"{self.name} {remembered_hash(self.path, 'weights', weights, digest)[:12]}"

    def load(self, kind: Any) -> Any:
        """A tokenizer, an image processor, or a model with all its weights, of this transformers class."""
        return self.load_model(kind) if hasattr(kind, "config_class") else self._load(kind)

    def load_model(self, kind: Any, unused: tuple[str, ...] = ()) -> Any:
        """A model in float32. Weights may lack only modules that are never called, named by prefix in `unused`."""
        model, report = self._load(kind, use_safetensors=True, dtype="float32", output_loading_info=True)
        # transformers would fill what is missing with random numbers and go on.
        faults = [*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]
        if missing := sorted(key for key in faults if not key.startswith(unused)):
            raise UserError(
                f"the weights in {self.name} do not fit {kind.__name__}: {len(missing)} tensors are missing or of "
                f"another shape, first {missing[0]}"
            )
        return model

    def _load(self, kind: Any, **options: Any) -> Any:
        with quiet_libraries():
            try:
                return kind.from_pretrained(self.path, local_files_only=True, **options)
            # What a damaged folder raises depends on the file and on the library's version.
            except Exception as error:
                raise UserError(f"{self.name} cannot be opened as {kind.__name__}: {first_line(error)}") from None


def open_hf_model(name: str, kinds: Sequence[str] | None, what: str, without_owner: bool = False) -> HFModelFolder:
    """A folder or hub id whose config names one of these model types; None accepts all. `what` is for messages."""
    path = locate_model(name, files=FILES, without_owner=without_owner)
    shown = path.resolve().name if Path(name).expanduser().is_dir() else name
    try:
        config = read_json_object(path / "config.json")
    except (OSError, UserError):
        config = {}
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{shown} is no {what}: it has no config.json that names its model_type")
    if kinds is not None and model_type not in kinds:
        raise UserError(f"{shown} is a {model_type} model, and a {what} is one of {', '.join(kinds)}")
    check_sizes(config, path / "config.json")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{shown} has no weights in the safetensors format, and no other is read")
    return HFModelFolder(path, shown, model_type, config)


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
