"""DPTPipeline does what a pipeline of diffusers does: the behaviours that diffusers tests of its own pipelines."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback

from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.errors import UserError
from dpt.generation_defaults import write_defaults
from dpt.sampling.draw import Request, SamplingSettings, draw, initial_noise
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_models, tiny_transformers
from tests.checkpoints.making import tiny_result
from tests.tiny_models import PROMPT, SD1

OTHER = "two green stars"
CALL = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(SD1, tmp_path_factory.mktemp("sd1") / "model")


@pytest.fixture(scope="module")
def result(folder: Path) -> Path:
    result = tiny_result(opened(folder).backbone, folder.parent / "result")
    correction = {"strength": 1.0, "target": "fused", "norm": "rms", "end": 0.9}
    write_defaults(result, {"guidance_scale": 4.0, "correction": correction})
    return result


def opened(folder: Path, **arguments: Any) -> Any:
    pipe = DPTPipeline.from_pretrained(folder, device="cpu", **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(folder: Path) -> Any:
    return opened(folder)


@pytest.fixture
def stock(folder: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe: Any, prompt: Any = PROMPT, seed: int = 3, **arguments: Any) -> Any:
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **{**CALL, **arguments}).images


def same(first: Any, second: Any, atol: float = 1e-5) -> bool:
    return bool(np.abs(first - second).max() <= atol)


def test_arguments_of_the_stock_pipeline_mean_the_same(ours: Any, stock: Any) -> None:
    known = set(inspect.signature(StableDiffusionPipeline.__call__).parameters) - {"kwargs"}
    assert known <= set(inspect.signature(DPTPipeline.__call__).parameters)
    embeds = dict(
        zip(
            ("prompt_embeds", "negative_prompt_embeds"), stock.encode_prompt(PROMPT, "cpu", 1, True, OTHER), strict=True
        )
    )
    plain = images(stock)
    assert same(images(ours), plain)
    for pipe in (ours, stock):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    for arguments in (
        {"eta": 1.0},
        {"guidance_scale": 0.5},
        {"guidance_rescale": 0.7, "num_images_per_prompt": 2},
        {"prompt": [PROMPT, OTHER], "negative_prompt": [OTHER, ""], "height": 72, "width": 64},
        {"prompt": None, **embeds},
        {"callback": lambda *_: None, "callback_steps": 1},  # known to the stock pipeline only
    ):
        expected = images(stock, **{"prompt": PROMPT, **arguments})
        assert same(images(ours, **{"prompt": PROMPT, **arguments}), expected), arguments
    encoder, read = stock.text_encoder, {"padding": "max_length", "return_tensors": "pt"}
    for name, prompt in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", "")):
        hidden = encoder(stock.tokenizer(prompt, **read).input_ids, output_hidden_states=True).hidden_states
        embeds[name] = encoder.final_layer_norm(hidden[-2])  # clip_skip of the stock pipeline raises today
    assert same(images(ours, clip_skip=1), images(stock, None, **embeds))
    for pipe in (ours, stock):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert same(images(ours, timesteps=[801, 501, 101]), images(stock, timesteps=[801, 501, 101]))
    assert same(images(ours, sigmas=[9.0, 2.0, 0.5]), images(stock, sigmas=[9.0, 2.0, 0.5]))


def test_images_are_those_of_txt2img_to_the_bit(ours: Any) -> None:
    request = Request(PROMPT, seed=5, index=2)
    (drawn,) = draw(ours.backbone, [request], SamplingSettings(3, 4.0, "own"))
    noise = initial_noise(ours.backbone, [request], ours.backbone.latent_size())
    image = ours(PROMPT, num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="pt").images
    assert torch.equal(image[0], (drawn / 2 + 0.5).clamp(0, 1))


def test_an_image_does_not_depend_on_its_batch(folder: Path, result: Path) -> None:
    pipe = opened(folder, checkpoint=result)
    seeds = (1, 2, 3)
    batch = pipe([PROMPT, OTHER, PROMPT], generator=[torch.Generator().manual_seed(s) for s in seeds], **CALL).images
    for number, seed in enumerate(seeds):
        alone = images(pipe, (PROMPT, OTHER, PROMPT)[number], seed)
        assert same(alone[0], batch[number], 1e-4)
    output = pipe(PROMPT, generator=torch.Generator().manual_seed(1), return_dict=False, **CALL)
    assert len(output) == 2 and output[1] is None and same(output[0][0], batch[0], 1e-4)


def test_a_saved_pipeline_opens_with_its_adapter_and_in_the_stock_pipeline(
    folder: Path, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = opened(folder, checkpoint=result)
    corrected, tuned = images(pipe), images(pipe, correction_factor=0)
    assert not same(corrected, tuned) and not same(tuned, images(opened(folder)))
    for _ in range(2):  # a second time over itself
        pipe.save_pretrained(tmp_path / "saved")
    again = opened(tmp_path / "saved")
    assert again.adapter is not None and again.defaults == pipe.defaults
    assert same(images(again), corrected, 0) and same(images(again, correction_factor=0), tuned, 0)
    assert same(images(StableDiffusionPipeline.from_pretrained(tmp_path / "saved")), tuned)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    custom = {"custom_pipeline": str(tmp_path / "saved"), "trust_remote_code": True}
    assert same(images(DiffusionPipeline.from_pretrained(tmp_path / "saved", **custom)), corrected)
    assert same(images(opened(tmp_path / "saved", safety_checker=None, variant=None)), corrected)


def test_pipelines_are_made_from_each_other(folder: Path, result: Path, stock: Any) -> None:
    plain = images(stock)
    pipe = DPTPipeline.from_pipe(stock, checkpoint=result)
    assert isinstance(pipe, StableDiffusionPipeline) and pipe.unet is stock.unet
    assert pipe.components.keys() == stock.components.keys()
    corrected, tuned = images(pipe), images(stock)
    assert not same(tuned, plain) and not same(corrected, tuned), "the LoRA is in the shared UNet"
    assert same(images(pipe, correction_factor=0), tuned)
    assert same(images(StableDiffusionPipeline.from_pipe(pipe)), tuned)
    assert same(images(DPTPipeline.from_pipe(pipe)), corrected, 0)
    assert same(images(type(pipe)(**pipe.components, requires_safety_checker=False)), tuned)


def test_a_component_can_be_replaced(ours: Any, stock: Any, tmp_path: Path) -> None:
    before = images(ours)
    other = StableDiffusionPipeline.from_pretrained(tiny_models.save(SD1, tmp_path / "other", seed=1))
    for pipe in (ours, stock):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe.unet = other.unet
    assert same(images(ours), images(stock)) and not same(images(ours), before)
    ours.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match=r"has no use for a flow matching scheduler, and pipe.scheduler is a FlowMatch"):
        images(ours)


def test_callbacks_get_and_change_tensors_and_guidance(ours: Any, stock: Any) -> None:
    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    seen: list[Any] = []

    def look(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return tensors

    watched = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
    assert same(images(ours, **watched), images(ours))
    images(stock, **watched)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :] and set(seen[0]) == set(names)

    def stronger(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale += 1.0
        return tensors

    for callback in (stronger, SDCFGCutoffCallback(None, cutoff_step_index=1)):
        expected = images(stock, callback_on_step_end=callback, num_inference_steps=3)
        assert same(images(ours, callback_on_step_end=callback, num_inference_steps=3), expected)
        assert ours.guidance_scale == stock.guidance_scale and not same(expected, images(stock, num_inference_steps=3))

    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 0
        return tensors

    stopped = images(ours, callback_on_step_end=stop, output_type="latent")
    assert torch.allclose(stopped, images(stock, callback_on_step_end=stop, output_type="latent"), atol=1e-5)


def test_offloading_changes_nothing(folder: Path, result: Path) -> None:
    """Model by model; offloading layer by layer does not run on a CPU, in the stock pipeline either."""
    pipe = opened(folder, checkpoint=result)
    expected = images(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert same(images(pipe), expected) and same(images(pipe), expected)


def test_slicing_tiling_and_dtype(ours: Any) -> None:
    two = images(ours, [PROMPT, OTHER])
    ours.vae.enable_slicing()
    ours.enable_attention_slicing()
    assert same(images(ours, [PROMPT, OTHER]), two, 1e-4)
    assert ours.to("cpu", torch.bfloat16) is ours
    assert ours.dtype == ours.unet.dtype == torch.bfloat16 and ours.vae.dtype == torch.float32
    assert same(images(ours, [PROMPT, OTHER]), two, 0.2)
    ours.vae.to(torch.bfloat16)
    assert np.isfinite(images(ours)).all()


def test_lora_files_load_scale_and_unload(folder: Path, result: Path, tmp_path: Path) -> None:
    export_checkpoint(open_checkpoint(result), "diffusers", tmp_path / "exported")
    merged, pipe = images(opened(folder, checkpoint=result), correction_factor=0), opened(folder)
    plain = images(pipe)
    pipe.load_lora_weights(tmp_path / "exported")
    assert same(images(pipe), merged, 1e-4) and not same(merged, plain, 1e-4)
    assert same(images(pipe, cross_attention_kwargs={"scale": 0.0}), plain)
    pipe.unload_lora_weights()
    assert same(images(pipe), plain)


def test_unusable_arguments_are_refused(folder: Path, result: Path, tmp_path: Path) -> None:
    pipe = opened(folder, checkpoint=result)
    embeds, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
    with pytest.warns(UserWarning, match="no self-correction: it needs the prompt"):
        images(pipe, None, prompt_embeds=embeds)
    for arguments, sentence in (
        ({"prompt": None, "prompt_embeds": embeds, "correction_factor": 1.0}, "give prompt, not prompt_embeds"),
        ({"prompt_embeds": embeds}, "give prompt or prompt_embeds, not both"),
        ({"prompt": None, "prompt_embeds": embeds[..., :5], "correction_factor": 0}, "and this model needs"),
        ({"callback": print}, "callback cannot be combined with self-correction"),
        ({"timesteps": [801], "sigmas": [1.0]}, "timesteps or sigmas, not both"),
        ({"timesteps": [801, 1]}, "PNDMScheduler takes no timesteps"),
        ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["x"]}, "there is no tensor 'x'"),
        ({"prompt": [PROMPT, 3]}, "prompt must be a string or a list of strings"),
    ):
        with pytest.raises(UserError, match=sentence):
            images(pipe, **{"prompt": PROMPT, **arguments})
    with pytest.raises(TypeError, match="unexpected keyword argument 'promt'"):
        images(pipe, promt=PROMPT)
    unsaved = StableDiffusionPipeline(**opened(folder).components, requires_safety_checker=False)
    unsaved.unet.register_to_config(_name_or_path=None)
    with pytest.raises(UserError, match="was trained to read another model"):
        DPTPipeline.from_pipe(unsaved, checkpoint=result)
    assert same(images(DPTPipeline.from_pipe(unsaved)), images(opened(folder)))


def test_a_transformer_pipeline_does_the_same(tmp_path: Path) -> None:
    folder = tiny_transformers.save(tiny_transformers.sd3(with_t5=False), tmp_path / "sd3")
    missing = {"text_encoder_3": None, "tokenizer_3": None}
    stock, ours = StableDiffusion3Pipeline.from_pretrained(folder, **missing), opened(folder)
    stock.set_progress_bar_config(disable=True)
    plain = images(stock)
    shared = DPTPipeline.from_pipe(stock)
    assert isinstance(shared, StableDiffusion3Pipeline) and shared.transformer is stock.transformer
    for pipe in (ours, shared, stock, StableDiffusion3Pipeline.from_pipe(ours)):
        assert same(images(pipe), plain, 1e-4)
    ours.save_pretrained(tmp_path / "saved")
    assert same(images(opened(tmp_path / "saved")), plain)
    states, negative, pooled, negative_pooled = stock.encode_prompt(PROMPT, None, None, negative_prompt=OTHER)
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": negative, "pooled_prompt_embeds": pooled}
    embeds["negative_pooled_prompt_embeds"] = negative_pooled
    assert same(images(ours, None, **embeds), images(stock, None, **embeds), 1e-4)
    with pytest.raises(UserError, match="also needs pooled_prompt_embeds beside prompt_embeds"):
        images(ours, None, prompt_embeds=states)
    assert same(images(ours, prompt_2=OTHER), images(stock, prompt_2=OTHER), 1e-4)
    with pytest.raises(UserError, match=r"needs a flow matching scheduler, and pipe.scheduler is a DDIMScheduler"):
        ours.scheduler = DDIMScheduler()
        images(ours)
