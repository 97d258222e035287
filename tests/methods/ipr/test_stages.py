"""Each stage of IPR by itself: the published files in and out, every policy, and one sentence for each bad input."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dpt.claims.relabel import PUBLISHED, RelabelConfig
from dpt.cli.main import run
from dpt.data.folder import FolderSource, read_picture_folder
from dpt.data.images import Framing
from dpt.errors import UserError
from dpt.evaluation.suites import sr2d
from dpt.evaluation.visor import read_visor, visor_scores
from dpt.methods.ipr.config import MergeConfig, PromptConfig, SampleConfig, WeightConfig
from dpt.methods.ipr.datasets import merge, relabel_images
from dpt.methods.ipr.folders import IMAGE_FILE, StageFolder, read_metadata
from dpt.methods.ipr.prompts import load_prompts, read_prompts, row_of, suite_of_file, write_prompts
from dpt.methods.ipr.sampling import ModelState, sample, sampled_images
from dpt.objectives.losses import denoising_loss
from tests.evaluation import tiny_vision
from tests.methods.ipr.painted import painter, tiny_model

__all__ = ["painter", "tiny_model"]

Capture = pytest.CaptureFixture[str]
KITE = sr2d.prompt_of_row(next(row for row in sr2d.rows() if row["text"] == "a kite to the left of a sheep"))


def sr2d_samples(folder: Path, *, images: int = 2, round_: int = 1) -> Path:
    """A finished folder of images for one prompt of SR2D."""
    stage = StageFolder(folder, {"per_prompt": images, "round": round_})
    work = stage.begin()
    write_prompts([KITE], work / "prompts.json")
    for index in range(images):
        Image.effect_noise((32, 24), 50 + index).save(work / f"{round_}_{int(KITE.id[5:])}_{index}.png")
    stage.finish(stage="sample", images=images)
    return folder


def published_entry(index: int, names: list[str], boxes: list[list[float]], **more: Any) -> dict[str, Any]:
    number = int(KITE.id[5:])
    return {"unique_id": number, "image_id": f"{number}_{index}", "object_names": names, "glip_boxes": boxes,
            "glip_scores": [0.9] * len(names), "obj1": "kite", "obj2": "sheep", "relation": "to the left of",
            "prompt": KITE.text, **more}  # fmt: skip


def write_dump(file: Path, *entries: dict[str, Any]) -> Path:
    file.write_text(json.dumps({entry["image_id"]: entry for entry in entries}))
    return file


RIGHT = [[20.0, 0, 30, 10], [0.0, 0, 9, 9]]
TWO = [*RIGHT, [5.0, 5, 9, 9]]


def test_a_published_dump_becomes_a_published_metadata_file(tmp_path: Path) -> None:
    samples = sr2d_samples(tmp_path / "images")
    dump = write_dump(
        tmp_path / "dump.json",
        published_entry(0, ["kite", "sheep"], RIGHT),
        published_entry(1, ["kite", "sheep", "kite"], TWO),
    )
    counts = relabel_images(samples, dump, tmp_path / "relabelled", PUBLISHED, WeightConfig())
    rows = read_metadata(tmp_path / "relabelled/metadata.jsonl")
    number = int(KITE.id[5:])
    published = [
        {key: row[key] for key in ("file_name", "uniq_id", "image_id", "correctness", "prompt", "reason")}
        for row in rows
    ]
    assert published == [
        {"file_name": f"1_{number}_0.png", "uniq_id": number, "image_id": f"{number}_0", "correctness": False,
         "prompt": "a kite to the right of a sheep", "reason": "location"},
        {"file_name": f"1_{number}_1.png", "uniq_id": number, "image_id": f"{number}_1", "correctness": False,
         "prompt": "2 kite and 1 sheep", "reason": "number"},
    ]  # fmt: skip
    assert [row["original_prompt"] for row in rows] == [KITE.text] * 2 and [row["weight"] for row in rows] == [0.5] * 2
    assert counts.text == "0 of 2 images show their prompt (wrong: 1 location, 1 number); 2 relabelled"
    source = FolderSource(tmp_path / "relabelled", Framing(16), seed=0)
    assert [(source[n].caption, source[n].weight) for n in (0, 1)] == [(row["prompt"], 0.5) for row in rows]


def test_weights_follow_the_reason_and_the_confidence() -> None:
    weights = WeightConfig(weight_number=0.25, weight_by_confidence=True)
    assert weights.of(True, "location", (0.5, 1.0)) == 0.75
    assert weights.of(False, "number", (0.5,)) == 0.125
    assert weights.of(False, "colour", ()) == 0.5
    with pytest.raises(UserError, match="--weight_number must be at least 0"):
        WeightConfig(weight_number=-1)


def test_a_weight_scales_its_examples_gradient_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(3, 2, 4, 4, generator=generator, requires_grad=True) for _ in range(2))
    plain = denoising_loss(predicted, target)
    assert torch.equal(denoising_loss(predicted, target, torch.ones(3)), plain)
    weighted = denoising_loss(predicted, target, torch.tensor([1.0, 0.5, 1.0]))
    by_example = (predicted - target).square().mean((1, 2, 3))
    torch.testing.assert_close(weighted, (by_example[0] + 0.5 * by_example[1] + by_example[2]) / 3)
    (before,), (after,) = (torch.autograd.grad(loss, predicted, retain_graph=True) for loss in (plain, weighted))
    assert torch.equal(after[1], before[1] / 2) and torch.equal(after[[0, 2]], before[[0, 2]])
    last = denoising_loss(predicted[:1], target[:1], torch.tensor([0.5]))
    torch.testing.assert_close(last, 0.5 * by_example[0])


@pytest.mark.parametrize(("policy", "rounds"), [("first+latest", "02"), ("all", "012"), ("latest", "2")])
def test_merged_rounds_match_their_rows_one_to_one(policy: Any, rounds: str, tmp_path: Path) -> None:
    folders = []
    for round_ in range(3):
        samples = sr2d_samples(tmp_path / f"images-{round_}", round_=round_)
        dump = write_dump(tmp_path / "dump.json", *(published_entry(n, ["kite", "sheep"], RIGHT) for n in (0, 1)))
        relabel_images(samples, dump, tmp_path / f"relabelled-{round_}", RelabelConfig(), WeightConfig())
        folders.append(tmp_path / f"relabelled-{round_}")
    also = tmp_path / "also"
    (also / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(also / "sub/a.png")
    (also / "metadata.jsonl").write_text('{"file_name": "sub/a.png", "text": "a black square", "weight": 0.8}\n')
    config = MergeConfig(policy, (also,), also_weight=0.5)
    merge([folders[number] for number in config.rounds(2)], tmp_path / "out", config)
    pictures = read_picture_folder(tmp_path / "out")
    assert [p.file_name[0] for p in pictures[:-1]] == [digit for digit in rounds for _ in range(2)]
    assert (pictures[-1].file_name, pictures[-1].caption, pictures[-1].weight) == ("also0_0.png", "a black square", 0.4)
    files = {file.name for file in (tmp_path / "out").iterdir()} - {"metadata.jsonl", "stage.json"}
    assert files == {picture.file_name for picture in pictures} and len(files) == len(pictures)
    for picture in pictures[:-1]:
        original = tmp_path / f"images-{picture.file_name[0]}" / picture.file_name
        assert (tmp_path / "out" / picture.file_name).read_bytes() == original.read_bytes()
    with pytest.raises(UserError, match=r"both have a picture 0_\d+_0\.png"):
        merge([folders[0], folders[0]], tmp_path / "twice", MergeConfig())


def test_bad_inputs_of_relabelling_are_one_sentence_each(tmp_path: Path) -> None:
    samples = sr2d_samples(tmp_path / "images")
    first, second = (published_entry(n, ["kite", "sheep"], RIGHT, detector="owlv2 abc") for n in (0, 1))

    def says(message: str, *entries: dict[str, Any], detector: str | None = None) -> None:
        dump = write_dump(tmp_path / "dump.json", *entries)
        with pytest.raises(UserError, match=message):
            relabel_images(samples, dump, tmp_path / "out", RelabelConfig(), WeightConfig(), detector)
        assert not (tmp_path / "out").exists()

    says(r"has no entry '\d+_1': run `dpt ipr detect` on all images first", first)
    says("was made by the detector 'owlv2 abc', not by 'detr'", first, second, detector="detr")
    says("the prompt file has changed since the images were sampled", {**first, "prompt": "a cat"}, second)
    says("do not have the same length", {**first, "glip_scores": [0.9]}, second)
    says("'box' should be 4 numbers", {**first, "glip_boxes": [[1, 2, 3], [1, 2, 3, 4]]}, second)
    empty = [published_entry(n, [], []) for n in (0, 1)]
    says(
        r"none of the 2 images of .*images has a caption \(2: nothing was detected\): lower --detect_threshold", *empty
    )
    shutil.copy(tmp_path / "dump.json", tmp_path / "broken.json")
    with pytest.raises(UserError, match="is not a finished folder of `dpt ipr sample`"):
        relabel_images(tmp_path, tmp_path / "dump.json", tmp_path / "out", RelabelConfig(), WeightConfig())
    dump = write_dump(tmp_path / "dump.json", first, second)
    image = sampled_images(samples)[1]
    Image.new("RGB", (9, 9)).save(samples / "other.png")
    (samples / image.file_name).write_bytes((samples / image.file_name).read_bytes()[:60])
    with pytest.raises(UserError, match=r"the image .*_1\.png is damaged: delete the folder"):
        relabel_images(samples, dump, tmp_path / "out", RelabelConfig(), WeightConfig())
    (samples / image.file_name).unlink()
    with pytest.raises(UserError, match=r"the image .*_1\.png is missing: delete the folder"):
        relabel_images(samples, dump, tmp_path / "out", RelabelConfig(), WeightConfig())


def test_closed_set_detections_are_of_the_prompts_nouns(tmp_path: Path, capsys: Capture) -> None:
    samples, labels = sr2d_samples(tmp_path / "images"), {0: "kite", 1: "sheep", 2: "person", 3: "dog"}
    detector = tiny_vision.coco_detector(tmp_path / "rt", "rt_detr", labels=labels)
    run(["ipr", "detect", str(samples), "--out", str(tmp_path / "boxes"), "--detector", str(detector),
         "--detect_threshold", "0"])  # fmt: skip
    dump = json.loads((tmp_path / "boxes/detections.json").read_text())
    labels_seen = {name for entry in dump.values() for name in entry["object_names"]}
    assert labels_seen and labels_seen <= {"kite", "sheep"}
    assert json.loads((tmp_path / "boxes/stage.json").read_text())["query_config"] is None
    counts = relabel_images(samples, tmp_path / "boxes", tmp_path / "out", RelabelConfig(), WeightConfig())
    assert counts.images == 2
    lacking = tiny_vision.coco_detector(tmp_path / "detr", "detr")
    with pytest.raises(UserError, match=r"prompt sr2d-\d+: the detector detr .* does not detect 'kite'"):
        run(["ipr", "detect", str(samples), "--out", str(tmp_path / "none"), "--detector", str(lacking)])


def test_prompt_files_round_trip_and_bad_rows_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    for suite, categories in (("pocket", ("spatial", "negation", "count")), ("lmd", ()), ("sr2d", ("left", "and"))):
        training, held_out = load_prompts(PromptConfig(suite, categories, prompts=20, held_out=10))
        for part in (training, held_out):
            write_prompts(part.prompts, file)
            read = read_prompts(file)
            assert [(p.id, p.text, p.facts, p.closed) for p in read] == [
                (p.id, p.text, p.facts, p.closed) for p in part.prompts
            ]
    assert row_of(KITE) in sr2d.rows()
    assert suite_of_file(file).detector == "owlv2"

    def says(message: str, *rows: Any) -> None:
        file.write_text(json.dumps(list(rows)))
        with pytest.raises(UserError, match=message):
            read_prompts(file)

    file.write_text(json.dumps([{"text": "two red cars and a dog"}]))
    assert str(read_prompts(file)[0].facts[0]).startswith("Count(noun=Noun(colour='red', shape='car'")
    says("must be a JSON list of prompts")
    says(r"entry 0: the rule-based parser does not understand 'a fine day'", {"text": "a fine day"})
    says("entry 0: there is no claim 'Heavy'", {"text": "x", "claims": [{"claim": "Heavy"}]})
    says("'rel_type' 'beside' does not fit 2 nouns", {**row_of(KITE), "rel_type": "beside"})
    says("entry 1: duplicate id", row_of(KITE), row_of(KITE))
    mixed = PromptConfig("pocket", ("spatial", "count"), prompts_per_category=(6, 2), held_out=3)
    assert [Counter(p.category for p in part.prompts) for part in load_prompts(mixed)] == [
        {"spatial": 6, "count": 2}, {"spatial": 3, "count": 3},
    ]  # fmt: skip
    with pytest.raises(UserError, match="there is no suite or file 'nothing'"):
        load_prompts(PromptConfig("nothing"))
    with pytest.raises(UserError, match="leaves no prompt to measure on"):
        PromptConfig(held_out_fraction=0)


def test_an_image_depends_on_nothing_but_its_request(tiny_model: Path, tmp_path: Path) -> None:
    prompts = load_prompts(PromptConfig("pocket", ("spatial",), prompts=3, held_out=0))[0].prompts
    model, config = ModelState(str(tiny_model)), SampleConfig(per_prompt=2, num_timesteps=2)
    sample(prompts, model, config, tmp_path / "all")
    sample(prompts[2:0:-1], model, config, tmp_path / "some")
    for file in (tmp_path / "some").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "all" / file.name).read_bytes()
    unfinished = tmp_path / ".again.unfinished"
    shutil.copytree(tmp_path / "all", unfinished)
    inputs = json.loads((unfinished / "stage.json").read_text())["inputs"]
    (unfinished / "inputs.json").write_text(json.dumps(inputs))
    names = sorted(file.name for file in unfinished.glob("*.png"))
    (unfinished / names[0]).unlink()
    (unfinished / names[1]).write_bytes(b"cut")
    sample(prompts, model, config, tmp_path / "again")
    assert not unfinished.exists()
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    batched = replace(config, batched=True)
    sample(prompts, model, batched, tmp_path / "batched")
    sample(prompts[:1], model, batched, tmp_path / "one")
    assert len(list((tmp_path / "batched").glob("*.png"))) == 6 and len(list((tmp_path / "one").glob("*.png"))) == 2
    sample(prompts, model, config, tmp_path / "later", round_=1)
    assert (tmp_path / "later" / f"1{names[0][1:]}").read_bytes() != (tmp_path / "all" / names[0]).read_bytes()
    assert all(IMAGE_FILE.fullmatch(name) for name in names)
    with pytest.raises(UserError, match=r"all was made from something else \(round was 0 and is 2\)"):
        sample(prompts, model, config, tmp_path / "all", round_=2)


def test_the_commands_of_a_round_run_one_after_another(
    tiny_model: Path, tmp_path: Path, painter: None, capsys: Capture
) -> None:
    at = {name: str(tmp_path / name) for name in ("p", "images", "boxes", "relabelled", "merged", "trained")}
    run(["ipr", "prompts", "--out", at["p"], "--categories", "spatial", "--prompts", "4", "--held_out", "2"])
    model = ["--pretrained_model_name_or_path", str(tiny_model)]
    run(["ipr", "sample", f"{at['p']}/prompts.json", "--out", at["images"], *model, "--per_prompt", "2",
         "--num_timesteps", "2"])  # fmt: skip
    run(["ipr", "detect", at["images"], "--out", at["boxes"]])
    run(
        ["ipr", "relabel", at["images"], "--detections", at["boxes"], "--out", at["relabelled"], "--detector", "oracle"]
    )
    run(["ipr", "merge", at["relabelled"], "--out", at["merged"]])
    run(["ipr", "train", at["merged"], "--out", at["trained"], *model, "--max_train_steps", "2", "--train_batch_size",
         "4", "--lora_rank", "2"])  # fmt: skip
    run(["ipr", "report", at["boxes"], "--samples", at["images"], "--visor", f"{tmp_path}/visor.json"])
    printed = capsys.readouterr().out
    assert "4 prompts, 8 images" in printed and "images show their prompt" in printed
    assert f"trained to step 2: {at['trained']}" in printed and "| all | 8 |" in printed
    assert len(json.loads((tmp_path / "visor.json").read_text())) == 8
    run(["info", at["trained"]])
    with pytest.raises(
        UserError, match=r"trained has another shape: give --lora_rank 2 --lora_alpha 2 --lora_blocks all$"
    ):
        run(["ipr", "train", at["merged"], "--out", f"{tmp_path}/x", *model, "--ckpt", at["trained"]])
    with pytest.raises(UserError, match=r"was made by the detector 'oracle v1 .*', not by 'owlv2'"):
        run(
            [
                "ipr",
                "relabel",
                at["images"],
                "--detections",
                at["boxes"],
                "--out",
                f"{tmp_path}/x",
                "--detector",
                "owlv2",
            ]
        )
    with pytest.raises(UserError, match=r"boxes is a folder of `dpt ipr detect`, not of `dpt ipr sample`"):
        run(["ipr", "detect", at["boxes"], "--out", f"{tmp_path}/x"])


def test_a_users_images_are_relabelled(tmp_path: Path, capsys: Capture) -> None:
    from dpt.data.scenes.render import render
    from dpt.sampling.draw import Request
    from tests.methods.ipr.painted import scene_for

    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    rows = []
    for number in range(6):
        prompt = "a red circle to the left of a blue square"
        Image.fromarray(render(scene_for(Request(prompt, 0, number)))).save(folder / f"sub/{number}.png")
        rows.append({"file_name": f"sub/{number}.png", "text": prompt})
    rows.append({"file_name": "sub/0.png", "text": "the harbour of Rotterdam"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(["relabel", str(folder), "--out", str(tmp_path / "out"), "--detector", "oracle"])
    printed = capsys.readouterr().out
    assert "of 7 images show their prompt" in printed and "1 left out (its caption is not understood)" in printed
    new = read_picture_folder(tmp_path / "out")
    assert len(new) == 6 and {picture.weight for picture in new} == {0.5, 1.0}
    assert all((picture.caption == rows[0]["text"]) == (picture.weight == 1.0) for picture in new)
    run(["relabel", str(folder), "--out", str(tmp_path / "kept"), "--detector", "oracle", "--unparsed", "keep"])
    assert read_picture_folder(tmp_path / "kept")[-1].caption == "the harbour of Rotterdam"
    (folder / "metadata.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    with pytest.raises(UserError, match=r"none of the 1 captions of .* is understood; one is 'the harbour"):
        run(["relabel", str(folder), "--out", str(tmp_path / "none")])


def test_visor_numbers_by_hand_and_by_definition(tmp_path: Path) -> None:
    def entry(relation: str, recall: int, sra: int) -> dict[str, Any]:
        return {"rel_type": relation, "recall": recall, "sra": sra, "text": "", "classes": [], "centroid": []}

    results = {
        "1_0": entry("above", 2, 1), "1_1": entry("above", 2, 1), "1_2": entry("above", 2, 0),
        "1_3": entry("above", 1, 0), "2_0": entry("to the left of", 0, 0), "2_1": entry("to the left of", 2, 1),
        "2_2": entry("to the left of", 1, 1), "2_3": entry("to the left of", 0, 0),
        "3_0": entry("and", 2, 1), "4_0": entry("single", 1, 0),
    }  # fmt: skip
    scores = visor_scores(results)
    assert (scores.images, scores.object_accuracy, scores.conditional, scores.unconditional) == (8, 50.0, 75.0, 37.5)
    assert scores.at_least == (100.0, 50.0, 0.0, 0.0)
    assert scores.conditional * scores.object_accuracy / 100 == scores.unconditional
    nothing = visor_scores({"1_0": entry("above", 1, 0)})
    assert (nothing.conditional, nothing.unconditional) == (0.0, 0.0)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    assert visor_scores(read_visor(file)) == scores
    file.write_text(json.dumps({"1_0": {**results["1_0"], "recall": 3}}))
    with pytest.raises(UserError, match="entry '1_0': 'recall' is 0, 1 or 2"):
        read_visor(file)
    with pytest.raises(UserError, match="no image of a prompt with a relation"):
        visor_scores({"3_0": entry("and", 2, 1)})
