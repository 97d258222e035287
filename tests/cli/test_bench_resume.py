"""`dpt bench` with concurrent runs, damaged pictures, full disks and invalid numbers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path

import pytest

from dpt.backbone.folder import ModelFolder
from dpt.backbone.identity import file_hash
from dpt.cli.bench.common import LATER_OPTIONS, JudgeOptions, method_lock
from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import ScoreOptions, run, score
from dpt.errors import UserError
from tests import tiny_models
from tests.cli.test_bench import options

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    return shutil.copytree(drawn, tmp_path / "bench")


HOLD = "import sys; from pathlib import Path; from dpt.cli.bench.common import method_lock\n" \
       "with method_lock(Path(sys.argv[1]), 'base'): print('held', flush=True); sys.stdin.read()"  # fmt: skip


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env=environment) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        yield
        other.communicate()


def test_concurrent_runs_of_a_method_in_a_folder_are_refused(folder: Path, model: Path) -> None:
    before = (folder / "base.jsonl").read_bytes()
    with held_by_another_process(folder):
        for command in (
            lambda: run(options(model, folder, "base")),
            lambda: score(
                ScoreOptions(drawn_elsewhere(folder), folder, methods=("base",), judge=JudgeOptions(detector="oracle"))
            ),
        ):
            with pytest.raises(UserError, match="another `dpt bench` command is writing base in"):
                command()
        with method_lock(folder, "tuned"):  # another method is free
            pass
    run(options(model, folder, "base"))
    assert (folder / "base.jsonl").read_bytes() == before


def test_more_images_per_prompt_continue_a_folder(folder: Path, model: Path) -> None:
    before = (folder / "base.jsonl").read_bytes().splitlines()
    run(options(model, folder, "base", per_prompt=6))
    after = (folder / "base.jsonl").read_bytes().splitlines()
    assert len(after) == 3 * len(before) and after[: len(before)] == before
    assert json.loads((folder / "bench.json").read_text())["asked"]["per_prompt"] == 6
    report(ReportOptions(folder, out=folder / "report"))  # tuned has two images of each prompt
    assert "tuned - base (8)" in (folder / "report/table.md").read_text()
    run(options(model, folder, "base"))  # two again: nothing to draw, nothing lost
    assert (folder / "base.jsonl").read_bytes().splitlines() == after
    run(options(model, folder, "new=,negative_prompt=blurry", per_prompt=1))
    assert len((folder / "new.jsonl").read_bytes().splitlines()) * 6 == len(after)
    score(ScoreOptions(folder, folder / "again", judge=JudgeOptions(detector="oracle")))
    for name in ("base", "new"):
        assert (folder / f"again/{name}.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes()
    with pytest.raises(UserError, match="num_timesteps 2, this benchmark with 3; choose another --out"):
        run(options(model, folder, "base", num_timesteps=3))


def test_a_folder_that_an_earlier_version_wrote_is_continued_and_reported(
    folder: Path, model: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the base model by a hash of its files, and lacks the options and hashes that came later."""
    record = json.loads((folder / "bench.json").read_text())
    old = file_hash(ModelFolder.check(model))
    del record["methods"]["tuned"]
    for identity in record["methods"].values():
        identity["model"] = old
        del identity["suite_hash"]
    for later in LATER_OPTIONS:
        del record["asked"][later]
    (folder / "bench.json").write_text(json.dumps(record))
    before = (folder / "base.jsonl").read_bytes(), (folder / "tuned.jsonl").read_bytes()
    (folder / "tuned.jsonl").unlink()
    run(options(model, folder, "base", f"tuned={tuned}"))
    assert ((folder / "base.jsonl").read_bytes(), (folder / "tuned.jsonl").read_bytes()) == before
    methods = json.loads((folder / "bench.json").read_text())["methods"]
    assert methods["base"]["model"] == methods["tuned"]["model"] == old
    report(ReportOptions(folder))
    assert "| tuned - base |" in capsys.readouterr().out
    other = tiny_models.save(tiny_models.POCKET, folder.with_name("other"), seed=5)
    with pytest.raises(UserError, match="was run with --num_timesteps 2, this benchmark with 3; choose another --out"):
        run(options(model, folder, "base", num_timesteps=3))
    with pytest.raises(UserError, match=r"was run with --pretrained_model_name_or_path .*; choose another --out"):
        run(options(other, folder, "base"))


def test_the_cost_of_a_killed_batch_is_dropped(folder: Path, model: Path) -> None:
    cost = folder / "base.cost.jsonl"
    whole = cost.read_text()
    cost.write_text(whole[:-20])
    next((folder / "base").iterdir()).unlink()
    run(options(model, folder, "base"))
    assert [json.loads(line)["images"] for line in cost.read_text().splitlines()] == [8]


