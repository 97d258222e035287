"""FLUX behind the protocol: packed latents, an embedded guidance scale, and timesteps shifted by the image's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from dpt.backbone import open_backbone
from dpt.backbone.mmdit import normalise_tokens
from dpt.backbone.transformer_families import FLUX
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.lora.io import save_lora
from dpt.sampling.draw import Request, SamplingSettings, draw
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_transformers
from tests.checkpoints.making import SCALED
from tests.lora.test_injection import filled
from tests.tiny_transformers import PROMPTS

HEIGHT, WIDTH = 8, 12
PIXELS = {"height": 2 * HEIGHT, "width": 2 * WIDTH}
DRAW = {"num_inference_steps": 3, "output_type": "pt", **PIXELS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.save(tiny_transformers.flux(), tmp_path_factory.mktemp("flux") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Any:
    return open_backbone(folder, device="cpu")


@pytest.fixture
def stock(folder: Path) -> Any:
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def packed(z: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(z, *z.shape)


def test_its_images_equal_those_of_the_stock_pipeline(backbone: Any, stock: Any) -> None:
    z, pipe, prompts = noise(), DPTPipeline.from_backbone(backbone), list(PROMPTS)
    assert torch.equal(FLUX.output(packed(z), z), z)
    expected = stock(prompts, latents=packed(z), guidance_scale=2.0, **DRAW).images
    images = pipe(prompts, latents=z, guidance_scale=2.0, **DRAW).images
    assert expected.std() > 0.01 and (images - expected).abs().max() < 1e-5
    assert (pipe(prompts, latents=z, guidance_scale=9.0, **DRAW).images - images).abs().max() > 1e-5
    negative = {"negative_prompt": ["a large cross"] * 2, "true_cfg_scale": 3.0, "guidance_scale": 2.0}
    guided = stock(prompts, latents=packed(z), **negative, **DRAW).images
    assert (guided - expected).abs().max() > 1e-3
    torch.testing.assert_close(pipe(prompts, latents=z, **negative, **DRAW).images, guided, rtol=0, atol=1e-5)


def test_a_model_without_a_guidance_embedding_takes_no_scale(tmp_path: Path) -> None:
    folder = tiny_transformers.save(tiny_transformers.flux(guidance_embeds=False), tmp_path / "schnell")
    stock, pipe = FluxPipeline.from_pretrained(folder), DPTPipeline.from_backbone(open_backbone(folder, device="cpu"))
    stock.set_progress_bar_config(disable=True)
    expected = stock(PROMPTS[0], latents=packed(noise(1)), guidance_scale=0.0, **DRAW).images
    images = pipe(PROMPTS[0], latents=noise(1), guidance_scale=7.0, **DRAW).images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_a_negative_prompt_without_effect_is_reported(backbone: Any) -> None:
    settings = SamplingSettings(steps=1, height=PIXELS["height"], width=PIXELS["width"])
    with pytest.warns(UserWarning, match="the negative prompt has no effect: this model is distilled"):
        (image,) = draw(backbone, [Request(PROMPTS[0], 0, 0, "blue")], settings)
    (plain,) = draw(backbone, [Request(PROMPTS[0], 0, 0)], settings)
    assert torch.equal(image, plain)


def test_a_partial_forward_is_the_whole_one_through_both_kinds_of_block(backbone: Any) -> None:
    condition, z, t = backbone.encode_text(PROMPTS), noise(), torch.tensor([700.0, 300.0])
    whole, kept = backbone.predict(z, t, condition), []
    network = backbone.network
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    hooks = [block.register_forward_hook(lambda _, __, output: kept.append(output[1])) for block in blocks]
    backbone.predict(z, t, condition)
    for hook in hooks:
        hook.remove()
    assert list(backbone.blocks()) == ["block0", "block1", "block2", "block3"] and len(kept) == 4
    for i, tokens in enumerate(kept):
        feature, partial = backbone.features(z, t, condition, f"block{i}")
        assert torch.equal(feature, normalise_tokens(tokens).transpose(1, 2).unflatten(2, (HEIGHT // 2, WIDTH // 2)))
        assert torch.equal(backbone.finish(partial), whole)
        assert torch.equal(backbone.finish(partial[1:].concat(partial[:1])).flip(0), whole)
    assert backbone.lora_targets(["block2"]) == [f"single_transformer_blocks.0.attn.to_{p}" for p in "qkv"]


def test_an_exported_lora_gives_the_same_images_in_the_stock_pipeline(
    backbone: Any, stock: Any, tmp_path: Path
) -> None:
    lora = filled(backbone, SCALED)
    save_lora(lora.state(), SCALED, tmp_path / "lora", **backbone.origin("tiny"))
    expected = DPTPipeline.from_backbone(backbone)(PROMPTS[0], latents=noise(1), guidance_scale=2.0, **DRAW).images
    lora.remove()
    export_checkpoint(open_checkpoint(tmp_path / "lora"), "diffusers", tmp_path / "exported")
    stock.load_lora_weights(tmp_path / "exported")
    images = stock(PROMPTS[0], latents=packed(noise(1)), guidance_scale=2.0, **DRAW).images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_its_tokens_are_those_of_t5(backbone: Any) -> None:
    encoding = backbone.tokenize(["two green stars"])
    assert backbone.prompt_length == 512 and encoding["input_ids"].shape[1] < 8
    warnings = backbone.prompt_warnings("two xyzzy squares")
    assert warnings == ["the model does not know the word 'xyzzy'"]
