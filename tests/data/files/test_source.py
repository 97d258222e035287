from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpt.claims.facts import all_hold
from dpt.claims.words import ANYTHING, SHAPE_WORDS
from dpt.data.example import BoxCentre, Example, ReferringExpression, collate
from dpt.data.files.hard_negatives import HardNegativeFolder, HardNegativeTable
from dpt.data.files.reading import DataRoot, read_negative_types
from dpt.data.files.source import FileSource, expression_files, matching_files, training_files
from dpt.data.images import Framing, ImageHeader, read_header
from dpt.data.mixture import mirrored
from dpt.data.scenes.referring import resolve
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene
from dpt.errors import BrokenImageError, DataError
from dpt.records import from_plain
from tests.data.files.conftest import SAMPLE
from tests.data.scenes.reading import facts_of, negatives_of, reference_of

FRAMING = Framing(64)


def scenes_of(root: DataRoot) -> dict[str, Scene]:
    lines = [json.loads(line) for line in (root.path / "scenes.jsonl").read_text().splitlines()]
    return {line["file_name"]: from_plain(Scene, line["scene"], "scene") for line in lines}


def assert_agrees_with_scenes(example: Example, scenes: dict[str, Scene]) -> None:
    for picture in example.pictures:
        pixels = (picture.values.permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(pixels - render(scenes[picture.name])).mean() < 3
    objects = scenes[example.image.name].objects
    if example.expression is not None:
        (target,) = resolve(reference_of(example.expression.text), objects)
        (region,) = example.expression.regions
        box = objects[target].box
        assert region.box == pytest.approx([n / 64 for n in (*box.centre, box.width, box.height)], abs=1e-4)
        ((first, last),) = region.spans
        assert example.expression.text[first:last] in (*SHAPE_WORDS[objects[target].shape], *ANYTHING)
    if example.negatives is not None:
        caption, hard, random = negatives_of(example)
        assert all_hold(facts_of(caption), objects)
        assert not all_hold(facts_of(hard.caption), objects)
        assert not all_hold(facts_of(caption), scenes[hard.image.name].objects)
        assert random.caption != caption and random.image.name != example.image.name
        assert hard.caption_type and hard.image_type


@pytest.mark.parametrize("name", ["sample", "export"])
def test_examples_agree_with_the_scenes(name: str, exported: DataRoot) -> None:
    root = DataRoot(SAMPLE) if name == "sample" else exported
    scenes = scenes_of(root)
    sources = [
        training_files(root, "refall", FRAMING, 0),
        matching_files(root, "val", FRAMING, 0),
        expression_files(root, "refcocog", "val", FRAMING, 0),
        expression_files(root, "refcoco+", "testA", FRAMING, 0),
    ]
    for source in sources:
        assert len(source) > 0
        for index in range(len(source)):
            assert_agrees_with_scenes(source[index], scenes)
        batch = collate([source[index] for index in range(len(source))])
        assert batch.images.shape == (len(source), 3, 64, 64)
    assert sources[1][0].expression is None and sources[2][0].negatives is None


def test_negative_types_equal_those_of_the_files(exported: DataRoot) -> None:
    lines = [json.loads(line) for line in (exported.path / "scenes.jsonl").read_text().splitlines()]
    type_of = {line["file_name"]: line.get("negative_type") for line in lines}
    source = matching_files(exported, "val", FRAMING, 0)
    for index in range(len(source)):
        _, hard, _ = negatives_of(source[index])
        assert hard.image_type == type_of[hard.image.name]


def test_folder_and_table_give_the_same_examples(sample: DataRoot) -> None:
    by_caption = training_files(sample, "refall", FRAMING, 3)
    shutil.rmtree(sample.hard_negatives("train"))
    table = training_files(sample, "refall", FRAMING, 3)
    assert isinstance(by_caption.negatives, HardNegativeFolder) and isinstance(table.negatives, HardNegativeTable)
    shutil.copytree(SAMPLE / "ITM", sample.path / "ITM", dirs_exist_ok=True)
    for index in range(len(table)):
        assert_same(by_caption[index], table[index])


def assert_same(example: Example, other: Example) -> None:
    assert (example.id, example.texts, example.expression) == (other.id, other.texts, other.expression)
    assert [picture.name for picture in example.pictures] == [picture.name for picture in other.pictures]
    assert all(torch.equal(a.values, b.values) for a, b in zip(example.pictures, other.pictures, strict=True))


def test_example_depends_only_on_seed_index_and_epoch(exported: DataRoot) -> None:
    once, again = (training_files(exported, "refall", Framing(64, random_flip=True), 1) for _ in range(2))
    backwards = [again[index] for index in reversed(range(12))]
    for index in range(12):
        assert_same(once[index], backwards[11 - index])
    other_seed = training_files(exported, "refall", FRAMING, 2)
    for others in ([once.example(i, 1) for i in range(12)], [other_seed[i] for i in range(12)]):
        assert [example.texts[1:] for example in others] != [once[i].texts[1:] for i in range(12)]


def test_every_other_caption_and_image_is_drawn_over_the_epochs(exported: DataRoot) -> None:
    """Including the last one, and never the image's own."""
    source = training_files(exported, "refall", FRAMING, 0)
    assert source.negatives is not None
    name = source[0].image.name
    drawn = [negatives_of(source.example(0, epoch)) for epoch in range(250)]
    own_ids = source.negatives.ids_of[name]
    own_titles = {source.negatives.row(id_).title for id_ in own_ids}
    titles = {source.negatives.row(id_).title for id_ in source.negatives.ids if id_ not in own_ids}
    assert {caption for caption, _, _ in drawn} == own_titles
    assert {random.caption for _, _, random in drawn} >= titles - own_titles
    assert {random.image.name for _, _, random in drawn} == set(source.negatives.ids_of) - {name}


def test_random_flip_mirrors_the_example(exported: DataRoot) -> None:
    plain = training_files(exported, "refall", FRAMING, 0)
    flipping = training_files(exported, "refall", Framing(64, random_flip=True), 0)
    flips = 0
    for index in range(len(plain)):
        if not torch.equal(flipping[index].image.values, plain[index].image.values):
            flips += 1
            other = mirrored(plain[index])
            assert other is not None
            assert_same(flipping[index], other)
    assert 0 < flips < len(plain)


def test_images_are_opened_only_on_access(sample: DataRoot) -> None:
    shutil.rmtree(sample.images("train2014"))
    source = training_files(sample, "refall", FRAMING, 0)
    with pytest.raises(BrokenImageError, match="no such file"):
        source[0]


class Latents:
    has_mirrored = False

    def covers(self, file_names: Iterable[str]) -> bool:
        return True

    def latents(self, picture: Path, mirrored: bool = False) -> torch.Tensor:
        return torch.full((4, 8, 8), float(picture.stem[-2:]))

    def header(self, picture: Path) -> ImageHeader:
        return read_header(picture)


def test_cached_latents_replace_pixels(sample: DataRoot) -> None:
    source = training_files(sample, "refall", FRAMING, 0, Latents())
    example = source[0]
    assert all(picture.latent and picture.values.shape == (4, 8, 8) for picture in example.pictures)
    assert example.expression == training_files(sample, "refall", FRAMING, 0)[0].expression
    assert collate([example]).latent
    with pytest.raises(DataError, match="no latents of mirrored images"):
        training_files(sample, "refall", Framing(64, random_flip=True), 0, Latents())


def edit(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def wide(root: DataRoot, **saving: Any) -> FileSource:
    """The sample's first expression with two boxes, on an image of 200x100 pixels."""
    file = root.expressions("refall", "train")

    def change(content: Any) -> None:
        image, annotation = content["images"][0], content["annotations"][0]
        image.update(width=200, height=100, caption="the left dog")
        boxes = [[0, 0, 40, 40], [100, 20, 20, 40]]
        content["images"] = [image]
        content["annotations"] = [
            {**annotation, "id": i, "bbox": box, "tokens_positive": [[9, 12]]} for i, box in enumerate(boxes)
        ]

    edit(file, change)
    name = json.loads(file.read_text())["images"][0]["file_name"]
    Image.new("RGB", (200, 100), "red").save(root.images("train2014") / name, **saving)
    return training_files(root, "refall", FRAMING, 0)


def boxes(expression: ReferringExpression) -> list[BoxCentre]:
    return [region.box for region in expression.regions]


def test_region_outside_the_crop_is_dropped(sample: DataRoot) -> None:
    squashed = wide(sample)[0].expression
    cropped = training_files(sample, "refall", Framing(64, center_crop=True), 0)[0].expression
    assert squashed is not None and cropped is not None
    np.testing.assert_allclose(boxes(squashed), [(0.1, 0.2, 0.2, 0.4), (0.55, 0.4, 0.1, 0.4)])
    np.testing.assert_allclose(boxes(cropped), [(0.6, 0.4, 0.2, 0.4)])
    assert cropped.regions[0].spans == ((9, 12),) and cropped.text == "the left dog"


def test_boxes_follow_exif_rotation(sample: DataRoot) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = wide(sample, exif=exif)[0].expression
    assert turned is not None
    np.testing.assert_allclose(boxes(turned), [(0.8, 0.1, 0.4, 0.2), (0.6, 0.55, 0.4, 0.1)])


def test_boxes_are_checked_against_the_image_if_no_size_is_recorded(sample: DataRoot) -> None:
    file = sample.expressions("refall", "train")
    edit(file, lambda c: [image.pop(key) for image in c["images"] for key in ("width", "height")])
    edit(file, lambda c: c["annotations"][0].update(bbox=[60, 0, 30, 30]))
    with pytest.raises(DataError, match=r"images\[0\]: the box from .* to \(90, 30\) is not inside its image of 64"):
        training_files(sample, "refall", FRAMING, 0)[0]


def test_expression_of_an_image_without_captions_is_refused(sample: DataRoot) -> None:
    edit(sample.expressions("refall", "train"), lambda c: c["images"][2].update(file_name="other.jpg"))
    with pytest.raises(DataError, match=r"images\[2\]: no caption of other.jpg has hard negatives \(1 of 9"):
        training_files(sample, "refall", FRAMING, 0)


def test_negatives_equal_to_the_positive_are_refused(tmp_path: Path, sample: DataRoot) -> None:
    table = sample.hard_negatives_table("val")
    head, *_ = table.read_text().splitlines()
    name = "COCO_val2014_000000000020.jpg"
    table.write_text(f"{head}\n{name}\ta cup\t['a cup']\t['COCO_val2014_000000000021.jpg']\n")
    with pytest.raises(DataError, match=r"row 0 \(line 2\): every negative is the image's own caption"):
        matching_files(sample, "val", FRAMING, 0)[0]
    sample.negative_types.unlink()
    table.write_text(f"{head}\n{name}\ta cup\t['a mug']\t['COCO_val2014_000000000021.jpg']\n")
    with pytest.raises(DataError, match="no caption other than 'a cup'"):
        matching_files(sample, "val", FRAMING, 0)[0]


def test_mismatched_negative_types_are_refused(sample: DataRoot) -> None:
    lines = sample.negative_types.read_text().splitlines()
    first = json.loads(lines[0])
    first["types"]["neg_image"].append("colour")
    sample.negative_types.write_text("\n".join([json.dumps(first), *lines[1:]]))
    source = training_files(sample, "refall", FRAMING, 0)
    with pytest.raises(DataError, match="differs from the number of their types"):
        for epoch in range(20):
            source.example(0, epoch)
    sample.negative_types.write_text("\n".join([*lines[:2], lines[2][:30]]))
    with pytest.raises(DataError, match=r"negatives\.jsonl, line 3, is not valid JSON"):
        read_negative_types(sample.negative_types, "train")
    sample.negative_types.unlink()
    _, hard, _ = negatives_of(training_files(sample, "refall", FRAMING, 0)[0])
    assert hard.caption_type is None
