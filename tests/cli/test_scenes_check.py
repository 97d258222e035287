from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from dpt.cli.commands.scenes import SceneCheckOptions, check
from dpt.detect.test_images import DISTURBANCES
from dpt.errors import UserError


def test_flags_become_options() -> None:
    flags = ["--num", "3", "--seed", "5", "--world", "pocket", "--vae", "model", "--json", "out.json"]
    assert tyro.cli(SceneCheckOptions, args=flags) == SceneCheckOptions(3, 5, "pocket", Path("model"), Path("out.json"))


def test_prints_a_table_and_writes_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "check.json"
    check(SceneCheckOptions(num=3, world="pocket", json_file=file))
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert set(content["scenes"]) == set(DISTURBANCES)
    assert all(name in printed for name in DISTURBANCES)
    assert content["scenes"]["clean"]["exact"] == content["num"] == 3
    assert content["detector"] in printed
    assert sum(content["without_a_name"]["pure noise"].values()) == 3


@pytest.mark.parametrize(
    ("slip", "named"),
    [
        ({"num": 0}, "--num"),
        ({"world": "flat"}, "flat"),
        ({"vae": Path("nowhere")}, "nowhere"),
        ({"json_file": Path("nowhere/out.json")}, "nowhere"),
    ],
)
def test_user_errors_name_what_is_wrong(slip: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        check(replace(SceneCheckOptions(num=1), **slip))


def test_a_folder_without_a_vae_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds no VAE"):
        check(SceneCheckOptions(num=1, vae=tmp_path))
    assert not capsys.readouterr().out
