"""Whole builds of the pocket, with models a thousandth of the size."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpt.cli.main import run
from dpt.data.scenes.world import WORLDS, Scene, make_scene
from dpt.errors import UserError
from dpt.pocket.build import text_tower
from dpt.pocket.clip import ClipStage
from dpt.pocket.training import Phase, Recipe, Schedule, TextRecipe, UNetRecipe, VaeRecipe
from dpt.pocket.unet import UNetStage, VaeStage, narrowest_gap, pictures, whiten
from dpt.records import to_plain


def schedule(steps: int, batch: int) -> Schedule:
    return Schedule(steps=steps, batch=batch, learning_rate=1e-3, warmup=2, decay=4)


TINY = Recipe(
    text=TextRecipe(width=16, layers=1, heads=2, image_layers=1, patch=16, schedule=schedule(4, 8)),
    vae=VaeRecipe(channels=(8, 8, 8), schedule=schedule(4, 2)),
    unet=UNetRecipe(channels=(16, 16, 32), head_width=16, latents=64, schedule=schedule(6, 4)),
)
TINY_WORLD = WORLDS[TINY.world]


def building_in(root: Path) -> Callable[..., Path]:
    recipe = root / "recipe.json"
    recipe.write_text(json.dumps(to_plain(TINY)))

    def command(name: str, *words: str) -> Path:
        folders = ["--work", str(root / f"{name}-work"), "--out", str(root / name)]
        run(["pocket", "build", "--recipe", str(recipe), *folders, *words])
        return root / name

    return command


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    return building_in(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building_in(tmp_path_factory.mktemp("built"))("pocket", "--threads", "1")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 4
    return {f"{file.parent.name}/{k}": v for file in files for k, v in load_file(file).items()}


STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
assert pipe("a red circle", num_inference_steps=2).images[0].size == (64, 64)
clip = CLIPModel.from_pretrained(sys.argv[1] + "/clip", local_files_only=True)
ids = pipe.tokenizer("a red circle", return_tensors="pt").input_ids
ours, theirs = pipe.text_encoder(ids)[0], clip.text_model(ids)[0]
assert torch.equal(ours, theirs), "the UNet is conditioned on the very tower that scores"
assert not any(name.split(".")[0] == "dpt" for name in sys.modules)
"""


@pytest.mark.nightly
def test_built_pocket_opens_with_diffusers_alone(built: Path, tmp_path: Path) -> None:
    assert all(tensor.dtype == torch.float16 for tensor in weights(built).values())
    subprocess.run([sys.executable, "-c", STOCK, str(built)], check=True, cwd=tmp_path)
    assert not list(built.parent.glob(".pocket-*")), "nothing temporary is left"


def test_stopped_build_resumes_bit_for_bit(
    built: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = weights(built)
    for steps in (2, 3, 2):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", _clock_that_runs_out(after=1 + steps))
            build("cut", "--minutes", "1", "--threads", "1")
        assert "not complete yet" in capsys.readouterr().out
    cut = weights(build("cut", "--threads", "1"))
    assert "continuing after step" in capsys.readouterr().out
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def _clock_that_runs_out(after: int) -> Callable[[], float]:
    calls = iter(range(10_000))
    return lambda: 0.0 if next(calls) < after else 1e9


@pytest.mark.nightly
def test_two_processes_build_the_same_model(built: Path, build: Callable[..., Path]) -> None:
    single, shared = weights(built), weights(build("two", "--processes", "2"))
    for key in single:
        if key.split("/")[0] == "unet":  # its batches are shared; see test_training for equality of gradients
            assert torch.isfinite(shared[key]).all()
        else:
            assert torch.equal(single[key], shared[key]), key


def test_work_folder_of_another_recipe_is_refused(build: Callable[..., Path], tmp_path: Path) -> None:
    build("pocket", "--last", "clip", "--threads", "1")
    other = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, layers=2))
    (tmp_path / "recipe.json").write_text(json.dumps(to_plain(other)))
    with pytest.raises(
        UserError, match="is the folder of a run with another configuration \\(layers was 1 and is 2\\)"
    ):
        build("pocket", "--threads", "1")
    longer = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, schedule=schedule(5, 8)))
    (tmp_path / "recipe.json").write_text(json.dumps(to_plain(longer)))
    build("pocket", "--last", "clip", "--threads", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--last", "clap"], "there is no stage 'clap'"),
        (["--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_invalid_input_is_refused(build: Callable[..., Path], words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("pocket", *words)


def test_invalid_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"unet": {"chanels": [1]}}')
    with pytest.raises(UserError, match="unknown key 'chanels'"):
        run(["pocket", "build", "--recipe", str(tmp_path / "r.json"), "--work", str(tmp_path / "w")])


def test_start_trains_a_finished_denoiser_further(built: Path, build: Callable[..., Path]) -> None:
    before, after = weights(built), weights(build("again", "--threads", "1", "--start", str(built)))
    for key in before:
        assert key.startswith("unet/") or torch.equal(before[key], after[key]), key
    moved = [key for key in before if key.startswith("unet/") and not torch.equal(before[key], after[key])]
    assert len(moved) > 100
    assert max(float((before[key] - after[key]).float().abs().max()) for key in moved) < 0.1, "it began where it was"


def test_start_with_other_shapes_is_refused(build: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot start from .*clip, which is not what the recipe describes"):
        build("pocket", "--start", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="leave --last out"):
        build("pocket", "--start", str(tmp_path / "nothing"), "--last", "vae")


def test_scenes_too_dense_to_place_are_skipped() -> None:
    stage = tiny_unet_stage(Phase(until=0, noise=0.0, gap=6.0))
    allowed = [index for indices in stage.scenes[6.0].values() for index in indices]
    assert 0 < len(allowed) < 64
    assert all(narrowest_gap(make_scene(1, index, TINY_WORLD)) >= 6 for index in allowed)
    assert math.isinf(narrowest_gap(Scene(make_scene(1, 0, TINY_WORLD).objects[:1], "white")))


def tiny_unet_stage(*phases: Phase) -> UNetStage:
    clip = ClipStage(TINY.text, TINY_WORLD, 1)
    recipe = dataclasses.replace(TINY.unet, phases=phases)
    return UNetStage(recipe, TINY_WORLD, 1, torch.zeros(64, 4, 16, 16), text_tower(clip.model), clip.tokenizer)


def test_whitening_changes_the_latents_but_not_the_images() -> None:
    stage = VaeStage(TINY.vae, TINY_WORLD, 0)
    images = pictures(TINY_WORLD, 0, 0, 16)
    with torch.no_grad():
        before = stage.model.encode(images).latent_dist
        shown = stage.model.decode(before.mean).sample
        spread = before.mean.std((0, 2, 3))
        whiten(stage.model, images)
        after = stage.model.encode(images).latent_dist
        shown_after = stage.model.decode(after.mean).sample
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(after.std, before.std / spread[:, None, None], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(shown_after, shown, rtol=1e-3, atol=1e-3)
