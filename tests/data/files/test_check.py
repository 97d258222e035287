from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpt.data.files.check import FileReport, check
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import FileSelection, open_training_data
from dpt.data.images import Framing
from dpt.errors import DataError

FRAMING = Framing(32)


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def bad(root: DataRoot, decode: bool = False) -> list[FileReport]:
    return check(root, decode=decode).bad


def test_valid_folder_has_no_faults(exported: DataRoot) -> None:
    result = check(exported, decode=True)
    reports = {report.name: report for report in result.reports}
    assert result.usable and all(report.status == "ok" and not report.notes for report in reports.values())
    manifest = json.loads((exported.path / "manifest.json").read_text())["counts"]
    expressions = reports["ReC/mdetr/OpenSource/finetune_refall_train.json"]
    assert expressions.content == f"{manifest['expressions']['refall_train']} expressions of 12 images"
    assert reports["coco/images/val2014"].content.startswith(f"{len(list(exported.images('val2014').iterdir()))} files")


def test_files_that_training_does_not_read_may_be_missing_or_broken(sample: DataRoot) -> None:
    sample.prompts.unlink()
    sample.hard_negatives_table("train").unlink()
    sample.expressions("refcoco", "testA").write_text("{")
    captions = sample.captions("train2014")
    captions.write_text(captions.read_text()[:-20])
    sample.negative_types.unlink()
    result = check(sample)
    assert result.usable and open_training_data(sample, FileSelection(), FRAMING, 0)
    shown = {report.name.split("/")[-1]: str(report).splitlines()[0] for report in result.reports}
    assert shown["five_category.json"].startswith("-       coco/")
    assert "absent; used only by alignment scores" in shown["five_category.json"]
    assert shown["captions_train2014.json"].startswith("unused  coco/")
    assert shown["finetune_refcoco_testA.json"].endswith("broken, but used only by dpt probe")


def val_negatives(root: DataRoot) -> None:
    root.hard_negatives_table("val").unlink()


def rename_refall(root: DataRoot) -> None:
    file = root.expressions("refall", "train")
    file.rename(root.expressions("mine", "train"))


def rename_val(root: DataRoot) -> None:
    root.expressions("refcoco+", "val").rename(root.expressions("mine", "val"))


REFUSED: list[tuple[Callable[[DataRoot], Any], str]] = [
    (val_negatives, r"no hard negatives for val: training validates on them from the table .*val_hard_neg.*\.tsv"),
    (rename_refall, r"no file .*finetune_refall_train.json; the folder has finetune_mine_train.json: choose with "
                    r"--dataset_name mine"),
    (rename_val, r"the folder has finetune_mine_val.json, .*choose with --dataset_name_val mine"),
    (lambda r: r.negative_types.write_text("{}"), "negatives.jsonl, line 1: there is no 'part'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), REFUSED)
def test_check_refuses_what_training_refuses_with_the_same_message(
    sample: DataRoot, damage: Callable[[DataRoot], Any], message: str
) -> None:
    damage(sample)
    with pytest.raises(DataError, match=message) as refused:
        open_training_data(sample, FileSelection(), FRAMING, 0)
    result = check(sample)
    assert not result.usable and result.refusal == str(refused.value)
    assert [report.status for report in result.bad] in (["MISSING"], ["BROKEN"])


def test_check_uses_the_selection_of_training(sample: DataRoot) -> None:
    rename_refall(sample)
    assert check(sample, FileSelection(dataset="mine")).usable
    sample.expressions("refcoco", "val").unlink()
    assert check(sample, FileSelection("mine", ("refcocog",))).usable
    assert not check(sample, FileSelection("mine", ("refcoco",))).usable


def remove_both_forms(root: DataRoot) -> None:
    shutil.rmtree(root.hard_negatives("train"))
    root.hard_negatives_table("train").unlink()


FAULTS: list[tuple[Callable[[DataRoot], Any], str, str]] = [
    (lambda r: r.expressions("refall", "train").unlink(), "finetune_refall_train.json", "MISSING"),
    (remove_both_forms, "H-14.tsv", "MISSING"),
    (lambda r: shutil.rmtree(r.images("train2014")), "train2014", "MISSING .*: needed for the 22 images"),
    (
        lambda r: edit(r.expressions("refall", "train"), lambda c: c["annotations"][3].update(bbox=[0, 0, 0, 0])),
        "finetune_refall_train.json",
        r"8 expressions of \d images\n .*annotations\[3\]: the box .* has no area",
    ),
    (
        lambda r: edit(r.expressions("refall", "train"), lambda c: c["images"][0].update(file_name="x.jpg")),
        "finetune_refall_train.json",
        r"images\[0\]: no caption of x.jpg has hard negatives",
    ),
    (lambda r: (r.hard_negatives("train") / "00003.json").unlink(), "H-14", "there is no file .*00003.json"),
    (lambda r: (r.hard_negatives("train") / "imgname2txtid.json").write_text("{"), "H-14", "line 1, is not valid JSON"),
    (lambda r: r.hard_negatives_table("val").write_text("x"), "val_hard.*tsv", "nothing usable\n .*line 1"),
    (lambda r: r.negative_types.write_text("{}"), "negatives.jsonl", "line 1: there is no 'part'"),
    (
        lambda r: (r.images("val2014") / "COCO_val2014_000000000021.jpg").unlink(),
        "val2014",
        r"000000000021.jpg is missing; .*val_hard.*, row 0 \(line 2\) names it",
    ),
    (
        lambda r: (r.images("train2014") / "COCO_train2014_000000000000.jpg").write_bytes(b"text"),
        "train2014",
        "000000000000.jpg cannot be used: cannot identify image file",
    ),
]


@pytest.mark.parametrize(("damage", "name", "message"), FAULTS)
def test_faults_are_reported_by_file(
    sample: DataRoot, damage: Callable[[DataRoot], Any], name: str, message: str
) -> None:
    damage(sample)
    reports = [report for report in bad(sample) if re.search(f"{name}$", report.name)]
    assert len(reports) == 1
    assert re.search(message, str(reports[0]))


def test_decoding_detects_a_truncated_image(sample: DataRoot) -> None:
    file = sample.images("train2014") / "COCO_train2014_000000000000.jpg"
    file.write_bytes(file.read_bytes()[:-600])
    assert not bad(sample)
    (report,) = bad(sample, decode=True)
    assert report.faults == 1 and "truncated" in str(report)


def test_only_the_first_faults_are_shown(sample: DataRoot) -> None:
    for file in list(sample.images("train2014").iterdir())[:9]:
        file.unlink()
    (report,) = bad(sample)
    assert report.faults == 9 and len(report.shown) == 5 and "… and 4 more" in str(report)


def test_harmless_differences_are_notes(sample: DataRoot) -> None:
    edit(sample.expressions("refcoco", "val"), lambda c: c["images"][1].update(original_id=0))
    index = sample.hard_negatives_table("train")
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    result = check(sample)
    notes = [note for report in result.reports for note in report.notes]
    assert result.usable and len(notes) == 2
    assert "does not give its captions to the same images" in notes[0]
    assert re.search(r"images\[1\]: the image 0 is COCO_train2014_\d+31.jpg here, COCO_train2014_0+.jpg", notes[1])