def drawn_elsewhere(folder: Path) -> Path:
    return shutil.copytree(folder, folder.with_name("elsewhere"))


def test_duplicate_lines_are_removed_with_a_warning(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = folder / "base.jsonl"
    whole = lines.read_text()
    lines.write_text(whole + whole)
    report(ReportOptions(folder, out=folder / "report"))
    assert "base.jsonl has 8 duplicate lines, which are counted once" in capsys.readouterr().err
    run(options(model, folder, "base"))
    assert "had 8 duplicate lines" in capsys.readouterr().err and lines.read_text() == whole
    run(options(model, folder, "base"))
    assert "duplicate" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped"])
def test_a_damaged_picture_is_drawn_again(folder: Path, model: Path, damage: str) -> None:
    lines, picture = folder / "base.jsonl", sorted((folder / "base").iterdir())[2]
    text, content = lines.read_text(), picture.read_bytes()
    if damage == "missing":
        picture.unlink()
    else:
        flipped = (
            content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
        )
        picture.write_bytes({"cut": content[:-20], "empty": b"", "flipped": flipped}[damage])
    run(options(model, folder, "base"))
    assert picture.read_bytes() == content and lines.read_text() == text


def test_a_picture_that_is_drawn_again_is_judged_again(folder: Path, model: Path) -> None:
    """Its earlier result may belong to a picture of another machine."""
    lines = folder / "base.jsonl"
    whole = lines.read_text()
    first = json.loads(whole.splitlines()[0])
    lines.write_text(whole.replace(whole.splitlines()[0], json.dumps({**first, "unreadable": 7}), 1))
    run(options(model, folder, "base"))
    assert '"unreadable": 7' in lines.read_text()
    (folder / "base" / f"{first['prompt_id']}-{first['index']}.png").unlink()
    run(options(model, folder, "base"))
    assert lines.read_text() == whole


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Simulate a full disk: longer files cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 300, 1500])
def test_a_full_disk_is_a_user_error_and_the_run_resumes(drawn: Path, model: Path, tmp_path: Path, size: int) -> None:
    """The first write that fails is that of the record, a picture or a result."""
    with largest_file(size), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        run(options(model, tmp_path / "out", "base"))
    run(options(model, tmp_path / "out", "base"))
    assert (tmp_path / "out/base.jsonl").read_text() == (drawn / "base.jsonl").read_text()
    assert not list(tmp_path.rglob("*.tmp"))
    with largest_file(size), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        report(ReportOptions(tmp_path / "out", out=tmp_path / "report"))
    assert not (tmp_path / "report/manifest.json").exists()
    again = ScoreOptions(tmp_path / "out", tmp_path / "again", judge=JudgeOptions(detector="oracle"))
    with largest_file(size), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        score(again)
    score(again)
    assert (tmp_path / "again/base.jsonl").read_text() == (drawn / "base.jsonl").read_text()


@pytest.mark.parametrize("changes", [{"prompts": 10**9}, {"per_prompt": 10**9}, {"prompts": 10**5, "per_prompt": 10**3},
                                     {"num_timesteps": 10**9}, {"per_prompt": 0}])  # fmt: skip
def test_invalid_numbers_of_pictures_are_user_errors(model: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"must be from 1 to 1,000,000|at most 1,000,000 are possible"):
        run(options(model, tmp_path / "out", "base", **changes))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a circle\n" * 2000)
    with pytest.raises(UserError, match=r"2,000 prompts with 1,000 images each are more than 1,000,000"):
        run(options(model, tmp_path / "out", "base", suite=f"prompts={prompts}", categories=(), prompts=None,
                    per_prompt=1000))  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("budget", [inf, nan, -1.0, 0.0, 1e300])
def test_an_invalid_budget_is_a_user_error(drawn: Path, budget: float) -> None:
    with pytest.raises(UserError, match="--budget_mb must be above 0 and at most 1000"):
        report(ReportOptions(drawn, budget_mb=budget))


def test_run_and_report_print_the_paths_of_their_files(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(options(model, folder, "base"))
    printed = capsys.readouterr().out
    assert f"{folder / 'base.jsonl'}" in printed and f"next:     dpt bench report {folder}\n" in printed
    report(ReportOptions(folder))
    printed = capsys.readouterr().out
    assert str(folder / "report.html") in printed and str(folder / "table.md") in printed


@pytest.mark.parametrize("key", ["detector", "model"])
def test_methods_of_two_judges_or_models_cannot_share_a_table(folder: Path, key: str) -> None:
    record = json.loads((folder / "bench.json").read_text())
    record["methods"]["tuned"][key] = "another"
    (folder / "bench.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"base and tuned differ in their {key} and cannot share a table"):
        report(ReportOptions(folder))
