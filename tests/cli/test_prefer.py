"""`dpt prefer …` and `train_hps.py`: the whole chain on tiny models, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.cli import main as dpt_main
from dpt.cli.common.console import flag_value
from dpt.cli.prefer import train as prefer_train
from dpt.cli.prefer import tune
from dpt.methods.base import DiffusionConfig, GenerationConfig
from dpt.sampling.draw import Request
from dpt.sampling.options import SamplerConfig
from dpt.sampling.pipeline import DPTPipeline
from tests import tiny_models
from tests.evaluation import tiny_vision
from tests.preference_folder import write_preferences


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def drawn(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of each of three prompts, drawn and scored by a stand-in, and selected."""
    root = tmp_path_factory.mktemp("drawn")
    (root / "prompts.json").write_text(json.dumps(["a red circle", "two blue squares", "a green star"]))
    draw(root / "pictures", root / "prompts.json", model)
    rows = [json.loads(line) for line in (root / "pictures/metadata.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(0)
    lines = [
        {"id": i, "prompt": row["caption"], "score": float(rng.normal(20, 3)), "blurry": False, **row}
        for i, row in enumerate(rows)
    ]
    (root / "scores.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--scores", str(root / "scores.jsonl"), "--images", str(root / "pictures"), "--out", str(root / "chosen")]
    dpt_main.run(["prefer", "select", *words])
    return root


def draw(out: Path, prompts: Path, model: Path, *words: str) -> None:
    few = ["--n_samples", "5", "--num_timesteps", "2", "--pretrained_model_name_or_path", str(model)]
    dpt_main.run(["prefer", "draw", "--prompts", str(prompts), "--out", str(out), *few, *words])


def pixels(folder: Path) -> dict[str, Any]:
    return {file.name: np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))}


