"""File names in data files that lead out of their folder are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpt.backbone import open_backbone
from dpt.data.cache.latents import LatentsMaker
from dpt.data.files.annotations import read_captions, read_expressions
from dpt.data.files.hard_negatives import HardNegativeFolder, HardNegativeTable
from dpt.data.files.reading import CAPTIONS_OF_IMAGES, DataRoot
from dpt.data.files.source import training_files
from dpt.data.images import Framing, read_header, read_image
from dpt.errors import BrokenImageError, DataError
from tests import tiny_models

OUTSIDE = ["../up.jpg", "/etc/hostname", "a/../../b.jpg", "..", "a\\b.jpg", "C:x.jpg", "a\0.jpg", "a\n.jpg", "", "a/.."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_expressions_and_captions_refuse_names_outside_the_folder(sample: DataRoot, name: str) -> None:
    for file, read in ((sample.expressions("refcoco", "val"), read_expressions),
                       (sample.captions("val2014"), read_captions)):  # fmt: skip
        content = json.loads(file.read_text())
        content["images"][0]["file_name"] = name
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"is not a file name under the data folder|is empty"):
            read(file)


@pytest.mark.parametrize("name", OUTSIDE)
def test_negatives_by_caption_refuse_names_outside_the_folder(tmp_path: Path, name: str) -> None:
    for picture, negative in (("a.jpg", name), (name, "b.jpg")):
        (tmp_path / CAPTIONS_OF_IMAGES).write_text(json.dumps({picture: [2]}))
        row = {"filepath": picture, "title": "a", "neg_caption": ["b"], "neg_image": [negative]}
        (tmp_path / "00002.json").write_text(json.dumps(row))
        with pytest.raises(DataError, match=r"is not a file name under the data folder|is empty|non-empty texts"):
            HardNegativeFolder(tmp_path).row(2)


@pytest.mark.parametrize("name", ["../up.jpg", "/etc/hostname", "a/../../b.jpg"])
def test_table_refuses_names_outside_the_folder(tmp_path: Path, name: str) -> None:
    for row in (f"{name}\tx\t['y']\t['b.jpg']", f"a.jpg\tx\t['y']\t['{name}']"):
        (tmp_path / "a.tsv").write_text(f"filepath\ttitle\tneg_caption\tneg_image\n{row}\n")
        with pytest.raises(DataError, match=r"is not a file name under the data folder"):
            HardNegativeTable(tmp_path / "a.tsv").row(0)


def test_links_out_of_the_folder_are_refused_and_links_within_are_read(tmp_path: Path, sample: DataRoot) -> None:
    picture = next(sample.images("train2014").iterdir())
    (tmp_path / "in").mkdir()
    shutil.copy(picture, tmp_path / "secret.jpg")
    shutil.copy(picture, tmp_path / "in/good.jpg")
    (tmp_path / "in/link.jpg").symlink_to("good.jpg")
    (tmp_path / "in/out.jpg").symlink_to("../secret.jpg")
    (tmp_path / "elsewhere").symlink_to("in")
    for folder in ("in", "elsewhere"):  # the folder itself may be on another disk
        read_image(tmp_path / folder / "link.jpg", tmp_path / folder)
        for read in (read_image, read_header):
            with pytest.raises(BrokenImageError, match=r"out\.jpg cannot be used: it is a link that leads out of"):
                read(tmp_path / folder / "out.jpg", tmp_path / folder)


def test_training_and_caching_refuse_links_out_of_the_folder(
    tmp_path: Path, sample: DataRoot, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = training_files(sample, "refall", Framing(32), 0)
    assert source.expressions is not None
    name = source.expressions[0].file_name
    picture = sample.images("train2014") / name
    picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(BrokenImageError, match=r"leads out of"):
        source.example(0)
    model = tiny_models.save(tiny_models.SD2_BASE, tmp_path_factory.mktemp("model"))
    backbone = open_backbone(model, device="cpu")
    maker = LatentsMaker(backbone, sample.images(""), Framing(32), [f"train2014/{name}"], tmp_path / "cache")
    with pytest.raises(BrokenImageError, match=r"leads out of"), maker.builder.claimed():
        maker.write(maker.missing(print))
