"""Other editors and the refiner, with tiny random pipelines of diffusers: what changes, what stays, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from dpt.backbone import open_backbone
from dpt.claims.facts import Box, Noun
from dpt.claims.layout import PlacedObject, diff, numbered, to_fractions
from dpt.claims.parse import parse_prompt
from dpt.detect.masks import BoxSegmenter, dilated
from dpt.errors import UserError
from dpt.methods.sld.loop import CorrectionLoop
from dpt.methods.sld.pipelines import (
    InpaintingEditor,
    InstructionEditor,
    Refiner,
    instruction_text,
    open_pipeline,
    parse_editor,
    pipeline_identity,
)
from dpt.methods.sld.settings import EngineSettings
from tests.methods.test_sld_engine import NoObjects
from tests.methods.test_sld_loop import ORACLE, WRONG, Renderer, rendered
from tests.tiny_models import SD1, pipeline, save, unet

HEIGHT, WIDTH = 60, 128  # rows are no whole cells

IMAGE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def placed(colour: str, *corners: float) -> PlacedObject:
    return PlacedObject("", Noun(colour, "square"), to_fractions(Box(*corners), WIDTH, HEIGHT))


CURRENT = numbered([placed("red", 0, 0, 16, 16), placed("blue", 24, 0, 40, 16), placed("green", 0, 40, 16, 56)])

GOAL = (
    replace(CURRENT[1], box=to_fractions(Box(24, 24, 40, 40), WIDTH, HEIGHT)),
    replace(CURRENT[2], noun=Noun("yellow", "square")),
    replace(placed("red", 40, 40, 56, 56), id="red square #9"),
)

EDITS = diff(CURRENT, GOAL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SD1, tmp_path_factory.mktemp("tiny") / "sd1")


def test_an_inpainting_pipeline_edits_and_the_rest_is_the_source(folder: Path) -> None:
    backbone = open_backbone(str(folder), device="cpu")
    settings = EngineSettings(num_timesteps=4, add="region", attribute="region", margin=0, context=0)
    calls: list[int] = []
    opened = open_pipeline(folder, "inpaint")
    editor = InpaintingEditor(opened, backbone, BoxSegmenter(), NoObjects(), settings, 3.0, calls.append)
    first, again, other = (editor.edit(IMAGE, EDITS, "a red square", seed).image for seed in (1, 1, 2))
    edited = editor.edit(IMAGE, EDITS, "a red square", 1)
    away = ~dilated(edited.mask, backbone.vae_scale_factor)
    assert away[:, 80:].all() and np.array_equal(first[away], IMAGE[away])
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first[edited.mask], IMAGE[edited.mask])
    assert sum(calls) > 0
    unchanged = editor.edit(IMAGE, diff(CURRENT, CURRENT), "a red square", 1)
    assert unchanged.image is IMAGE


def pix2pix(folder: Path) -> Path:
    """Edits by instruction; its network also takes the source's latents."""
    own = pipeline(SD1)
    torch.manual_seed(3)
    network: Any = unet(SD1)
    network.conv_in = torch.nn.Conv2d(8, SD1.widths[0], 3, padding=1)
    network.register_to_config(in_channels=8)
    parts = {name: part for name, part in own.components.items() if name not in ("unet", "image_encoder")}
    StableDiffusionInstructPix2PixPipeline(**parts, unet=network, requires_safety_checker=False).save_pretrained(folder)
    return folder


def test_an_instruction_pipeline_gets_each_edit_in_words(tmp_path: Path) -> None:
    opened = open_pipeline(pix2pix(tmp_path / "pix2pix"), "instruct")
    prompts: list[str] = []
    inner = type(opened).__call__

    class Listening(type(opened)):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            prompts.append(options["prompt"])
            return inner(self, *arguments, **options)

    opened.__class__ = Listening
    editor = InstructionEditor(opened, 2)
    first, again = (editor.edit(IMAGE, EDITS, "a red square", 1) for _ in range(2))
    assert first.image.shape == IMAGE.shape and first.mask.all()
    assert np.array_equal(first.image, again.image) and not np.array_equal(first.image, IMAGE)
    assert prompts[:4] == [
        "remove the red square",
        "move the blue square down",
        "make the green square a yellow square",
        "add a red square at the bottom left",
    ]
    assert prompts[:4] == [instruction_text(edit) for edit in EDITS]
    assert not any("#" in prompt for prompt in prompts)
    assert editor.edit(IMAGE, diff(CURRENT, CURRENT), "", 1).image is IMAGE


def test_the_refiner_keeps_the_size_and_the_loop_keeps_the_better_image(folder: Path) -> None:
    refiner = Refiner(open_pipeline(folder, "refine"), pipeline_identity(folder), 0.5, num_timesteps=4)
    refined = refiner(IMAGE, "a red square", 1)
    assert refined.shape == IMAGE.shape
    assert np.array_equal(refined, refiner(IMAGE, "a red square", 1)) and not np.array_equal(refined, IMAGE)
    parsed = parse_prompt("a red circle to the left of a blue square")

    def outcome(refine: Any) -> tuple[int, str | None, str]:
        result = CorrectionLoop(ORACLE, Renderer(), None, refine=refine).run(WRONG, parsed, 0)
        return len(result.rounds), result.best.action, result.status

    assert outcome(None) == (2, "edit", "right")
    assert outcome(lambda image, parsed, seed: image.copy()) == (3, "refine", "right")
    spoilt = np.random.default_rng(1).integers(0, 255, WRONG.shape, np.uint8)
    assert outcome(lambda image, parsed, seed: spoilt) == (3, "edit", "right")
    assert rendered(()).shape == WRONG.shape


def test_editors_and_folders_are_named_or_refused_with_a_reason(folder: Path, tmp_path: Path) -> None:
    assert parse_editor("latents") is None
    assert parse_editor("inpaint=a/b") == ("inpaint", Path("a/b"))
    for wrong in ("inpaint", "pixels=x", "instruct="):
        with pytest.raises(UserError, match="--editor is latents"):
            parse_editor(wrong)
    with pytest.raises(UserError, match="is no pipeline folder"):
        open_pipeline(tmp_path, "inpaint")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["evil", "Evil"], "evil": ["evil", "Evil"]}))
    for kind in ("inpaint", "instruct", "refine"):
        with pytest.raises(UserError, match="cannot be opened"):
            open_pipeline(tmp_path, kind)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--refiner_strength"):
        Refiner(None, "none", 0.01)
    changed = save(SD1, tmp_path / "changed" / folder.name, seed=1)
    assert pipeline_identity(changed) != pipeline_identity(folder) == pipeline_identity(folder)
    with pytest.raises(UserError, match="takes no image"):
        open_pipeline(folder, "instruct")