def test_a_drawn_image_depends_on_seed_and_prompt_alone_and_other_settings_are_refused(
    drawn: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = pixels(drawn / "pictures")
    assert list(expected) == [f"{prompt}_{k}.png" for prompt in range(3) for k in range(5)]
    again = tmp_path / "again"
    draw(again, drawn / "prompts.json", model)
    (again / "1_2.png").write_bytes(b"cut")
    (again / "2_0.png").unlink()
    draw(again, drawn / "prompts.json", model)
    assert all(np.array_equal(image, expected[name]) for name, image in pixels(again).items())
    with pytest.raises(Exception, match="holds pictures of another seed: choose another --out"):
        draw(again, drawn / "prompts.json", model, "--seed", "9")
    draw(tmp_path / "reg", drawn / "prompts.json", model, "--type", "regularization")
    assert '"type": "regularization"' in (tmp_path / "reg/metadata.jsonl").read_text()


def test_guidance_scales_take_turns_over_the_images_of_a_prompt(
    drawn: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "scales", tmp_path / "other"
    draw(out, drawn / "prompts.json", model, "--guidance_scales", "1", "4")
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["guidance_scale"] for row in rows] == [1, 4, 1, 4, 1] * 3
    draw(other, drawn / "prompts.json", model, "--guidance_scale", "4")
    mixed, all_at_four = pixels(out), pixels(other)
    same = {name for name, image in mixed.items() if np.allclose(image, all_at_four[name], atol=1)}
    assert same == {row["file_name"] for row in rows if row["guidance_scale"] == 4}
    assert "guidance_scale" not in (other / "metadata.jsonl").read_text()
    with pytest.raises(Exception, match="holds pictures of another guidance_scales: choose another --out"):
        draw(out, drawn / "prompts.json", model)
    for words, message in (
        (("1", "nan"), "--guidance_scales are numbers from 0 up, not nan"),
        (("-1",), "--guidance_scales are numbers from 0 up, not -1"),
        (("1", "2", "3", "4", "5", "6"), "--guidance_scales are 6, more than --n_samples, 5"),
        (("1", "--guidance_scale", "3"), "--guidance_scales and --guidance_scale: give one of them"),
    ):
        with pytest.raises(Exception, match=message):
            draw(tmp_path / "bad", drawn / "prompts.json", model, "--guidance_scales", *words)


def test_selection_writes_captions_types_and_confidences(drawn: Path) -> None:
    rows = [json.loads(line) for line in (drawn / "chosen/metadata.jsonl").read_text().splitlines()]
    assert {row["type"] for row in rows} == {"positive", "negative"}
    for row in rows:
        assert (drawn / "chosen" / row["file_name"]).is_file() and row["confidence"] > 2 / 5 and row["weight"] == 1
        assert row["caption"].startswith("Weird image. ") == (row["type"] == "negative") and row["batch_size"] == 5


@pytest.fixture(scope="module")
def tuned(drawn: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tuned")
    (root / "prompts.txt").write_text("a red circle\n")
    assert tune.main(arguments(drawn, model, root, "--validation_prompt_file", str(root / "prompts.txt"))) == 0
    return root / "run"


def arguments(drawn: Path, model: Path, root: Path, *words: str) -> list[str]:
    few = "--max_train_steps 2 --train_batch_size 3 --lora_rank 2 --num_validation_images 1 --validation_timesteps 2"
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(root), "--run_name", "run"]
    rate = ["--learning_rate", "0.5", "--report_to", "none"]
    return [*few.split(), *where, *rate, "--dataset_folder", str(drawn / "chosen"), *words]


def request(prompt: str = "a red circle", negative: str = "") -> Request:
    return Request(prompt, 1, 0, negative)


def made(config: DiffusionConfig, model: Path, **sampler: Any) -> Any:
    method = config.open(GenerationConfig(str(model), SamplerConfig(2, **sampler), mixed_precision="no"))
    return np.asarray(next(iter(method.make([request()])))), method.identity


@pytest.mark.slow
def test_the_result_carries_its_negative_prompt_and_every_consumer_applies_it(
    tuned: Path, model: Path, tmp_path: Path
) -> None:
    assert json.loads((tuned / "generation_defaults.json").read_text()) == {"negative_prompt": "Weird image. "}
    assert Image.open(tuned / "validation/step-000002.png").width > 0
    own, identity = made(DiffusionConfig("hps", tuned), model)
    given, _ = made(DiffusionConfig("hps", tuned, negative_prompt="Weird image. "), model)
    without, plain = made(DiffusionConfig("hps", tuned, negative_prompt=""), model)
    assert identity["negative_prompt"] == "Weird image. " and "negative_prompt" not in plain
    assert np.array_equal(own, given) and not np.array_equal(own, without)
    assert DPTPipeline.from_pretrained(model, checkpoint=tuned).defaults.negative_prompt == "Weird image. "
    checkpoint = open_checkpoint(tuned)
    result = export_checkpoint(checkpoint, "diffusers", tmp_path / "diffusers")
    assert "'Weird image. '" in " ".join(result.notes)
    assert 'negative_prompt="Weird image. "' in (tmp_path / "diffusers/README.md").read_text()
    again, _ = made(DiffusionConfig("hps", tmp_path / "diffusers/pytorch_lora_weights.safetensors"), model)
    assert np.array_equal(again, own)
    export_checkpoint(checkpoint, "kohya", tmp_path / "hps.safetensors")
    assert b"modelspec.usage_hint" in (tmp_path / "hps.safetensors").read_bytes()


@pytest.mark.slow
def test_a_negative_lora_predicts_the_negative_half_of_guidance(tuned: Path, model: Path) -> None:
    base, _ = made(DiffusionConfig("base"), model)
    npo, identity = made(DiffusionConfig("npo", negative_lora=tuned), model)
    assert "negative_lora" in identity and not np.array_equal(base, npo)
    unguided, _ = made(DiffusionConfig("npo", negative_lora=tuned), model, guidance_scale=1.0)
    assert np.array_equal(unguided, made(DiffusionConfig("base"), model, guidance_scale=1.0)[0])


@pytest.mark.slow
def test_a_second_lora_is_added_to_the_first(tuned: Path, model: Path) -> None:
    once, _ = made(DiffusionConfig("once", tuned), model)
    alone, identity = made(DiffusionConfig("alone", tuned, lora=False, also=tuned), model)
    twice, both = made(DiffusionConfig("twice", tuned, also=tuned), model)
    assert np.array_equal(alone, once) and not np.array_equal(twice, once)
    assert identity["also"] == both["also"] == both["lora"]


@pytest.mark.slow
def test_tuning_does_not_change_the_base_and_is_deterministic(
    tuned: Path, drawn: Path, model: Path, tmp_path: Path
) -> None:
    first = open_checkpoint(tuned).lora
    again = tmp_path / "logs"
    assert tune.main(arguments(drawn, model, again)) == 0
    second = open_checkpoint(again / "run").lora
    assert first is not None and second is not None
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    assert first.record.base_hash == open_backbone(model).model_hash
    assert tune.main(arguments(drawn, model, again, "--negative_prefix", "bad. ", "--run_name", "other")) == 0
    assert "bad. " in (again / "other/generation_defaults.json").read_text()


def test_recipe_values_are_defaults_that_flags_win_over(drawn: Path) -> None:
    assert (
        flag_value(["--seed", "1", "--recipe", "align-sd"], "recipe")
        == "align-sd"
        == flag_value(["--recipe=align-sd"], "recipe")
    )
    o = tune.ALIGN_SD.optimisation
    assert (o.learning_rate, o.train_batch_size, o.max_train_steps, o.seed) == (1e-5, 40, 10_000, 42)
    assert (tune.ALIGN_SD.lora.lora_rank, o.adam_weight_decay, o.max_grad_norm) == (4, 1e-2, 1.0)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--negative_prefix", " "], "--negative_prefix is empty: losers would be trained as winners"),
        (["--ratios", "1", "1", "1"], "--ratios gives regularization images a share, and there are none"),
        (["--dataset_folder", "nowhere"], "there is no data folder nowhere"),
        (["--logit_std", "0"], "--logit_mean must be a number and --logit_std positive, not 0 and 0"),
        (["--logit_mean", "-1"], "--logit_mean and --logit_std are for flow matching models"),
        (["--num_validation_images", "0"], "--num_validation_images must be at least 1, not 0"),
    ],
)
def test_tuning_refuses_in_one_sentence(
    drawn: Path, model: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(arguments(drawn, model, tmp_path, *words)) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_is_trained_checked_and_scores_a_folder(
    clip: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_preferences(tmp_path, 12, sizes=(1, 3, 4))
    words = f"--train_file {file} --clip {clip} --max_train_steps 2 --output_dir {tmp_path} --run_name run"
    more = "--visual_blocks 1 --text_blocks 0 --test_fraction 0.3 --report_to none"
    assert prefer_train.main([*words.split(), *more.split()]) == 0
    scorer = tmp_path / "run/classifier"
    record = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert {"top1", "top1_chance", "pairwise"} <= record["validation"].keys()
    dpt_main.run(["prefer", "check", str(file), "--scorer", str(scorer), str(clip)])
    out = capsys.readouterr().out
    assert "4 with 1, 4 with 3, 4 with 4" in out and "they teach nothing" in out and out.count("top-1") == 2
    score = ["--images", str(drawn / "pictures"), "--scorer", str(scorer), "--out", str(tmp_path / "s.jsonl")]
    dpt_main.run(["evaluate_hps", *score])
    assert "mean score" in capsys.readouterr().out and len((tmp_path / "s.jsonl").read_text().splitlines()) == 15
    (tmp_path / "preference_images/5_0.png").unlink()
    with pytest.raises(Exception, match="check 1 images of"):
        dpt_main.run(["prefer", "check", str(file)])
    leaking = tmp_path / "preference_test.json"
    leaking.write_text(json.dumps(json.loads(file.read_text())[:2]))
    with pytest.raises(Exception, match="the split into training and test"):
        dpt_main.run(["prefer", "check", str(file), str(leaking)])
    assert "users or prompts are in both files" in capsys.readouterr().out


def test_commands_with_exit_codes_of_their_own_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dpt", "prefer", "tune", "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        dpt_main.main()
    assert ended.value.code == 2
    assert "prefer train" in dpt_main.commands_of("prefer")


def test_a_long_prompt_is_scored_by_its_beginning_and_the_last_batch_may_have_one_image(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """17 images are a batch of 16 and one of a single image, on which the published script fails."""
    rows = []
    for number in range(17):
        Image.new("RGB", (8, 8), (10 * number, 90, 0)).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "caption": "a red circle " * 40 if number == 3 else "a red circle"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dpt_main.run(["prefer", "score", "--images", str(tmp_path), "--scorer", str(clip)])
    out = capsys.readouterr().out
    assert "of 17 images" in out and "1 prompts are longer than" in out
    (tmp_path / "4.png").write_bytes(b"cut off")
    again = ["--images", str(tmp_path), "--scorer", str(clip), "--out", str(tmp_path / "again.jsonl")]
    with pytest.raises(Exception, match="1 images cannot be read, more than --corrupt_budget allows"):
        dpt_main.run(["prefer", "score", *again])
    dpt_main.run(["prefer", "score", *again, "--corrupt_budget", "1"])
    lines = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [n for n in range(17) if n != 4]
