"""The txt2img command with an adapter and a LoRA, and with files of prompts, on a tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt import embedded
from dpt.adapter.io import save_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.claims.words import caption_text
from dpt.cli.txt2img import main as txt2img
from dpt.cli.txt2img.sampling import oracle_verdict
from dpt.data.images import to_pil
from dpt.data.scenes.captions import describe_scene
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.keyed_random import KeyedRandom
from dpt.sampling.draw import Request, SamplingSettings, draw
from dpt.sampling.options import Correction, Interval
from tests import tiny_models
from tests.checkpoints.making import tiny_adapter, tiny_result
from tests.tiny_models import POCKET, PROMPT

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [PROMPT, "two green stars", "a blue square", "a circle above a star", "three circles"]
PLAIN = ("--correction_factor", "0")
CORRECTED = ("--correction_factor", "3", "--correction_norm", "unit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(POCKET, tmp_path_factory.mktemp("pocket") / "model")


@pytest.fixture(scope="module")
def backbone(model: Path) -> Backbone:
    return open_backbone(model, device="cpu")


@pytest.fixture(scope="module")
def result(model: Path) -> Path:
    return tiny_result(open_backbone(model, device="cpu"), model.parent / "result")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(model: Path, *words: str) -> int:
    """Sample two images with two steps each on the CPU."""
    common = ["--num_timesteps", "2", "--n_samples", "2", "--gpu", "cpu", "--pretrained_model_name_or_path", str(model)]
    return txt2img.main([*common, *words])


def newest() -> Path:
    return max(Path("outputs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def record() -> dict[str, object]:
    manifest: dict[str, object] = json.loads((newest() / "manifest.json").read_text())
    return manifest


def digests(folder: Path, pattern: str = "*[0-9].png") -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob(pattern))}


def test_checkpoint_parts_are_used_where_present(model: Path, result: Path) -> None:
    runs = {}
    for name, words in {
        "base": ("--ckpt", "none"),
        "adapter": ("--ckpt", str(result / "adapter"), *PLAIN),
        "tuned": ("--ckpt", str(result), *PLAIN),
        "corrected": ("--ckpt", str(result), *CORRECTED),
        "base corrected": ("--ckpt", str(result / "adapter"), *CORRECTED),
    }.items():
        assert call(model, *words) == 0
        runs[name] = digests(newest())
    assert runs["base"] == runs["adapter"]
    assert len({tuple(run.values()) for run in runs.values()}) == 4
    checkpoint = record()["checkpoint"]
    assert isinstance(checkpoint, dict) and checkpoint["parts"] == ["adapter"]
    assert len(checkpoint["sha256"]["adapter.safetensors"]) == 64


def test_correction_flags_without_an_adapter_give_warnings(
    model: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(model, "--ckpt", str(result / "lora"), "--correction_every", "2") == 0
    assert "warning: --correction_every has no effect: there is no adapter" in capsys.readouterr().err


def test_images_equal_those_of_the_sampler(model: Path, result: Path, backbone: Backbone) -> None:
    words = ("--correction_target", "fused", "--correction_end", "0.6", "--correction_every", "1")
    words += ("--seed", "5", "--guidance_rescale", "0.5")
    assert call(model, "--ckpt", str(result / "adapter"), *CORRECTED, *words) == 0
    settings = SamplingSettings(2, guidance_rescale=0.5, correction=Correction(3, "fused", "unit", Interval(0, 0.6)))
    requests = [Request("a red circle to the left of a blue square", 5, index) for index in range(2)]
    for index, image in enumerate(draw(backbone, requests, settings, adapter=tiny_adapter(backbone))):
        with Image.open(newest() / f"{index:03d}.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(to_pil(image)))


def test_checkpoint_of_the_embedded_model_is_the_default(
    model: Path, result: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkout/ckpt").mkdir(parents=True)
    (tmp_path / "checkout/ckpt/pocket").symlink_to(model)
    (tmp_path / "checkout/ckpt/pocket-dpt").symlink_to(result)
    monkeypatch.setattr(embedded, "CHECKOUT", tmp_path / "checkout")
    for words, parts in (((), ["adapter", "lora"]), (("--ckpt", "none"), None)):
        assert txt2img.main(["--num_timesteps", "1", "--n_samples", "1", "-g", "cpu", *words]) == 0
        checkpoint = record()["checkpoint"]
        assert (checkpoint and checkpoint["parts"]) == parts  # type: ignore[index]


def test_compare_samples_each_variant_from_the_same_noise(model: Path, result: Path) -> None:
    alone = {}
    for name, words in (("base", ("--ckpt", "none")), ("tuned", ("--ckpt", str(result), *PLAIN))):
        assert call(model, *words) == 0
        alone[name] = newest()
    assert call(model, "--ckpt", str(result), "--compare", *CORRECTED) == 0
    folder = newest()
    assert sorted(digests(folder)) == [
        f"{method}-{index:03d}.png" for method in ("base", "tuned", "tuned-and-corrected") for index in range(2)
    ]
    for index in range(2):
        for name, other in alone.items():
            # A LoRA that can be switched off is added, not merged: that rounds otherwise.
            ours, theirs = (np.asarray(Image.open(entry), int) for entry in
                            (folder / f"{name}-{index:03d}.png", other / f"{index:03d}.png"))  # fmt: skip
            assert np.abs(ours - theirs).max() <= (0 if name == "base" else 1)
    manifest = record()
    assert [entry["name"] for entry in manifest["methods"]] == ["base", "tuned", "tuned and corrected"]  # type: ignore[attr-defined]
    images = manifest["images"]
    assert isinstance(images, list)
    assert [entry["method"] for entry in images[:3]] == ["base", "tuned", "tuned and corrected"]
    assert all(-1 <= entry["score"] <= 1 and entry["verdict"] for entry in images)
    assert len({entry["noise_seed"] for entry in images}) == 2
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 192 > sheet.width - 3 * 64


def test_compare_without_a_lora_has_two_columns(model: Path, result: Path) -> None:
    assert call(model, "--ckpt", str(result / "adapter"), "--compare", *CORRECTED) == 0
    assert [method["name"] for method in record()["methods"]] == ["base", "corrected"]  # type: ignore[attr-defined]


def test_compare_without_an_adapter_has_no_scores(model: Path, result: Path) -> None:
    assert call(model, "--ckpt", str(result / "lora"), "--compare") == 0
    images = record()["images"]
    assert isinstance(images, list) and [entry["method"] for entry in images] == ["base", "tuned"] * 2
    assert not any("score" in entry for entry in images)


def test_best_candidates_are_kept_in_order_of_score(model: Path, result: Path) -> None:
    assert call(model, "--ckpt", str(result), "--n_candidates", "5", "--n_samples", "5") == 0
    everything = record()["images"]
    assert call(model, "--ckpt", str(result), "--n_candidates", "5") == 0
    images = record()["images"]
    assert isinstance(images, list) and isinstance(everything, list)
    assert images == everything[:2] and sorted(entry["index"] for entry in everything) == [0, 1, 2, 3, 4]
    scores = [entry["score"] for entry in everything]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
    assert call(model, "--ckpt", str(result), "--n_samples", "5") == 0
    plain = digests(newest())
    files = {file.name: file for file in sorted(Path("outputs").iterdir())[1].glob("00*.png")}
    for entry in images:
        assert hashlib.sha256(files[entry["file"]].read_bytes()).hexdigest() == plain[f"{entry['index']:03d}.png"]


def test_trace_is_plotted_and_changes_no_image(model: Path, result: Path) -> None:
    for words in ((), ("--trace",)):
        assert call(model, "--ckpt", str(result), *CORRECTED, "--num_timesteps", "8", *words) == 0
    first, second = sorted(Path("outputs").iterdir())
    assert digests(first) == digests(second)
    with Image.open(second / "trace.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors() or ()) > 50
    # Without an adapter there is no score; and a prompt is not mathematics.
    assert call(model, "--ckpt", "none", "--trace", "--prompt", r"a $\frac$ star") == 0


def test_prompts_file_is_sampled_prompt_by_prompt(model: Path) -> None:
    Path("some.txt").write_text("\n".join(["", *PROMPTS[:2], " "]))
    Path("some.jsonl").write_text("".join(json.dumps({"prompt": prompt, "id": 7}) + "\n" for prompt in PROMPTS[:2]))
    runs = []
    for file in ("some.txt", "some.jsonl"):
        assert call(model, "--prompts_file", file) == 0
        assert newest().name.startswith("some-")
        runs.append(digests(newest()))
        assert record()["prompts"] == PROMPTS[:2]
    assert runs[0] == runs[1]
    assert list(runs[0]) == ["0000-000.png", "0000-001.png", "0001-000.png", "0001-001.png"]
    assert call(model, "--prompt", PROMPTS[1]) == 0
    assert list(digests(newest()).values()) == list(runs[0].values())[2:]


@pytest.mark.nightly
def test_processes_share_a_prompts_file_without_changing_an_image(model: Path, result: Path) -> None:
    Path("some.txt").write_text("\n".join(PROMPTS))
    words = ["--prompts_file", "some.txt", "--ckpt", str(result), *CORRECTED, "--compare"]
    assert call(model, *words) == 0
    alone = newest()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
              "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    common = ["--num_timesteps", "2", "--n_samples", "2", "--gpu", "cpu", "--pretrained_model_name_or_path", str(model)]
    done = subprocess.run(
        [*launch, str(ROOT / "txt2img.py"), *common, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("30 images sampled") == 1
    together = newest()
    assert together != alone
    assert digests(together, "*.png") == digests(alone, "*.png")
    assert len(digests(together, "*sheet.png")) == len(PROMPTS)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (alone, together)]
    assert manifests[0]["images"] == manifests[1]["images"] and manifests[0]["warnings"] == manifests[1]["warnings"]
    assert [folder.name for folder in sorted(Path("outputs").iterdir())] == ["some-001", "some-002"]


def test_published_flags_without_effect_give_warnings(
    model: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_effect = (
        "--dropout",
        "0.1",
        "--fix_timestep",
        "5",
        "--masks",
        "--no_detection",
        "--no_freeze_text_encoder",
    )
    more = ("--text_encoder_type", "roberta-base", "--correction_target", "input", "--dtype", "float16", *PLAIN)
    assert (
        call(model, "--ckpt", str(result), *without_effect, *more, "--guidance_scale", "1", "--negative_prompt", "blue")
        == 0
    )
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    flags = ("--dropout", "--fix_timestep", "--masks", "--no_detection", "--no_freeze_text_encoder",
             "--text_encoder_type", "--correction_target", "--negative_prompt", "float16 is slow")  # fmt: skip
    for flag in flags:
        assert len([line for line in warnings if line.startswith(f"warning: {flag} ")]) == 1, flag
    assert len(warnings) == len(flags)


def test_resolution_sets_both_sides(model: Path) -> None:
    assert call(model, "--resolution", "32") == 0
    with Image.open(newest() / "000.png") as picture:
        assert picture.size == (32, 32)


def test_shape_flags_must_match_the_adapter(model: Path, result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = ("--hidden_dim", "16", "--nheads", "8", "--num_queries_rec", "5", "--unet_feature", "up1")
    assert call(model, "--ckpt", str(result), *true) == 0
    false = {
        ("--hidden_dim", "32"): "--hidden_dim does not match the adapter of",
        ("--unet_feature", "mid"): "its unet_feature is 'up1'",
        ("--pre_norm",): "its pre_norm is False",
        ("--no_contrastive_align_loss",): "--no_contrastive_align_loss does not match the adapter",
        ("--nheads", "5"): "the shape flags do not fit the adapter",
    }
    capsys.readouterr()
    for words, sentence in false.items():
        assert call(model, "--ckpt", str(result), *words) == 2
        assert sentence in capsys.readouterr().err
    assert call(model, "--ckpt", str(result / "lora"), "--nheads", "8") == 2
    assert "--nheads describes an adapter, and" in capsys.readouterr().err


def test_shape_flags_complete_a_published_file(model: Path, result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_checkpoint(open_checkpoint(result / "adapter"), "published", Path("published").resolve())
    native, with_flags, without_flags, split = (
        (str(result / "adapter"), "--nheads", "8"),
        ("published", "--nheads", "8", "--unet_feature", "up1"),
        ("published",),
        ("published", "--num_queries_matching", "7", "--num_queries_rec", "8"),
    )
    runs = []
    for words in (native, with_flags, without_flags, split):
        assert call(model, "--ckpt", *words, *CORRECTED) == 0
        runs.append(tuple(digests(newest()).values()))
    assert runs[0] == runs[1] == runs[2] != runs[3]  # with fewer queries to match, the greatest is another
    capsys.readouterr()
    assert call(model, "--ckpt", "published", "--unet_feature", "mid", *CORRECTED) == 0  # as wide here: it cannot tell
    assert call(model, "--ckpt", "published", "--unet_feature", "up2") == 2
    assert "the adapter does not fit the model: it reads up2" in capsys.readouterr().err
    assert call(model, "--ckpt", "published", "--hidden_dim", "32") == 2
    assert "--hidden_dim does not match the adapter" in capsys.readouterr().err


def test_allow_other_base_uses_a_checkpoint_of_another_model(
    model: Path, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(tiny_adapter(backbone), tmp_path / "other", base="somewhere", base_hash="0" * 64)
    assert call(model, "--ckpt", str(tmp_path / "other"), "--allow_other_base") == 0
    assert "used all the same, because of --allow_other_base" in capsys.readouterr().err


BAD = [
    (("--ckpt", "{lora}", *CORRECTED), "--correction_factor needs an adapter, and "),
    (("--ckpt", "{lora}", "--n_candidates", "4"), "--n_candidates needs an adapter for the matching score, and "),
    (("--ckpt", "none", "--compare"), "--compare has nothing to compare: there is no LoRA, and"),
    (("--ckpt", "{other}"), "the adapter {other} was trained to read another model, somewhere"),
    (("--ckpt", "{result}", "--correction_factor", "1e38"), "the latents are no longer finite after step 1 of 2: the"),
    (("--ckpt", "{result}", *CORRECTED, "--compare", "--trace"), "--compare and --trace cannot be combined"),
    (("--compare", "--n_candidates", "3"), "--compare and --n_candidates cannot be combined"),
    (("--resolution", "64", "--height", "64"), "give either --resolution or --height and --width, not both"),
    (("--prompts_file", "bad.jsonl", "--prompt", "a star"), "give either --prompt or --prompts_file, not both"),
    (("--prompts_file", "empty.txt"), "empty.txt holds no prompt"),
    (("--prompts_file", "bad.jsonl"), "bad.jsonl, line 2, is not valid JSON"),
    (("--prompts_file", "other.jsonl"), 'other.jsonl, line 1, has no text under "prompt"'),
    (("--prompts_file", "binary.txt"), "binary.txt is not UTF-8 text"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD, ids=[case[1][:40] for case in BAD])
def test_invalid_input_is_one_sentence_and_leaves_nothing(
    words: tuple[str, ...],
    sentence: str,
    model: Path,
    result: Path,
    backbone: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("empty.txt").write_text(" \n\n")
    Path("bad.jsonl").write_text('{"prompt": "a circle"}\n{"prompt": \n')
    Path("other.jsonl").write_text('{"caption": "a circle"}\n')
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    other = tmp_path / "other"
    save_adapter(tiny_adapter(backbone), other, base="somewhere", base_hash="0" * 64)
    where = {"lora": str(result / "lora"), "result": str(result), "other": str(other)}
    assert call(model, *(word.format(**where) for word in words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("sampling:")]
    assert lines[-1].startswith(f"error: {sentence.format(**where)}")
    assert not Path("outputs").exists()


def test_oracle_verdict_is_given_for_scenes_only() -> None:
    scene = make_scene(3, 1, POCKET_WORLD)
    picture = Image.fromarray(render(scene))
    sentence = caption_text(describe_scene(scene, POCKET_WORLD, KeyedRandom("verdict", 0)))
    assert oracle_verdict(picture, sentence) == "right"
    assert (oracle_verdict(picture, "four purple crosses") or "").startswith("not ")
    assert oracle_verdict(picture, "a cat on a sofa") is None
    assert oracle_verdict(picture.resize((128, 128)), sentence) is None


def test_shipped_pocket_and_adapter_run() -> None:
    words = ["--num_timesteps", "2", "--n_samples", "1", "-g", "cpu", "--guidance_scale", "3", "--compare", *CORRECTED]
    assert txt2img.main(words) == 0
    images = record()["images"]
    assert isinstance(images, list) and images[0]["method"] == "base"
    assert all("verdict" in entry and "score" in entry for entry in images)
