"""`--itm`: the adapter's score, equal for new and stored images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.cli.bench.common import JudgeOptions
from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import ScoreOptions, run, score
from dpt.errors import UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench.tables import NOT_HELD_OUT
from dpt.score.matching import Scorer
from tests import tiny_models
from tests.checkpoints.making import tiny_result
from tests.cli.test_bench import options


@pytest.fixture(scope="module")
def scored(whole: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored")
    run(options(model, out, "base", f"tuned={whole}", itm=whole))
    return out


def test_the_score_is_computed_from_the_saved_picture(scored: Path, whole: Path, model: Path) -> None:
    backbone, checkpoint = open_backbone(model, device="cpu"), open_checkpoint(whole)
    checkpoint.attach(backbone)
    assert checkpoint.adapter is not None
    scorer = Scorer(backbone, checkpoint.adapter)
    results = rows.read_results(scored / "base.jsonl")
    assert len({result.itm for result in results}) > 1
    for result in results:
        picture = np.asarray(Image.open(scored / "base" / f"{result.prompt_id}-{result.index}.png"), np.float32)
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            value = scorer.clean_score(backbone.encode_images(pixels), backbone.encode_text([result.prompt]))
        assert result.itm == pytest.approx(float(value), abs=2e-5)


def test_scores_are_added_to_existing_results(scored: Path, drawn: Path, whole: Path, tmp_path: Path) -> None:
    score(ScoreOptions(drawn, tmp_path / "added", judge=JudgeOptions(itm=whole)))
    assert (tmp_path / "added/base.jsonl").read_text() == (scored / "base.jsonl").read_text()
    first, second = (json.loads((folder / "bench.json").read_text()) for folder in (scored, tmp_path / "added"))
    assert first["methods"]["base"] == second["methods"]["base"] and "adapter" in first["methods"]["base"]["itm"]


def test_an_adapter_of_another_model_reads_the_images_with_its_own_model(
    drawn: Path, whole: Path, tmp_path: Path
) -> None:
    other = tiny_models.save(tiny_models.SD2_V, tmp_path / "other", seed=4)
    backbone = open_backbone(other, device="cpu")
    judge = tiny_result(backbone, tmp_path / "judge")
    with pytest.raises(UserError, match=r"--itm .*judge was trained on another model, tiny, and not on .*: give the "
                                        r"model that it was trained on as --itm_model"):  # fmt: skip
        score(ScoreOptions(drawn, tmp_path / "refused", judge=JudgeOptions(itm=judge)))
    with pytest.raises(UserError, match="--itm_model needs --itm"):
        score(ScoreOptions(drawn, tmp_path / "refused", judge=JudgeOptions(clip="x", itm_model=str(other))))
    score(ScoreOptions(drawn, tmp_path / "added", judge=JudgeOptions(itm=judge, itm_model=str(other))))
    checkpoint = open_checkpoint(judge)
    lora = checkpoint.attach(backbone)
    assert checkpoint.adapter is not None and lora is not None
    lora.merge()
    scorer = Scorer(backbone, checkpoint.adapter)
    height, width = backbone.default_image_size
    result = rows.read_results(tmp_path / "added/base.jsonl")[0]
    picture = Image.open(drawn / "base" / f"{result.prompt_id}-{result.index}.png")
    assert picture.size != (width, height)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    pixels = torch.from_numpy(resized).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        value = scorer.clean_score(backbone.encode_images(pixels), backbone.encode_text([result.prompt]))
    assert result.itm == pytest.approx(float(value), abs=2e-5)


def test_the_report_notes_that_the_score_is_not_held_out(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(ReportOptions(scored))
    printed = capsys.readouterr().out
    assert "| ITM score | single (n = 2) | count (n = 2) | all (n = 4) |" in printed
    assert NOT_HELD_OUT in printed and "| tuned - base | " in printed.split("ITM score", 1)[1]
    page = (scored / "report.html").read_text()
    assert NOT_HELD_OUT in page and "ITM score" in page


def test_scores_of_two_adapters_cannot_share_a_table(scored: Path, drawn: Path, whole: Path, tmp_path: Path) -> None:
    record = json.loads((scored / "bench.json").read_text())
    record["methods"]["tuned"]["itm"] = "adapter of another"
    (tmp_path / "bench.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="differ in their itm"):
        report(ReportOptions(tmp_path))


def test_itm_without_a_checkpoint_is_a_user_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        run(options(model, tmp_path, "base", itm=tmp_path / "nowhere"))
