"""The txt2img command, run in this process on a tiny model."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dpt import embedded
from dpt.cli.txt2img import main as txt2img
from dpt.cli.txt2img.options import PUBLISHED
from tests import tiny_models
from tests.tiny_models import POCKET, PROMPT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(POCKET, tmp_path_factory.mktemp("pocket") / "model")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(model: Path, *arguments: str) -> int:
    """Two steps on the CPU by default; arguments override the defaults."""
    defaults = {"--prompt": PROMPT, "--num_timesteps": "2", "--n_samples": "2", "--gpu": "cpu"}
    defaults["--pretrained_model_name_or_path"] = str(model)
    defaults.update(zip(arguments[::2], arguments[1::2], strict=True))
    return txt2img.main([word for pair in defaults.items() for word in pair])


def run_folders(outdir: str = "outputs") -> list[Path]:
    return sorted(Path(outdir).iterdir()) if Path(outdir).exists() else []


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("0*.png"))]


def test_run_writes_images_sheet_and_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(model, "--seed", "7", "--negative_prompt", "a star") == 0
    (folder,) = run_folders()
    assert folder.name == "a-red-circle-to-the-left-of-a-blue-square-001"
    assert sorted(file.name for file in folder.iterdir()) == [
        "000.png",
        "001.png",
        "contact_sheet.png",
        "manifest.json",
    ]
    with Image.open(folder / "000.png") as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
    record = json.loads((folder / "manifest.json").read_text())
    assert (record["prompt"], record["negative_prompt"], record["seed"]) == (PROMPT, "a star", 7)
    assert [image["file"] for image in record["images"]] == ["000.png", "001.png"]
    assert len({image["noise_seed"] for image in record["images"]}) == 2
    assert record["settings"] == {
        "steps": 2,
        "guidance_scale": 7.5,
        "scheduler": "ddim",
        "height": 64,
        "width": 64,
        "guidance_interval": {"start": 0.0, "end": 1.0},
        "guidance_rescale": 0.0,
        "true_cfg_scale": 1.0,
        "correction": {
            "factor": 0.0,
            "target": "state",
            "norm": "none",
            "interval": {"start": 0.0, "end": 1.0},
            "every": 1,
        },
    }
    assert record["checkpoint"] is None
    assert len(record["model"]["sha256"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr()
    assert str(folder) in printed.out
    assert "4/4" in printed.err  # the progress bar: two pictures, two steps each


def test_image_k_does_not_depend_on_batch_size_or_number_of_images(model: Path) -> None:
    runs = [("1", "3"), ("2", "3"), ("4", "3"), ("4", "1")]
    for batch_size, n_samples in runs:
        assert call(model, "--batch_size", batch_size, "--n_samples", n_samples, "--scheduler", "euler_a") == 0
    first, *others = [digests(folder) for folder in run_folders()]
    assert len(set(first)) == 3
    assert others == [first, first, first[:1]]


def test_seed_changes_the_images(model: Path) -> None:
    for seed in ("1", "2"):
        assert call(model, "--seed", seed, "--n_samples", "1") == 0
    first, second = [digests(folder) for folder in run_folders()]
    assert first != second


def test_existing_folders_are_not_overwritten(model: Path) -> None:
    existing = Path("outputs/a-red-circle-to-the-left-of-a-blue-square-001")
    existing.mkdir(parents=True)
    for _ in range(2):
        assert call(model, "--n_samples", "1", "--num_timesteps", "1") == 0
    assert [folder.name[-3:] for folder in run_folders()] == ["001", "002", "003"]
    assert list(existing.iterdir()) == []


def test_embedded_model_is_the_default_in_any_working_directory(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkout/ckpt").mkdir(parents=True)
    (tmp_path / "checkout/ckpt/pocket").symlink_to(model)
    monkeypatch.setattr(embedded, "CHECKOUT", tmp_path / "checkout")
    assert txt2img.main(["--num_timesteps", "1", "--n_samples", "1", "-g", "cpu"]) == 0
    (folder,) = run_folders()
    assert json.loads((folder / "manifest.json").read_text())["model"]["name"] == "ckpt/pocket"


def test_unknown_words_and_long_prompts_give_warnings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a red squid " + "and a blue circle " * 6
    assert call(model, "--prompt", prompt, "--n_samples", "1", "--num_timesteps", "1") == 0
    (folder,) = run_folders()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2
    assert "does not know the word 'squid'" in lines[0]
    lost = lines[1].split("does not see ")[1].strip("'")
    assert lost and prompt.endswith(lost)
    recorded = json.loads((folder / "manifest.json").read_text())["warnings"]
    assert [f"warning: {sentence}" for sentence in recorded] == lines


def test_batch_size_without_effect_gives_a_warning(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(model, "--batch_size", "2", "--num_timesteps", "1") == 0
    assert "warning: --batch_size has no effect on a CPU" in capsys.readouterr().err


BAD_INPUT = [
    (("--prompt", "  "), "the prompt is empty"),
    (("--prompt", "a \udcff square"), "the argument 'a \\udcff square' holds bytes that are not UTF-8"),
    (("--outdir", "\udcff"), "the argument '\\udcff' holds bytes that are not UTF-8"),
    (("--n_samples", "0"), "--n_samples must be between 1 and 100000, not 0"),
    (("--n_samples", "1000000000"), "--n_samples must be between 1 and 100000, not 1000000000"),
    (("--batch_size", "0"), "--batch_size must be between 1 and 4096, not 0"),
    (("--height", "100000"), "--height must be between 1 and 16384, not 100000"),
    (("--width", "-64"), "--width must be between 1 and 16384, not -64"),
    (("--resolution", "1000000000000"), "--resolution must be between 1 and 16384, not 1000000000000"),
    (("--width", "63"), "the width must be divisible by 4, not 63"),
    (("--num_timesteps", "0"), "--num_timesteps must be between 1 and 10000, not 0"),
    (("--num_timesteps", "5000"), "the model has 1000 noise levels, too few for 5000 steps"),
    (("--guidance_scale", "-1"), "the guidance scale must be a number of at least 0, not -1.0"),
    (("--scheduler", "plms"), "there is no scheduler 'plms'; the names are own, ddim,"),
    (("--resolution", "63"), "the height must be divisible by 4, not 63"),
    (("--n_candidates", "1"), "--n_candidates 1 must be at least --n_samples 2"),
    (("--n_candidates", "4"), "--n_candidates needs an adapter for the matching score, and there is none: give --ckpt"),
    (("--correction_factor", "1"), "--correction_factor needs an adapter, and there is none: give --ckpt"),
    (("--correction_factor", "nan"), "the correction factor must be a number, not nan"),
    (("--correction_every", "0"), "a correction is made every step or every few, not every 0"),
    (("--correction_start", "1"), "a correction is on from a start to an end with 0 <= start < end <= 1, not 1 to 1"),
    (("--guidance_end", "2"), "guidance is on from a start to an end with 0 <= start < end <= 1, not 0 to 2"),
    (("--guidance_rescale", "-1"), "the guidance rescale is between 0 and 1, not -1.0"),
    (("--ckpt", "/no/such/result"), "there is no checkpoint /no/such/result"),
    (("--ckpt", "."), ". holds no checkpoint"),
    (("--prompts_file", "none.txt"), "cannot read the prompts none.txt: No such file or directory"),
    (("--nheads", "4"), "--nheads describes an adapter, and there is none: give --ckpt"),
    (("--gpu", "first"), "--gpu takes the index of one GPU or cpu, not 'first'"),
    (("--pretrained_model_name_or_path", "/no/such/model"), "there is no model folder '/no/such/model'"),
    (("--pretrained_model_name_or_path", "someone/some-model"), "someone/some-model is not on this machine"),
    (("--outdir", "a-file/outputs"), "the output folder a-file/outputs cannot be written to"),
    (("--outdir", "a-file"), "the output folder a-file cannot be written to"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT, ids=[" ".join(case[0]) for case in BAD_INPUT])
def test_invalid_input_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, str], sentence: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a-file").touch()
    assert call(model, *arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {sentence}")
    assert printed.out == ""
    assert [file.name for file in Path.cwd().iterdir()] == ["a-file"]


def test_broken_model_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken").mkdir()
    assert call(tmp_path / "broken") == 2
    assert "it has no model_index.json" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_missing_embedded_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "CHECKOUT", tmp_path)
    assert txt2img.main(["--gpu", "cpu"]) == 2
    assert "error: the embedded model is missing" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_flag_without_a_gpu_samples_on_the_cpu_with_a_warning(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--num_timesteps", "1", "--n_samples", "1", "--pretrained_model_name_or_path", str(model)]
    assert txt2img.main(common) == 0
    printed = capsys.readouterr()
    assert "1 image sampled on the CPU" in printed.out and "warning" not in printed.err
    for flag in ("-g", "--gpuid"):
        assert txt2img.main([*common, flag, "0"]) == 0
        assert "warning: --gpu 0 has no effect: this machine has no GPU" in capsys.readouterr().err


def test_failed_run_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Path("outputs").mkdir()
    monkeypatch.setattr(Image.Image, "save", no_space)
    assert call(model, "--num_timesteps", "1") == 2
    assert run_folders() == []


def test_invalid_gpu_index_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert call(model, "--gpu", "99") == 2
    assert "cuda:99" in capsys.readouterr().err


def test_unknown_flag_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert txt2img.main(["--n_sample", "3"]) == 2
    assert "txt2img.py has no flag --n_sample, did you mean --n_samples?" in capsys.readouterr().err
    assert txt2img.main(["--zzz", "3"]) == 2
    assert "no flag --zzz; txt2img.py --help lists them" in capsys.readouterr().err


PUBLISHED_FLAGS = """
-g --gpu --gpuid --prompt --n_samples --seed --dtype --pretrained_model_name_or_path --revision --unet_feature
--correction_factor --num_timesteps --outdir --position_embedding --enc_layers --dec_layers --dim_feedforward
--hidden_dim --nheads --num_queries_matching --num_queries_rec --pre_norm --no_contrastive_align_loss
--contrastive_loss_hdim --resolution
"""
"""--gpuid is in the published README only. Flags that do nothing are accepted and not listed."""


def test_diffusers_flag_names_are_accepted(model: Path) -> None:
    assert call(model, "--num_timesteps", "1", "--num_inference_steps", "3", "--output_dir", "elsewhere") == 0
    (folder,) = run_folders("elsewhere")
    assert json.loads((folder / "manifest.json").read_text())["settings"]["steps"] == 3


def test_help_does_not_import_torch() -> None:
    check = (
        "import sys, contextlib, dpt.cli.txt2img.main as command\n"
        "with contextlib.suppress(SystemExit): command.main(['--help'])\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for flag in PUBLISHED_FLAGS.split():
        assert re.search(rf"{flag}\b", shown.stdout), flag
    for flag in PUBLISHED.ignored:
        assert not re.search(rf"--{flag}\b", shown.stdout), f"{flag} does nothing, so it should not be listed"
    order = [shown.stdout.index(flag) for flag in ("--prompt", "--n_samples", "--num_timesteps", "--guidance_scale")]
    assert order == sorted(order)
