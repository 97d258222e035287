"""The human preference score: 100 times the cosine of an image and its prompt by a CLIP trained on human choices.

Any CLIP or SigLIP in the transformers layout is such a scorer: one that this project trained, PickScore, or an
untrained CLIP. Files with OpenAI's names (HPS v1's hpc.pth, HPS v2 and v2.1) have no configuration. A CLIP in the
transformers layout beside them supplies it: its shape must be that of the weights, and its activation the one they
were trained with, which the weights alone do not show.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn import functional as F

from dpt.backbone.device import resolve_device
from dpt.backbone.loading import quiet_libraries
from dpt.backbone.opening import open_hf_model
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.files import atomic_folder, sha256
from dpt.records import read_record, to_plain
from dpt.weights import is_plain, load_strictly, read_pickle

UNSTORED = ("input_resolution", "context_length", "vocab_size", "logit_bias")
"""Numbers that OpenAI's archives keep beside the weights."""

GELU_VISION_WIDTH = 1280
"""Of ViT-H/14, which was trained with GELU. OpenAI's own models, all narrower, were trained with QuickGELU."""

_TOP = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}

_TRANSPOSED = ("text_projection", "visual.proj")

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")

_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def read_openai_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of an `hpc.pth`: `{"state_dict": {...}}` or the dict itself. Nothing in the file is executed."""
    content = read_pickle(file, "file")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} is not a CLIP checkpoint: it holds more than named tensors")
    named = {str(key).removeprefix("module."): value for key, value in content.items()}
    named = {key: value for key, value in named.items() if key not in UNSTORED}
    if odd := [key for key, value in named.items() if not is_plain(value)]:
        raise UserError(f"{file} holds more than plain floating-point numbers: {odd[0]}")
    if "visual.conv1.weight" not in named:
        what = "a ResNet CLIP" if "visual.layer1.0.conv1.weight" in named else "not a CLIP with OpenAI's names"
        raise UserError(f"{file} is {what}: a vision transformer with visual.conv1.weight is needed")
    return named


def to_transformers(named: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same weights under the names of transformers' CLIPModel."""
    converted: dict[str, Tensor] = {}
    for key, value in named.items():
        if key in _TOP:
            converted[_TOP[key]] = value.T.contiguous() if key in _TRANSPOSED else value
        elif match := _BLOCK.fullmatch(key):
            tower = "vision_model" if match[1] else "text_model"
            converted |= _block(f"{tower}.encoder.layers.{match[2]}", match[3], value, f"{where}: {key}")
        elif key != "attn_mask":
            raise UserError(f"{where} holds {key}, which no CLIP vision transformer has")
    return {key: value.float() for key, value in converted.items()}


def _block(layer: str, name: str, value: Tensor, where: str) -> dict[str, Tensor]:
    module, _, kind = name.rpartition(".")
    if module in _IN_BLOCK:
        return {f"{layer}.{_IN_BLOCK[module]}.{kind}": value}
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.removeprefix("attn.in_proj_")
        if len(value) % 3:
            raise UserError(f"{where} has {len(value)} rows, which are not those of queries, keys and values")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{layer}.self_attn.{part}_proj.{kind}": rows.contiguous() for part, rows in parts}
    raise UserError(f"{where} is not a weight of a CLIP block")


def activation_of(named: Mapping[str, Tensor]) -> str:
    """The activation that weights with OpenAI's names were trained with."""
    return "gelu" if named["visual.conv1.weight"].shape[0] == GELU_VISION_WIDTH else "quick_gelu"


def check_activation(named: Mapping[str, Tensor], config: Any, file: Path, clip: str) -> None:
    """Refuse a CLIP whose activation is not that of the weights: their scores would differ without any message."""
    meant = activation_of(named)
    computed = {config.vision_config.hidden_act, config.text_config.hidden_act}
    if computed != {meant}:
        raise UserError(
            f"{file} was trained with {meant}, and the CLIP {clip} computes {' and '.join(sorted(computed))}: give a "
            f"--clip whose config.json has hidden_act {meant}"
        )


MODEL_TYPES = ("clip", "siglip")

HPS_SCALE = 100.0

LARGEST_LOGIT_SCALE = math.log(100)

RECORD = "preference.json"

BATCH_SIZE = 16

OPENAI_SUFFIXES = (".pth", ".pt", ".bin")

CHANNELS_LAST = "channels_last"
"""Passed explicitly: the processor would take an image three pixels high for a channels-first one."""


