"""`dpt bench` on a tiny model, whose images are noise: the oracle must judge every image as wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dpt.backbone import open_backbone
from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import RunOptions, run
from dpt.errors import UserError
from dpt.methods.registry import parse_method
from tests.flags import with_flags
from tests.training.children import as_main, ranks

CLIP = Path(__file__).parents[2] / "ckpt/pocket/clip"

SMALL = {"categories": ("single", "count"), "prompts": 2, "per_prompt": 2, "num_timesteps": 2}


def options(model: Path, out: Path, *methods: str, **changes: object) -> RunOptions:
    flags = {**SMALL, **changes}
    return with_flags(RunOptions(methods, out), pretrained_model_name_or_path=str(model), **flags)


def test_each_method_has_a_result_and_a_picture_per_request(drawn: Path) -> None:
    for method in ("base", "tuned"):
        lines = [json.loads(line) for line in (drawn / f"{method}.jsonl").read_text().splitlines()]
        assert len(lines) == 8
        assert len({(line["prompt_id"], line["index"]) for line in lines}) == 8
        assert sorted(file.name for file in (drawn / method).iterdir()) == sorted(
            f"{line['prompt_id']}-{line['index']}.png" for line in lines
        )
    base, tuned = (sorted((drawn / method).iterdir()) for method in ("base", "tuned"))
    assert [file.read_bytes() for file in base] != [file.read_bytes() for file in tuned]


def test_a_killed_run_resumes_to_the_same_results(drawn: Path, model: Path, tmp_path: Path) -> None:
    run(options(model, tmp_path, "base"))
    whole = (tmp_path / "base.jsonl").read_text()
    assert whole == (drawn / "base.jsonl").read_text()
    (tmp_path / "base.jsonl").write_text(whole[: len(whole) // 2])
    run(options(model, tmp_path, "base"))
    assert (tmp_path / "base.jsonl").read_text() == whole


def together(model: Path, out: Path, *methods: str) -> None:
    command = [
        "bench", "run", *methods, "--out", str(out), "--pretrained_model_name_or_path", str(model),
        "--categories", "single", "count", "--prompts", "10", "--per_prompt", "2", "--num_timesteps", "2",
    ]  # fmt: skip
    ranks(lambda: as_main("tests.cli.slow_second_process", *command))


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(model: Path, tuned: Path, tmp_path: Path) -> None:
    methods, longer = ("base", f"tuned={tuned}"), {"prompts": 10}
    run(options(model, tmp_path / "alone", *methods, **longer))
    together(model, tmp_path / "together", *methods)
    for name in ("base", "tuned"):
        alone, shared = ((tmp_path / where / f"{name}.jsonl").read_bytes() for where in ("alone", "together"))
        assert len(alone.splitlines()) == 40
        assert shared == alone
    pictures = [sorted((tmp_path / where / "tuned").iterdir()) for where in ("alone", "together")]
    assert [file.read_bytes() for file in pictures[0]] == [file.read_bytes() for file in pictures[1]]
    again = ["bench", "score", str(tmp_path / "together"), "--detector", "oracle", "--out", str(tmp_path / "again")]
    ranks(lambda: as_main("tests.cli.slow_second_process", *again))
    assert (tmp_path / "again/tuned.jsonl").read_bytes() == (tmp_path / "together/tuned.jsonl").read_bytes()
    assert not list(tmp_path.rglob("*.part-*"))


def test_parts_of_killed_processes_are_merged_and_completed(model: Path, tmp_path: Path) -> None:
    run(options(model, tmp_path, "base", prompts=10))
    lines = (tmp_path / "base.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "base.part-0.jsonl").write_text("".join(lines[:16]))
    (tmp_path / "base.part-1.jsonl").write_text("".join(lines[16:20]) + lines[20][:30])
    (tmp_path / "base.jsonl").write_text("".join(lines[32:36]))
    run(options(model, tmp_path, "base", prompts=10))
    assert sorted((tmp_path / "base.jsonl").read_text().splitlines(keepends=True)) == sorted(lines)
    assert not list(tmp_path.glob("*.part-*"))


def test_the_report_has_tables_summary_and_sheet(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(ReportOptions(drawn, out=tmp_path))
    printed = capsys.readouterr().out
    assert printed.startswith((tmp_path / "table.md").read_text())
    assert f"page:   {tmp_path / 'report.html'}" in printed
    assert "| tuned - base |" in printed
    counted = json.loads((tmp_path / "results.json").read_text())
    assert counted["methods"].keys() == {"base", "tuned"}
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    lines = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert [(line["method"], line["category"], line["right"]) for line in lines] == [
        (method, category, [0, 0]) for method in ("base", "tuned") for category in ("count", "single") for _ in range(2)
    ]


def test_a_folder_with_other_options_is_an_error(drawn: Path, model: Path, tuned: Path) -> None:
    with pytest.raises(UserError, match="with --num_timesteps 2, this benchmark with 3; choose another --out"):
        run(options(model, drawn, "base", num_timesteps=3))
    with pytest.raises(UserError, match="holds results of base that differ in lora; choose another --out"):
        run(options(model, drawn, f"base={tuned}"))


@pytest.mark.parametrize(
    ("methods", "message"),
    [((), "name the methods to run"), (("tuned",), "there is no method 'tuned'; there are base, sld; or tuned=FOLDER"),
     (("a/b=x",), "is used in file names"),
     (("base", "base"), "listed twice"), (("a=x,factor",), "has no option 'factor'; its options are factor, target"),
     (("a=x,factor=much",), "has an invalid value: factor=much"),
     (("a=x,factor=1,target=up",), "target is one of"), (("a=x,norm=unit",), "has correction options but no factor"),
     (("a=x,candidates=0",), "at least 1 candidate")],
)  # fmt: skip
def test_invalid_methods_are_user_errors(model: Path, tmp_path: Path, methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(options(model, tmp_path / "out", *methods))
    assert not (tmp_path / "out").exists()


def test_a_name_without_a_path_is_the_model_itself_with_another_negative_prompt() -> None:
    config = parse_method("phrase=,negative_prompt=Weird image. ")
    assert (config.name, config.checkpoint, config.negative_prompt) == ("phrase", None, "Weird image. ")
    with pytest.raises(UserError, match="has no checkpoint: use same=FOLDER"):
        parse_method("same=,negative_prompt=")


def test_a_report_without_results_is_a_user_error(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a benchmark"):
        report(ReportOptions(tmp_path))
    with pytest.raises(UserError, match="no method 'control' for --baseline among"):
        report(ReportOptions(drawn, baseline="control"))
    with pytest.raises(UserError, match="no method 'control' in"):
        report(ReportOptions(drawn, methods=("control",)))


def test_a_report_can_leave_unfinished_methods_out(drawn: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(drawn, tmp_path / "bench")
    text = (folder / "tuned.jsonl").read_text()
    (folder / "tuned.jsonl").unlink()
    with pytest.raises(UserError, match=r"tuned has no results in .* yet: finish the run, or pass"):
        report(ReportOptions(folder))
    (folder / "tuned.jsonl").write_text(f"{text.splitlines()[0]}\n")
    with pytest.raises(UserError, match=r"not judged in the same categories .* pass the finished methods as"):
        report(ReportOptions(folder))
    (folder / "tuned.jsonl").write_text("".join(f"{line}\n" for line in text.splitlines()[1:]))
    report(ReportOptions(folder))
    first_images_missing = (folder / "table.md").read_text()
    assert "Over the images that both methods have: tuned - base (7)." in first_images_missing
    report(ReportOptions(folder, methods=("base",), encoder=str(CLIP)))
    table = (folder / "table.md").read_text()
    assert "| tuned |" not in table and "Diversity by the" in table and "Fréchet" not in table
    assert list(json.loads((folder / "results.json").read_text())["methods"]) == ["base"]


def pictures(out: Path, method: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / method).iterdir()}


def test_methods_with_correction_and_candidates(drawn: Path, whole: Path, model: Path, tmp_path: Path) -> None:
    variants = {
        "bare": "lora=off,factor=1e-12",
        "corrected": "factor=20,target=fused,norm=unit",
        "best": "candidates=3",
    }
    run(options(model, tmp_path, *(f"{name}={whole},{options_text}" for name, options_text in variants.items())))
    record = json.loads((tmp_path / "bench.json").read_text())["methods"]
    assert "lora" not in record["bare"] and record["corrected"]["correction"]["target"] == "fused"
    assert pictures(tmp_path, "bare") == pictures(drawn, "base"), "a correction by 1e-12 changed a picture"
    plain = pictures(drawn, "tuned")
    assert pictures(tmp_path, "corrected") != plain
    kept = pictures(tmp_path, "best")
    assert kept.keys() == plain.keys() and kept != plain
    with pytest.raises(UserError, match="holds results of best that differ in candidates"):
        run(options(model, tmp_path, f"best={whole},candidates=2"))


def test_candidates_keep_the_picture_with_the_best_score(whole: Path, model: Path, tmp_path: Path) -> None:
    """The first candidate is the picture of candidates=1; ties keep it."""
    from dpt.checkpoints import open_checkpoint
    from dpt.evaluation.bench.run import all_requests
    from dpt.evaluation.suites.registry import load
    from dpt.methods.base import CANDIDATE_STRIDE
    from dpt.sampling.draw import Request, SamplingSettings, draw_latents, scored
    from dpt.score.matching import Scorer

    changes = {"categories": ("single",), "prompts": 1, "guidance_scale": 3.0}
    run(options(model, tmp_path, f"best={whole},candidates=2,lora=off", **changes))
    backbone, adapter = open_backbone(model, device="cpu"), open_checkpoint(whole).adapter
    assert adapter is not None
    for request in all_requests(load("pocket", ("single",), 1, 0), 2):
        requests = [Request(request.prompt.text, request.seed, request.index + CANDIDATE_STRIDE * k) for k in range(2)]
        batches = draw_latents(
            backbone, requests, SamplingSettings(2, 3.0), adapter=adapter, batch_size=16, exact=False
        )
        first, second = scored(batches, Scorer(backbone, adapter))
        from dpt.data.images import to_pil

        better = first if first.score >= second.score else second
        from PIL import Image

        stored = Image.open(tmp_path / "best" / request.file)
        error = np.abs(np.asarray(stored, int) - np.asarray(to_pil(better.decode(backbone)), int))
        assert error.max() <= 1


def test_judging_again_keeps_the_methods_identity(whole: Path, model: Path, tmp_path: Path) -> None:
    from dpt.cli.bench.common import JudgeOptions
    from dpt.cli.bench.run import ScoreOptions, score

    run(options(model, tmp_path / "drawn", f"best={whole},candidates=2", categories=("single",), prompts=1))
    score(ScoreOptions(tmp_path / "drawn", tmp_path / "again", judge=JudgeOptions("oracle")))
    records = [json.loads((tmp_path / out / "bench.json").read_text()) for out in ("drawn", "again")]
    first, second = (record["methods"]["best"] for record in records)
    assert first == second and first["candidates"] == 2
