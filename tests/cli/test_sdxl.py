"""The commands on a tiny Stable Diffusion XL: training, tuning, sampling, probing and the benchmark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.cli import main as dpt_main
from dpt.cli.prefer import tune
from dpt.cli.train.stages import main_stage1, main_stage2
from dpt.cli.txt2img.main import main as txt2img
from dpt.lora import Lora
from dpt.methods.ipr.config import RECIPES, FineTuneConfig
from dpt.methods.ipr.sampling import ModelState
from dpt.methods.ipr.training import train as train_round
from tests import tiny_sdxl
from tests.data.files.conftest import SAMPLE
from tests.lora.test_injection import filled

SMALL = [
    *("--hidden_dim", "16", "--nheads", "2", "--dim_feedforward", "32", "--num_queries_matching", "3"),
    *("--num_queries_rec", "4", "--max_train_steps", "2", "--train_batch_size", "2", "--val_batch_size", "4"),
    *("--report_to", "none", "--validation_scenes", "4"),
]
DRAW = ["--num_timesteps", "3", "--n_samples", "1", "--gpu", "cpu", "--prompt"]
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.save(tiny_sdxl.sdxl(), tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample of COCO's layout with a cache of latents and of both encoders' states."""
    root = Path(shutil.copytree(SAMPLE, tmp_path_factory.mktemp("data") / "data"))
    dpt_main.run(["cache", str(root), "--pretrained_model_name_or_path", str(model), "--texts"])
    return root


@pytest.fixture(scope="module")
def tuned(model: Path, data: Path, out: Path) -> Path:
    """Stage 1 from the cache, then stage 2 with a LoRA of the text encoders that learns at its own rate."""
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(out)]
    assert main_stage1([*where, *SMALL, "--data_root", str(data), "--run_name", "s1", "--validation_steps", "2"]) == 0
    texts = ["--lora_text_encoders", "--text_encoder_lr", "0.5", "--gradient_checkpointing", "--run_name", "s2"]
    adapter = ["--qformer_ckpt", str(out / "s1"), "--data_root", str(data)]
    assert main_stage2([*where, *SMALL, *adapter, *texts]) == 0
    return out / "s2"


def test_the_cache_holds_what_both_encoders_give(data: Path, model: Path) -> None:
    backbone: Any = open_backbone(model, device="cpu")
    shard = load_file(next((data / "cache/texts").rglob("*.safetensors")))
    width, pooled = backbone.text_width, backbone.match_width
    assert {name: tuple(tensor.shape[1:]) for name, tensor in shard.items()} == {
        "states": (backbone.prompt_length, width), "pooled": (pooled,), "denoiser_pooled": (pooled,),
    }  # fmt: skip


def test_stage_1_and_2_train_adapter_and_loras(tuned: Path, model: Path, out: Path) -> None:
    opened = open_checkpoint(tuned)
    assert opened.adapter is not None and opened.adapter.config.unet_feature == "up0"
    assert opened.lora is not None and opened.lora.record.config.text_encoders
    moved = {
        part: max(float(t.abs().max()) for n, t in opened.lora.tensors.items() if n.startswith(part) and "lora_B" in n)
        for part in ("text_encoder.", "text_encoder_2.", "up_blocks.")
    }
    assert moved["up_blocks."] < 1e-3 < 0.1 < moved["text_encoder_2."] and moved["text_encoder."] > 0.1
    lora = Lora(open_backbone(model, device="cpu"), opened.lora.record.config)
    assert set(lora.state()) == set(opened.lora.tensors)
    log = [json.loads(line) for line in (out / "s1/log.jsonl").read_text().splitlines()]
    assert any("validation" in line for line in log)


