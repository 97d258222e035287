"""Checkpoints for the tests: the published file at its real shapes, and tiny results that fit tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpt.adapter import Adapter, config_for
from dpt.adapter.io import save_adapter
from dpt.backbone import Backbone
from dpt.lora import LoraConfig
from dpt.lora.io import save_lora
from tests.golden.recipe import recipe, recipe_weights
from tests.golden.reference import key_shapes
from tests.lora.test_injection import filled

SMALL = {"hidden_dim": 16, "nheads": 8, "dim_feedforward": 32, "num_queries_matching": 10, "num_queries_rec": 5}
SCALED = LoraConfig(rank=3, alpha=2.0)
WIDTHS = {f"down_blocks.{i}": (2, 320 << i) for i in range(3)}
WIDTHS |= {"mid_block": (1, 1280)} | {f"up_blocks.{i}": (3, 2560 >> i) for i in (1, 2, 3)}


def published_adapter(text_width: int = 1024) -> dict[str, Tensor]:
    shapes = {key: list(shape) for key, shape in key_shapes().items()}
    for key in ("map_to_clip.2.weight", "map_to_clip.2.bias"):
        shapes[key][0] = text_width
    return recipe_weights(shapes)


def published_lora(text_width: int = 1024, rank: int = 4) -> dict[str, Tensor]:
    """Section 7, written out: 256 tensors."""
    named = {}
    for block, (count, width) in WIDTHS.items():
        for layer in (f"{block}.attentions.{i}.transformer_blocks.0.attn{j}" for i in range(count) for j in (1, 2)):
            for projection in ("q", "k", "v", "out"):
                reads = text_width if layer.endswith("2") and projection in "kv" else width
                key = f"unet.{layer}.processor.to_{projection}_lora"
                named[f"{key}.down.weight"] = recipe(f"{key}.down", (rank, reads))
                named[f"{key}.up.weight"] = recipe(f"{key}.up", (width, rank))
    return named


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def tiny_adapter(backbone: Backbone, feature: str = "up1", **changes: Any) -> Adapter:
    torch.manual_seed(0)
    width = backbone.text_width
    return Adapter(config_for(backbone, feature, width, **{**SMALL, **changes})).eval()


def tiny_result(backbone: Backbone, folder: Path, config: LoraConfig = SCALED) -> Path:
    """A training result: `adapter/` and `lora/`."""
    about = {"base": "tiny", "base_hash": backbone.model_hash, "prediction_type": backbone.noise.prediction_type}
    save_adapter(tiny_adapter(backbone), folder / "adapter", **about)
    lora = filled(backbone, config)
    save_lora(lora.state(), config, folder / "lora", **about)
    lora.remove()
    return folder
