from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from dpt.cli.main import main, run
from tests.data.files.conftest import SAMPLE


def exit_code(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dpt", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    shutil.copytree(SAMPLE, root)
    folder = root / "ITM/coco/train_hard_neg_t20_i4OpenClip_ViT-H-14"
    shutil.rmtree(folder)
    run(["data", "prepare", str(root)])
    assert capsys.readouterr().out == f"wrote {folder}\n"
    run(["data", "prepare", str(root)])
    assert capsys.readouterr().out == f"{folder} is up to date\n"
    assert len(list(folder.iterdir())) == 9
