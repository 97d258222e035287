"""AuraFlow is a row of the table: blocks of two streams, then blocks that take text and image as one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline
from torch import Tensor

from dpt.backbone import open_backbone
from dpt.backbone.mmdit import normalise_tokens
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.lora.io import save_lora
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_transformers
from tests.checkpoints.making import SCALED
from tests.lora.test_injection import filled
from tests.tiny_transformers import PROMPTS

DRAW = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt", "height": 16, "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.save(tiny_transformers.auraflow(), tmp_path_factory.mktemp("auraflow") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Any:
    return open_backbone(folder, device="cpu")


def stock(folder: Path) -> Any:
    pipe = AuraFlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_its_images_with_a_lora_equal_those_of_the_stock_pipeline(folder: Path, backbone: Any, tmp_path: Path) -> None:
    pipe = stock(folder)
    negative = ["a large cross"] * 2
    expected = pipe(list(PROMPTS), negative_prompt=negative, latents=noise(), **DRAW).images
    images = DPTPipeline.from_backbone(backbone)(
        list(PROMPTS), negative_prompt=negative, latents=noise(), **DRAW
    ).images
    assert expected.std() > 0.01 and (images - expected).abs().max() < 1e-5
    lora = filled(backbone, SCALED)
    save_lora(lora.state(), SCALED, tmp_path / "lora", **backbone.origin("tiny"))
    tuned = DPTPipeline.from_backbone(backbone)(list(PROMPTS), negative_prompt=negative, latents=noise(), **DRAW).images
    lora.remove()
    export_checkpoint(open_checkpoint(tmp_path / "lora"), "diffusers", tmp_path / "exported")
    pipe.load_lora_weights(tmp_path / "exported")
    expected = pipe(list(PROMPTS), negative_prompt=negative, latents=noise(), **DRAW).images
    assert (tuned - images).abs().max() > 1e-4
    torch.testing.assert_close(tuned, expected, rtol=0, atol=1e-5)


def test_a_partial_forward_is_the_whole_one_through_both_kinds_of_block(backbone: Any) -> None:
    condition, z, t = backbone.encode_text(PROMPTS), noise(), torch.tensor([700.0, 300.0])
    network, kept = backbone.network, []
    hooks = [
        *(b.register_forward_hook(lambda _, __, out: kept.append(out[1])) for b in network.joint_transformer_blocks),
        *(b.register_forward_hook(lambda _, __, out: kept.append(out)) for b in network.single_transformer_blocks),
    ]
    whole = backbone.predict(z, t, condition)
    for hook in hooks:
        hook.remove()
    assert [len(tokens[0]) for tokens in kept] == [16, 16, 256 + 8 + 16, 256 + 8 + 16]
    for i, tokens in enumerate(kept):
        feature, partial = backbone.features(z, t, condition, f"block{i}")
        assert torch.equal(feature, normalise_tokens(tokens[:, -16:]).transpose(1, 2).unflatten(2, (4, 4)))
        assert torch.equal(backbone.finish(partial), whole)
        assert torch.equal(backbone.finish(partial[1:].concat(partial[:1])).flip(0), whole)


def test_gradients_stop_at_a_detached_block(backbone: Any) -> None:
    condition = backbone.encode_text(PROMPTS[:1])
    for detach_after, reaches in ((None, True), (1, False), (2, False)):
        _, partial = backbone.features(noise(1).requires_grad_(), 500, condition, "block0")
        assert backbone.finish(partial, detach_after).requires_grad == reaches
