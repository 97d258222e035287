"""A model folder in the diffusers layout: its components, limits of config values, one sentence for each error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from dpt.errors import UserError
from dpt.untrusted import read_json_object

# Several times what any published image or text model has.
LIMITS = {
    "attention_head_dim": 1 << 14,
    "block_out_channels": 1 << 15,
    "caption_projection_dim": 1 << 16,
    "context_in_dim": 1 << 16,
    "cross_attention_dim": 1 << 16,
    "d_ff": 1 << 18,
    "d_kv": 1 << 14,
    "d_model": 1 << 16,
    "decoder_layers": 512,
    "depth": 512,
    "encoder_layers": 512,
    "hidden_size": 1 << 16,
    "image_size": 1 << 14,
    "in_channels": 1 << 12,
    "intermediate_size": 1 << 18,
    "joint_attention_dim": 1 << 16,
    "latent_channels": 1 << 12,
    "layers_per_block": 64,
    "max_position_embeddings": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_heads": 1 << 12,
    "num_hidden_layers": 512,
    "num_layers": 512,
    "num_single_layers": 512,
    "num_queries": 1 << 16,
    "num_train_timesteps": 1 << 20,
    "out_channels": 1 << 12,
    "patch_size": 1 << 8,
    "pooled_projection_dim": 1 << 16,
    "pos_embed_max_size": 1 << 12,
    "projection_dim": 1 << 16,
    "sample_size": 1 << 12,
    "transformer_layers_per_block": 64,
    "vocab_size": 1 << 22,
}

LONGEST_LIST = 64


def check_sizes(config: Mapping[str, Any], file: Path, depth: int = 0) -> None:
    """Refuse a config, or a config nested in it, whose sizes no model has."""
    for key, value in config.items():
        if isinstance(value, Mapping) and depth < 4:
            check_sizes(value, file, depth + 1)
        if (limit := LIMITS.get(key)) is None:
            continue
        if isinstance(value, list) and len(value) > LONGEST_LIST:
            raise UserError(f"{file}: {key} has {len(value)} entries, and no model more than {LONGEST_LIST}")
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int | float) and not 0 <= size <= limit:
                raise UserError(f"{file}: {key} is {size}, which no model has (0 to {limit}): the config is damaged")


MAY_BE_ZERO = ("num_single_layers", "num_single_dit_layers", "guidance_embeds")


def check_whole_numbers(config: Mapping[str, Any], keys: Iterable[str], file: Path) -> None:
    """Refuse a config in which one of these keys is not a whole number, or is 0 where a model has at least 1."""
    for key in keys:
        value, least = config[key], 0 if key in MAY_BE_ZERO else 1
        if not isinstance(value, int) or value < least:
            raise UserError(f"{file}: {key} should be a whole number from {least} up, not {value!r}")


def check_vae_scaling(config: Mapping[str, Any], file: Path) -> None:
    """Latents are multiplied by one number and shifted by another: both finite, and the first not 0."""
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")
    if not _is_finite(scale) or scale == 0:
        raise UserError(f"{file}: scaling_factor should be a finite number other than 0, not {scale!r}")
    if shift is not None and not _is_finite(shift):
        raise UserError(f"{file}: shift_factor should be a finite number, not {shift!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Component:
    """A sub-folder of a model: the classes it may hold, its files, and the config keys without a safe default."""

    name: str
    classes: tuple[str, ...]
    config_file: str = "config.json"
    weights_stem: str | None = None
    required_keys: tuple[str, ...] = ()
    optional: bool = False
    """Whether a model can do without it."""

    @property
    def is_tokenizer(self) -> bool:
        return self.config_file == TOKENIZER_CONFIG

    @property
    def is_text_encoder(self) -> bool:
        return self.name.startswith("text_encoder")


TOKENIZER_CONFIG = "tokenizer_config.json"

TOKENIZER = Component("tokenizer", ("CLIPTokenizer", "CLIPTokenizerFast"), config_file=TOKENIZER_CONFIG)

TEXT_ENCODER = Component(
    "text_encoder",
    ("CLIPTextModel",),
    weights_stem="model",
    required_keys=("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
)

_CLIP_KEYS = (*TEXT_ENCODER.required_keys, "projection_dim")


def clip_tokenizer(name: str) -> Component:
    return replace(TOKENIZER, name=name)


def clip_with_projection(name: str) -> Component:
    """A CLIP text encoder that also projects its end token."""
    return Component(name, ("CLIPTextModelWithProjection",), weights_stem="model", required_keys=_CLIP_KEYS)


VAE = Component(
    "vae",
    ("AutoencoderKL",),
    weights_stem="diffusion_pytorch_model",
    required_keys=("block_out_channels", "down_block_types", "up_block_types", "latent_channels"),
)

UNET = Component(
    "unet",
    ("UNet2DConditionModel",),
    weights_stem="diffusion_pytorch_model",
    required_keys=(
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "cross_attention_dim",
        "in_channels",
        "sample_size",
    ),
)

SDXL_UNET = replace(
    UNET, required_keys=(*UNET.required_keys, "addition_time_embed_dim", "projection_class_embeddings_input_dim")
)

# Any scheduler of diffusers will do, so no class is named.
SCHEDULER = Component(
    "scheduler",
    (),
    config_file="scheduler_config.json",
    required_keys=("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
)

FLOW_SCHEDULER = Component("scheduler", (), config_file="scheduler_config.json", required_keys=("num_train_timesteps",))

LISTS = ("block_out_channels", "down_block_types", "up_block_types")

COMPONENTS = (TOKENIZER, TEXT_ENCODER, VAE, UNET, SCHEDULER)

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose components are present and readable."""

    path: Path
    components: tuple[Component, ...] = COMPONENTS
    other_vae: Path | None = None
    """The folder of a VAE that is used instead of the model's own."""

    @classmethod
    def check(cls, path: Path, components: tuple[Component, ...] = COMPONENTS) -> ModelFolder:
        """Look at every file that will be needed, before anything slow is done with one.

        The result has the optional components only if the model has them.
        """
        index = read_model_index(path)
        present = tuple(part for part in components if not (part.optional and class_in(index, part) is None))
        folder = cls(path, present)
        for component in present:
            folder._check_class(component, index)
            folder._check_config(component)
            for weights in folder.weights(component):
                _check_weights(weights)
            if component.is_tokenizer:
                folder._check_tokenizer(component)
        return folder

    @property
    def text_components(self) -> tuple[Component, ...]:
        """Tokenizers and text encoders."""
        return tuple(part for part in self.components if part.is_tokenizer or part.is_text_encoder)

    def option(self, name: str, default: bool) -> bool:
        """A switch of the pipeline in model_index.json."""
        value = read_model_index(self.path).get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path / 'model_index.json'}: {name} should be true or false, not {value!r}")
        return value

    @property
    def original(self) -> ModelFolder:
        """The same with its own VAE: what results of training belong to."""
        return replace(self, other_vae=None)

    def with_vae(self, folder: Path) -> ModelFolder:
        """The same with the VAE in another folder, or in the `vae` sub-folder of another model."""
        inside = folder / VAE.name
        changed = replace(self, other_vae=inside if inside.is_dir() else folder)
        changed._check_config(VAE)
        for weights in changed.weights(VAE):
            _check_weights(weights)
        own, other = (part.config(VAE)["latent_channels"] for part in (self, changed))
        if own != other:
            raise UserError(f"the VAE in {folder} has {other} latent channels, and that of {self.path} has {own}")
        return changed

    def component(self, component: Component) -> Path:
        return self.other_vae if component is VAE and self.other_vae is not None else self.path / component.name

    def config(self, component: Component) -> dict[str, Any]:
        file = self.component(component) / component.config_file
        missing = f"{self.path} has no {component.name}/{component.config_file}"
        if component is VAE and self.other_vae is not None:
            missing = f"{self.other_vae} is not the folder of a VAE: it has no {component.config_file}"
        return _read_json_object(file, missing)

    def weights(self, component: Component) -> list[Path]:
        """The safetensors files of a component: one, or the shards that its index names."""
        if component.weights_stem is None:
            return []
        single = self.component(component) / f"{component.weights_stem}.safetensors"
        index_file = single.with_name(f"{single.name}.index.json")
        if single.is_file() or not index_file.is_file():
            return [single]
        index = _read_json_object(index_file, f"{index_file} is missing")
        return [single.with_name(shard) for shard in _shards(index, index_file)]

    def loaded_files(self, component: Component) -> list[Path]:
        """Every file that is read for a component."""
        files = [self.component(component) / component.config_file, *self.weights(component)]
        if component.is_tokenizer:
            files += [file for name in TOKENIZER_FILES if (file := self.component(component) / name).is_file()]
        return files

    def _check_class(self, component: Component, index: dict[str, Any]) -> None:
        class_name = class_in(index, component)
        if class_name is None:
            raise UserError(f"{self.path} has no {component.name}: model_index.json does not name one")
        if component.classes and class_name not in component.classes:
            raise UserError(f"the {component.name} of {self.path} is a {class_name}, not a {component.classes[0]}")
        if not self.component(component).is_dir():
            raise UserError(f"{self.path} has no {component.name}: the sub-folder is missing")

    def _check_config(self, component: Component) -> None:
        config = self.config(component)
        file = self.component(component) / component.config_file
        missing = [key for key in component.required_keys if key not in config]
        if missing:
            raise UserError(f"{file} does not say {', '.join(missing)}")
        for key in LISTS:
            if key in component.required_keys and not isinstance(config[key], list):
                raise UserError(f"{file}: {key} should be a list, not {config[key]!r}")
        check_sizes(config, file)
        if component is VAE:
            check_vae_scaling(config, file)

    def _check_tokenizer(self, component: Component) -> None:
        folder = self.component(component)
        if (folder / "tokenizer.json").is_file():
            return
        clip = set(component.classes) == set(TOKENIZER.classes)
        for name in ("vocab.json", "merges.txt") if clip else ("tokenizer.json",):
            if not (folder / name).is_file():
                raise UserError(f"the {component.name} of {self.path} is incomplete: {name} is missing")


