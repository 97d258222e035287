"""Many options at once, through the real commands to the end: what they say is in what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpt.training.engine import checkpoint
from tests.cli.options.test_trainers import COMMANDS
from tests.training import tiny_stage1

ASKED = (
    "--max_train_steps 3 --lr_scheduler linear --lr_warmup_steps 1 --learning_rate 1e-3 --max_grad_norm 0.05 --seed 5 "
    "--checkpointing_steps 1 --checkpoints_total_limit 2 --validation_steps 3 --ema_decay 0.5 --run_name mine "
    "--train_batch_size 1 --gradient_accumulation_steps 2 --fix_timestep 400 --i2t_loss_coef 3 --adam_weight_decay 0"
)
WEIGHTS = {"i2t": 3.0, "t2i": 1.0, "ce": 1.0, "bbox": 5.0, "giou": 2.0, "align": 1.0, "mse": 1.0}
EXPORTED = {"train_stage1.py": ("adapter", ""), "train_stage2.py": ("lora", "lora.")}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_was_asked_for_is_in_what_is_left(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name]
    model = str(tiny_stage1.model(tmp_path / "model"))
    words = [*command.words.format(model=model).split(), "--output_dir", str(tmp_path), *ASKED.split()]
    assert command.main(words) == 0
    root = tmp_path / "mine"
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["lr"] for line in steps] == pytest.approx([0, 1e-3, 5e-4])
    assert [line["images"] for line in steps] == [2, 4, 6]
    for line in steps:
        assert line["loss"] == pytest.approx(sum(w * line[one] for one, w in WEIGHTS.items() if one in line), rel=1e-4)
    assert [line["step"] for line in lines if "validation" in line] == [3]
    assert sorted(file.name for file in root.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    told = json.loads((root / "config.json").read_text())
    assert (told["seed"], told["global_batch"], told["fix_timestep"]) == (5, 2, 400)
    groups, _ = checkpoint.load(root / "checkpoint-3")
    folder, before = EXPORTED[name]
    kept = load_file(root / folder / f"{folder}.safetensors")
    averages = {key: groups["average"][f"{before}{key}"] for key in kept if f"{before}{key}" in groups["average"]}
    assert averages and all(torch.equal(kept[key], value) for key, value in averages.items())
    assert any(not torch.equal(kept[key], groups["weights"][f"{before}{key}"]) for key in averages)
    # Repeated, the same command finds it done; one option otherwise, and it says which.
    assert command.main(words) == 0
    assert command.main([*words, "--noise_offset", "0.1"]) == 2
