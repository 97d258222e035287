"""Stable Diffusion XL behind the protocol: the stock pipeline's images, features, size conditions, and bad folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor

from dpt.adapter.io import load_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.base import ImageSizes
from dpt.backbone.opening import open_refiner
from dpt.backbone.rng import SampleRNG
from dpt.backbone.sdxl import SDXLBackbone
from dpt.backbone.text import prompt_warnings
from dpt.backbone.unet_features import default_feature
from dpt.data.cache.contents import latents_key
from dpt.data.example import collate
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import CAPTION, HARD, Pair
from dpt.embedded import CHECKOUT
from dpt.errors import UserError
from dpt.sampling.draw import Request, SamplingSettings, draw, refine
from dpt.sampling.options import OWN_SIZE, SizeConditions
from dpt.sampling.pipeline import DPTPipeline
from dpt.sampling.schedulers import make_scheduler
from dpt.training.tasks.denoising import DENOISED, NoiseConfig, add_noise_to_batch
from tests import tiny_models, tiny_sdxl
from tests.backbone.test_seam import members
from tests.tiny_sdxl import LATENT_SIZE, PROMPTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.save(tiny_sdxl.sdxl(), tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.save(tiny_sdxl.refiner(), tmp_path_factory.mktemp("refiner") / "model")


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


@pytest.mark.parametrize("scheduler", ["own", "dpm++", "heun"])
def test_refined_latents_equal_those_of_the_stock_pipeline(scheduler: str, backbone: Any, refiner: Path) -> None:
    second, strength = open_refiner(refiner, backbone), 0.5
    stock: Any = StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = make_scheduler(scheduler, second.scheduler_config)
    z, generator = noise(1), torch.Generator().manual_seed(3)
    expected = stock(
        PROMPTS[0], image=z, strength=strength, num_inference_steps=4, guidance_scale=4.0, generator=generator,
        negative_prompt="a large cross", output_type="latent",
    ).images  # fmt: skip
    added = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    settings = SamplingSettings(4, 4.0, scheduler)
    refined = refine(second, z, [PROMPTS[0]], ["a large cross"], added, settings, strength)
    assert (refined - expected).abs().max() < 1e-5 < (refined - z).abs().max()
    with pytest.raises(UserError, match="--refiner_strength is above 0 and below 1"):
        refine(second, z, [""], [""], added, settings, 0.1)


def test_another_vae_decodes_and_leaves_results_of_training_valid(backbone: Any, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    tiny_sdxl.vae().save_pretrained(tmp_path / "vae-fix")
    config = tmp_path / "vae-fix/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    other: Any = open_backbone(folder, device="cpu", vae=tmp_path / "vae-fix", dtype="bfloat16")
    assert (
        other.vae.dtype == torch.bfloat16
        and open_backbone(folder, device="cpu", dtype="bfloat16").vae.dtype == torch.float32
    )
    assert (other.decode_latents(noise(1)) - backbone.decode_latents(noise(1))).abs().max() > 0.01
    assert other.decode_latents(noise(1)).dtype == torch.float32 and other.model_hash == backbone.model_hash
    keys = [latents_key(each.folder, Framing(32))["vae"] for each in (backbone, other)]
    assert keys[0] != keys[1], "a cache of latents belongs to the VAE that made it"
    with pytest.raises(UserError, match=r"is not the folder of a VAE: it has no config\.json"):
        open_backbone(folder, device="cpu", vae=tmp_path)


def test_folders_that_cannot_be_opened_are_named(folder: Path, refiner: Path, backbone: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is an SDXL refiner, which only finishes the images .* as --refiner"):
        open_backbone(refiner, device="cpu")
    with pytest.raises(UserError, match="is no SDXL refiner: it has a first text encoder"):
        open_refiner(folder, backbone)
    with pytest.raises(UserError, match=r"is for Stable Diffusion XL, and the model is Stable Diffusion 1\.x"):
        open_refiner(refiner, open_backbone(tiny_models.save(tiny_models.SD1, tmp_path / "sd"), device="cpu"))

    def broken(name: str, part: str, **changes: Any) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / name))
        file = copy / part
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return copy

    unknown = broken(
        "other", "model_index.json", _class_name="KandinskyV22Pipeline", vae=None, movq=["diffusers", "VQ"]
    )
    with pytest.raises(
        UserError, match=r"is a KandinskyV22Pipeline, which dpt cannot open; it opens .*StableDiffusionXLP"
    ):
        open_backbone(unknown)
    for name, value, message in (
        ("cross_attention_dim", 33, "the UNet reads text 33 wide, the text encoders write 32"),
        ("projection_class_embeddings_input_dim", 70, r"takes a vector 70 wide, .* 16 \+ 6 x 8"),
        ("addition_time_embed_dim", "x", "addition_time_embed_dim should be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            open_backbone(broken(name, "unet/config.json", **{name: value}), device="cpu")
    with pytest.raises(UserError, match="has no text_encoder_2"):
        open_backbone(
            broken("half", "model_index.json", text_encoder_2=[None, None], _class_name="StableDiffusionXLPipeline")
        )
    kept = broken("kept", "model_index.json", force_zeros_for_empty_prompt=False)
    assert open_backbone(kept, device="cpu").model_hash != backbone.model_hash
    assert (
        open_backbone(kept, device="cpu").encode_text([""]).states.any() and not backbone.encode_text([""]).states.any()
    )


def test_warnings_name_the_encoder_that_loses_words(folder: Path, backbone: Any, tmp_path: Path) -> None:
    long = "a red circle " * 12
    assert backbone.prompt_warnings(long) == prompt_warnings(backbone.tokenizer, long, 24)
    assert "longer than 24 tokens" in backbone.prompt_warnings(long)[0]
    pipe = tiny_sdxl.sdxl()
    pipe.tokenizer_2 = tiny_models.tokenizer(words=("a", "red"))
    pipe.save_pretrained(tmp_path / "words")
    warnings = open_backbone(tmp_path / "words", device="cpu").prompt_warnings("a red circle")
    assert warnings == ["text_encoder_2: the model does not know the word 'circle'"]


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
