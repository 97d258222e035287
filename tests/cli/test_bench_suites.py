"""`dpt bench` with other suites and detectors on tiny models: run, score and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.cli.bench.common import JudgeOptions
from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import RunOptions, ScoreOptions, run, score
from dpt.errors import UserError
from tests import tiny_models
from tests.evaluation import tiny_vision
from tests.flags import with_flags

SMALL = {"prompts": 2, "per_prompt": 2, "num_timesteps": 2}
LINES = [
    {"tag": "counting", "prompt": "two circles", "include": [{"class": "circle", "count": 2}],
     "exclude": [{"class": "circle", "count": 3}]},
    {"tag": "colors", "prompt": "a red circle", "include": [{"class": "circle", "count": 1, "color": "red"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made = {
        "base": tiny_models.save(tiny_models.POCKET, root / "base"),
        "owl": tiny_vision.owl(root / "owl"),
        "dino": tiny_vision.grounding_dino(root / "dino"),
        "clip": tiny_vision.clip(root / "clip"),
    }
    return {name: str(folder) for name, folder in made.items()}


def draw(models: dict[str, str], out: Path, suite: str, **changes: Any) -> list[dict[str, Any]]:
    flags = {"pretrained_model_name_or_path": models["base"], "suite": suite, **SMALL, **changes}
    run(with_flags(RunOptions(("base",), out), **flags))
    return lines(out)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "base.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lmd(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lmd")
    draw(models, out, "lmd", detector=models["owl"], clip=models["clip"])
    return out


def test_lmd_is_drawn_judged_and_scored(lmd: Path, models: dict[str, str]) -> None:
    results = lines(lmd)
    assert len(results) == 16 and {result["category"] for result in results} == {
        "negation",
        "numeracy",
        "attribution",
        "spatial",
    }
    assert all(result["passed"] in (True, False) and -1 <= result["clip"] <= 1 for result in results)
    identity = json.loads((lmd / "bench.json").read_text())["methods"]["base"]
    assert identity["detector"].endswith("score >= 0.2 (attribution: 0.45) NMS 0.15")
    assert identity["detector"].startswith("owl ") and identity["clip"].startswith("CLIP clip ")
    assert len(identity["suite_hash"]) == 64


def test_a_killed_run_resumes_with_detector_and_clip(lmd: Path, models: dict[str, str], tmp_path: Path) -> None:
    judges = {"detector": models["owl"], "clip": models["clip"]}
    draw(models, tmp_path, "lmd", **judges)
    whole = (tmp_path / "base.jsonl").read_text()
    assert whole == (lmd / "base.jsonl").read_text()
    (tmp_path / "base.jsonl").write_text(whole[: len(whole) // 2])
    picture = next((tmp_path / "base").iterdir())
    content = picture.read_bytes()
    picture.unlink()
    draw(models, tmp_path, "lmd", **judges)
    assert (tmp_path / "base.jsonl").read_text() == whole and picture.read_bytes() == content
    with pytest.raises(UserError, match="choose another --out"):
        draw(models, tmp_path, "lmd", detector=models["owl"])
    with pytest.raises(UserError, match="choose another --out"):
        draw(models, tmp_path, "sr2d", **judges)


def test_results_of_two_judges_cannot_share_a_table(lmd: Path, models: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(ScoreOptions(lmd, out, judge=JudgeOptions(models["owl"])))
    record = json.loads((out / "bench.json").read_text())
    with pytest.raises(UserError, match="choose another --out"):
        score(ScoreOptions(lmd, out, judge=JudgeOptions(models["dino"])))
    record["methods"]["tuned"] = {**record["methods"]["base"], "detector": "another"}
    (out / "bench.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="base and tuned differ in their detector and cannot share a table"):
        report(ReportOptions(out))


def test_stored_pictures_are_judged_by_another_detector(lmd: Path, models: dict[str, str], tmp_path: Path) -> None:
    drawn = sorted(file.stat().st_mtime_ns for file in (lmd / "base").iterdir())
    score(ScoreOptions(lmd, tmp_path / "owl", judge=JudgeOptions(models["owl"], clip=models["clip"])))
    assert lines(tmp_path / "owl") == lines(lmd)
    score(ScoreOptions(lmd, tmp_path / "dino", judge=JudgeOptions(models["dino"])))
    results = lines(tmp_path / "dino")
    assert len(results) == 16 and "clip" not in results[0]
    assert [result["noise_seed"] for result in results] == [result["noise_seed"] for result in lines(lmd)]
    assert sorted(file.stat().st_mtime_ns for file in (lmd / "base").iterdir()) == drawn
    report(ReportOptions(tmp_path / "dino"))
    assert "data:image/png" in (tmp_path / "dino/report.html").read_text()
    assert not list((tmp_path / "dino").glob("*/*.png"))


def test_adding_clip_scores_keeps_the_verdicts(models: dict[str, str], lmd: Path, tmp_path: Path) -> None:
    draw(models, tmp_path / "drawn", "lmd", detector=models["owl"])
    score(ScoreOptions(tmp_path / "drawn", tmp_path / "scored", judge=JudgeOptions(clip=models["clip"])))
    assert lines(tmp_path / "scored") == lines(lmd)
    bare = [{key: value for key, value in result.items() if key != "clip"} for result in lines(tmp_path / "scored")]
    assert bare == lines(tmp_path / "drawn")


def test_geneval_pictures_use_its_file_layout(models: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    out = tmp_path / "out"
    results = draw(models, out, f"geneval={file}", detector=models["owl"], colours=models["clip"])
    assert [result["prompt_id"] for result in results] == ["00000", "00001"] * 2, "first images first"
    assert json.loads((out / "base/00001/metadata.jsonl").read_text()) == LINES[1]
    assert sorted(path.name for path in (out / "base/00001/samples").iterdir()) == ["0000.png", "0001.png"]
    assert json.loads((out / "bench.json").read_text())["methods"]["base"]["judge"] == "geneval-owl"
    report(ReportOptions(out))
    assert "geneval-owl" in (out / "report.html").read_text()
    moved = file.rename(tmp_path / "moved.jsonl")
    with pytest.raises(UserError, match="cannot read"):
        score(ScoreOptions(out, tmp_path / "again", judge=JudgeOptions(models["dino"], colours=models["clip"])))
    again = ScoreOptions(
        out, tmp_path / "again", suite=f"geneval={moved}", judge=JudgeOptions(models["dino"], models["clip"])
    )
    score(again)
    assert len(lines(tmp_path / "again")) == 4
    moved.write_text(json.dumps(LINES[0]) + "\n")
    with pytest.raises(UserError, match="has changed since base was run"):
        score(again)


def test_prompts_are_drawn_and_scored_but_not_judged(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\na blue square\n")
    results = draw(models, tmp_path / "out", f"prompts={file}", clip=models["clip"])
    assert [result["passed"] for result in results] == [None] * 4 and all("clip" in result for result in results)
    report(ReportOptions(tmp_path / "out", reference="scenes", encoder=models["clip"]))
    printed = capsys.readouterr().out
    assert "| CLIP cosine | prompts (n = " in printed and "| method | prompts" not in printed
    assert "scenes against other scenes" in printed
    draw(models, tmp_path / "bare", f"prompts={file}")
    assert "not judged, and without --clip" in capsys.readouterr().err
    report(ReportOptions(tmp_path / "bare"))
    assert "Nothing was judged or scored" in capsys.readouterr().out


def test_pictures_without_a_detector_can_be_judged_later(models: dict[str, str], tmp_path: Path, lmd: Path) -> None:
    results = draw(models, tmp_path / "drawn", "lmd", detector="none")
    assert {result["passed"] for result in results} == {None}
    score(ScoreOptions(tmp_path / "drawn", tmp_path / "judged", judge=JudgeOptions(models["owl"], clip=models["clip"])))
    assert lines(tmp_path / "judged") == lines(lmd)


def test_sr2d_reports_visor(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(models, tmp_path, "sr2d", categories=("left", "single"), detector=models["owl"])
    report(ReportOptions(tmp_path))
    assert "| OA | VISOR uncond | VISOR cond | VISOR 1 of 2 | VISOR 2 of 2 |" in capsys.readouterr().out


def test_the_manifest_has_suite_hash_versions_and_files(lmd: Path, tmp_path: Path) -> None:
    report(ReportOptions(lmd, out=tmp_path))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["suite"] == "lmd" and len(manifest["suite_hash"]) == 64 and manifest["versions"]["transformers"]
    assert list(manifest["lines"]) == ["base.jsonl"]
    counted = json.loads((tmp_path / "results.json").read_text())
    assert counted["results"][0]["clip"].keys() == counted["results"][0]["rates"].keys()
    assert counted["results"][0]["readable"] is None


@pytest.mark.parametrize(
    ("suite", "more", "message"),
    [("lmd", {"detector": "oracle"}, "prompt lmd-000: the detector oracle v1 .* does not detect 'backpack'"),
     ("lmd", {"detector": "owl", "colours": "clip"}, "lmd has colours in its queries: --colours"),
     ("pocket", {"colours": "clip"}, "--colours has no effect: the oracle reads colours itself"),
     ("pocket", {"detector": "owl"}, "does not read: give a CLIP that reads them, as --colours"),
     ("pocket", {"detector": "none", "colours": "clip"}, "--colours has no effect with --detector none"),
     ("prompts={file}", {"detector": "owl"}, "is not judged: --detector has no effect"),
     ("prompts={file}", {"seed": 1}, "--seed changes the prompts of the pocket suite"),
     ("lmd", {"detector": "clip"}, "is a clip model, and a detector is one of owlv2"),
     ("lmd", {"detector": "owl", "clip": "owl"}, "is a owlv2 model, and a CLIP is one of"),
     ("lmd", {"prompts": 0}, "--prompts must be from 1"), ("mine", {}, "there is no suite 'mine'")],
)  # fmt: skip
def test_invalid_run_options_are_user_errors(
    models: dict[str, str], tmp_path: Path, suite: str, more: dict[str, Any], message: str
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    options = {key: models.get(value, value) if isinstance(value, str) else value for key, value in more.items()}
    with pytest.raises(UserError, match=message):
        draw(models, tmp_path / "out", suite.replace("{file}", str(tmp_path / "prompts.txt")), **options)
    assert not (tmp_path / "out").exists()


def test_invalid_score_options_are_user_errors(lmd: Path, models: dict[str, str], tmp_path: Path) -> None:
    out, owl = tmp_path / "out", models["owl"]
    for wrong, message in [
        (ScoreOptions(lmd, out), "pass --detector to judge again"),
        (
            ScoreOptions(lmd, out, judge=JudgeOptions(colours=models["clip"], clip=models["clip"])),
            "--colours needs --detector",
        ),
        (ScoreOptions(lmd, lmd, judge=JudgeOptions(owl)), "holds the images and their results; choose another --out"),
        (ScoreOptions(tmp_path, out, judge=JudgeOptions(owl)), "is not the folder of a benchmark"),
        (ScoreOptions(lmd, out, methods=("tuned",), judge=JudgeOptions(owl)), "there is no method 'tuned'"),
        (ScoreOptions(lmd, out, suite="sr2d", judge=JudgeOptions(owl)), "the images are of the suite lmd, not sr2d"),
    ]:
        with pytest.raises(UserError, match=message):
            score(wrong)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [({"budget_mb": 0}, "--budget_mb must be above 0"), ({"encoder": "x"}, "there is no model folder 'x'"),
     ({"reference": "nowhere"}, "--reference must be scenes or a folder")],
)  # fmt: skip
def test_invalid_report_options_are_user_errors(lmd: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        report(ReportOptions(lmd, out=tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()
