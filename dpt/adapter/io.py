"""Adapters as files: a folder in this project's format, and the published `pytorch_model.bin`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import Tensor

from dpt.adapter.model import Adapter, PretrainedPhraseEncoder
from dpt.adapter.transformer import PUBLISHED_POSITION_ROWS, AdapterConfig
from dpt.errors import UserError
from dpt.files import atomic_folder, sha256
from dpt.records import read_record, to_plain
from dpt.weights import (
    build_strictly,
    check_numbers,
    is_plain,
    load_strictly,
    read_pickle,
    read_weights,
    shape,
    write_weights,
)

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
    content = read_pickle(file, "published checkpoint")
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} is not a flat list of named tensors")
    if odd := [key for key, value in content.items() if not (isinstance(key, str) and is_plain(value))]:
        raise UserError(f"{file} holds more than plain floating-point numbers: {odd[0]}")
    check_numbers(content, str(file))
    return split_published(content)


def split_published(tensors: Mapping[str, Tensor]) -> Published:
    lora = {key.removeprefix(LORA_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(LORA_PREFIX)}
    adapter = {key: tensor for key, tensor in tensors.items() if not key.startswith(LORA_PREFIX)}
    return Published(adapter, lora)


def load_published(file: Path, config: AdapterConfig | None = None) -> tuple[Adapter, dict[str, Tensor]]:
    """The adapter, and the LoRA tensors (none after stage 1).

    Without a config, what the file does not show is as published: see `config_of`.
    """
    published = read_published(file)
    if not published.adapter:
        raise UserError(f"{file} holds no adapter: it was saved while only the LoRA was trained")
    return adapter_of(published, file, config), published.lora


def adapter_of(published: Published, file: Path, config: AdapterConfig | None = None) -> Adapter:
    trained = [key for key in published.adapter if key.startswith("text_encoder.")]
    if trained:
        raise UserError(f"{file} was trained with its own text encoder ({trained[0]}), which is not supported")
    return build_adapter(config or config_of(published.adapter, str(file)), published.adapter, str(file))


def build_adapter(config: AdapterConfig, weights: Mapping[str, Tensor], where: str) -> Adapter:
    """The adapter with those weights. A config that does not fit them is refused before memory is taken for it."""
    layers = config.enc_layers + config.dec_layers + len(config.feature_channels)
    if layers > len(weights):
        raise UserError(f"the weights in {where} do not fit the adapter: its config has {layers} layers or maps")
    return build_strictly(lambda: Adapter(config), weights, where)


SHAPES = {
    "query_embed.weight": 2,
    "input_proj.weight": 4,
    "map_to_clip.2.weight": 2,
    "class_embed.weight": 2,
    "transformer.decoder.layers.0.linear1.weight": 2,
    "position_embedding.row_embed.weight": 2,
    "contrastive_align_projection_text.weight": 2,
}
"""Dimensions of the tensors that tell how large the adapter is; `fusion_proj.N.weight` has four."""


def config_of(
    tensors: Mapping[str, Tensor],
    where: str,
    unet_feature: str = AdapterConfig.unet_feature,
    num_queries_matching: int = AdapterConfig.num_queries_matching,
    nheads: int = AdapterConfig.nheads,
) -> AdapterConfig:
    """The config of a published adapter, read off its tensors' shapes; the arguments are what those do not show."""
    fusion = [f"fusion_proj.{i}.weight" for i in range(_count(tensors, "fusion_proj."))]
    for name, dimensions in {**SHAPES, **dict.fromkeys(fusion, 4)}.items():
        if name in tensors and (tensors[name].ndim != dimensions or 0 in tensors[name].shape):
            raise UserError(f"{where}: tensor {name} is {shape(tensors[name])}; it must have {dimensions} dimensions")
    try:
        sizes = {name: tensors[name].shape for name in (*SHAPES, *fusion) if name in tensors or name not in _OPTIONAL}
    except KeyError as error:
        raise UserError(f"{where} is not a published adapter: it has no tensor {error.args[0]}") from None
    projection, queries = sizes["input_proj.weight"], sizes["query_embed.weight"]
    learned, align = (sizes.get(name) for name in _OPTIONAL)
    if fusion and not unet_feature.startswith("all-"):
        raise UserError(f"{where} reads all maps, resized; say to which size, as all-{projection[1]}-SIDE")
    if queries[0] < num_queries_matching:
        raise UserError(
            f"{where}: tensor query_embed.weight is {queries[0]} x {queries[1]}; "
            f"its first dimension must be at least {num_queries_matching}, the number of matching queries"
        )
    if projection[0] != queries[1]:
        raise UserError(
            f"{where}: tensors input_proj.weight ({shape(tensors['input_proj.weight'])}) and query_embed.weight "
            f"({shape(tensors['query_embed.weight'])}) disagree on the width of the adapter"
        )
    try:
        return AdapterConfig(
            unet_feature,
            fused_channels=projection[1] if fusion else None,
            nheads=nheads,
            feature_channels=tuple(sizes[name][1] for name in fusion) or (projection[1],),
            text_width=sizes["map_to_clip.2.weight"][0],
            phrase_width=AdapterConfig.phrase_width if align is None else align[1],
            hidden_dim=projection[0],
            enc_layers=_count(tensors, "transformer.encoder.layers."),
            dec_layers=_count(tensors, "transformer.decoder.layers."),
            dim_feedforward=sizes["transformer.decoder.layers.0.linear1.weight"][0],
            pre_norm="transformer.encoder.norm.weight" in tensors,
            feature_norm="feature_norm.film.weight" in tensors,
            position_embedding="sine" if learned is None else "learned",
            position_rows=PUBLISHED_POSITION_ROWS if learned is None else learned[0],
            num_queries_matching=num_queries_matching,
            num_queries_rec=queries[0] - num_queries_matching,
            token_slots=sizes["class_embed.weight"][0] - 1,
            contrastive_align_loss=align is not None,
            contrastive_loss_hdim=AdapterConfig.contrastive_loss_hdim if align is None else align[0],
        )
    except UserError as error:
        raise UserError(f"{where} is not a published adapter: {error}") from None


