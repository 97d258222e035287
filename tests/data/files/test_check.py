from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpt.data.files.check import FileReport, check
from dpt.data.files.root import DataRoot
from dpt.errors import DataError


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def bad(reports: list[FileReport]) -> list[FileReport]:
    return [report for report in reports if not report.usable]


def test_a_good_folder(exported: DataRoot) -> None:
    reports = {report.name: report for report in check(exported, decode=True)}
    assert all(report.usable and not report.needed_for for report in reports.values())
    manifest = json.loads((exported.path / "manifest.json").read_text())["counts"]
    expressions = reports["ReC/mdetr/OpenSource/finetune_refall_train.json"]
    assert expressions.holds == f"{manifest['expressions']['refall_train']} expressions of 12 pictures"
    assert reports["coco/images/val2014"].holds.startswith(f"{len(list(exported.images('val2014').iterdir()))} files")


def test_what_only_scores_need_may_be_absent(sample: DataRoot) -> None:
    sample.prompts.unlink()
    sample.hard_negatives_table("train").unlink()
    sample.expressions("refcoco", "testA").unlink()
    sample.captions("train2014").unlink()
    sample.negative_types.unlink()
    reports = check(sample)
    assert not bad(reports)
    assert sum(bool(report.needed_for) for report in reports) == 4
    assert "absent  coco/annotations_processed_v1/five_category.json: needed for alignment scores" in map(str, reports)


def remove_both_forms(root: DataRoot) -> None:
    shutil.rmtree(root.hard_negatives("train"))
    root.hard_negatives_table("train").unlink()


FAULTS: list[tuple[Callable[[DataRoot], Any], str, str]] = [
    (lambda r: r.expressions("refall", "train").unlink(), "finetune_refall_train.json", "MISSING"),
    (remove_both_forms, "H-14.tsv", "MISSING"),
    (lambda r: shutil.rmtree(r.images("train2014")), "train2014", "MISSING .*: needed for 24 pictures"),
    (
        lambda r: edit(r.expressions("refall", "train"), lambda c: c["annotations"][3].update(bbox=[0, 0, 0, 0])),
        "finetune_refall_train.json",
        r"8 expressions of \d pictures\n .*annotations\[3\]: the box .* has no area",
    ),
    (
        lambda r: edit(r.expressions("refcoco", "val"), lambda c: c["images"][1].update(original_id=0)),
        "finetune_refcoco_val.json",
        r"images\[1\]: the picture 0 is COCO_train2014_000000000031.jpg here, COCO_train2014_000000000000.jpg in COCO",
    ),
    (
        lambda r: edit(r.expressions("refall", "train"), lambda c: c["images"][0].update(file_name="x.jpg")),
        "finetune_refall_train.json",
        r"images\[0\]: no caption of x.jpg has hard negatives",
    ),
    (lambda r: (r.hard_negatives("train") / "00003.json").unlink(), "H-14", "there is no file .*00003.json"),
    (
        lambda r: edit(r.hard_negatives("train") / "imgname2txtid.json", lambda c: c.popitem()),
        "H-14",
        "does not give its captions to the same pictures",
    ),
    (lambda r: r.hard_negatives_table("val").write_text("x"), "val_hard.*tsv", "nothing that can be used\n .*line 1"),
    (lambda r: r.captions("val2014").write_text("{"), "captions_val2014.json", "line 1, is not valid JSON"),
    (lambda r: r.prompts.write_text("[{}]"), "five_category.json", "row 0: there is no 'caption'"),
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


@pytest.mark.parametrize(("harm", "name", "says"), FAULTS)
def test_what_is_broken_is_found_by_file(
    sample: DataRoot, harm: Callable[[DataRoot], Any], name: str, says: str
) -> None:
    import re

    harm(sample)
    found = [report for report in bad(check(sample)) if re.search(f"{name}$", report.name)]
    assert len(found) == 1
    assert re.search(says, str(found[0]))


def test_a_cut_picture_is_found_by_decoding(sample: DataRoot) -> None:
    file = sample.images("train2014") / "COCO_train2014_000000000000.jpg"
    file.write_bytes(file.read_bytes()[:-600])
    assert not bad(check(sample))
    (report,) = bad(check(sample, decode=True))
    assert report.faults == 1 and "truncated" in str(report)


def test_only_the_first_faults_are_shown(sample: DataRoot) -> None:
    for file in list(sample.images("train2014").iterdir())[:9]:
        file.unlink()
    (report,) = bad(check(sample))
    assert report.faults == 9 and len(report.first_faults) == 5 and "… and 4 more" in str(report)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the data folder .* does not exist"):
        check(DataRoot(tmp_path / "none"))
    assert bad(check(DataRoot(tmp_path)))
