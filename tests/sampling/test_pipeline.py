"""DPTPipeline beside StableDiffusionPipeline, and with a trained result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dpt.errors import UserError
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_models
from tests.checkpoints.making import tiny_result
from tests.tiny_models import PROMPT, SD1

OWN = {"num_inference_steps": 3, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(SD1, tmp_path_factory.mktemp("sd1") / "model")


@pytest.fixture(scope="module")
def result(folder: Path) -> Path:
    pipe = DPTPipeline.from_pretrained(folder, device="cpu")
    return tiny_result(pipe.backbone, folder.parent / "result")


@pytest.fixture(scope="module")
def pipe(folder: Path, result: Path) -> DPTPipeline:
    return DPTPipeline.from_pretrained(folder, checkpoint=result, device="cpu")


@pytest.mark.parametrize("scheduler", ["own", "euler_a"])
def test_images_equal_those_of_the_diffusers_pipeline(scheduler: str, folder: Path) -> None:
    """From the same generator, noise on the way included: two pictures each of two prompts."""
    from diffusers import EulerAncestralDiscreteScheduler

    theirs = StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    if scheduler == "euler_a":
        theirs.scheduler = EulerAncestralDiscreteScheduler.from_config(theirs.scheduler.config)
    ours = DPTPipeline.from_pretrained(folder, device="cpu", scheduler=scheduler)

    def drawn(pipeline: Any, generator: Any) -> Any:
        arguments = {"negative_prompt": ["a star", "blue"], "num_images_per_prompt": 2, "output_type": "np", **OWN}
        return pipeline([PROMPT, "two green stars"], generator=generator, **arguments).images

    def one() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    def several() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    for made in (one, several):
        expected = drawn(theirs, made())
        assert expected.shape == (4, 64, 64, 3)
        np.testing.assert_allclose(drawn(ours, made()), expected, rtol=0, atol=1e-5)


def test_output_types(pipe: DPTPipeline) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = {
        kind: pipe([PROMPT, "two stars"], latents=noise, output_type=kind, **OWN).images  # type: ignore[arg-type]
        for kind in ("pil", "np", "pt", "latent")
    }
    assert [picture.size for picture in drawn["pil"]] == [(64, 64)] * 2
    assert drawn["np"].shape == (2, 64, 64, 3) and drawn["pt"].shape == (2, 3, 64, 64)
    np.testing.assert_allclose(np.asarray(drawn["pil"][1]) / 255, drawn["np"][1], atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close((pipe.backbone.decode_latents(drawn["latent"]) / 2 + 0.5).clamp(0, 1), drawn["pt"])


def test_lora_is_applied_and_the_correction_changes_the_images(folder: Path, pipe: DPTPipeline) -> None:
    bare = DPTPipeline.from_pretrained(folder, device="cpu")

    def drawn(pipeline: DPTPipeline, **arguments: Any) -> torch.Tensor:
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        images: torch.Tensor = pipeline(PROMPT, latents=noise, output_type="latent", **OWN, **arguments).images
        return images

    tuned = drawn(pipe, correction_factor=0)
    assert (tuned - drawn(bare)).abs().max() > 1e-3
    everything = {"correction_factor": 2.0, "correction_norm": "unit", "correction_end": 0.7, "correction_every": 1}
    corrected = [drawn(pipe, correction_target=target, **everything) for target in ("state", "input", "fused")]
    for image in corrected:
        assert (image - tuned).abs().max() > 1e-3
    assert not torch.equal(corrected[0], corrected[2])
    assert torch.equal(drawn(pipe), tuned), "without generation_defaults.json nothing is corrected unless requested"
    with pytest.raises(UserError, match="a correction needs an adapter"):
        drawn(bare, correction_factor=1.0)


def test_callback_runs_at_each_step_and_may_change_the_latents(pipe: DPTPipeline) -> None:
    timesteps: list[int] = []

    def each(
        pipeline: DPTPipeline, step: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        assert pipeline is pipe and set(tensors) == {"latents"}
        timesteps.append(int(t))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    latents = pipe(PROMPT, output_type="latent", callback_on_step_end=each, **OWN).images  # type: ignore[arg-type]
    assert len(timesteps) == 4 and timesteps == sorted(timesteps, reverse=True)  # PNDM's first step takes two calls
    assert latents.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"output_type": "gif"}, "output type is one of pil, np, pt, latent, not 'gif'"),
        ({"latents": torch.zeros(1, 4, 9, 8)}, r"have the shape \(1, 4, 9, 8\), and it should be \(1, 4, 8, 8\)"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, not 0"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1 images"),
        ({"height": 63}, "the height must be divisible by 8, not 63"),
        ({"num_inference_steps": 0}, "steps must be at least 1, not 0"),
        ({"guidance_rescale": 1.5}, "rescale is between 0 and 1, not 1.5"),
        ({"guidance_start": 0.5, "guidance_end": 0.2}, "guidance is on from a start to an end"),
        ({"correction_factor": 1.0, "correction_target": "noise"}, "target is one of"),
        ({"prompt": []}, "there is no prompt"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], sentence: str, pipe: DPTPipeline) -> None:
    with pytest.raises(UserError, match=sentence):
        pipe(**{"prompt": PROMPT, **arguments})


def test_result_of_another_model_is_refused(result: Path, tmp_path: Path) -> None:
    other = tiny_models.save(SD1, tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was trained to read another model, tiny"):
        DPTPipeline.from_pretrained(other, checkpoint=result, device="cpu")
