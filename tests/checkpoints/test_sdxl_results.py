"""Results of training on Stable Diffusion XL: LoRAs of UNet and text encoders, their export, and the commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.errors import UserError
from dpt.lora import LoraConfig
from dpt.lora.io import save_lora
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_models, tiny_sdxl
from tests.lora.test_injection import filled

BOTH = LoraConfig(rank=3, alpha=2.0, text_encoders=True)
DRAW = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt"}
PROMPT = tiny_sdxl.PROMPTS[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.save(tiny_sdxl.sdxl(), tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the UNet and both text encoders with random weights."""
    backbone = open_backbone(folder, device="cpu")
    lora = filled(backbone, BOTH)
    out = tmp_path_factory.mktemp("result") / "lora"
    save_lora(lora.state(), BOTH, out, **backbone.origin("tiny"))
    return out


def test_an_exported_lora_gives_the_same_images_in_the_stock_pipeline(
    folder: Path, result: Path, tmp_path: Path
) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = DPTPipeline.from_pretrained(folder, device="cpu")(PROMPT, latents=latents, **DRAW).images
    expected = DPTPipeline.from_pretrained(folder, checkpoint=result, device="cpu")(
        PROMPT, latents=latents, **DRAW
    ).images
    assert (plain - expected).abs().max() > 1e-3
    stored = open_checkpoint(result).lora
    assert stored is not None
    for form, out in (("diffusers", tmp_path / "exported"), ("kohya", tmp_path / "kohya.safetensors")):
        export_checkpoint(open_checkpoint(result), form, out)
        stock: Any = StableDiffusionXLPipeline.from_pretrained(folder)
        stock.set_progress_bar_config(disable=True)
        stock.load_lora_weights(out)
        images = stock(PROMPT, latents=latents, **DRAW).images
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5, msg=lambda text, form=form: f"{form}: {text}")
        again = open_checkpoint(out).lora
        assert again is not None and again.record.config == BOTH
        assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in stored.tensors.items())
    names = {name.split(".")[0] for name in load_file(tmp_path / "kohya.safetensors")}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_output_blocks_2_1_transformer_blocks_1_attn2_to_out_0" in names
    assert {name.split("text_model")[0] for name in names if "text" in name} == {"lora_te1_", "lora_te2_"}
    with pytest.raises(UserError, match="a LoRA of text encoders too, for which the format published has no names"):
        export_checkpoint(open_checkpoint(result), "published", tmp_path / "published")


def test_a_lora_leaves_no_trace(folder: Path) -> None:
    backbone: Any = open_backbone(folder, device="cpu")
    condition, z = backbone.encode_text(tiny_sdxl.PROMPTS), torch.randn(2, 4, 8, 8)
    modules = [set(dict(module.named_modules())) for module in backbone.modules()]
    before = backbone.predict(z, 500, condition)
    lora = filled(backbone, BOTH)
    changed = backbone.encode_text(tiny_sdxl.PROMPTS)
    assert all(not torch.equal(getattr(changed, name), getattr(condition, name)) for name in ("states", "pooled"))
    with lora.disabled():
        assert torch.equal(backbone.encode_text(tiny_sdxl.PROMPTS).states, condition.states)
        assert torch.equal(backbone.predict(z, 500, condition), before)
    lora.remove()
    assert torch.equal(backbone.encode_text(tiny_sdxl.PROMPTS).states, condition.states)
    assert torch.equal(backbone.predict(z, 500, condition), before)
    assert [set(dict(module.named_modules())) for module in backbone.modules()] == modules


def test_every_trained_tensor_of_the_text_encoders_gets_a_gradient(folder: Path) -> None:
    backbone = open_backbone(folder, device="cpu")
    lora = filled(backbone, BOTH)
    condition = backbone.encode_text([PROMPT])
    backbone.predict(torch.randn(1, 4, 8, 8), 500, condition).square().sum().backward()
    missing = [name for name, p in lora.weights.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    layers = {name.split(".")[0]: name for name in lora.state() if name.startswith("text_encoder")}
    assert set(layers) == {"text_encoder", "text_encoder_2"}


def test_loras_of_another_architecture_are_refused_by_name(folder: Path, result: Path, tmp_path: Path) -> None:
    other = open_backbone(tiny_models.save(tiny_models.SD1, tmp_path / "sd"), device="cpu")
    of_xl = open_checkpoint(result)
    with pytest.raises(UserError, match=r"is a LoRA of Stable Diffusion XL, and this model is Stable Diffusion 1\.x"):
        of_xl.attach(other, allow_other_base=True)
    lora = filled(other, LoraConfig(rank=2))
    save_lora(lora.state(), LoraConfig(rank=2), tmp_path / "lora", **other.origin("tiny"))
    of_sd = open_checkpoint(tmp_path / "lora")
    with pytest.raises(UserError, match=r"is a LoRA of Stable Diffusion 1\.x or 2\.x, and this model is .* XL"):
        of_sd.attach(open_backbone(folder, device="cpu"), allow_other_base=True)
    with pytest.raises(UserError, match="was trained in another model, tiny"):
        of_sd.attach(open_backbone(folder, device="cpu"))
    stray = replace(
        of_xl,
        lora=replace(of_xl.lora, tensors={n.replace("layers.1", "layers.7"): t for n, t in of_xl.lora.tensors.items()}),
    )  # type: ignore[type-var,union-attr]
    with pytest.raises(UserError, match=r"has text_encoder_2\.encoder\.layers\.7\..*, which is in no text encoder"):
        stray.attach(open_backbone(folder, device="cpu"))