def test_plain_lora_tuning_and_full_training_move_the_model(model: Path, out: Path, tmp_path: Path) -> None:
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(out), "--report_to", "none"]
    steps = ["--max_train_steps", "2", "--train_batch_size", "2", "--learning_rate", "0.1"]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = []
    for index, name in enumerate(sorted((SAMPLE / "coco/images").rglob("*.jpg"))[:4]):
        shutil.copy(name, pictures / name.name)
        kinds = {"type": ("positive", "negative")[index % 2], "weight": 1.0}
        rows.append({"file_name": name.name, "text": PROMPT, **kinds})
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trained: list[Callable[[], int]] = [
        lambda: main_stage2([*where, *SMALL, "--plain_lora", "--run_name", "plain", "--validation_steps", "0"]),
        lambda: tune.main([*where, *steps, "--dataset_folder", str(pictures), "--run_name", "hps"]),
    ]
    for train, name in zip(trained, ("plain", "hps"), strict=True):
        assert train() == 0
        lora = open_checkpoint(out / name).lora
        assert lora is not None and any(t.abs().max() > 0 for n, t in lora.tensors.items() if "lora_B" in n)
    recipe = RECIPES["sdxl-lora"].train
    few = {"max_train_steps": 1, "learning_rate": 0.01}
    for config in (FineTuneConfig(**{**vars(recipe), **few}), FineTuneConfig(full=True, **few)):  # type: ignore[arg-type]
        folder = tmp_path / ("full" if config.full else "lora")
        result = train_round(pictures, ModelState(str(model)), config, folder).model
        assert result is not None
        z, condition = torch.randn(1, 4, 8, 8), open_backbone(model, device="cpu").encode_text([PROMPT])
        before = open_backbone(model, device="cpu").predict(z, 500, condition)
        assert not torch.equal(result.open("float32").predict(z, 500, condition), before)


def test_sampling_corrects_selects_and_refines(tuned: Path, model: Path, tmp_path: Path) -> None:
    refiner = tiny_sdxl.save(tiny_sdxl.refiner(), tmp_path / "refiner")
    where = ["--pretrained_model_name_or_path", str(model), "--ckpt", str(tuned), "--outdir", str(tmp_path)]
    images = {}
    for name, words in {
        "plain": [],
        "fused": ["--correction_factor", "0.3", "--correction_target", "fused", "--correction_norm", "rms"],
        "state": ["--correction_factor", "0.3", "--correction_target", "state", "--correction_norm", "rms"],
        "input": ["--correction_factor", "9", "--correction_target", "input"],
        "best": ["--n_candidates", "2"],
        "refined": ["--refiner", str(refiner), "--refiner_strength", "0.7"],
        "sizes": ["--original_size", "9", "9", "--target_size", "32", "16", "--crops_coords_top_left", "1", "2"],
    }.items():
        before = set(tmp_path.iterdir())
        assert txt2img([*where, *words, *DRAW, PROMPT]) == 0
        (folder,) = set(tmp_path.iterdir()) - before
        images[name] = (folder / "000.png").read_bytes()
    changed = {name: image for name, image in images.items() if name not in ("plain", "best")}
    assert images["plain"] not in changed.values() and len(set(changed.values())) == len(changed)


def test_probe_and_benchmark_take_it(tuned: Path, model: Path, tmp_path: Path) -> None:
    where = ["--pretrained_model_name_or_path", str(model)]
    dpt_main.run(["probe", str(tuned), *where, "--num", "4", "--timesteps", "500", "--out", str(tmp_path / "probe")])
    assert json.loads((tmp_path / "probe/probe.json").read_text())
    words = ["--categories", "single", "--prompts", "1", "--per_prompt", "1", "--num_timesteps", "2"]
    methods = ["base", f"best={tuned},candidates=2", f"fused={tuned},factor=0.2,target=fused,norm=rms"]
    dpt_main.run(["bench", "run", *methods, *where, *words, "--out", str(tmp_path / "bench")])
    lines = [(tmp_path / f"bench/{name}.jsonl").read_text().splitlines() for name in ("base", "best", "fused")]
    assert all(len(own) == 1 for own in lines)


def test_a_lora_needs_its_own_layers(model: Path) -> None:
    backbone = open_backbone(model, device="cpu")
    assert len(filled(backbone).targets) == len(backbone.lora_targets(["all"])) == 8 * (2 + 2 * 2 + 2 + 3 * 2 + 3)