_OPTIONAL = ("position_embedding.row_embed.weight", "contrastive_align_projection_text.weight")


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are listed under a prefix like `layers.`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


WEIGHTS, RECORD = "adapter.safetensors", "adapter.json"

TEXT_ENCODER, TEXT_WEIGHTS = "text_encoder", "model.safetensors"


@dataclass(frozen=True)
class AdapterRecord:
    """Config and origin of a stored adapter."""

    config: AdapterConfig
    base: str = ""
    """Name of the model whose features it was trained on."""
    base_hash: str = ""
    """That model's content hash."""
    prediction_type: str = ""
    weights_sha256: str = ""
    """Empty in the oldest records."""
    text_encoder_sha256: str = ""
    """Of the text encoder that was trained with the adapter, if one was."""
    format: int = 1


def save_adapter(
    adapter: Adapter, folder: Path, *, base: str = "", base_hash: str = "", prediction_type: str = ""
) -> None:
    """Write the folder, completely or not at all; it must be empty or missing."""
    tensors = {key: tensor for key, tensor in adapter.state_dict().items() if not is_text_encoder_key(key)}
    with atomic_folder(folder) as work:
        record = AdapterRecord(adapter.config, base, base_hash, prediction_type, write_weights(tensors, work / WEIGHTS))
        if adapter.text_encoder is not None:
            adapter.text_encoder.save(work / TEXT_ENCODER)
            record = replace(record, text_encoder_sha256=sha256(work / TEXT_ENCODER / TEXT_WEIGHTS))
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def load_adapter(folder: Path) -> tuple[Adapter, AdapterRecord]:
    """The adapter in evaluation mode, with its own text encoder if one was trained with it; and its record."""
    record = read_record(AdapterRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    weights = read_weights(folder / WEIGHTS, record.weights_sha256)
    adapter = build_adapter(record.config, weights, str(folder / WEIGHTS))
    if record.text_encoder_sha256:
        adapter.text_encoder = _open_text_encoder(folder / TEXT_ENCODER, record.text_encoder_sha256)
    return adapter.eval(), record


def is_text_encoder_key(key: str) -> bool:
    return key.startswith(f"{TEXT_ENCODER}.")


def _open_text_encoder(folder: Path, expected_sha256: str) -> PretrainedPhraseEncoder:
    file = folder / TEXT_WEIGHTS
    if not file.is_file():
        raise UserError(f"the text encoder that was trained with the adapter is missing: {file}")
    if sha256(file) != expected_sha256:
        raise UserError(f"{file} is not the text encoder that was trained with the adapter (its SHA-256 differs)")
    return PretrainedPhraseEncoder.open(folder)


MAY_DIFFER = ("dropout",)
"""Config fields that do not change what the weights mean."""


def init_from(adapter: Adapter, path: Path) -> AdapterRecord:
    """Copy the weights stored at `path` into the adapter, logit_scale included, and return their record.

    A text encoder that was trained with the stored adapter is copied too; else the adapter keeps its own.
    """
    stored, record = _open(path, adapter.config)
    expected, actual = vars(adapter.config), vars(stored.config)
    names = [field.name for field in fields(AdapterConfig) if field.name not in MAY_DIFFER]
    if differing := [f"{name} is {actual[name]!r} there and {expected[name]!r} here" for name in names
                     if expected[name] != actual[name]]:  # fmt: skip
        raise UserError(f"training cannot start from the adapter of {path}: {'; '.join(differing[:3])}")
    if stored.text_encoder is not None and adapter.text_encoder is None:
        raise UserError(f"the adapter of {path} was trained with its text encoder: add --no_freeze_text_encoder")
    kept = {} if stored.text_encoder else {k: v for k, v in adapter.state_dict().items() if is_text_encoder_key(k)}
    load_strictly(adapter, {**stored.state_dict(), **kept}, str(path))
    return record


def config_at(path: Path) -> AdapterConfig | None:
    """The config of the adapter at `path`; None if it is not recorded, as in the published file."""
    folder = _folder(path)
    return None if folder is None else read_record(AdapterRecord, folder / RECORD).config


def weights_at(path: Path) -> Path:
    """The file that `init_from` reads the weights from."""
    folder = _folder(path)
    if folder is not None:
        return folder / WEIGHTS
    return path / FILE_NAME if path.is_dir() else path


def _folder(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "adapter") if (folder / RECORD).is_file()), None)


def _open(path: Path, config: AdapterConfig) -> tuple[Adapter, AdapterRecord]:
    if (folder := _folder(path)) is not None:
        return load_adapter(folder)
    if not path.exists():
        raise UserError(f"there is no adapter {path}: give the folder of a finished run of stage 1 or stage 2")
    if path.is_dir() and not (path / FILE_NAME).is_file():
        has_lora = (path / "lora").is_dir() or (path / "lora.json").is_file()
        instead = "; it holds a LoRA alone, which stage 1 has to be trained beside" if has_lora else ""
        raise UserError(f"{path} holds no adapter: neither {RECORD} nor {FILE_NAME}{instead}")
    return load_published(path, config)[0], AdapterRecord(config)