def read_model_index(path: Path) -> dict[str, Any]:
    missing = f"{path} is not a diffusers model: it has no model_index.json"
    if any((path / part).is_dir() for part in ("adapter", "lora")):
        missing += "; it is the result of a training, which --ckpt takes in sampling and --qformer_ckpt in training"
    return _read_json_object(path / "model_index.json", missing)


def class_in(index: dict[str, Any], component: Component) -> Any:
    """The class that model_index.json names for a component; None if it names none."""
    entry = index.get(component.name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _shards(index: dict[str, Any], file: Path) -> list[str]:
    """The files that an index names; they have to lie beside it."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{file} names no weights")
    for shard in weight_map.values():
        plain = isinstance(shard, str) and shard.isprintable() and 0 < len(shard) < 200
        if not plain or PurePath(shard).name != shard:
            raise UserError(f"{file} names {shard!r}, which is no file beside it")
    return sorted(set(weight_map.values()))


def _read_json_object(file: Path, when_missing: str) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(when_missing)
    return read_json_object(file)


def _check_weights(file: Path) -> None:
    """The header shows a truncated file, since it records how many bytes follow, and the types of the tensors."""
    if not file.is_file():
        raise UserError(f"the weights file {file} is missing")
    try:
        with safe_open(file, framework="pt") as tensors:
            types = {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise UserError(f"{file} is truncated or not a safetensors file") from None
    # Older versions of transformers stored the positions too, which are integers.
    wrong = [name for name, type_ in types.items() if "F" not in type_ and not name.endswith("position_ids")]
    if wrong:
        raise UserError(f"{file} does not hold floating-point weights: {wrong[0]} is of type {types[wrong[0]]}")
