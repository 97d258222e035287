"""Stable Diffusion XL behind the protocol: the stock pipeline's images, features, size conditions, and bad folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from dpt.adapter.io.native import load_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.base import ImageSizes
from dpt.backbone.rng import SampleRNG
from dpt.backbone.sdxl import SDXLBackbone
from dpt.backbone.unet_features import default_feature
from dpt.data.example import collate
from dpt.data.images import Framing
from dpt.data.pairs import CAPTION, HARD, Pair
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.embedded import CHECKOUT
from dpt.errors import UserError
from dpt.sampling.draw import Request, SamplingSettings, draw
from dpt.sampling.options import OWN_SIZE, SizeConditions
from dpt.sampling.pipeline import DPTPipeline
from dpt.sampling.schedulers import make_scheduler
from dpt.training.tasks.denoising import DENOISED, NoiseConfig, add_noise_to_batch
from tests import tiny_sdxl
from tests.backbone.test_seam import members
from tests.tiny_sdxl import LATENT_SIZE, PROMPTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.save(tiny_sdxl.sdxl(), tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Any:
    return open_backbone(folder, device="cpu")


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(rows: int = 2, height: int = LATENT_SIZE, width: int = LATENT_SIZE) -> Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("scheduler", "negative", "count"),
    [("own", None, 1), ("ddim", "a large cross", 2), ("dpm++", None, 2), ("unipc", "a large cross", 1)],
)
def test_images_equal_those_of_the_stock_pipeline(
    scheduler: str, negative: str | None, count: int, stock: Any, backbone: Any
) -> None:
    stock.scheduler = make_scheduler(scheduler, backbone.scheduler_config)
    z, prompts = noise(count, LATENT_SIZE, 6), list(PROMPTS[:count])
    arguments = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "pt", "height": 32, "width": 24}
    negatives = None if negative is None else [negative] * count
    expected = stock(prompts, negative_prompt=negatives, latents=z, **arguments).images
    images = DPTPipeline.from_backbone(backbone, scheduler=scheduler)(
        prompts, negative_prompt=negative, latents=z, **arguments
    ).images
    assert expected.std() > 0.01
    assert (images - expected).abs().max() < 1e-5


def test_size_conditions_are_those_of_the_stock_pipeline(stock: Any, backbone: Any) -> None:
    stock.scheduler = make_scheduler("own", backbone.scheduler_config)
    arguments = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt", "latents": noise(1)}
    sizes = {"original_size": (20, 50), "crops_coords_top_left": (3, 9), "target_size": (70, 40)}
    expected = stock(PROMPTS[0], **arguments, **sizes).images
    pipe = DPTPipeline.from_backbone(backbone)
    images = pipe(PROMPTS[0], **arguments, **sizes).images
    assert (images - expected).abs().max() < 1e-5
    assert (pipe(PROMPTS[0], **arguments).images - expected).abs().max() > 1e-4
    request, settings = Request(PROMPTS[0], 0, 0), SamplingSettings(2, 4.0)
    drawn = [
        next(draw(backbone, [request], replace(settings, sizes=own))) for own in (OWN_SIZE, SizeConditions((9, 9)))
    ]
    assert not torch.equal(*drawn)
    with pytest.raises(UserError, match="the target_size must be two sides from 1 to 65536, not 0 5"):
        SizeConditions(target_size=(0, 5))


def test_training_conditions_on_the_sizes_of_each_image(backbone: Any) -> None:
    squashed, cropped = (Framing.for_model(backbone, 32, center_crop=crop) for crop in (False, True))
    assert squashed.sizes((80, 64)) == ImageSizes((64, 80), (32, 32))
    assert cropped.sizes((80, 64)) == ImageSizes((64, 80), (32, 32), (0, 4))
    batch = collate([SceneSource(POCKET_WORLD, 0, "train", squashed).example(index) for index in range(2)])
    small = replace(batch, sizes=torch.full_like(batch.sizes, 8.0))
    pairs, rng = (DENOISED, Pair(HARD, CAPTION)), SampleRNG(0, range(2))
    side = float(POCKET_WORLD.image_size)
    conditions = [add_noise_to_batch(backbone, b, pairs, rng, NoiseConfig()).inputs(pairs) for b in (batch, small)]
    assert conditions[0][2].time_ids.tolist() == [[side, side, 0, 0, 32, 32]] * 4
    assert (
        conditions[1][2].time_ids[:2].eq(8).all()
        and conditions[1][2].time_ids[2:].eq(conditions[0][2].time_ids[2:]).all()
    )
    outputs = [backbone.predict(*inputs) for inputs in conditions]
    assert (outputs[0] - outputs[1])[:2].abs().max() > 1e-5 and torch.equal(outputs[0][2:], outputs[1][2:])


def test_partial_forward_equals_the_full_forward(backbone: Any) -> None:
    condition, z, t = backbone.encode_text(PROMPTS), noise(), torch.tensor([700, 300])
    outputs: dict[str, Tensor] = {}
    blocks = {
        "bottom1": backbone.unet.down_blocks[1],
        "up0": backbone.unet.up_blocks[0],
        "up1": backbone.unet.up_blocks[1],
    }
    hooks = [
        block.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output[0] if isinstance(output, tuple) else output})
        )
        for name, block in blocks.items()
    ]
    whole = backbone.predict(z, t, condition)
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        feature, partial = backbone.features(z, t, condition, name)
        assert torch.equal(feature, output)
        assert torch.equal(backbone.finish(partial), whole)
        assert torch.equal(backbone.finish(partial[1:].concat(partial[:1])).flip(0), whole)
    assert len(outputs) == 3 and backbone.default_feature == "up0"
    assert backbone.feature_spec("up0").channels == (16,) and backbone.feature_grid("up0") == (4, 4)


def test_the_default_feature_is_the_published_one_and_up0_of_xl(backbone: Backbone) -> None:
    shipped = json.loads((CHECKOUT / "ckpt/pocket/unet/config.json").read_text())
    assert (
        default_feature(shipped)
        == load_adapter(CHECKOUT / "ckpt/pocket-stage1/adapter")[1].config.unet_feature
        == "up1"
    )
    assert backbone.default_feature == "up0"


def test_the_protocol_is_complete() -> None:
    unset = {"noise", "scheduler_config", "folder", "generation_defaults"}
    assert not [name for name in members(Backbone) - unset if not hasattr(SDXLBackbone, name)]
