"""A stage on the training engine: shared batches, master weights, and processes that end with their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dpt.claims.words import vocabulary
from dpt.data.scenes.world import POCKET_WORLD
from dpt.distributed import Processes, launch
from dpt.errors import UserError
from dpt.pocket.build import text_tower
from dpt.pocket.clip import build_clip, build_tokenizer
from dpt.pocket.training import MasterWeightUpdate, Schedule, TextRecipe, UNetRecipe, train_stage
from dpt.pocket.unet import UNetStage
from dpt.training.engine.settings import TrainSettings

BATCH = 6
ROOT = Path(__file__).parent.parent.parent


def tiny_stage() -> UNetStage:
    torch.manual_seed(0)
    text = TextRecipe(width=16, layers=1, heads=2, image_layers=1, patch=16)
    tokenizer = build_tokenizer(vocabulary(), text.length)
    recipe = UNetRecipe(channels=(16, 16, 32), head_width=16)
    latents = torch.randn(64, 4, 16, 16)
    return UNetStage(recipe, POCKET_WORLD, 3, latents, text_tower(build_clip(text, tokenizer)), tokenizer)


SCHEDULE = Schedule(steps=1, batch=BATCH, learning_rate=1e-3, warmup=2, decay=2, dtype="float32")


def train(folder: Path, processes: Processes) -> None:
    torch.set_num_threads(1)
    stage = tiny_stage()
    assert train_stage(stage, SCHEDULE, UNetRecipe(schedule=SCHEDULE), folder / str(processes.count), None, processes)


@pytest.mark.nightly
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """The batch of a step is shared by rows: the gradient is that of the whole batch."""
    for count in (1, 2):
        launch(count, partial(train, tmp_path))
    single, shared = (load_file(tmp_path / str(count) / "checkpoint-1" / "moments.safetensors") for count in (1, 2))
    assert single.keys() == shared.keys()
    for name, moment in single.items():
        torch.testing.assert_close(shared[name], moment, rtol=1e-3, atol=1e-6, msg=name)


def test_batch_must_divide_among_processes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 6 cannot be shared evenly by 4 processes"):
        train_stage(tiny_stage(), SCHEDULE, UNetRecipe(), tmp_path, None, Processes(0, 4))


def updated(dtype: torch.dtype, **changes: Any) -> tuple[nn.Linear, MasterWeightUpdate]:
    """A model and its optimizer after one step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    settings = TrainSettings(**{"max_train_steps": 10, "learning_rate": 1e-6, "ema_decay": 0.9, **changes})
    update = MasterWeightUpdate(model, dtype, settings)
    model(torch.linspace(-1, 1, 12).view(3, 4).to(dtype)).float().square().sum().backward()
    update.average_gradients(Processes())
    update.apply(0, torch.tensor(False))
    return model, update


def test_master_weights_keep_updates_that_half_precision_would_lose() -> None:
    torch.manual_seed(0)
    start = nn.Linear(4, 3).weight.detach()
    model, update = updated(torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16 and torch.equal(model.weight, start.bfloat16())
    assert 0 < float((update.named["weight"] - start).abs().max()) < 2e-6


def test_full_precision_updates_equal_adamw() -> None:
    model, update = updated(torch.float32, learning_rate=0.01, adam_weight_decay=0.5)
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    adam = torch.optim.AdamW(
        [{"params": [plain.weight]}, {"params": [plain.bias], "weight_decay": 0.0}], lr=0.01, weight_decay=0.5
    )
    plain(torch.linspace(-1, 1, 12).view(3, 4)).square().sum().backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    adam.step()
    torch.testing.assert_close(model.weight, plain.weight)
    torch.testing.assert_close(model.bias, plain.bias)
    update.finish()
    assert update.average is not None and torch.equal(model.weight, update.average.tensors["weight"])


def sleep_for_ever(folder: Path, processes: Processes) -> None:
    (folder / f"{os.getpid()}.pid").touch()
    processes.barrier()
    time.sleep(600)


LAUNCH = """
import sys
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from dpt.distributed import launch
from tests.pocket.test_training import sleep_for_ever
if __name__ == "__main__":
    launch(2, partial(sleep_for_ever, Path(sys.argv[1])))
"""


@pytest.mark.nightly
def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while len(pids := [int(file.stem) for file in tmp_path.glob("*.pid")]) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
