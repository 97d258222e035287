"""Backbone on the four configurations, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from dpt.backbone import Backbone, open_backbone
from dpt.backbone import device as devices
from dpt.errors import UserError
from tests import tiny_models
from tests.tiny_models import POCKET, PROMPT, SD1, SD2_V, TinyModel


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("models")
    for model in tiny_models.ALL:
        tiny_models.save(model, parent / model.name)
    return parent


@pytest.fixture(scope="module", params=tiny_models.ALL, ids=lambda model: model.name)
def case(request: pytest.FixtureRequest, folders: Path) -> tuple[TinyModel, Backbone]:
    return request.param, open_backbone(folders / request.param.name, device="cpu")


def test_properties_are_read_from_the_configs(case: tuple[TinyModel, Backbone]) -> None:
    model, backbone = case
    factor = 2 ** (len(model.vae_widths) - 1)
    assert backbone.noise.prediction_type == model.prediction_type
    assert backbone.text_width == model.text_width
    assert backbone.latent_channels == 4
    assert backbone.vae_scale_factor == factor
    assert backbone.default_image_size == (model.latent_size * factor,) * 2
    assert backbone.prompt_length == model.prompt_length


def test_all_parameters_are_frozen(case: tuple[TinyModel, Backbone]) -> None:
    _, backbone = case
    for part in (backbone.text_encoder, backbone.vae, backbone.unet):
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())


def test_text_states_equal_those_of_diffusers(case: tuple[TinyModel, Backbone]) -> None:
    model, backbone = case
    prompts = [PROMPT, "", "a red dragon 7"]
    expected, _ = tiny_models.pipeline(model).encode_prompt(prompts, "cpu", 1, False)
    text = backbone.encode_text(prompts)
    torch.testing.assert_close(text.states, expected, rtol=0, atol=1e-6)
    assert text.match.shape == (3, model.text_width)


def test_match_is_the_state_at_the_end_token_even_after_an_unknown_word(
    case: tuple[TinyModel, Backbone],
) -> None:
    _, backbone = case
    # "7" becomes the unknown token, which for CLIP tokenizers is the end token: it must not end the prompt.
    text = backbone.encode_text(["a red 7 circle", "a red circle"])
    for row, end in ((0, 5), (1, 4)):
        assert torch.equal(text.match[row], text.states[row, end])


def test_match_agrees_with_the_pooled_output_of_transformers(folders: Path) -> None:
    backbone = open_backbone(folders / "sd2-base", device="cpu")
    tokens = backbone.tokenizer(PROMPT, padding="max_length", max_length=24, return_tensors="pt")
    expected = backbone.text_encoder(tokens.input_ids).pooler_output
    torch.testing.assert_close(backbone.encode_text([PROMPT]).match, expected, rtol=0, atol=0)


def test_latents_use_the_configured_scaling(case: tuple[TinyModel, Backbone]) -> None:
    model, backbone = case
    images = torch.rand(2, 3, *backbone.default_image_size) * 2 - 1
    posterior = backbone.vae.encode(images).latent_dist
    latents = backbone.encode_images(images)
    torch.testing.assert_close(latents, posterior.mean * model.scaling_factor)
    torch.testing.assert_close(
        backbone.decode_latents(latents), backbone.vae.decode(posterior.mean).sample, rtol=1e-4, atol=1e-5
    )


def test_shift_factor_is_used_in_encode_and_decode(folders: Path) -> None:
    backbone = open_backbone(folders / "pocket", device="cpu")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    plain = backbone.encode_images(images)
    backbone.vae.register_to_config(shift_factor=0.5)
    shifted = backbone.encode_images(images)
    torch.testing.assert_close(shifted, plain - 0.5 * POCKET.scaling_factor)
    torch.testing.assert_close(
        backbone.decode_latents(shifted),
        backbone.vae.decode(plain / POCKET.scaling_factor).sample,
        rtol=1e-4,
        atol=1e-5,
    )


def test_sampled_latent_depends_only_on_its_generator(folders: Path) -> None:
    backbone = open_backbone(folders / "pocket", device="cpu")
    images = torch.rand(2, 3, 64, 64) * 2 - 1

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    both = backbone.encode_images(images, [generator(1), generator(2)])
    second = backbone.encode_images(images[1:], [generator(2)])
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-4)
    assert not torch.allclose(both, backbone.encode_images(images), atol=1e-2)


def test_noise_and_target_equal_those_of_diffusers(case: tuple[TinyModel, Backbone]) -> None:
    _, backbone = case
    expected_target = {
        key: backbone.scheduler_config[key]
        for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    }
    reference = DDPMScheduler(**expected_target)
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([0, 400, 999])
    torch.testing.assert_close(
        backbone.noise.add_noise(latents, noise, t), reference.add_noise(latents, noise, t), rtol=1e-5, atol=1e-6
    )
    velocity = reference.get_velocity(latents, noise, t)
    expected = velocity if backbone.noise.prediction_type == "v_prediction" else noise
    torch.testing.assert_close(backbone.noise.target(latents, noise, t), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [SD1, SD2_V], ids=lambda model: model.name)
def test_the_prediction_type_can_be_overridden(model: TinyModel, folders: Path) -> None:
    backbone = open_backbone(folders / model.name, device="cpu", prediction_type="sample")
    latents, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert backbone.noise.target(latents, noise, torch.tensor([5])) is latents
    assert backbone.scheduler_config["prediction_type"] == "sample"
    with pytest.raises(UserError, match="'nonsense' is not one of epsilon"):
        open_backbone(folders / model.name, device="cpu", prediction_type="nonsense")


def test_prediction_equals_the_unets_and_passes_gradients_to_its_input(
    case: tuple[TinyModel, Backbone],
) -> None:
    _, backbone = case
    latents = torch.randn(2, 4, *backbone.default_latent_size, requires_grad=True)
    condition = backbone.encode_text([PROMPT, ""])
    predicted = backbone.predict(latents, torch.tensor([10, 700]), condition)
    expected = backbone.unet(latents, torch.tensor([10, 700]), condition.states).sample
    assert torch.equal(predicted, expected)
    predicted.sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_float16_on_a_cpu_warns_and_runs_in_float32(folders: Path) -> None:
    with pytest.warns(UserWarning, match="float16 is slow and coarse on a CPU"):
        backbone = open_backbone(folders / "pocket", device="cpu", dtype="float16")
    assert backbone.dtype == torch.float32


def test_bfloat16_runs_on_cpus_that_support_it(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_supports_bfloat16", lambda: True)
    backbone = open_backbone(folders / "pocket", device="cpu", dtype="bf16")
    assert backbone.dtype == torch.bfloat16 and backbone.vae.dtype == torch.float32
    text = backbone.encode_text([PROMPT])
    assert backbone.features(torch.randn(1, 4, 16, 16), 3, text, "up0")[0].dtype == torch.float32
    monkeypatch.setattr(devices, "cpu_supports_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="bfloat16 is slow and coarse on a CPU"):
        assert open_backbone(folders / "pocket", device="cpu", dtype="bf16").dtype == torch.float32


def test_half_precision_files_open_as_float32(tmp_path: Path) -> None:
    tiny_models.pipeline(POCKET).to(dtype=torch.float16).save_pretrained(tmp_path / "half")
    backbone = open_backbone(tmp_path / "half", device="cpu")
    assert {weight.dtype for weight in backbone.unet.parameters()} == {torch.float32}
    assert backbone.vae.dtype == backbone.text_encoder.dtype == torch.float32


def test_image_and_latent_sizes(folders: Path) -> None:
    backbone = open_backbone(folders / "pocket", device="cpu")
    assert backbone.latent_size() == (16, 16)
    assert backbone.latent_size(32, None) == (8, 16)
    with pytest.raises(UserError, match="the width must be divisible by 4, not 30"):
        backbone.latent_size(32, 30)
    with pytest.raises(UserError, match="the height must be positive, not 0"):
        backbone.latent_size(0, 32)


def test_gradient_attention_computes_the_same(tmp_path: Path) -> None:
    backbone = open_backbone(tiny_models.save(tiny_models.SD2_BASE, tmp_path), device="cpu")
    z, condition = torch.randn(2, 4, 8, 8), backbone.encode_text(["a red circle", "a star"])
    before = backbone.predict(z, 500, condition)
    backbone.prepare_for_gradients()
    torch.testing.assert_close(backbone.predict(z, 500, condition), before, rtol=1e-4, atol=1e-5)
