"""`dpt compare`: the same prompts and noise with several methods, judged and shown side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt.cli.main import run
from dpt.errors import UserError
from dpt.evaluation.contact_sheet import FRAMES
from dpt.methods.registry import known_methods

Capture = pytest.CaptureFixture[str]

WORDS = ["compare", "base", "sld", "--num_timesteps", "3"]


def pixels(sheet: Path, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(Image.open(sheet)) == colour).all(axis=-1).sum())


def test_each_method_gets_the_first_prompt_of_each_category(tmp_path: Path, capsys: Capture) -> None:
    run([*WORDS, "--outdir", str(tmp_path)])
    printed = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["base"] * 5 + ["sld"] * 5
    assert [line["category"] for line in lines[:5]] == ["single", "binding", "count", "spatial", "negation"]
    assert [line["noise_seed"] for line in lines[:5]] == [line["noise_seed"] for line in lines[5:]]
    right = {name: sum(line["passed"] for line in lines if line["method"] == name) for name in ("base", "sld")}
    assert f"right of 5: base {right['base']}, sld {right['sld']}\n" in printed
    assert right["base"] <= right["sld"], "SLD returns no image that is worse than its start"
    for line in lines[:5]:
        assert line["prompt"] in printed
    assert len(list((folder / "sld").glob("*.png"))) == 5
    frames = {passed: pixels(folder / "sheet.png", FRAMES[passed]) for passed in (True, False)}
    frame, some = (sum(frames.values()) // 10, sum(right.values()))
    assert frames == {True: frame * some, False: frame * (10 - some)}


def test_prompts_of_ones_own_are_judged_or_refused(tmp_path: Path, capsys: Capture) -> None:
    words = ["compare", "base", "--num_timesteps", "1", "--outdir", str(tmp_path)]
    run([*words, "--prompt", "two green crosses", "a red circle", "--per_prompt", "2"])
    assert "right of 4: base 0" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"does not understand 'a dragon'.*--detector none"):
        run([*words, "--prompt", "a dragon"])
    capsys.readouterr()
    run([*words, "--prompt", "a dragon", "--detector", "none"])
    printed = capsys.readouterr()
    assert "not judged" in printed.out and "right of" not in printed.out
    assert "ckpt/pocket is a miniature that does not know 'dragon'; its 63 words are a, above, an," in printed.err
    assert "give a real model: --pretrained_model_name_or_path FOLDER" in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per_prompt", "0"], "--per_prompt must be from 1"),
        (["--per_prompt", "500"], "do not fit on a sheet"),
        (["--prompts_per_category", "-1"], "--prompts_per_category must be from 1"),
    ],
)
def test_numbers_out_of_range_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(["compare", "base", *flags])


def test_methods_of_checkpoints_are_known_for_their_model_only() -> None:
    assert {"base", "sld", "control", "dpt", "corrected", "best4"} <= set(known_methods(25))
    assert set(known_methods(25, "another/model")) == {"base", "sld"}
