"""`dpt bench report --second`: the verdicts of another judge on the same images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dpt.cli.bench.common import JudgeOptions
from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import ScoreOptions, score
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.errors import UserError


def test_both_verdicts_are_in_one_report(drawn: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    score(ScoreOptions(drawn, again, judge=JudgeOptions(detector="noisy-oracle")))
    report(ReportOptions(drawn, out=tmp_path / "plain"))
    report(ReportOptions(drawn, out=tmp_path / "both", second=again))
    plain, both = ((tmp_path / name / "table.md").read_text().rstrip() for name in ("plain", "both"))
    first, _, _ = plain.partition("All in one table")
    assert both.startswith(first), "the first judge's tables are the same"
    assert "jitter 0.02" in both[len(first) :] and "| tuned - base |" in both[len(first) :]
    second = json.loads((tmp_path / "both" / "results.json").read_text())["second"]
    assert [result["method"] for result in second["results"]] == ["base", "tuned"]
    assert "Cohen's kappa" in both
    one, alone = ((tmp_path / name / "one-table.md").read_text().splitlines() for name in ("both", "plain"))
    assert both.endswith("\n".join(one)) and [line.split(" | ")[0] for line in one[2:]] == ["| base", "| tuned"]
    assert "| right, second judge |" in one[0] and "second judge" not in alone[0]
    assert one[0].startswith("| method | single | count | right | claims met | objects readable |")


def test_an_image_that_is_drawn_again_is_judged_again(drawn: Path, tmp_path: Path) -> None:
    folder, again = shutil.copytree(drawn, tmp_path / "bench"), tmp_path / "again"
    options = ScoreOptions(folder, again, methods=("base",), judge=JudgeOptions(detector="oracle"))
    score(options)
    lines = [json.loads(line) for line in (again / "base.jsonl").read_text().splitlines()]
    assert json.loads((again / "bench.json").read_text())["libraries"]["base"]["torch"]
    scene = make_scene(0, 0, POCKET_WORLD)
    file = folder / "base" / f"{lines[3]['prompt_id']}-{lines[3]['index']}.png"
    Image.fromarray(render(scene)).save(file)
    os.utime(file, (again.stat().st_mtime + 60,) * 2)  # whatever the resolution of the clock
    score(options)
    os.utime(file, (0, 0))
    changed = [json.loads(line) for line in (again / "base.jsonl").read_text().splitlines()]
    assert [number for number in range(8) if lines[number] != changed[number]] == [3]
    assert len(changed[3]["objects"]) == len(scene.objects)


def test_a_second_folder_that_does_not_fit_is_an_error(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was judged by the same detector"):
        report(ReportOptions(drawn, out=tmp_path / "out", second=drawn))
    other = tmp_path / "other"
    shutil.copytree(drawn, other)
    record = json.loads((drawn / "bench.json").read_text())
    record["methods"]["base"]["model"] = record["methods"]["tuned"]["model"] = "another"
    (other / "bench.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"the images of base in .* differ"):
        report(ReportOptions(drawn, out=tmp_path / "out", second=other))
    record["methods"] = {"else": record["methods"]["base"]}
    (other / "bench.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="--second has no effect"):
        report(ReportOptions(drawn, out=tmp_path / "out", second=other))
