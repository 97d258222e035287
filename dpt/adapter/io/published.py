"""The published checkpoint: one `pytorch_model.bin` holding the adapter and, after stage 2, the UNet's LoRA."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpt.adapter.config import PUBLISHED_POSITION_ROWS, AdapterConfig
from dpt.adapter.model import Adapter
from dpt.errors import UserError
from dpt.untrusted import is_safe_pickle
from dpt.weights import load_strictly

LORA_PREFIX = "unet."

FILE_NAME = "pytorch_model.bin"


@dataclass(frozen=True)
class Published:
    """The file's two parts. The LoRA keys have lost their `unet.` prefix and are otherwise as published."""

    adapter: dict[str, Tensor]
    lora: dict[str, Tensor]


def read_published(file: Path) -> Published:
    """Read the file, or the checkpoint folder that holds it, without running anything that is in it."""
    file = file / FILE_NAME if file.is_dir() else file
    _refuse_compressed(file)
    if not is_safe_pickle(file):
        raise UserError(f"{file} was not read: it is truncated, no checkpoint, or holds more than tensors")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no published checkpoint {file}") from None
    except Exception:  # whatever torch raises, it is the file that is at fault
        raise UserError(f"{file} was not read: it is truncated, no checkpoint, or holds more than tensors") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} is not a flat list of named tensors")
    if odd := [key for key, value in content.items() if not (isinstance(key, str) and _is_plain(value))]:
        raise UserError(f"{file} holds more than plain floating-point numbers: {odd[0]}")
    _check_sums(file)
    return split_published(content)


def _is_plain(tensor: Tensor) -> bool:
    """Every number of it is in the file: a stride of 0 would make terabytes of four bytes."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.is_floating_point() and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _refuse_compressed(file: Path) -> None:
    """torch never compresses: what is small on the disk and large in memory was made to do harm."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # of an older format, or damaged, which is found out by reading it
    if any(one.compress_type != zipfile.ZIP_STORED for one in members):
        raise UserError(f"{file} is compressed, as no checkpoint is")
    if sum(one.file_size for one in members) > file.stat().st_size:
        raise UserError(f"{file} says that it holds more than it does")


def has_checksums(file: Path) -> bool:
    """Files of torch before 1.6 have none."""
    return zipfile.is_zipfile(file)


def _check_sums(file: Path) -> None:
    """torch itself does not look at the checksums that it writes."""
    if not has_checksums(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception:  # of encryption, of other versions, of names: whatever it is, torch wrote none of it
        damaged = "its list of contents"
    if damaged:
        raise UserError(f"{file} is damaged: {damaged} in it is not what was saved (its CRC-32 differs)")


def split_published(tensors: Mapping[str, Tensor]) -> Published:
    lora = {key.removeprefix(LORA_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(LORA_PREFIX)}
    adapter = {key: tensor for key, tensor in tensors.items() if not key.startswith(LORA_PREFIX)}
    return Published(adapter, lora)


def load_published(file: Path, config: AdapterConfig | None = None) -> tuple[Adapter, dict[str, Tensor]]:
    """The adapter, every tensor of it filled and none left over, and the LoRA tensors (none after stage 1).

    Without a config, what the file does not show is as published: see `config_of`.
    """
    published = read_published(file)
    if not published.adapter:
        raise UserError(f"{file} holds no adapter: it was saved while only the LoRA was trained")
    return adapter_of(published, file, config), published.lora


def adapter_of(published: Published, file: Path, config: AdapterConfig | None = None) -> Adapter:
    trained = [key for key in published.adapter if key.startswith("text_encoder.")]
    if trained:
        raise UserError(f"{file} was trained with its own text encoder ({trained[0]}), which is not read here")
    adapter = Adapter(config or config_of(published.adapter, str(file)))
    load_strictly(adapter, published.adapter, str(file))
    return adapter


def config_of(
    tensors: Mapping[str, Tensor],
    where: str,
    unet_feature: str = AdapterConfig.unet_feature,
    num_queries_matching: int = AdapterConfig.num_queries_matching,
    nheads: int = AdapterConfig.nheads,
) -> AdapterConfig:
    """The shape of a published adapter, as far as its tensors show it; what they do not show are arguments."""
    try:
        fusion = [tensors[f"fusion_proj.{i}.weight"] for i in range(_count(tensors, "fusion_proj."))]
        projection, queries = tensors["input_proj.weight"], tensors["query_embed.weight"]
        learned = tensors.get("position_embedding.row_embed.weight")
        align = tensors.get("contrastive_align_projection_text.weight")
        if fusion and not unet_feature.startswith("all-"):
            raise UserError(f"{where} reads all maps, resized; say to which size, as all-{projection.shape[1]}-SIDE")
        return AdapterConfig(
            unet_feature,
            fused_channels=projection.shape[1] if fusion else None,
            nheads=nheads,
            feature_channels=tuple(one.shape[1] for one in fusion) or (projection.shape[1],),
            text_width=len(tensors["map_to_clip.2.weight"]),
            phrase_width=AdapterConfig.phrase_width if align is None else align.shape[1],
            hidden_dim=len(projection),
            enc_layers=_count(tensors, "transformer.encoder.layers."),
            dec_layers=_count(tensors, "transformer.decoder.layers."),
            dim_feedforward=len(tensors["transformer.decoder.layers.0.linear1.weight"]),
            pre_norm="transformer.encoder.norm.weight" in tensors,
            position_embedding="sine" if learned is None else "learned",
            position_rows=PUBLISHED_POSITION_ROWS if learned is None else len(learned),
            num_queries_matching=num_queries_matching,
            num_queries_rec=len(queries) - num_queries_matching,
            token_slots=len(tensors["class_embed.weight"]) - 1,
            contrastive_align_loss=align is not None,
            contrastive_loss_hdim=AdapterConfig.contrastive_loss_hdim if align is None else len(align),
        )
    except KeyError as error:
        raise UserError(f"{where} is not a published adapter: it has no tensor {error.args[0]}") from None


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are listed under a prefix like `layers.`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})
