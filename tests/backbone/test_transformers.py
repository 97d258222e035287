"""Stable Diffusion 3 behind the protocol: the stock pipeline's images, partial forwards, time, and bad folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from dpt.adapter import Adapter
from dpt.adapter.transformer import AdapterConfig
from dpt.backbone import Backbone, NoiseSchedule, open_backbone
from dpt.backbone.mmdit import TransformerBackbone, normalise_tokens
from dpt.backbone.noise import RectifiedFlow
from dpt.backbone.rng import SampleRNG
from dpt.backbone.token_forward import attend
from dpt.checkpoints.open import describe_model
from dpt.errors import UserError
from dpt.sampling.loop import denoise
from dpt.sampling.pipeline import DPTPipeline
from dpt.sampling.schedulers import FLOW_SCHEDULERS, make_scheduler, set_steps
from dpt.training.tasks.denoising import NoiseConfig
from tests import tiny_transformers
from tests.backbone.test_seam import members
from tests.tiny_transformers import PROMPTS

SIZE = tiny_transformers.LATENT_SIZE


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "no t5"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = tiny_transformers.sd3(with_t5=request.param)
    return tiny_transformers.save(pipe, tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Any:
    return open_backbone(folder, device="cpu")


def noise(rows: int = 2, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(1))


def test_images_equal_those_of_the_stock_pipeline(folder: Path, backbone: Any) -> None:
    missing = {} if "text_encoder_3" in backbone.encoders else {"text_encoder_3": None, "tokenizer_3": None}
    stock = StableDiffusion3Pipeline.from_pretrained(folder, **missing)
    stock.set_progress_bar_config(disable=True)
    z = noise(2, SIZE, SIZE - 2)
    sizes = {"height": 2 * SIZE, "width": 2 * (SIZE - 2)}
    arguments = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pt", **sizes}
    expected = stock(list(PROMPTS), negative_prompt=["a large cross"] * 2, latents=z, **arguments).images
    images = DPTPipeline.from_backbone(backbone)(
        list(PROMPTS), negative_prompt="a large cross", latents=z, **arguments
    ).images
    assert expected.std() > 0.01 and (images - expected).abs().max() < 1e-5
    other = DPTPipeline.from_backbone(backbone)(list(PROMPTS), negative_prompt="", latents=z, **arguments).images
    assert (other - expected).abs().max() > 1e-5, "the negative prompt counts"


def test_partial_forward_equals_the_full_forward(backbone: Any) -> None:
    condition, z, t = backbone.encode_text(PROMPTS), noise(), torch.tensor([700.0, 300.0])
    whole, finished = backbone.predict(z, t, condition), []
    hooks = [
        block.register_forward_hook(lambda _, __, output: finished.append(output[1]))
        for block in backbone.network.transformer_blocks
    ]
    backbone.predict(z, t, condition)
    for hook in hooks:
        hook.remove()
    for i, tokens in enumerate(finished):
        feature, partial = backbone.features(z, t, condition, f"block{i}")
        expected = normalise_tokens(tokens).transpose(1, 2).unflatten(2, (SIZE // 2, SIZE // 2))
        assert torch.equal(feature, expected)
        assert torch.equal(backbone.finish(partial), whole)
        assert torch.equal(backbone.finish(partial[1:].concat(partial[:1])).flip(0), whole)
    joined, partial = backbone.features(z, t, condition, "block2_block0", stop_after=0)
    assert partial.done == 1 and torch.equal(backbone.finish(partial), whole)
    assert torch.equal(joined, torch.cat([backbone.features(z, t, condition, f"block{i}")[0] for i in (2, 0)], 1))
    with pytest.raises(UserError, match="this transformer has block0 to block2"):
        backbone.features(z, t, condition, "up1")


def test_a_massive_channel_hardly_changes_the_adapters_output() -> None:
    t = torch.tensor([700.0, 300.0])
    torch.manual_seed(0)
    adapter = Adapter(AdapterConfig("block0", (96,), text_width=8, hidden_dim=16, nheads=2, feature_norm=True)).eval()
    nn.init.normal_(adapter.feature_norm.film.weight, std=0.1)
    usual = torch.randn(2, 16, 96)
    massive = usual * torch.ones(96).index_fill(0, torch.tensor([5]), 1000)

    @torch.no_grad()
    def change(normalise: Callable[[Tensor], Tensor]) -> float:
        first, second = (
            adapter.match(normalise(tokens).transpose(1, 2).unflatten(2, (4, 4)), t) for tokens in (usual, massive)
        )
        return float((second - first).norm() / first.norm())

    assert change(normalise_tokens) < 0.15
    assert change(lambda tokens: tokens) > 0.4, "the adapter's own normalisation does not suffice"
    assert change(lambda tokens: layer_norm(tokens, (96,))) > 0.4, "nor does that of the blocks"


def test_no_gradient_crosses_a_detached_block(backbone: Any) -> None:
    condition, z = backbone.encode_text(PROMPTS[:1]), noise(1).requires_grad_()
    for detach_after, reaches in ((None, True), (0, False), (1, False)):
        _, partial = backbone.features(z, 500, condition, "block0")
        output = backbone.finish(partial, detach_after)
        assert output.requires_grad == reaches
    backbone.network.requires_grad_(True)
    _, partial = backbone.features(z, 500, condition, "block0")
    backbone.finish(partial, 1).sum().backward()
    with_gradient = {
        n.split(".")[1] for n, p in backbone.network.named_parameters() if p.grad is not None and "blocks" in n
    }
    backbone.network.zero_grad()
    backbone.network.requires_grad_(False)
    assert with_gradient == {"2"} and z.grad is None


def test_gradients_pass_with_checkpointing_too(backbone: Any) -> None:
    condition, gradients = backbone.encode_text(PROMPTS), []
    for checkpointing in (False, True):
        z = noise().requires_grad_()
        if checkpointing:
            backbone.network.enable_gradient_checkpointing()
        feature, partial = backbone.features(z, 500, condition, "block1")
        (feature.square().sum() + backbone.finish(partial).square().sum()).backward()
        gradients.append(z.grad)
    backbone.network.disable_gradient_checkpointing()
    torch.testing.assert_close(*gradients)


def test_the_protocols_are_complete() -> None:
    assert not [name for name in members(NoiseSchedule) if not hasattr(RectifiedFlow({}, 16), name)]
    unset = {"noise", "scheduler_config", "folder", "generation_defaults"}
    assert not [name for name in members(Backbone) - unset if not hasattr(TransformerBackbone, name)]


def test_noise_lies_on_the_line_from_image_to_noise() -> None:
    flow, z, eps, t = RectifiedFlow({}, 16), noise(), noise() + 1, torch.tensor([250.0, 900.0])
    z_t, v = flow.add_noise(z, eps, t), flow.target(z, eps, t)
    torch.testing.assert_close(z_t[0], 0.75 * z[0] + 0.25 * eps[0])
    torch.testing.assert_close(v, eps - z)
    torch.testing.assert_close(flow.x0(z_t, v, t), z)
    torch.testing.assert_close(flow.eps(z_t, v, t), eps)
    torch.testing.assert_close(flow.snr(t), torch.tensor([9.0, 1 / 81]))
    assert flow.level(1000) == 1 and flow.level(0) == 0 and flow.timestep_at(0.3) == 300


def test_training_timesteps_are_logit_normal_and_shifted() -> None:
    rng = SampleRNG(0, range(4000))
    plain, shifted = (RectifiedFlow({"shift": shift}, 16).sample_t(rng) / 1000 for shift in (1.0, 3.0))
    assert abs(float(plain.logit().mean())) < 0.1 and abs(float(plain.logit().std()) - 1) < 0.1
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert torch.equal(RectifiedFlow({}, 16).sample_t(SampleRNG(0, [7])), plain[7:8] * 1000)
    noisy = NoiseConfig(logit_mean=-1.0, logit_std=0.5).sample_t(RectifiedFlow({}, 16), rng) / 1000
    assert abs(float(noisy.logit().mean()) - 1) < 0.1 and abs(float(noisy.logit().std()) - 0.5) < 0.05
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    small, large = (RectifiedFlow(dynamic, tokens).sample_t(rng) / 1000 for tokens in (256, 4096))
    for t, mu in ((small, 0.5), (large, 1.15)):
        torch.testing.assert_close(t.logit() - plain.logit(), torch.full_like(t, mu), rtol=0, atol=1e-3)


def test_every_scheduler_integrates_a_straight_path_exactly(backbone: Any) -> None:
    start, end = noise(), torch.ones(2, 4, SIZE, SIZE)
    for name in FLOW_SCHEDULERS:
        scheduler = make_scheduler(name, backbone.scheduler_config)
        images = denoise(lambda x, t: (x - end) / (t / 1000), scheduler, start, 6, generators=[torch.Generator()] * 2)
        # The general solvers round timesteps to integers.
        torch.testing.assert_close(images, end, rtol=0, atol=5e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_names_of_other_schedulers_are_refused(backbone: Any) -> None:
    with pytest.raises(UserError, match="'pndm' is not for flow matching models; choose own, ddim, dpm"):
        make_scheduler("pndm", backbone.scheduler_config)
    scheduler = make_scheduler("own", backbone.scheduler_config)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and scheduler.shift == 3
    assert set_steps(make_scheduler("heun", backbone.scheduler_config), 4) == 7


def test_sizes_that_do_not_divide_are_refused(backbone: Any) -> None:
    assert backbone.latent_size() == (SIZE, SIZE) and backbone.latent_size(8, 12) == (4, 6)
    with pytest.raises(UserError, match="the width must be divisible by 4, not 18"):
        backbone.latent_size(16, 18)
    with pytest.raises(UserError, match="the height can be at most 16, not 20"):
        backbone.latent_size(20, 16)


def test_lora_targets_are_the_attention_of_both_streams(backbone: Any) -> None:
    targets = backbone.lora_targets(["block0"])
    assert len(targets) == 12 and {backbone.block_of(name) for name in targets} == {"block0"}  # SD3.5 has attn2 too
    assert len(backbone.lora_targets(["all"])) == 12 + 8 + 7  # the last block's text goes no further
    with pytest.raises(UserError, match="no block 'up' for a LoRA; this transformer has all, and block0 to block2"):
        backbone.lora_targets(["up"])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_folders_that_cannot_be_opened_are_named(folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    broken = copy("widths")
    edit(broken / "transformer/config.json", pooled_projection_dim=20)
    with pytest.raises(UserError, match="do not fit: the transformer reads pooled text 20 wide, not 14"):
        open_backbone(broken)
    unknown = copy("unknown")
    edit(unknown / "model_index.json", transformer=["diffusers", "CogView4Transformer2DModel"], _class_name="CogView4")
    with pytest.raises(
        UserError, match=r"CogView4Transformer2DModel, which dpt cannot open; .*StableDiffusion3Pipeline"
    ):
        open_backbone(unknown)
    ddpm = copy("scheduler")
    edit(ddpm / "scheduler/scheduler_config.json", _class_name="DDIMScheduler")
    with pytest.raises(UserError, match="is a DDIMScheduler, and its transformer needs a flow matching one"):
        open_backbone(ddpm)
    with pytest.raises(UserError, match="--prediction_type is for Stable Diffusion"):
        open_backbone(folder, prediction_type="epsilon")
    half = copy("half")
    shutil.rmtree(half / "text_encoder_2")
    with pytest.raises(UserError, match="has no text_encoder_2: the sub-folder is missing"):
        open_backbone(half)


def test_copy_has_the_same_identity_and_another_text_encoder_changes_it(
    folder: Path, backbone: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy / "scheduler/scheduler_config.json", _diffusers_version="0.1.0")
    assert open_backbone(copy).model_hash == backbone.model_hash
    edit(copy / "text_encoder_2/config.json", hidden_act="gelu")
    assert open_backbone(copy).model_hash != backbone.model_hash


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("transformer", "patch_size", 0), ("transformer", "num_layers", "three"), ("transformer", "sample_size", 2.5),
        ("transformer", "num_attention_heads", 10**9), ("text_encoder_2", "projection_dim", None),
        ("scheduler", "shift", "much"), ("scheduler", "num_train_timesteps", 0),
    ],
)  # fmt: skip
def test_configs_with_impossible_values_are_refused(
    file: str, key: str, value: Any, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    name = "scheduler_config" if file == "scheduler" else "config"
    edit(copy / file / f"{name}.json", **{key: value})
    with pytest.raises(UserError) as raised:
        open_backbone(copy, device="cpu")
    assert key in str(raised.value) or file in str(raised.value)
    if file == "transformer":
        with pytest.raises(UserError, match=key):
            describe_model(copy)


@pytest.mark.parametrize("raised", [None, 5.5])
def test_attention_for_gradients_equals_the_fused_one(raised: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    scores = None if raised is None else torch.cat([torch.zeros(1, 1, 1, 6), torch.full((1, 1, 1, 1), raised)], dim=3)
    outputs, gradients = [], []
    for attention in (attend, torch.nn.functional.scaled_dot_product_attention):
        inputs = [part.clone().requires_grad_() for part in (queries, keys, values)]
        outputs.append(attention(*inputs, scores))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), inputs))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        fused = attend(queries, keys, values, scores)
    assert torch.equal(fused, torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scores))
