"""Every command takes guidance scale, negative prompt and correction from the model and the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpt.backbone import open_backbone
from dpt.cli.bench import run as bench
from dpt.cli.commands import pocket
from dpt.cli.train.options import OutputOptions
from dpt.cli.train.stages import SampleOptions, Stage2Options
from dpt.cli.txt2img import main as txt2img
from dpt.embedded import CHECKOUT, embedded_defaults
from dpt.errors import UserError
from dpt.generation_defaults import FILE_NAME, GenerationDefaults, generation_defaults
from dpt.methods.base import GenerationConfig
from dpt.sampling.draw import SamplingSettings
from dpt.sampling.options import Interval, recommended_correction
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_models
from tests.checkpoints.making import tiny_result
from tests.tiny_models import POCKET, PROMPT

CORRECTION = {"strength": 2.0, "target": "fused", "norm": "rms", "end": 0.6, "measured": "here"}


def put(folder: Path, **entries: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE_NAME).write_text(json.dumps(entries))
    return folder


def test_checkpoint_entries_override_the_models(tmp_path: Path) -> None:
    model = put(tmp_path / "model", guidance_scale=3, negative_prompt="blurry")
    checkpoint = put(tmp_path / "result", guidance_scale=2, correction=CORRECTION)
    (checkpoint / "adapter").mkdir()
    assert generation_defaults(tmp_path, None) == GenerationDefaults(7.5, "", None)
    merged = generation_defaults(model, checkpoint)
    assert (merged.guidance_scale, merged.negative_prompt) == (2.0, "blurry")
    assert merged.correction is not None and merged.correction.measured == "here"
    assert generation_defaults(model, checkpoint / "adapter") == merged, "a part of a result has the result's defaults"
    scale, correction = merged.describe(["guidance_scale", "correction"])
    assert scale == f"by default: guidance scale 2 (from {checkpoint / FILE_NAME})" and "measured on here" in correction
    assert len(merged.describe(["guidance_scale", "correction"])) == 2 and merged.describe([]) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[3]", "is not a JSON object"),
        ('{"guidance": 3}', "unknown key 'guidance'"),
        ('{"guidance_scale": "3"}', "guidance_scale: expected float"),
        ('{"correction": {"strength": 1}}', "missing"),
        ("{", "is not valid JSON"),
        (" " * 200_000, "the limit is"),
    ],
)
def test_broken_file_is_refused_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        generation_defaults(tmp_path)
    assert FILE_NAME in str(error.value)


def test_shipped_defaults_equal_the_measured_values() -> None:
    shipped = embedded_defaults()
    assert shipped.guidance_scale == 3.0
    for folder in ("pocket-dpt", "pocket-stage1"):
        correction = generation_defaults(CHECKOUT / "ckpt" / folder).correction
        assert correction is not None and correction.measured
        recommended = recommended_correction(correction, 25)
        assert (recommended.factor, recommended.target, recommended.norm, recommended.interval) == (
            0.1,
            "fused",
            "rms",
            Interval(0, 0.6),
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tiny_models.save(POCKET, tmp_path_factory.mktemp("pocket") / "model"), guidance_scale=2.5)


def test_every_command_samples_with_the_models_guidance_scale(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--pretrained_model_name_or_path", str(model), "--num_timesteps", "1", "--n_samples", "1", "--gpu", "cpu"]
    scales = {}
    assert txt2img.main(words) == 0
    assert f"by default: guidance scale 2.5 (from {model / FILE_NAME})" in capsys.readouterr().out
    (folder,) = Path("outputs").iterdir()
    scales["txt2img"] = json.loads((folder / "manifest.json").read_text())["settings"]["guidance_scale"]
    bench_options = bench.RunOptions(("base",), generation=GenerationConfig(str(model)))
    scales["bench"] = bench.with_defaults(bench_options).generation.sampler.guidance_scale
    used_settings: list[SamplingSettings] = []
    monkeypatch.setattr("dpt.pocket.measure.measure", lambda *args: used_settings.append(args[4]))
    pocket.measure(pocket.MeasureOptions(model=model))
    scales["pocket measure"] = used_settings[0].guidance_scale
    sheets: list[SamplingSettings] = []
    with monkeypatch.context() as patched:
        patched.setattr("dpt.sampling.draw.draw", lambda *args, **_: sheets.append(args[2]) or [torch.zeros(3, 8, 8)])
        samples = SampleOptions(validation_prompts=(PROMPT,), num_validation_images=1)
        task = SimpleNamespace(backbone=open_backbone(model, device="cpu"))
        Stage2Options(samples=samples, output=OutputOptions(output_dir=tmp_path))._draw_samples(task)
    scales["sample sheet"] = sheets[0].guidance_scale
    pipe = DPTPipeline.from_pretrained(model, device="cpu")
    scales["pipeline"] = pipe.defaults.guidance_scale
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = [
        pipe(PROMPT, latents=noise, num_inference_steps=2, output_type="latent", **more).images
        for more in ({}, {"guidance_scale": 2.5}, {"guidance_scale": 7.5})
    ]
    assert torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])
    assert set(scales.values()) == {2.5}, scales
    capsys.readouterr()
    assert txt2img.main([*words, "--guidance_scale", "4", "--outdir", "other"]) == 0
    assert "by default" not in capsys.readouterr().out


def test_correction_is_on_only_if_the_checkpoint_recommends_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tiny_result(open_backbone(model, device="cpu"), tmp_path / "result")
    words = ["--pretrained_model_name_or_path", str(model), "--num_timesteps", "2", "--n_samples", "1", "--gpu", "cpu"]

    def correction(*more: str) -> dict[str, Any]:
        before = set(Path("outputs").glob("*"))
        assert txt2img.main([*words, "--ckpt", str(result), *more]) == 0
        (folder,) = set(Path("outputs").glob("*")) - before
        settings: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["settings"]
        return settings["correction"]

    assert correction()["factor"] == 0
    assert correction("--correction_target", "fused")["factor"] == 0
    assert "--correction_target has no effect: the checkpoint recommends no correction" in capsys.readouterr().err
    alone = correction("--correction_factor", "0.5")
    assert (alone["factor"], alone["target"], alone["norm"]) == (0.5, "input", "none")
    assert "target input, as in the published code" in capsys.readouterr().out
    put(result, correction=CORRECTION)
    assert correction() == {"factor": 1.0, "target": "fused", "norm": "rms", "interval": {"start": 0.0, "end": 0.6},
                            "every": 1}  # fmt: skip
    assert "measured on here" in capsys.readouterr().out
    assert correction("--correction_factor", "0")["factor"] == 0


def test_a_file_in_the_working_directory_is_shown_by_its_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = generation_defaults(put(tmp_path / "model", guidance_scale=3.0))
    line = "by default: guidance scale 3 (from {})"
    assert defaults.describe(["guidance_scale"]) == [line.format(tmp_path / "model" / FILE_NAME)]
    monkeypatch.chdir(tmp_path)
    assert defaults.describe(["guidance_scale"]) == [line.format(Path("model", FILE_NAME))]
