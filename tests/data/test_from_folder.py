"""A data folder from one's own images: negatives, boxes, the check, and both stages of training on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpt.claims.facts import Box
from dpt.claims.judge import Detection
from dpt.cli.commands.from_folder import BoxesConfig, FromFolderOptions, box_finder
from dpt.cli.commands.from_folder import from_folder as command
from dpt.cli.train.stages import main_stage1, main_stage2
from dpt.data.files.check import check
from dpt.data.files.hard_negatives import open_hard_negatives
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import FileSelection, open_training_data
from dpt.data.from_folder import FromFolderConfig, from_folder
from dpt.data.images import Framing
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.errors import DataError, UserError
from tests.training import tiny_stage1

CAPTIONS = (
    "a red circle to the left of a blue square", "two green crosses", "a purple triangle", "something else, indoors",
    "a yellow circle above a red cross", "three cyan squares", "a blue cross", "another thing, outdoors",
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        Image.fromarray(render(make_scene(5, number, POCKET_WORLD))).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{caption}\n")
    return folder


def test_every_caption_has_negatives_of_other_images(pictures: Path, tmp_path: Path) -> None:
    counts = from_folder(pictures, tmp_path / "root", FromFolderConfig(val_fraction=0.25))
    assert counts.images == {"train": 6, "val": 2} and counts.without_rule == counts.negatives["similar"] == 2
    root = DataRoot.open(tmp_path / "root")
    for part in ("train", "val"):
        negatives = open_hard_negatives(root, part)
        for row in map(negatives.row, negatives.ids):
            assert row.captions and row.title not in row.captions and row.file_name not in row.images
            assert (root.images(f"{part}2014") / row.file_name).read_bytes() == (pictures / row.file_name).read_bytes()
            if row.title == "a purple triangle":
                assert not set(row.captions) & set(CAPTIONS), "by rule, not another image's"
    again = from_folder(pictures, tmp_path / "again", FromFolderConfig(val_fraction=0.25))
    assert again == counts
    first, second = (sorted(p.read_bytes() for p in (tmp_path / n).rglob("*.json")) for n in ("root", "again"))
    assert first == second
    result = check(root)
    assert result.usable and "ReC: absent; used only by grounding" in "\n".join(map(str, result.reports))
    example = open_training_data(root, FileSelection(), Framing(16), 0)[0][0]
    assert example.expression is None and example.negatives is not None and example.negatives.random is not None


def boxes_of(file: Path, nouns: Any) -> list[Detection]:
    """One box for each noun, two for crosses."""
    return [Detection(n, Box(k, 0, k + 30, 30), 0.9) for n in nouns for k in range(1 + (n == "cross"))]


def test_boxes_become_expressions_where_their_number_is_the_stated_one(pictures: Path, tmp_path: Path) -> None:
    counts = from_folder(pictures, tmp_path / "root", FromFolderConfig(val_fraction=0.25), boxes_of)
    file = tmp_path / "root/ReC/mdetr/OpenSource/finetune_{}.json"
    documents = [json.loads(Path(str(file).format(n)).read_text()) for n in ("refall_train", "refcoco_val")]
    made = {}
    for document in documents:
        texts = {image["id"]: image["caption"] for image in document["images"]}
        for row in document["annotations"]:
            ((start, end),) = row["tokens_positive"]
            made.setdefault(texts[row["image_id"]], []).append(texts[row["image_id"]][start:end])
    assert made == {
        "red circle": ["circle"], "blue square": ["square"], "green crosses": ["crosses"] * 2,
        "purple triangle": ["triangle"], "yellow circle": ["circle"],
    }  # fmt: skip
    assert sum(counts.expressions.values()) == 5 and counts.without_boxes == 3
    assert check(DataRoot.open(tmp_path / "root"), FileSelection(validation=("refcoco",)), decode=True).usable


@pytest.mark.slow
def test_both_stages_train_on_it_without_and_with_boxes(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(FromFolderOptions(pictures, tmp_path / "plain"))
    assert f"then: dpt train stage1 --data_root {tmp_path / 'plain'}\n" in capsys.readouterr().out
    from_folder(pictures, tmp_path / "boxed", None, boxes_of)
    model = str(tiny_stage1.model(tmp_path / "model"))
    short = ["--pretrained_model_name_or_path", model, "--train_batch_size", "2", "--max_train_steps", "1"]
    small = ["--unet_feature", "up0", "--hidden_dim", "16", "--dim_feedforward", "16", "--validation_steps", "1"]
    for name, extra in (("plain", []), ("boxed", ["--dataset_name_val", "refcoco"])):
        words = [*short, *small, "--data_root", str(tmp_path / name), *extra, "--output_dir", str(tmp_path / "runs")]
        assert main_stage1([*words, "--run_name", name]) == 0
        out = capsys.readouterr().out
        assert ("matching is trained, grounding is not" in out) == (name == "plain")
        assert "itm_txt" in out and ("rec_p1" in out) == (name == "boxed")
        adapter = ["--qformer_ckpt", str(tmp_path / "runs" / name), "--run_name", f"{name}2", "--lora_rank", "2"]
        assert main_stage2([*words, *adapter]) == 0
        capsys.readouterr()


def test_unusable_folders_are_explained(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "root"
    with pytest.raises(DataError, match="the detector found no noun phrase of the train captions"):
        from_folder(pictures, out, None, lambda file, nouns: [])
    assert not out.exists()
    for file in pictures.glob("*.txt"):
        file.write_text("a dog")
    with pytest.raises(DataError, match="captions of the train part are the same"):
        from_folder(pictures, out)
    for number in range(3, 8):
        (pictures / f"{number}.png").unlink()
    with pytest.raises(DataError, match="has 3 images: matching needs at least 4"):
        from_folder(pictures, out)
    shutil.rmtree(pictures)
    with pytest.raises(DataError, match="there is no data folder"):
        from_folder(pictures, out)
    with pytest.raises(UserError, match="--val_fraction must be between 0 and 1"):
        FromFolderConfig(val_fraction=1.0)


def test_the_oracle_finds_the_boxes_of_rendered_scenes(pictures: Path) -> None:
    scene = make_scene(5, 0, POCKET_WORLD)
    found = box_finder(BoxesConfig("oracle"))(pictures / "0.png", ["circle"])
    assert {(each.colour, each.label) for each in found} == {(thing.colour, thing.shape) for thing in scene.objects}
