"""Results of training on a transformer: LoRAs, their export to the stock pipeline, and the training commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.cli.train.stages import main_stage1, main_stage2
from dpt.errors import UserError
from dpt.lora import LoraConfig
from dpt.lora.io import save_lora
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_transformers
from tests.checkpoints.making import SCALED
from tests.lora.test_injection import filled

DRAW = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.save(tiny_transformers.sd3(), tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of all blocks with random weights."""
    backbone = open_backbone(folder, device="cpu")
    lora = filled(backbone, SCALED)
    out = tmp_path_factory.mktemp("result") / "lora"
    save_lora(lora.state(), SCALED, out, **backbone.origin("tiny"))
    return out


def test_an_exported_lora_gives_the_same_images_in_the_stock_pipeline(
    folder: Path, result: Path, tmp_path: Path
) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = DPTPipeline.from_pretrained(folder, device="cpu")
    ours = DPTPipeline.from_pretrained(folder, checkpoint=result, device="cpu")
    expected = ours(tiny_transformers.PROMPTS[0], latents=latents, **DRAW).images
    assert (plain(tiny_transformers.PROMPTS[0], latents=latents, **DRAW).images - expected).abs().max() > 1e-3
    export_checkpoint(open_checkpoint(result), "diffusers", tmp_path / "exported")
    stock: Any = StableDiffusion3Pipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(tmp_path / "exported")
    images = stock(tiny_transformers.PROMPTS[0], latents=latents, **DRAW).images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    again = DPTPipeline.from_pretrained(folder, checkpoint=tmp_path / "exported", device="cpu")
    assert torch.equal(again(tiny_transformers.PROMPTS[0], latents=latents, **DRAW).images, expected)


def test_formats_without_names_for_it_are_refused(result: Path, tmp_path: Path) -> None:
    for form, out in (("kohya", tmp_path / "lora.safetensors"), ("published", tmp_path / "published")):
        with pytest.raises(UserError, match=f"a LoRA of a transformer, for which the format {form} has no names"):
            export_checkpoint(open_checkpoint(result), form, out)


def test_a_lora_leaves_no_trace(folder: Path) -> None:
    backbone: Any = open_backbone(folder, device="cpu")
    condition, z = backbone.encode_text(tiny_transformers.PROMPTS), torch.randn(2, 4, 8, 8)
    names, before = set(backbone.network.state_dict()), backbone.predict(z, 500, condition)
    lora = filled(backbone, LoraConfig(rank=2, blocks=("block0", "block2")))
    assert (backbone.predict(z, 500, condition) - before).abs().max() > 1e-4
    feature = backbone.features(z, 500, condition, "block1")[0]
    with lora.disabled():
        assert torch.equal(backbone.predict(z, 500, condition), before)
    lora.remove()
    assert torch.equal(backbone.predict(z, 500, condition), before)
    assert set(backbone.network.state_dict()) == names
    assert not torch.equal(backbone.features(z, 500, condition, "block1")[0], feature)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(tiny_transformers.sd3, marks=pytest.mark.slow),
        pytest.param(tiny_transformers.flux, marks=pytest.mark.nightly),
        pytest.param(tiny_transformers.auraflow, marks=pytest.mark.nightly),
    ],
)
def test_commands_train_and_sample_with_it(make: Callable[[], Any], tmp_path: Path) -> None:
    """Stage 1, stage 2 and the plain LoRA by their commands, then a corrected image."""
    folder = tiny_transformers.save(make(), tmp_path / "model")
    small = "--hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_rec 4 --unet_feature block1".split()  # noqa: SIM905
    steps = "--max_train_steps 2 --train_batch_size 2 --validation_steps 0".split()  # noqa: SIM905
    model = [
        "--pretrained_model_name_or_path",
        str(folder),
        "--output_dir",
        str(tmp_path),
        "--resolution",
        "16",
        *steps,
    ]
    adapter = ["--qformer_ckpt", str(tmp_path / "s1")]
    assert main_stage1([*model, *small, "--run_name", "s1"]) == 0
    assert main_stage2([*model, *small, *adapter, "--run_name", "s2"]) == 0
    assert main_stage2([*model, "--plain_lora", "--run_name", "plain"]) == 0
    opened = open_checkpoint(tmp_path / "s2")
    assert opened.adapter is not None and opened.adapter.config.feature_norm and opened.lora is not None
    assert any(tensor.abs().max() > 0 for name, tensor in opened.lora.tensors.items() if "lora_B" in name)
    assert opened.lora.record.prediction_type == "flow_prediction" and open_checkpoint(tmp_path / "plain").lora
    backbone = open_backbone(folder, device="cpu")
    opened.attach(backbone)
    pipe = DPTPipeline.from_backbone(backbone, opened.adapter)
    latents = torch.randn(1, 4, 8, 8)
    settings = {**DRAW, "height": 16, "width": 16}
    plain, corrected = (
        pipe(tiny_transformers.PROMPTS[0], latents=latents, correction_factor=factor, correction_norm="rms", **settings)
        for factor in (0.0, 0.2)
    )
    assert (plain.images - corrected.images).abs().max() > 1e-3
