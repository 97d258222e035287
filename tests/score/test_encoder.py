"""Image encoders: the same features as the library's own, by name, with its own framing of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, Dinov2Config, Dinov2Model, SiglipVisionConfig
from transformers.models.dinov3_vit import DINOv3ViTConfig, DINOv3ViTModel

from dpt.errors import UserError
from dpt.score.clip import Clip, Preparation, open_encoder

SHIPPED = Path(__file__).parents[2] / "ckpt/pocket/clip"

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

FRAMING = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True,
           "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.4]}  # fmt: skip


def saved(model: torch.nn.Module, folder: Path, framing: dict[str, object] = FRAMING) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(framing))
    return folder


def pictures(number: int, side: int = 28) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(number)]


@pytest.mark.parametrize(
    "model",
    [
        lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)),
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**SMALL, image_size=28, patch_size=14)),
    ],
)
def test_features_are_the_pooled_output_of_the_model(model: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = saved(model(), tmp_path / "tiny", {**FRAMING, "do_center_crop": False, "size": 28})  # type: ignore[operator]
    images = pictures(18)
    encoder = open_encoder(str(folder), "cpu")
    features = encoder.features(images)
    pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255 - torch.tensor(FRAMING["image_mean"]).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(
            pixels / torch.tensor(FRAMING["image_std"]).view(3, 1, 1)
        ).pooler_output
    assert features.shape == (18, 16) and np.abs(features - expected.numpy()).max() < 1e-5
    assert encoder.identity.startswith(folder.name.replace("tiny", "dinov")) and "tiny" in encoder.identity


def test_a_clip_folder_opens_as_clip() -> None:
    images = pictures(3, 64)
    assert np.array_equal(
        open_encoder(str(SHIPPED), "cpu").features(images), Clip.open(str(SHIPPED), "cpu").features(images)
    )


def test_images_are_resized_by_their_shorter_side_and_cropped_in_the_middle() -> None:
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 255
    prepared = Preparation.of(FRAMING)([wide])
    assert prepared.shape == (1, 3, 28, 28)
    assert prepared[0, 0].unique().tolist() == pytest.approx([2.5]), "the black sides are cut off"


def test_folders_without_framing_and_other_models_are_refused(tmp_path: Path) -> None:
    folder = saved(Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)), tmp_path / "tiny", {"size": 28})
    with pytest.raises(UserError, match=r"tiny has no preprocessor_config\.json with size"):
        open_encoder(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": SiglipVisionConfig.model_type}))
    with pytest.raises(UserError, match="siglip_vision_model model, and a vision encoder is one of clip"):
        open_encoder(str(folder))


def test_timm_is_imported_only_for_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm, which is not installed: pip install timm"):
        open_encoder("timm:resnet18")

    class Mean(torch.nn.Linear):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels.mean((2, 3)))

    model = Mean(3, 5)
    config = {"input_size": (3, 24, 24), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 0.9}
    data = SimpleNamespace(resolve_model_data_config=lambda model: config)
    fake = SimpleNamespace(create_model=lambda name, pretrained, num_classes: model, data=data)
    monkeypatch.setitem(sys.modules, "timm", fake)
    encoder = open_encoder("timm:resnet18", "cpu")
    assert encoder.identity == "timm resnet18" and encoder.features(pictures(2)).shape == (2, 5)
