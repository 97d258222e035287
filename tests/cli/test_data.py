from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dpt.cli.main import main, run
from dpt.cli.train.stages import main_stage1, main_stage2
from tests.data.files.conftest import SAMPLE
from tests.training import tiny_stage1


def exit_code(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dpt", *words])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)


def test_data_check_reports_and_exits_with_2_on_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, "data", "check", str(SAMPLE)) == 0
    assert capsys.readouterr().out.endswith(f"{SAMPLE} can be used\n")
    root = tmp_path / "data"
    shutil.copytree(SAMPLE, root)
    (root / "coco/images/train2014/COCO_train2014_000000000000.jpg").unlink()
    assert exit_code(monkeypatch, "data", "check", str(root)) == 2
    shown = capsys.readouterr()
    assert "BROKEN  coco/images/train2014" in shown.out
    assert shown.err == (f"error: {root} cannot be used: 1 of 18 parts are broken: coco/images/train2014\n")
    assert exit_code(monkeypatch, "data", "check", str(tmp_path / "none")) == 2


def test_data_prepare_writes_the_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    shutil.copytree(SAMPLE, root)
    folder = root / "ITM/coco/train_hard_neg_t20_i4OpenClip_ViT-H-14"
    shutil.rmtree(folder)
    run(["data", "prepare", str(root)])
    assert capsys.readouterr().out == f"wrote {folder}\n"
    run(["data", "prepare", str(root)])
    assert capsys.readouterr().out == f"{folder} is up to date\n"
    assert len(list(folder.iterdir())) == 9


def test_folder_of_captioned_images_trains_only_a_plain_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for picture in sorted((SAMPLE / "coco/images/train2014").iterdir())[:4]:
        shutil.copy(picture, folder)
        rows.append({"file_name": picture.name, "text": "a red circle", "weight": 0.5})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert exit_code(monkeypatch, "data", "check", str(folder)) == 0
    following = f"for stage 1 and stage 2: dpt data from-folder {folder} --out FOLDER\n"
    assert capsys.readouterr().out == f"{folder} can be used with --plain_lora: 4 captions of images\n{following}"

    model = str(tiny_stage1.model(tmp_path / "model"))
    short = ["--train_batch_size", "2", "--max_train_steps", "2", "--logging_steps", "1", "--unet_feature", "up0"]
    words = ["--pretrained_model_name_or_path", model, "--data_root", str(folder), *short]
    assert main_stage2([*words, "--plain_lora", "--lora_rank", "2", "--output_dir", str(tmp_path / "lora")]) == 0
    assert (tmp_path / "lora/lora").is_dir()
    capsys.readouterr()
    assert main_stage1([*words, "--output_dir", str(tmp_path / "adapter")]) == 2
    assert "holds images and captions, which only train_stage2.py --plain_lora trains on" in capsys.readouterr().err
