"""`dpt cache`, and how `train_stage1.py` finds, uses and refuses caches."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpt.cli.main import main as dpt
from dpt.cli.train.stages import main_stage1 as train
from tests.cli.test_train import SMALL
from tests.data.cache.conftest import contents
from tests.data.files.conftest import SAMPLE
from tests.training import tiny_stage1
from tests.training.children import as_main, ranks

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def cached(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with a complete cache, shared by all tests: read only."""
    root = tmp_path_factory.mktemp("cached") / "data"
    shutil.copytree(SAMPLE, root)
    words = ["dpt", "cache", str(root), "--pretrained_model_name_or_path", str(model), "--texts", "--random_flip"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(sys, "argv", words)
        dpt()
    assert exit_info.value.code == 0
    return root


@pytest.fixture
def root(cached: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(cached, tmp_path / "data")
    return tmp_path / "data"


class Commands:
    def __init__(self, model: Path, out: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.model, self.out, self.capsys, self.patch = str(model), str(out), capsys, patch

    def cache(self, root: Path, words: str = "") -> tuple[int, str, str]:
        arguments = ["dpt", "cache", str(root), "--pretrained_model_name_or_path", self.model, *shlex.split(words)]
        self.patch.setattr(sys, "argv", arguments)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            dpt()
        return int(exit_info.value.code or 0), *self.capsys.readouterr()

    def train(self, root: Path | None, words: str = "", run_name: str = "run") -> tuple[int, str, str]:
        where = [] if root is None else ["--data_root", str(root)]
        arguments = ["--pretrained_model_name_or_path", self.model, *SMALL, "--output_dir", self.out, *where]
        self.capsys.readouterr()
        return train([*arguments, "--run_name", run_name, *shlex.split(words)]), *self.capsys.readouterr()


@pytest.fixture
def run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(model, tmp_path / "logs", capsys, monkeypatch)


def log(run: Commands, run_name: str) -> list[dict[str, float]]:
    lines = (Path(run.out) / run_name / "log.jsonl").read_text().splitlines()
    dropped = ("seconds", "data_share")
    return [{k: v for k, v in json.loads(line).items() if k not in dropped} for line in lines]


def test_training_with_a_cache_computes_the_same_losses(run: Commands, root: Path) -> None:
    code, _, error = run.train(root, "--cache none --val_fullset --dropout 0", "plain")
    assert code == 0, error
    shutil.rmtree(root / "coco/images")
    code, out, error = run.train(root, "--val_fullset --dropout 0", "cached")
    assert code == 0, error
    (line,) = [line for line in out.splitlines() if "using the cache" in line]
    assert re.fullmatch(
        rf"using the cache {root}/cache: latents of 34 images in float32, mirrored ones too;"
        r" states of \d+ texts in float32", line
    )  # fmt: skip
    for plain, cached_record in zip(log(run, "plain"), log(run, "cached"), strict=True):
        if "validation" in plain:
            assert cached_record == plain
        else:
            assert cached_record == pytest.approx(plain, rel=1e-4)


def test_run_with_random_flip_uses_the_cache_with_workers(run: Commands, root: Path) -> None:
    shutil.rmtree(root / "coco/images")
    code, _, error = run.train(root, "--random_flip --dataloader_num_workers 2")
    assert code == 0, error


def test_run_with_a_cache_resumes_bit_for_bit(run: Commands, root: Path) -> None:
    assert run.train(root, "--max_train_steps 4", "whole")[0] == 0
    assert run.train(root, "--max_train_steps 2", "parts")[0] == 0
    moved = root.with_name("moved")
    shutil.move(root / "cache", moved)
    assert run.train(root, f"--max_train_steps 4 --cache {moved}", "parts")[0] == 0
    ends = [load_file(Path(run.out) / name / "adapter/adapter.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_resume_with_another_cache_is_refused(run: Commands, root: Path) -> None:
    """Another cache, or none, rounds differently, so the resumed run would not be reproducible."""
    assert run.train(root)[0] == 0
    code, _, error = run.train(root, "--cache none")
    assert code == 2 and re.search(
        r"another configuration \(cache was 'latents \w{16}, texts \w{16}' and is None", error
    )
    assert run.train(root, "--cache none", "plain")[0] == 0
    code, _, error = run.train(root, "", "plain")
    assert code == 2 and "(cache was None and is 'latents " in error


def test_second_run_has_nothing_to_encode(run: Commands, root: Path) -> None:
    before = contents(root / "cache")
    code, out, _ = run.cache(root, "--texts --random_flip")
    assert code == 0 and "cache/latents: 0 of 34 images are to be encoded, 0 bytes" in out
    assert contents(root / "cache") == before


@pytest.mark.slow
def test_two_processes_write_the_same_cache(cached: Path, model: Path, tmp_path: Path) -> None:
    words = ["cache", str(cached), "--pretrained_model_name_or_path", str(model), "--texts", "--random_flip"]
    printed = ranks(lambda: as_main("dpt", *words, "--out", str(tmp_path / "cache")))
    assert contents(tmp_path / "cache") == contents(cached / "cache")
    assert printed.count("34 images are to be encoded") == 1, "one of them wrote"


def other_model(model: Path, folder: Path, part: str) -> Path:
    """A copy of the model with one changed weight."""
    shutil.copytree(model, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file({**weights, first: weights[first] + 0.5}, file)
    return folder


MISFITS = {
    "resolution": ("--resolution 32", r"resolution is 64, not 32"),
    "center_crop": ("--center_crop", r"center_crop is False, not True"),
    "vae": ("vae", r"vae is '?\w{12}…'?, not '?\w{12}…"),
    "text_encoder": ("text_encoder", r"text_encoder is '?\w{12}…'?, not '?\w{12}…"),
}


@pytest.mark.parametrize("which", MISFITS)
def test_cache_of_another_key_is_refused(run: Commands, root: Path, tmp_path: Path, which: str) -> None:
    words, message = MISFITS[which]
    if not words.startswith("--"):
        run.model, words = str(other_model(Path(run.model), tmp_path / "other", words)), ""
    code, _, error = run.train(root, words)
    assert code == 2 and re.search(message, error)
    assert "`dpt cache … --out FOLDER` and give --cache FOLDER, or --cache none" in error
    assert not (tmp_path / "logs").exists(), "nothing was begun"
    code, _, error = run.cache(root, f"{words} --texts --random_flip")
    assert (
        code == 2
        and re.search(rf"was made with other options \({message}", error)
        and "remove it, or give another --out FOLDER" in error
    )
    assert run.cache(root, f"{words} --texts --out {tmp_path / 'mine'}")[0] == 0
    assert run.train(root, f"{words} --cache {tmp_path / 'mine'}")[0] == 0


@pytest.mark.parametrize("ingredient", ["format", "preprocessing", "dtype"])
def test_every_part_of_the_key_is_checked(run: Commands, root: Path, ingredient: str) -> None:
    """Caches of another code version or text encoder format are refused."""
    file = root / "cache/texts/manifest.json"
    manifest = json.loads(file.read_text())
    was, manifest["key"][ingredient] = manifest["key"][ingredient], "bfloat16"
    file.write_text(json.dumps(manifest))
    code, _, error = run.train(root)
    assert code == 2 and f"({ingredient} is 'bfloat16', not {was!r})" in error


def test_another_unet_uses_the_same_cache(run: Commands, root: Path, tmp_path: Path) -> None:
    run.model = str(other_model(Path(run.model), tmp_path / "tuned", "unet"))
    code, out, _ = run.train(root)
    assert code == 0 and "using the cache" in out


def test_missing_mirrored_latents_are_reported(run: Commands, root: Path) -> None:
    shutil.rmtree(root / "cache")
    assert run.cache(root)[0] == 0
    code, _, error = run.train(root, "--random_flip")
    assert code == 2 and "is not for this run (it was made without --random_flip)" in error
    code, _, error = run.cache(root, "--random_flip")
    assert code == 2 and "(random_flip is False, not True): remove it, or give another --out FOLDER" in error
    code, _, error = run.cache(root, "--dtype float16")
    assert code == 2 and "(dtype is 'float32', not 'float16')" in error


def test_unfinished_cache_is_skipped_with_a_warning(run: Commands, root: Path) -> None:
    (root / "cache/latents/manifest.json").unlink()
    code, out, _ = run.train(root, "--train_batch_size 1")
    assert code == 0
    assert f"the cache {root}/cache/latents is not finished: `dpt cache` continues it; until then it is not" in out
    assert re.search(r"using the cache .*/cache: states of \d+ texts", out)
    code, _, error = run.train(root, f"--cache {root}/cache", "named")
    assert code == 2 and "is not finished: `dpt cache` continues it" in error


def test_corrupted_shard_ends_training(run: Commands, root: Path) -> None:
    file = root / "cache/latents/shard-00000.safetensors"
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-1])
    code, _, error = run.train(root)
    assert code == 2 and f"{file} is corrupted: it has {len(content) - 1} bytes, not {len(content)}" in error
    file.write_bytes(content[:1000] + bytes(len(content) - 1000))
    for workers in (0, 1):
        code, _, error = run.train(root, f"--dataloader_num_workers {workers}")
        assert code == 2 and f"error: {file} is corrupted: the checksum of 'train2014/COCO_" in error
    code, out, _ = run.cache(root, "--texts --random_flip")
    assert (
        code == 0 and "shard-00000.safetensors is made again: its size or SHA-256 differs from what was written" in out
    )
    assert run.train(root)[0] == 0


def test_image_missing_from_the_cache_is_an_error(run: Commands, root: Path) -> None:
    shutil.rmtree(root / "cache")
    table = root / "ITM/coco/val_hard_neg_t20_i4OpenClip_ViT-H-14.tsv"
    shutil.move(table, root / "aside")
    assert run.cache(root)[0] == 0
    shutil.move(root / "aside", table)
    code, _, error = run.train(root, "--val_fullset --validation_steps 1")
    assert code == 2 and re.search(r"val2014/COCO_\w+\.jpg is not in the cache .*`dpt cache` adds what is", error)


def test_broken_images_within_the_budget_are_skipped(run: Commands, root: Path) -> None:
    shutil.rmtree(root / "cache")
    picture = sorted((root / "coco/images/train2014").iterdir())[0]
    picture.write_bytes(b"no picture")
    code, _, error = run.cache(root)
    assert code == 2 and f"the image {picture} cannot be used" in error
    code, out, error = run.cache(root, "--corrupt_budget 1")
    assert code == 0 and f"warning: the image {picture} cannot be used" in error and "(1 of 1 allowed)" in error
    assert "latents of 33 images in float32, 1 broken" in out
    assert json.loads((root / "cache/latents/manifest.json").read_text())["broken"] == [f"train2014/{picture.name}"]
    code, out, error = run.train(root, "--corrupt_budget 1 --max_train_steps 8")
    assert code == 0 and f"warning: the image {picture} cannot be used" in error
    code, _, error = run.train(root, "--max_train_steps 8", "strict")
    assert code == 2 and f"the image {picture} cannot be used" in error


def test_full_disk_is_detected_before_encoding(run: Commands, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**5, 10**5))
    code, out, error = run.cache(root, "--texts")
    assert "cache/latents: 34 of 34 images are to be encoded, 148 kB" in out
    assert re.search(
        rf"the disk of {root}/cache has too little space: the cache needs \d+ kB and 100 kB are free", error
    )
    assert code == 2 and not list((root / "cache").rglob("shard-*"))


def test_published_latents_are_used_with_a_warning(run: Commands, root: Path) -> None:
    folder = root / "coco/latents/train2014_SD2-1"
    folder.mkdir(parents=True)
    for picture in (root / "coco/images/train2014").iterdir():
        np.save(folder / f"{picture.stem}.npy", np.zeros((4, 16, 16), np.float16))
    code, out, error = run.train(root, f"--cache {folder}")
    assert code == 0 and f"using {folder}: published latents of 24 images" in out
    assert f"warning: the latents in {folder} do not record their model or preprocessing" in error
    code, _, error = run.train(root, f"--cache {folder} --random_flip", "flip")
    assert (
        code == 2
        and "has no latents of mirrored images: leave out --random_flip, or make a cache with `dpt cache`" in error
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_size 0", "--batch_size must be at least 1, not 0"),
        ("--corrupt_budget -1", "--corrupt_budget must be at least 0, not -1"),
        ("--resolution 63", "the height must be divisible by 4, not 63"),
        ("--out FILE", "FILE/latents cannot be written: it, or a folder above it, is a file"),
    ],
)
def test_invalid_requests_are_refused_in_one_sentence(run: Commands, root: Path, words: str, message: str) -> None:
    shutil.rmtree(root / "cache")
    file = root / "manifest.json"
    code, _, error = run.cache(root, words.replace("FILE", str(file)))
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2 and message.replace("FILE", str(file)) in line
    assert not (root / "cache").exists()


def test_invalid_data_folders_are_refused(run: Commands, tmp_path: Path) -> None:
    code, _, error = run.cache(tmp_path / "nowhere")
    assert code == 2 and f"there is no data folder {tmp_path / 'nowhere'}" in error
    code, _, error = run.cache(tmp_path)
    assert code == 2 and "has none of the folders coco/, ReC/, ITM/" in error
    (tmp_path / "coco").mkdir()
    code, _, error = run.cache(tmp_path)
    assert code == 2 and "has neither expressions nor captions with hard negatives" in error


def test_invalid_cache_folders_are_refused(run: Commands, root: Path, tmp_path: Path) -> None:
    code, _, error = run.train(root, f"--cache {tmp_path}/nowhere")
    assert code == 2 and "nowhere is not a cache: it has neither latents/ nor texts/ nor .npy files" in error
    code, _, error = run.train(None, f"--cache {root}/cache")
    assert code == 2 and "--cache needs --data_root" in error
    code, out, _ = run.train(root, "--cache none")
    assert code == 0 and "the cache" not in out


def test_cache_and_training_have_the_same_defaults() -> None:
    from dpt.cli.commands.data import CacheOptions
    from dpt.cli.train.options import DataOptions, ModelOptions
    from dpt.records import to_flat

    shared = {**to_flat(ModelOptions()), **to_flat(DataOptions())}
    for name, value in to_flat(CacheOptions(SAMPLE)).items():
        if name in shared:
            assert value == shared[name], name
