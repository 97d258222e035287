"""The loop and classifier-free guidance, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from dpt.backbone import Backbone, Condition, open_backbone
from dpt.backbone.noise import DDPMSchedule
from dpt.sampling.guidance import classifier_free, combine, conditional, guides_at
from dpt.sampling.loop import denoise
from dpt.sampling.options import Guidance, Interval
from dpt.sampling.schedulers import make_scheduler
from tests import tiny_models
from tests.tiny_models import POCKET, PROMPT, SD1, TinyModel

REFERENCE = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}
PROMPTS = [PROMPT, "two green stars"]
STEPS = 4


@pytest.fixture(scope="module", params=[SD1, POCKET], ids=lambda model: model.name)
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StableDiffusionPipeline, Backbone]:
    model: TinyModel = request.param
    folder = tiny_models.save(model, tmp_path_factory.mktemp(model.name) / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, open_backbone(folder, device="cpu")


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("scheduler", REFERENCE)
def test_guided_sampling_equals_the_pipeline(
    scheduler: str, rescale: float, models: tuple[StableDiffusionPipeline, Backbone]
) -> None:
    pipeline, backbone = models
    noise = torch.randn(2, 4, *backbone.default_latent_size, generator=torch.Generator().manual_seed(3))
    # PNDM does not say whether to clip; for latents the answer is no, whatever DDIM assumes.
    unclipped = {"clip_sample": False} if scheduler == "ddim" else {}
    pipeline.scheduler = REFERENCE[scheduler].from_config(backbone.scheduler_config, **unclipped)
    last: dict[str, torch.Tensor] = {}
    expected = pipeline(
        PROMPTS,
        negative_prompt=["a red star"] * 2,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        guidance_rescale=rescale,
        output_type="pt",
        callback_on_step_end=lambda pipe, step, t, tensors: last.update(tensors) or {},
    ).images
    condition = backbone.encode_text(PROMPTS)
    negative = backbone.encode_text(["a red star"] * 2)
    latents = denoise(
        classifier_free(backbone.predict, condition, negative, 5.0, rescale=rescale),
        make_scheduler(scheduler, backbone.scheduler_config),
        noise,
        STEPS,
    )
    assert latents.std() > 0.1
    torch.testing.assert_close(latents, last["latents"], rtol=0, atol=1e-5)
    ours = (backbone.decode_latents(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def constant(*shape: int, value: float = 0.0) -> Condition:
    states = torch.full(shape, value)
    return Condition(states, states[:, 0])


def test_guidance_extrapolates_linearly() -> None:
    def predict(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return x * condition.states.mean(dim=(1, 2)).reshape(-1, 1, 1, 1) + t

    x, t = torch.randn(2, 4, 3, 3), torch.tensor(7)
    condition, negative = constant(2, 5, 6, value=2.0), constant(2, 5, 6, value=3.0)
    at = {scale: classifier_free(predict, condition, negative, scale)(x, t) for scale in (0.0, 1.0, 4.0)}
    torch.testing.assert_close(at[0.0], conditional(predict, negative)(x, t))
    torch.testing.assert_close(at[1.0], conditional(predict, condition)(x, t))
    torch.testing.assert_close(at[4.0], 3 * x + 7 + 4 * (2 * x - 3 * x))


def test_no_guidance_costs_one_prediction_per_image() -> None:
    batch_sizes = []

    def predict(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        batch_sizes.append(len(x))
        return x

    condition = constant(3, 2, 2)
    for scale in (1.0, 2.0):
        classifier_free(predict, condition, condition, scale)(torch.zeros(3, 4, 2, 2), torch.tensor(0))
    assert batch_sizes == [3, 6]


def test_guidance_rescale_restores_the_standard_deviation_per_image() -> None:
    """Lin et al. 2023, equations 15 and 16."""
    negative, positive = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    guided = negative + 9 * (positive - negative)
    torch.testing.assert_close(combine(negative, positive, 9), guided)
    brought_back = combine(negative, positive, 9, 1.0)
    for row in range(2):
        torch.testing.assert_close(brought_back[row].std(), positive[row].std())
        torch.testing.assert_close(brought_back[row] / brought_back[row].norm(), guided[row] / guided[row].norm())
    torch.testing.assert_close(combine(negative, positive, 9, 0.3), 0.3 * brought_back + 0.7 * guided)


def test_guidance_is_limited_to_its_interval() -> None:
    """In steps: DDIM's are evenly spread, so half of the noise levels are half of the steps."""
    num_predictions: list[int] = []

    def predict(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        num_predictions.append(len(x))
        return torch.zeros_like(x)

    condition = constant(1, 2, 2)
    for spacing in ("leading", "trailing"):
        for start, end, expected in ((0.0, 1.0, [2] * 10), (0.3, 0.5, [1] * 3 + [2] * 2 + [1] * 5)):
            num_predictions.clear()
            when = guides_at(Guidance(5.0, Interval(start, end)), DDPMSchedule({}))
            scheduler = make_scheduler("ddim", {"timestep_spacing": spacing})
            denoise(
                classifier_free(predict, condition, condition, 5.0, when=when), scheduler, torch.randn(1, 4, 2, 2), 10
            )
            assert num_predictions == expected


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "heun", "unipc"])
def test_last_step_reaches_the_clean_latents(scheduler: str) -> None:
    """With the true noise as prediction they must return z_0 itself, not a latent one step short of it."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    clean = torch.randn(1, 4, 8, 8) * 3
    abar = make_scheduler("ddim", config).alphas_cumprod
    calls = []

    def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t)
        a = abar[t.long()]
        return (x - a.sqrt() * clean) / (1 - a).sqrt()

    made = make_scheduler(scheduler, {**config, "timestep_spacing": "leading"})
    torch.testing.assert_close(denoise(oracle, made, torch.randn(1, 4, 8, 8), 10), clean, atol=2e-3, rtol=0)
    assert len(calls) == len(made.timesteps)


def test_last_step_ends_at_the_first_alpha_of_the_schedule() -> None:
    """Not at one that a negative timestep picks from its other end, where almost only noise is left."""
    scheduler = make_scheduler("ddim", {"beta_schedule": "scaled_linear", "set_alpha_to_one": False})
    a = scheduler.alphas_cumprod
    z = torch.randn(1, 4, 4, 4)
    scheduler.set_timesteps(50)
    last = int(scheduler.timesteps[-1])
    assert last - 1000 // 50 < 0
    end = denoise(lambda x, t: torch.zeros_like(x), make_scheduler("ddim", scheduler.config), z, 50)
    torch.testing.assert_close(end, z * (a[0] / a[scheduler.timesteps[0]]).sqrt())


def test_loop_disables_gradients_and_a_denoiser_may_enable_them() -> None:
    scheduler = make_scheduler("ddim", {})
    gradients = []

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            free = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad((free**2).sum(), free)
        gradients.append(slope)
        return x

    weight = torch.randn(1, 4, 2, 2, requires_grad=True)
    latents = denoise(denoiser, scheduler, weight, 2)
    assert not latents.requires_grad
    assert len(gradients) == 2 and gradients[0].abs().sum() > 0


def test_on_step_is_called_once_per_call_of_the_denoiser(tmp_path: Path) -> None:
    for name in ("ddim", "heun", "pndm"):
        calls, steps = [], []
        scheduler = make_scheduler(name, {})
        denoise(
            lambda x, t, calls=calls: calls.append(t) or x,
            scheduler,
            torch.randn(1, 4, 2, 2),
            4,
            on_step=lambda steps=steps: steps.append(1),
        )
        assert len(steps) == len(calls) == len(scheduler.timesteps)
