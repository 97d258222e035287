"""CLIP scores: the shipped model ranks scene captions, and similarities equal the library's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.errors import UserError
from dpt.score.clip import Clip
from tests.evaluation import tiny_vision

SHIPPED = Path(__file__).parents[2] / "ckpt/pocket/clip"


def test_shipped_clip_prefers_the_right_caption() -> None:
    clip = Clip.open(str(SHIPPED), device="cpu")
    scenes = [scene for scene in (make_scene(5, i, POCKET_WORLD) for i in range(60)) if len(scene.objects) == 1]
    images = [render(scene) for scene in scenes]
    right = [f"a {scene.objects[0].colour} {scene.objects[0].shape}" for scene in scenes]
    wrong = [right[(i + 1) % len(right)] for i in range(len(right))]
    pairs = zip(clip.cosine(images, right), clip.cosine(images, wrong), right, wrong, strict=True)
    assert len(images) > 5 and all(high > low for high, low, text, other in pairs if text != other)
    assert clip.features(images).shape == (len(images), 128)
    assert clip.count_truncated(["a red circle " * 20, "a red circle"]) == 1


def test_similarities_equal_those_of_transformers(tmp_path: Path) -> None:
    clip = Clip.open(str(tiny_vision.clip(tmp_path / "clip")), device="cpu")
    images = [np.random.default_rng(i).integers(0, 256, (40, 24 + i, 3), dtype=np.uint8) for i in range(3)]
    texts = ["a red circle", "a dog", "a blue square"]
    inputs = clip.tokenizer(texts, padding=True, return_tensors="pt")
    inputs["pixel_values"] = clip.processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        out = clip.model(**inputs)
    expected = F.cosine_similarity(out.image_embeds, out.text_embeds, dim=-1)
    assert clip.cosine(images, texts) == pytest.approx(expected.tolist(), abs=1e-5)
    assert clip.nearest(images, texts) == out.logits_per_image.argmax(-1).tolist()


def test_another_model_type_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a owlv2 model, and a CLIP is one of clip"):
        Clip.open(str(tiny_vision.owl(tmp_path / "owl")))