@dataclass(frozen=True)
class TowerInputs:
    """Preprocesses images and prompts for one model, in any process."""

    processor: Any
    tokenizer: Any
    length: int
    masked: bool
    """Whether the text tower reads an attention mask; SigLIP's does not."""

    def pixels(self, images: Sequence[Any]) -> Tensor:
        images = [image.convert("RGB") if isinstance(image, PILImage.Image) else image for image in images]
        pixels: Tensor = self.processor(images, return_tensors="pt", input_data_format=CHANNELS_LAST).pixel_values
        return pixels

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids, truncated and padded to the context length."""
        encoded = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        names = ("input_ids", "attention_mask") if self.masked else ("input_ids",)
        return {name: encoded[name] for name in names if name in encoded}

    def is_cut(self, prompt: str) -> bool:
        """Whether the prompt is longer than the context and is truncated."""
        return len(self.tokenizer([prompt]).input_ids[0]) > self.length


class PreferenceModel(nn.Module):
    """A CLIP or SigLIP whose cosines rank the images of a prompt."""

    def __init__(self, clip: Any, inputs: TowerInputs, identity: str) -> None:
        super().__init__()
        self.clip, self.inputs, self.identity = clip, inputs, identity

    @property
    def device(self) -> torch.device:
        device: torch.device = self.clip.device
        return device

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the cosines in the list-wise softmax, at most 100."""
        scale: Tensor = self.clip.logit_scale
        return scale.exp()

    def image_features(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        return F.normalize(self.clip.get_text_features(**tokens).pooler_output.float(), dim=-1)

    def cosines(self, pixels: Tensor, tokens: dict[str, Tensor], sizes: Sequence[int]) -> Tensor:
        """The cosine of each image (N,3,H,W) with the prompt of its group; `sizes` sum to N."""
        texts = self.text_features(tokens)
        repeats = torch.tensor(list(sizes), device=texts.device)
        return (self.image_features(pixels) * texts.repeat_interleave(repeats, dim=0, output_size=len(pixels))).sum(-1)

    @torch.no_grad()
    def scores(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """100 * cosine of each image with the prompt at the same index, in [-100, 100]."""
        return [score for start in range(0, len(images), BATCH_SIZE) for score in self._scores(images, prompts, start)]

    def _scores(self, images: Sequence[Image], prompts: Sequence[str], start: int) -> Iterator[float]:
        batch = slice(start, start + BATCH_SIZE)
        tokens = {name: value.to(self.device) for name, value in self.inputs.tokens(prompts[batch]).items()}
        pixels = self.inputs.pixels(images[batch]).to(self.device)
        yield from (HPS_SCALE * self.cosines(pixels, tokens, [1] * len(pixels))).tolist()

    def save(self, folder: Path, trained: ClassifierRecord) -> None:
        """A folder in the transformers layout, which this and any other program opens."""
        with atomic_folder(folder) as work, quiet_libraries():
            self.clip.save_pretrained(work)
            self.inputs.processor.save_pretrained(work)
            self.inputs.tokenizer.save_pretrained(work)
            (work / RECORD).write_text(json.dumps(to_plain(trained), indent=1) + "\n")


@dataclass(frozen=True)
class ClassifierRecord:
    """`preference.json` beside a trained classifier."""

    base: str = ""
    """The CLIP that training started from."""
    format: int = 1


def open_preference_model(name: str, clip: str | None = None, device: str | None = None) -> PreferenceModel:
    """A folder or hub id of a CLIP or SigLIP; or a file with OpenAI's names and the `clip` of its shape.

    `clip` also supplies the processor and the tokenizer of a folder that has none, such as PickScore's.
    """
    if Path(name).suffix in OPENAI_SUFFIXES:
        return _open_weights(Path(name), clip, device)
    folder = open_hf_model(name, MODEL_TYPES, "preference scorer")
    model_class, processor_class = _classes(folder.model_type)
    model = folder.load(model_class).eval().to(resolve_device(device))
    parts = folder
    if not (folder.path / "preprocessor_config.json").is_file():
        if clip is None:
            raise UserError(f"{name} has no preprocessor_config.json: give --clip, a model to take it from")
        parts = open_hf_model(clip, MODEL_TYPES, "CLIP")
    inputs = _inputs(model, parts.load(processor_class), _tokenizer(parts))
    identity = f"{folder.model_type} {folder.identity}"
    return PreferenceModel(model, inputs, identity)


def trained_from(folder: Path) -> ClassifierRecord | None:
    """The record of a classifier that this project trained; None for others."""
    return read_record(ClassifierRecord, folder / RECORD) if (folder / RECORD).is_file() else None


def _open_weights(file: Path, clip: str | None, device: str | None) -> PreferenceModel:
    named = read_openai_weights(file)
    if clip is None:
        raise UserError(
            f"{file} holds weights alone: give --clip with a CLIP of its shape, such as openai/clip-vit-large-patch14 "
            "for HPS v1"
        )
    folder = open_hf_model(clip, ("clip",), "CLIP")
    model_class, processor_class = _classes(folder.model_type)
    model = folder.load(model_class).eval()
    check_activation(named, model.config, file, clip)
    load_strictly(model, to_transformers(named, str(file)), str(file), into=f"the CLIP {clip}")
    inputs = _inputs(model, folder.load(processor_class), _tokenizer(folder))
    return PreferenceModel(model.to(resolve_device(device)), inputs, f"clip {file.name} {sha256(file)[:12]}")


def _classes(model_type: str) -> tuple[Any, Any]:
    import transformers

    if model_type == "clip":
        return transformers.CLIPModel, transformers.CLIPImageProcessorPil
    return transformers.SiglipModel, transformers.SiglipImageProcessorPil


def _tokenizer(folder: Any) -> Any:
    from transformers import AutoTokenizer, CLIPTokenizer

    return folder.load(CLIPTokenizer if folder.model_type == "clip" else AutoTokenizer)


def _inputs(model: Any, processor: Any, tokenizer: Any) -> TowerInputs:
    length = int(model.config.text_config.max_position_embeddings)
    return TowerInputs(processor, tokenizer, length, masked=model.config.model_type == "clip")
