from __future__ import annotations

import ast
import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from pycocotools.coco import COCO

from dpt.claims.facts import all_hold
from dpt.claims.words import ANYTHING, SHAPE_WORDS
from dpt.data.scenes.captions import NEGATIVE_TYPES
from dpt.data.scenes.export import CATEGORIES, RANGE, Plan, export_scenes
from dpt.data.scenes.render import render
from dpt.data.scenes.world import WORLDS, Scene, make_scene
from dpt.records import from_plain
from tests.data.scenes.reading import facts_of

PLAN = Plan(num=30, val=12, seed=4, world="full")
ITM = Path("ITM/coco")
HARD = "hard_neg_t20_i4OpenClip_ViT-H-14"
REC = Path("ReC/mdetr/OpenSource")
EXPRESSION_FILES = [
    "finetune_refall_train",
    *(f"finetune_{name}_{split}" for name in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")),
    *(f"finetune_refcocog_{split}" for split in ("val", "test")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "dataset"
    export_scenes(PLAN, out)
    return out


@pytest.fixture(scope="module")
def scenes(folder: Path) -> dict[str, dict[str, Any]]:
    """The scene records by file name."""
    lines = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    for line in lines:
        line["scene"] = from_plain(Scene, line["scene"], line["file_name"])
    return {line["file_name"]: line for line in lines}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def table(folder: Path, part: str) -> list[dict[str, str]]:
    with (folder / ITM / f"{part}_{HARD}.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_every_image_file_shows_its_scene(folder: Path, scenes: dict[str, dict[str, Any]]) -> None:
    files = {path.name for path in (folder / "coco/images").rglob("*.jpg")}
    assert files == set(scenes)
    for name, line in scenes.items():
        assert re.fullmatch(rf"COCO_{line['split']}_\d{{12}}\.jpg", name)
        with Image.open(folder / "coco/images" / line["split"] / name) as picture:
            assert isinstance(picture, JpegImageFile)
            assert get_sampling(picture) == 0, "4:4:4"
            difference = np.asarray(picture).astype(int) - render(line["scene"])
        assert np.abs(difference).mean() < 3


def test_parts_share_no_scenes(scenes: dict[str, dict[str, Any]]) -> None:
    indices: dict[str, list[int]] = {}
    for line in scenes.values():
        if "index" in line:
            indices.setdefault(line["part"], []).append(line["index"])
            assert line["scene"] == make_scene(PLAN.seed, line["index"], WORLDS[PLAN.world])
    assert indices == {
        part: list(range(nth * RANGE, nth * RANGE + n))
        for nth, (part, n) in enumerate((("train", 30), ("val", 12), ("rec_val", 12), ("rec_test", 12)))
    }


def test_captions_load_in_pycocotools_and_are_true(folder: Path, scenes: dict[str, dict[str, Any]]) -> None:
    for split in ("train2014", "val2014"):
        coco = COCO(str(folder / f"coco/annotations/captions_{split}.json"))
        names = {image["file_name"] for image in coco.imgs.values()}
        assert names == {name for name, line in scenes.items() if line["split"] == split and "index" in line}
        assert coco.anns
        for image_id, image in coco.imgs.items():
            assert image["height"] == image["width"] == 64
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
            assert annotations
            for annotation in annotations:
                objects = scenes[image["file_name"]]["scene"].objects
                assert all_hold(facts_of(annotation["caption"]), objects), annotation["caption"]


@pytest.mark.parametrize("name", EXPRESSION_FILES)
def test_expressions_load_in_pycocotools_and_agree_with_their_scenes(
    folder: Path, scenes: dict[str, dict[str, Any]], name: str
) -> None:
    file = folder / REC / f"{name}.json"
    coco = COCO(str(file))
    assert coco.imgs
    captions = {i["id"]: i["file_name"] for i in read(folder / "coco/annotations/captions_train2014.json")["images"]}
    part = {"train": "train", "val": "rec_val"}.get(name.rsplit("_", 1)[1], "rec_test")
    for image_id, image in coco.imgs.items():
        (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        line = scenes[image["file_name"]]
        assert line["part"] == part
        assert captions[image["original_id"]] == image["file_name"]
        assert image["dataset_name"] in ("refcoco", "refcoco+", "refcocog")
        assert part == "train" or name.startswith(f"finetune_{image['dataset_name']}_")
        (target,) = (
            thing
            for thing in line["scene"].objects
            if np.allclose(
                annotation["bbox"], (thing.box.x0, thing.box.y0, thing.box.width, thing.box.height), atol=0.01
            )
        )
        ((begin, end),) = annotation["tokens_positive"]
        assert image["caption"][begin:end] in (*SHAPE_WORDS[target.shape], *ANYTHING)
        assert coco.cats[annotation["category_id"]]["name"] == target.shape
        assert annotation["area"] == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3], rel=1e-3)
        assert annotation["iscrowd"] == 0
        if image["dataset_name"] == "refcoco+":
            assert not set(image["caption"].split()) & {
                "left",
                "right",
                "above",
                "over",
                "leftmost",
                "topmost",
            }


def test_expression_ids_are_different_across_files(folder: Path) -> None:
    ids = [image["id"] for name in EXPRESSION_FILES for image in read(folder / REC / f"{name}.json")["images"]]
    assert ids == list(range(len(ids)))


def test_hard_negatives_by_caption_equal_the_table(folder: Path) -> None:
    by_caption = folder / ITM / f"train_{HARD}"
    rows = table(folder, "train")
    ids = read(by_caption / "imgname2txtid.json")
    assert sorted(id_ for caption_ids in ids.values() for id_ in caption_ids) == list(range(len(rows)))
    assert {path.name for path in by_caption.iterdir()} == {
        "imgname2txtid.json",
        *(f"{id_:05d}.json" for id_ in range(len(rows))),
    }
    for name, caption_ids in ids.items():
        for id_ in caption_ids:
            record = read(by_caption / f"{id_:05d}.json")
            assert record == rows[id_]
            assert record["filepath"] == name


@pytest.mark.parametrize("part", ["train", "val"])
def test_hard_negatives_are_false(folder: Path, scenes: dict[str, dict[str, Any]], part: str) -> None:
    """Checked from the files: titles are true, negative captions are false, titles are false of negative images."""
    rows = table(folder, part)
    types = [json.loads(line) for line in (folder / "negatives.jsonl").read_text().splitlines()]
    types = [line for line in types if line["part"] == part]
    assert len(rows) == len(types) == 2 * {"train": PLAN.num, "val": PLAN.val}[part]
    for row, line in zip(rows, types, strict=True):
        objects = scenes[row["filepath"]]["scene"].objects
        captions, images = (ast.literal_eval(row[column]) for column in ("neg_caption", "neg_image"))
        assert captions and images
        assert all_hold(facts_of(row["title"]), objects)
        assert not any(all_hold(facts_of(caption), objects) for caption in captions)
        for image in images:
            assert (folder / "coco/images" / f"{part}2014" / image).is_file()
            assert scenes[image]["changed_from"] == row["filepath"]
            assert not all_hold(facts_of(row["title"]), scenes[image]["scene"].objects)
        assert line["filepath"] == row["filepath"]
        assert len(line["types"]["neg_caption"]) == len(captions)
        assert line["types"]["neg_image"] == [scenes[image]["negative_type"] for image in images]


def test_training_shares_no_images_with_the_expression_tests(folder: Path, scenes: dict[str, dict[str, Any]]) -> None:
    seen = {image["file_name"] for image in read(folder / REC / "finetune_refall_train.json")["images"]}
    seen |= set(read(folder / ITM / f"train_{HARD}" / "imgname2txtid.json"))
    seen |= {image for row in table(folder, "train") for image in ast.literal_eval(row["neg_image"])}
    assert {scenes[name]["part"] for name in seen} == {"train"}


def test_prompts_have_the_published_key_and_categories(folder: Path) -> None:
    prompts = read(folder / "coco/annotations_processed_v1/five_category.json")
    assert set(Counter(prompt["name"] for prompt in prompts)) == set(CATEGORIES)
    assert all(isinstance(prompt["captions"], str) and prompt["captions"] for prompt in prompts)
    assert len({prompt["captions"] for prompt in prompts}) == len(prompts)


def test_manifest_counts_match_the_files(folder: Path) -> None:
    manifest = read(folder / "manifest.json")
    assert (manifest["num"], manifest["val"], manifest["seed"], manifest["world"]) == (30, 12, 4, "full")
    counts = manifest["counts"]
    assert counts["image_files"] == len(list((folder / "coco/images").rglob("*.jpg")))
    assert counts["hard_negatives"] == {"train": 60, "val": 24}
    assert set(counts["hard_negatives_by_type"]["images"]) == set(NEGATIVE_TYPES)
    for name, n in counts["expressions"].items():
        assert len(read(folder / REC / f"finetune_{name}.json")["images"]) == n


def test_same_plan_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    export_scenes(PLAN, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(folder)


def test_more_training_scenes_do_not_change_the_others(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    export_scenes(Plan(3, 2, 1, "pocket", "png"), small)
    export_scenes(Plan(5, 2, 1, "pocket", "png"), large)
    for part in ("val", "rec_val"):
        lines = [
            [
                json.loads(line)["scene"]
                for line in (out / "scenes.jsonl").read_text().splitlines()
                if f'"{part}"' in line
            ]
            for out in (small, large)
        ]
        assert lines[0] == lines[1]
    assert [row["title"] for row in table(small, "train")] == [row["title"] for row in table(large, "train")][:6]


def test_png_export_is_lossless(tmp_path: Path) -> None:
    export_scenes(Plan(2, 1, 0, "pocket", "png"), tmp_path / "out")
    for line in map(json.loads, (tmp_path / "out/scenes.jsonl").read_text().splitlines()):
        with Image.open(tmp_path / "out/coco/images" / line["split"] / line["file_name"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), render(from_plain(Scene, line["scene"], "scene")))
