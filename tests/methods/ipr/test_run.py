"""A whole run of IPR on painted images: every artefact, the same result from the same seed, and after a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpt.claims.judge import judge
from dpt.data.folder import read_picture_folder
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.errors import UserError
from dpt.methods.ipr.config import FineTuneConfig, MergeConfig
from dpt.methods.ipr.prompts import read_prompts
from dpt.methods.ipr.rounds import IPRRun
from tests import tiny_sdxl, tiny_transformers
from tests.methods.ipr.painted import config, content, painted, painter, same_weights, tiny_model, weights

__all__ = ["painter", "tiny_model"]

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("painter")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "ipr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpt.sampling.draw.draw", painted)
        assert IPRRun(config(tiny_model), out).run()
    return out


def test_every_stage_leaves_its_folder_and_the_captions_hold(finished: Path) -> None:
    oracle = Oracle(POCKET_WORLD)
    for round_ in (0, 1):
        folder = finished / f"round-{round_}"
        assert {path.name for path in folder.iterdir()} == {"images", "detections", "relabelled", "dataset", "train"}
        rows = [json.loads(line) for line in (folder / "relabelled/metadata.jsonl").read_text().splitlines()]
        counts = json.loads((folder / "relabelled/stage.json").read_text())["counts"]
        assert counts["images"] == 12 and counts["correct"] == sum(row["correctness"] for row in rows)
        assert 0 < counts["correct"] < 12 and counts["relabelled"] > 0
        prompts = {prompt.id: prompt for prompt in read_prompts(finished / "prompts.json")}
        for row in rows:
            assert row["file_name"].startswith(f"{round_}_") and row["round"] == round_
            assert row["weight"] == (1.0 if row["correctness"] else 0.5)
            original = prompts[row["uniq_id"]]
            assert row["original_prompt"] == original.text
            image = np.asarray(Image.open(folder / "relabelled" / row["file_name"]))
            assert judge(original, oracle.read(image)).passed == row["correctness"]
            assert row["correctness"] == (row["prompt"] == original.text)
    names = [picture.file_name for picture in read_picture_folder(finished / "round-1/dataset")]
    assert len(names) == len(set(names)) and {name[0] for name in names} == {"0", "1"}
    assert (finished / "lora/lora.json").is_file()
    table = (finished / "measured/table.md").read_text()
    assert len(list((finished / "measured/round-2").glob("*.png"))) == 3
    assert all(f"| round-{round_} |" in table for round_ in (0, 1, 2)) and "| round-2 - round-0 |" in table


def test_training_and_held_out_prompts_share_no_pair_of_nouns(finished: Path) -> None:
    pairs = [
        {frozenset(prompt.nouns) for prompt in read_prompts(finished / name)}
        for name in ("prompts.json", "held_out.json")
    ]
    assert len(pairs[0]) > 3 and len(pairs[1]) > 1 and not pairs[0] & pairs[1]


def test_two_runs_with_one_seed_are_identical_and_a_finished_run_changes_nothing(
    finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    IPRRun(config(tiny_model), other).run()
    assert content(other) == content(finished)
    assert same_weights(other, finished)
    times = {file: file.stat().st_mtime_ns for file in finished.rglob("*.json*") if "measured" not in str(file)}
    assert IPRRun(config(tiny_model), finished).run()
    unchanged = ("stage.json", "metadata.jsonl", "detections.json", "prompts.json", "held_out.json", "log.jsonl")
    assert all(file.stat().st_mtime_ns == time for file, time in times.items() if file.name in unchanged)


@pytest.mark.nightly
def test_a_longer_run_continues_a_shorter_one(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    IPRRun(config(tiny_model, rounds=1), tmp_path / "out").run()
    assert not (tmp_path / "out/round-1").exists()
    IPRRun(config(tiny_model), tmp_path / "out").run()
    assert content(tmp_path / "out") == content(finished)


def test_other_options_and_changed_prompts_are_refused(finished: Path, tiny_model: Path) -> None:
    with pytest.raises(
        UserError, match=r"is the folder of a run with another configuration \(lora_rank was 2 and is 4"
    ):
        train = replace(config(tiny_model).train, lora_rank=4)
        IPRRun(config(tiny_model, train=train), finished).run()
    file = finished / "prompts.json"
    before = file.read_text()
    try:
        file.write_text(before.replace('"spatial"', '"other"'))
        with pytest.raises(UserError, match=r"the prompts of pocket are not those of .*prompts\.json"):
            IPRRun(config(tiny_model), finished).run()
    finally:
        file.write_text(before)


def test_the_whole_unet_can_be_trained_and_every_round_merged(tiny_model: Path, tmp_path: Path) -> None:
    from dpt.backbone import open_backbone

    said: list[str] = []
    options = config(
        tiny_model,
        train=FineTuneConfig(full=True, max_train_steps=2, train_batch_size=4, ema_decay=0.5, learning_rate=1e-3),
        merging=MergeConfig("all"),
    )
    assert IPRRun(options, tmp_path / "out", say=said.append).run()
    model = tmp_path / "out/round-1/train/model"
    assert any(str(model) in line for line in said)
    hashes = {
        open_backbone(path, device="cpu").model_hash
        for path in (tiny_model, model.parents[2] / "round-0/train/model", model)
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("pipeline", "flags", "trained"),
    [
        (tiny_transformers.sd3, {"logit_mean": -1.0}, "add_q_proj"),
        (tiny_sdxl.sdxl, {"lora_text_encoders": True}, "text_encoder_2"),
    ],
)
def test_other_architectures_are_trained(pipeline: Any, flags: dict[str, Any], trained: str, tmp_path: Path) -> None:
    model = tiny_transformers.save(pipeline(), tmp_path / "model")
    train = FineTuneConfig(max_train_steps=1, train_batch_size=4, lora_rank=2, learning_rate=1e-2, **flags)
    assert IPRRun(config(model, rounds=1, train=train), tmp_path / "out").run()
    tensors = {name: tensor for name, tensor in weights(tmp_path / "out").items() if "lora_B" in name}
    assert any(trained in name and bool(tensor.any()) for name, tensor in tensors.items()), list(tensors)


@pytest.mark.nightly
def test_two_processes_give_the_images_and_captions_of_one(tiny_model: Path, tmp_path: Path) -> None:
    launch = (
        "-m torch.distributed.run --nproc_per_node {} --master_port 0 --rdzv_backend c10d --rdzv_endpoint localhost:0"
    )
    flags = (
        f"train_ipr.py --pretrained_model_name_or_path {tiny_model} --categories spatial --prompts 3 --held_out 2 "
        "--per_prompt 2 --num_timesteps 2 --failures keep --max_train_steps 2 --lora_rank 2 --rounds 1"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for processes, batch in ((1, 4), (2, 2)):
        words = f"{launch.format(processes)} {flags} --train_batch_size {batch} --out {tmp_path / str(processes)}"
        done = subprocess.run(
            [sys.executable, *words.split()], env=environment, capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
    alone, together = (content(tmp_path / name / "round-0") for name in ("1", "2"))
    kept = [name for name in alone if not name.startswith("train")]
    assert len(kept) > 20 and {name: alone[name] for name in kept} == {name: together[name] for name in kept}
    ours, theirs = (weights(tmp_path / name) for name in ("1", "2"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
