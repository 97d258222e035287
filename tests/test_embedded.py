"""The embedded models and checkpoints are found from any folder, in a checkout and in an installed package."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from dpt import embedded
from dpt.cli.common.console import parse_options
from dpt.cli.train.stages import Stage1Options

ROOT = Path(__file__).parent.parent


def test_embedded_checkpoints_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert embedded.embedded_path("ckpt/pocket-dpt") == ROOT / "ckpt/pocket-dpt"
    assert embedded.embedded_path("ckpt/none") == Path("ckpt/none")
    assert embedded.embedded_path(f"ckpt/{'n' * 300}") == Path(f"ckpt/{'n' * 300}"), "longer than a name can be"
    for words in (["--qformer_ckpt", "ckpt/pocket-stage1"], ["--qformer_ckpt=ckpt/pocket-stage1"]):
        options = parse_options(Stage1Options, words, "train_stage1.py")
        assert options.adapter.qformer_ckpt == ROOT / "ckpt/pocket-stage1"
    words = ["--pretrained_model_name_or_path", "ckpt/pocket-mmdit"]
    assert parse_options(Stage1Options, words, "x").model.pretrained_model_name_or_path == "ckpt/pocket-mmdit"
    own = tmp_path / "ckpt/pocket-stage1"
    own.mkdir(parents=True)
    assert embedded.embedded_path("ckpt/pocket-stage1") == Path("ckpt/pocket-stage1"), "what is there comes first"


def test_an_installed_package_finds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "dpt"
    (package / "ckpt" / "pocket").mkdir(parents=True)
    shutil.copy(ROOT / "dpt/embedded.py", package / "embedded_copy.py")
    monkeypatch.syspath_prepend(str(package))
    copy = importlib.import_module("embedded_copy")
    sys.modules.pop("embedded_copy")
    assert package == copy.CHECKOUT and copy.model_location("ckpt/pocket") == str(package / "ckpt/pocket")
