"""The same engine on every family of models: tiny random ones, for shapes, determinism and what stays untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpt.backbone import open_backbone
from dpt.claims.facts import Box, Noun
from dpt.claims.layout import PlacedObject, diff, numbered, to_fractions
from dpt.detect.masks import BoxSegmenter, dilated
from dpt.methods.sld.engine import EditEngine
from dpt.methods.sld.settings import EngineSettings
from tests import tiny_sdxl, tiny_transformers
from tests.methods.test_sld_engine import NoObjects
from tests.tiny_models import SD1, SD2_V
from tests.tiny_models import save as save_unet


def saved(family: str, folder: Path) -> Path:
    if family in ("sd1", "sd2-v"):
        return save_unet({"sd1": SD1, "sd2-v": SD2_V}[family], folder)
    if family == "sdxl":
        return tiny_sdxl.save(tiny_sdxl.sdxl(), folder)
    pipeline = tiny_transformers.sd3(pos_embed_max_size=32) if family == "sd3" else tiny_transformers.flux()
    return tiny_transformers.save(pipeline, folder)


@pytest.mark.parametrize(
    ("family", "trajectory"),
    [("sd1", "noise"), ("sd2-v", "ddim"), ("sdxl", "ddim"), ("sd3", "noise"), ("flux", "ddim")],
)
def test_all_edits_in_one_pass(family: str, trajectory: Any, tmp_path: Path) -> None:
    backbone = open_backbone(str(saved(family, tmp_path / family)), device="cpu")
    height, width = 64, 128
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)

    def placed(noun: Noun, *corners: float) -> PlacedObject:
        return PlacedObject("", noun, to_fractions(Box(*corners), width, height))

    red, blue, green = (Noun(colour, "square") for colour in ("red", "blue", "green"))
    current = numbered([placed(red, 0, 0, 16, 16), placed(blue, 24, 0, 40, 16), placed(green, 0, 40, 16, 56)])
    moved = replace(current[1], box=to_fractions(Box(24, 24, 40, 40), width, height))
    recoloured = replace(current[2], noun=Noun("yellow", "square"))
    goal = (moved, recoloured, replace(placed(red, 40, 40, 56, 56), id="red square #9"))
    settings = EngineSettings(
        num_timesteps=4, trajectory=trajectory, add="region", attribute="region", fill="noise", margin=0, context=0
    )
    calls: list[int] = []
    engine = EditEngine(backbone, BoxSegmenter(), NoObjects(), settings, 3.0, calls.append)
    edited, again = (engine.edit(image, diff(current, goal), "a red square", seed=1) for _ in range(2))
    assert edited.image.shape == image.shape
    assert np.array_equal(edited.image, again.image)
    away = ~dilated(edited.mask, backbone.vae_scale_factor)
    assert away[:, 80:].all()
    assert np.array_equal(edited.image[away], image[away])
    assert not np.array_equal(edited.image[edited.mask], image[edited.mask])
    assert sum(calls) > 0
