"""`--itm`: the adapter's score beside the verdict, the same when a picture is drawn and when it is opened again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import run
from dpt.cli.bench.score import ScoreOptions, score
from dpt.errors import UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench.tables import NOT_HELD_OUT
from dpt.score.matching import Scorer
from tests.cli.test_bench import drawn, model, options, tuned, whole

__all__ = ["drawn", "model", "tuned", "whole"]


@pytest.fixture(scope="module")
def scored(whole: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored")
    run(options(model, out, "base", f"tuned={whole}", itm=whole))
    return out


def test_the_score_is_the_adapters_of_the_picture_as_it_was_saved(scored: Path, whole: Path, model: Path) -> None:
    backbone, checkpoint = open_backbone(model, device="cpu"), open_checkpoint(whole)
    checkpoint.attach(backbone)
    assert checkpoint.adapter is not None
    scorer = Scorer(backbone, checkpoint.adapter)
    found = rows.read_results(scored / "base.jsonl")
    assert len({one.itm for one in found}) > 1
    for one in found:
        picture = np.asarray(Image.open(scored / "base" / f"{one.prompt_id}-{one.index}.png"), np.float32)
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            value = scorer.clean_score(backbone.encode_images(pixels), backbone.encode_text([one.prompt]))
        assert one.itm == pytest.approx(float(value), abs=2e-5)


def test_pictures_are_scored_again_without_drawing(scored: Path, drawn: Path, whole: Path, tmp_path: Path) -> None:
    score(ScoreOptions(drawn, tmp_path / "added", itm=whole))
    assert (tmp_path / "added/base.jsonl").read_text() == (scored / "base.jsonl").read_text()
    first, second = (json.loads((folder / "bench.json").read_text()) for folder in (scored, tmp_path / "added"))
    assert first["methods"]["base"] == second["methods"]["base"] and "adapter" in first["methods"]["base"]["itm"]


def test_the_report_says_that_it_is_not_held_out(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(ReportOptions(scored))
    printed = capsys.readouterr().out
    assert "| ITM score | single (n = 2) | count (n = 2) | all (n = 4) |" in printed
    assert NOT_HELD_OUT in printed and "| tuned - base | " in printed.split("ITM score", 1)[1]
    page = (scored / "report.html").read_text()
    assert NOT_HELD_OUT in page and "ITM score" in page


def test_scores_of_two_adapters_do_not_share_a_table(scored: Path, drawn: Path, whole: Path, tmp_path: Path) -> None:
    record = json.loads((scored / "bench.json").read_text())
    record["methods"]["tuned"]["itm"] = "adapter of another"
    (tmp_path / "bench.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="differ in their itm"):
        report(ReportOptions(tmp_path))


def test_an_adapter_is_needed(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        run(options(model, tmp_path, "base", itm=tmp_path / "nowhere"))
